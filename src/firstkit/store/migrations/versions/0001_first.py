"""The first schema: people and keys, jobs and replicas, usage and audit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from firstkit.store.tables import UtcTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    _create_people()
    _create_keys()
    _create_jobs()
    _create_replicas()
    _create_usage()
    _create_records()


def downgrade() -> None:
    for table in ("audit", "usage", "observations", "replicas", "jobs", "api_keys", "members", "projects", "users"):
        op.drop_table(table)


def _create_people() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("email", sa.String(length=320)),
        sa.Column("is_admin", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("name", name=op.f("uq_users_name")),
    )
    op.create_table(
        "projects",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_projects")),
        sa.UniqueConstraint("name", name=op.f("uq_projects_name")),
    )
    op.create_table(
        "members",
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=20), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.CheckConstraint("role IN ('member', 'manager')", name=op.f("ck_members_role")),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_members_project_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_members_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("user_id", "project_id", name=op.f("pk_members")),
    )


def _create_keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("prefix", sa.String(length=32), nullable=False),
        sa.Column("secret_sha256", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("expires_at", UtcTime()),
        sa.Column("revoked_at", UtcTime()),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_api_keys_project_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_api_keys_user_id")),
        sa.PrimaryKeyConstraint("prefix", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("secret_sha256", name=op.f("uq_api_keys_secret_sha256")),
    )
    op.create_index(
        "uq_api_keys_living_name",
        "api_keys",
        ["name"],
        unique=True,
        sqlite_where=sa.text("revoked_at IS NULL"),
        postgresql_where=sa.text("revoked_at IS NULL"),
    )


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("cluster", sa.String(length=200), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("scheduler_id", sa.String(length=200)),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("account", sa.String(length=200)),
        sa.Column("submit_as", sa.String(length=200)),
        sa.Column("token_sha256", sa.String(length=64), nullable=False),
        sa.Column("secret_sha256", sa.String(length=64)),
        sa.Column("exit_code", sa.Integer()),
        sa.Column("node", sa.String(length=255)),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("submitted_at", UtcTime()),
        sa.Column("started_at", UtcTime()),
        sa.Column("ends_at", UtcTime()),
        sa.Column("ended_at", UtcTime()),
        sa.Column("observed_at", UtcTime()),
        sa.Column("absent_polls", sa.Integer(), nullable=False),
        sa.Column("absent_since", UtcTime()),
        sa.CheckConstraint(
            "state IN ('PLANNED', 'SUBMITTING', 'PENDING', 'RUNNING', 'ENDING', 'COMPLETED', 'FAILED', 'CANCELLED', "
            "'TIMEOUT', 'NODE_FAIL', 'PREEMPTED', 'OUT_OF_MEMORY', 'VANISHED', 'REJECTED')",
            name=op.f("ck_jobs_state"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("cluster", "scheduler_id", name=op.f("uq_jobs_cluster_scheduler_id")),
    )
    op.create_index(op.f("ix_jobs_state"), "jobs", ["state"])


def _create_replicas() -> None:
    op.create_table(
        "replicas",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=300), nullable=False),
        sa.Column("deployment", sa.String(length=500), nullable=False),
        sa.Column("cluster", sa.String(length=200), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("log_tail", sa.Text(), nullable=False),
        sa.Column("max_in_flight", sa.Integer(), nullable=False),
        sa.Column("needs", sa.JSON(), nullable=False),
        sa.Column("load_s", sa.Float()),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("started_at", UtcTime()),
        sa.Column("ready_at", UtcTime()),
        sa.Column("ended_at", UtcTime()),
        sa.Column("observed_at", UtcTime()),
        sa.CheckConstraint(
            "state IN ('QUEUED', 'STARTING', 'READY', 'DRAINING', 'STOPPED', 'FAILED')", name=op.f("ck_replicas_state")
        ),
        sa.CheckConstraint("max_in_flight > 0", name=op.f("ck_replicas_max_in_flight")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_replicas_job_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_replicas")),
    )
    op.create_index(op.f("ix_replicas_deployment_created_at"), "replicas", ["deployment", "created_at"])
    op.create_index(op.f("ix_replicas_state"), "replicas", ["state"])


def _create_usage() -> None:
    op.create_table(
        "usage",
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("key_prefix", sa.String(length=32), nullable=False),
        sa.Column("model", sa.String(length=300), nullable=False),
        sa.Column("endpoint", sa.String(length=100), nullable=False),
        sa.Column("cluster", sa.String(length=200)),
        sa.Column("replica_id", sa.String(length=64)),
        sa.Column("outcome", sa.String(length=20), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("estimated", sa.Boolean(), nullable=False),
        sa.Column("queue_s", sa.Float(), nullable=False),
        sa.Column("ttft_s", sa.Float()),
        sa.Column("duration_s", sa.Float(), nullable=False),
        sa.CheckConstraint(
            "outcome IN ('complete', 'rejected', 'failed', 'timeout', 'cancelled', 'lost')",
            name=op.f("ck_usage_outcome"),
        ),
        sa.CheckConstraint("prompt_tokens >= 0 AND completion_tokens >= 0", name=op.f("ck_usage_tokens")),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_usage")),
    )
    op.create_index(op.f("ix_usage_at"), "usage", ["at"])
    op.create_index(op.f("ix_usage_project_id_at"), "usage", ["project_id", "at"])
    op.create_index(op.f("ix_usage_user_id_at"), "usage", ["user_id", "at"])


def _create_records() -> None:
    op.create_table(
        "observations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("subject", sa.String(length=500), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("forecast_s", sa.Float()),
        sa.Column("at", UtcTime(), nullable=False),
        sa.CheckConstraint("kind IN ('queue_wait', 'load_time')", name=op.f("ck_observations_kind")),
        sa.CheckConstraint("seconds >= 0", name=op.f("ck_observations_seconds")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_observations")),
    )
    op.create_index(op.f("ix_observations_kind_subject_at"), "observations", ["kind", "subject", "at"])
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("action", sa.String(length=100), nullable=False),
        sa.Column("subject", sa.String(length=300), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index(op.f("ix_audit_at"), "audit", ["at"])
