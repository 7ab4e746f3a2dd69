"""Identity and accounting: people who log in, what they may do, budgets, and an audit log that only grows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from firstkit.store.tables import UtcTime

revision = "0004"
down_revision = "0003"
_EMPTY = sa.text("'[]'")
_LIVING = sa.text("revoked_at IS NULL")


def upgrade() -> None:
    _people()
    _logins()
    op.add_column("api_keys", sa.Column("projects", sa.JSON()))
    op.add_column("api_keys", sa.Column("models", sa.JSON()))
    op.add_column("api_keys", sa.Column("is_personal", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index(op.f("ix_api_keys_user_id"), "api_keys", ["user_id"])
    op.drop_index("uq_api_keys_living_name", "api_keys")
    op.create_index(
        "uq_api_keys_living_name",
        "api_keys",
        ["user_id", "name"],
        unique=True,
        sqlite_where=_LIVING,
        postgresql_where=_LIVING,
    )
    _budgets()
    op.add_column("audit", sa.Column("source", sa.String(length=100), nullable=False, server_default=sa.text("''")))
    op.add_column("audit", sa.Column("count", sa.Integer(), nullable=False, server_default="1"))
    _guard_audit()


def _people() -> None:
    for name in ("roles", "groups", "domains", "claimed_projects"):
        op.add_column("users", sa.Column(name, sa.JSON(), nullable=False, server_default=_EMPTY))
    op.add_column("users", sa.Column("default_project_id", sa.String(length=64)))
    op.add_column("users", sa.Column("seen_at", UtcTime()))
    op.add_column("users", sa.Column("disabled_at", UtcTime()))
    op.create_table(
        "identities",
        sa.Column("issuer", sa.String(length=300), nullable=False),
        sa.Column("subject", sa.String(length=300), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], op.f("fk_identities_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("issuer", "subject", name=op.f("pk_identities")),
    )
    op.create_index(op.f("ix_identities_user_id"), "identities", ["user_id"])


def _logins() -> None:
    op.create_table(
        "sessions",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("issuer", sa.String(length=300), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], op.f("fk_sessions_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_expires_at"), "sessions", ["expires_at"])
    op.create_index(op.f("ix_sessions_user_id"), "sessions", ["user_id"])
    op.create_table(
        "logins",
        sa.Column("state_sha256", sa.String(length=64), nullable=False),
        sa.Column("browser_sha256", sa.String(length=64), nullable=False),
        sa.Column("provider", sa.String(length=20), nullable=False),
        sa.Column("nonce", sa.String(length=100), nullable=False),
        sa.Column("verifier", sa.String(length=200), nullable=False),
        sa.Column("return_to", sa.String(length=500), nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("state_sha256", name=op.f("pk_logins")),
    )
    op.create_index(op.f("ix_logins_expires_at"), "logins", ["expires_at"])


def _budgets() -> None:
    op.create_table(
        "budgets",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64)),
        sa.Column("user_id", sa.String(length=64)),
        sa.Column("model", sa.String(length=300)),
        sa.Column("each", sa.String(length=10)),
        sa.Column("tokens", sa.BigInteger()),
        sa.Column("node_hours", sa.Float()),
        sa.Column("period", sa.String(length=10), nullable=False),
        sa.Column("stop", sa.String(length=10), nullable=False),
        sa.Column("warn_at", sa.Float(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.CheckConstraint("(tokens IS NULL) <> (node_hours IS NULL)", name=op.f("ck_budgets_one_unit")),
        sa.CheckConstraint("tokens >= 0 AND node_hours >= 0", name=op.f("ck_budgets_not_negative")),
        sa.CheckConstraint("period IN ('day', 'week', 'month', 'year', 'total')", name=op.f("ck_budgets_period")),
        sa.CheckConstraint("stop IN ('hard', 'soft')", name=op.f("ck_budgets_stop")),
        sa.CheckConstraint("each IN ('user', 'project')", name=op.f("ck_budgets_each")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], op.f("fk_budgets_project_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], op.f("fk_budgets_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budgets")),
    )


def _guard_audit() -> None:
    """Nobody changes or removes what was written, not even by a fault of ours."""
    if op.get_context().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION audit_only_grows() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'the audit log only grows'; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_only_grows()"
        )
        return
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_no_{verb.lower()} BEFORE {verb} ON audit "
            "BEGIN SELECT RAISE(ABORT, 'the audit log only grows'); END"
        )


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP TRIGGER audit_only_grows ON audit")
        op.execute("DROP FUNCTION audit_only_grows()")
    else:
        op.execute("DROP TRIGGER audit_no_update")
        op.execute("DROP TRIGGER audit_no_delete")
    op.drop_column("audit", "count")
    op.drop_column("audit", "source")
    op.drop_table("budgets")
    op.drop_index("uq_api_keys_living_name", "api_keys")
    op.create_index(
        "uq_api_keys_living_name", "api_keys", ["name"], unique=True, sqlite_where=_LIVING, postgresql_where=_LIVING
    )
    op.drop_index(op.f("ix_api_keys_user_id"), "api_keys")
    for column in ("is_personal", "models", "projects"):
        op.drop_column("api_keys", column)
    for table in ("logins", "sessions", "identities"):
        op.drop_table(table)
    for column in ("disabled_at", "seen_at", "default_project_id", "claimed_projects", "domains", "groups", "roles"):
        op.drop_column("users", column)
