"""The schema: rules live here (unique keys, CHECKs, foreign keys), Python only asks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)

from firstkit.links.messages import Outcome
from firstkit.states import JobState, ReplicaState

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def storable(text: str) -> str:
    """``text`` without NULs and halves of characters, which not every database takes."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


class Words(TypeDecorator[str]):
    """What others wrote (engines, pilots, schedulers), as far as it can be stored."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else storable(value)


class UtcTime(TypeDecorator[datetime]):
    """Aware UTC datetimes; SQLite stores them without a zone, PostgreSQL with."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("aware datetimes only")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _one_of(column: str, values: type[JobState] | type[ReplicaState] | type[Outcome]) -> CheckConstraint:
    allowed = ", ".join(f"'{v.value}'" for v in values)
    return CheckConstraint(f"{column} IN ({allowed})", name=column)


def _created() -> Column[Any]:
    return Column("created_at", UtcTime, nullable=False)


users = Table(
    "users",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("email", String(320)),
    Column("is_admin", Boolean, nullable=False, default=False),
    Column("roles", JSON, nullable=False, server_default=text("'[]'")),
    Column("groups", JSON, nullable=False, server_default=text("'[]'")),  # with the next two: as the last login told
    Column("domains", JSON, nullable=False, server_default=text("'[]'")),
    Column("claimed_projects", JSON, nullable=False, server_default=text("'[]'")),
    Column("default_project_id", String(64)),
    Column("seen_at", UtcTime),  # the last login; null: this user has none
    Column("disabled_at", UtcTime),
    _created(),
)

identities = Table(
    "identities",
    metadata,
    Column("issuer", String(300), primary_key=True),
    Column("subject", String(300), primary_key=True),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    _created(),
    Index(None, "user_id"),
)
"""Who a user is to an identity provider: never by name, which another may have there tomorrow."""

sessions = Table(
    "sessions",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("issuer", String(300), nullable=False),
    _created(),
    Column("expires_at", UtcTime, nullable=False),
    Index(None, "expires_at"),
    Index(None, "user_id"),
)
"""Browsers in which somebody is logged in."""

logins = Table(
    "logins",
    metadata,
    Column("state_sha256", String(64), primary_key=True),
    Column("browser_sha256", String(64), nullable=False),
    Column("provider", String(20), nullable=False),
    Column("nonce", String(100), nullable=False),
    Column("verifier", String(200), nullable=False),
    Column("return_to", String(500), nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Index(None, "expires_at"),
)
"""Logins of browsers that are under way at an identity provider."""

projects = Table(
    "projects",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("description", Text, nullable=False, default=""),
    _created(),
)

members = Table(
    "members",
    metadata,
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("project_id", ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True),
    Column("role", String(20), nullable=False, default="member"),
    _created(),
    CheckConstraint("role IN ('member', 'manager')", name="role"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("prefix", String(32), primary_key=True),
    Column("secret_sha256", String(64), nullable=False, unique=True),
    Column("name", String(200), nullable=False),
    Column("user_id", ForeignKey("users.id"), nullable=False),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("projects", JSON),  # names of further projects that a request may be charged to; null: none
    Column("models", JSON),  # canonical names of those that it is for; null: all
    Column("is_personal", Boolean, nullable=False, server_default=false()),  # made by its user, for what that one may
    _created(),
    Column("expires_at", UtcTime),
    Column("revoked_at", UtcTime),
    Index(None, "user_id"),
)
# One name for one living key of a user; a revoked name may be used again. On PostgreSQL the index has the same
# condition: the migration says so, and saying it here would import that dialect, 30 ms of every command.
Index(
    "uq_api_keys_living_name",
    api_keys.c.user_id,
    api_keys.c.name,
    unique=True,
    sqlite_where=api_keys.c.revoked_at.is_(None),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("cluster", String(200), nullable=False),
    Column("state", String(20), nullable=False),
    Column("reason", Words, nullable=False, default=""),
    Column("scheduler_id", String(200)),
    Column("spec", JSON, nullable=False),  # resources asked for; no secret
    Column("account", String(200)),
    Column("submit_as", String(200)),
    Column("token_sha256", String(64), nullable=False),
    Column("secret_sha256", String(64)),
    Column("exit_code", Integer),
    Column("node", String(255)),
    _created(),
    Column("submitted_at", UtcTime),
    Column("started_at", UtcTime),
    Column("ends_at", UtcTime),
    Column("ended_at", UtcTime),
    Column("observed_at", UtcTime),
    Column("absent_polls", Integer, nullable=False, default=0),
    Column("absent_since", UtcTime),
    Column("starts_at", UtcTime),
    Column("position", Integer),
    Column("address", String(300)),
    UniqueConstraint("cluster", "scheduler_id"),
    _one_of("state", JobState),
    Index(None, "state"),
    Index(None, "cluster", "created_at"),
)

replicas = Table(
    "replicas",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("model", String(300), nullable=False),
    Column("deployment", String(500), nullable=False),
    Column("cluster", String(200), nullable=False),
    Column("state", String(20), nullable=False),
    Column("reason", Words, nullable=False, default=""),
    Column("log_tail", Words, nullable=False, default=""),
    Column("max_in_flight", Integer, nullable=False),
    Column("needs", JSON, nullable=False),
    Column("load_s", Float),
    _created(),
    Column("started_at", UtcTime),
    Column("ready_at", UtcTime),
    Column("ended_at", UtcTime),
    Column("observed_at", UtcTime),
    CheckConstraint("max_in_flight > 0", name="max_in_flight"),
    _one_of("state", ReplicaState),
    Index(None, "state"),
    Index(None, "deployment", "created_at"),
    Index(None, "job_id"),
)

drained_clusters = Table(
    "drained_clusters",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("message", Words, nullable=False, default=""),
)

observations = Table(
    "observations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String(20), nullable=False),
    Column("subject", String(500), nullable=False),  # cluster for queue waits, deployment for load times
    Column("seconds", Float, nullable=False),
    Column("forecast_s", Float),
    Column("late_s", Float),  # what it was forecast not to exceed, nine times of ten
    Column("shape", String(500), nullable=False, server_default=text("''")),  # of queue waits: see seasons.shape_of
    Column("began_at", UtcTime),  # of queue waits: when the job was submitted
    Column("at", UtcTime, nullable=False),
    CheckConstraint("kind IN ('queue_wait', 'load_time')", name="kind"),
    CheckConstraint("seconds >= 0", name="seconds"),
    Index(None, "kind", "subject", "at"),
)

polls = Table(
    "polls",
    metadata,
    Column("cluster", String(200), primary_key=True),
    Column("hour", UtcTime, primary_key=True),
    Column("good", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    CheckConstraint("good >= 0 AND failed >= 0", name="not_negative"),
)
"""Of each hour: in how many minutes a scheduler was asked and answered, and in how many it did not answer."""

usage = Table(
    "usage",
    metadata,
    Column("request_id", String(64), primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("user_id", String(64), nullable=False),
    Column("project_id", String(64), nullable=False),
    Column("key_prefix", String(32), nullable=False),
    Column("model", String(300), nullable=False),
    Column("endpoint", String(100), nullable=False),
    Column("cluster", String(200)),
    Column("replica_id", String(64)),
    Column("outcome", String(20), nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("queue_s", Float, nullable=False),
    Column("ttft_s", Float),
    Column("duration_s", Float, nullable=False),
    Column("engine", String(200)),
    Column("revision", String(200)),
    CheckConstraint("prompt_tokens >= 0 AND completion_tokens >= 0", name="tokens"),
    _one_of("outcome", Outcome),
    Index(None, "project_id", "at"),
    Index(None, "user_id", "at"),
    Index(None, "at"),
)

responses = Table(
    "responses",
    metadata,
    Column("user_id", String(64), primary_key=True),
    Column("id", String(100), primary_key=True),
    Column("model", String(300), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("input", Text, nullable=False),
    Column("response", Text, nullable=False),
    Index(None, "expires_at"),
)
"""Answers that their owner wanted to be kept, for as long as the operator allows: JSON as it was said. An id is one of
an owner's: what others have shows in no way."""

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("action", String(100), nullable=False),
    Column("subject", String(300), nullable=False),
    Column("details", JSON, nullable=False),
    Column("source", String(100), nullable=False, server_default=text("''")),  # its address; empty: this machine
    Column("count", Integer, nullable=False, server_default="1"),  # so many alike within seconds
    Index(None, "at"),
)
"""What was done and what was denied. Rows are only added: triggers of the database refuse all else."""

budgets = Table(
    "budgets",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("project_id", ForeignKey("projects.id", ondelete="CASCADE")),
    Column("user_id", ForeignKey("users.id", ondelete="CASCADE")),
    Column("model", String(300)),
    Column("each", String(10)),
    Column("tokens", BigInteger),
    Column("node_hours", Float),
    Column("period", String(10), nullable=False),
    Column("stop", String(10), nullable=False),
    Column("warn_at", Float, nullable=False),
    _created(),
    CheckConstraint("(tokens IS NULL) <> (node_hours IS NULL)", name="one_unit"),
    CheckConstraint("tokens >= 0 AND node_hours >= 0", name="not_negative"),
    CheckConstraint("period IN ('day', 'week', 'month', 'year', 'total')", name="period"),
    CheckConstraint("stop IN ('hard', 'soft')", name="stop"),
    CheckConstraint("each IN ('user', 'project')", name="each"),
)
"""What may be used in a period of UTC, beside the budgets of the configuration."""
