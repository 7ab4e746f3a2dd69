"""The whole API: which engine and which weights gave an answer; answers that are kept for their owner."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from firstkit.store.tables import UtcTime

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("usage") as usage:
        usage.add_column(sa.Column("engine", sa.String(length=200)))
        usage.add_column(sa.Column("revision", sa.String(length=200)))
    op.create_table(
        "responses",
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=100), nullable=False),
        sa.Column("model", sa.String(length=300), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=False),
        sa.Column("input", sa.Text(), nullable=False),
        sa.Column("response", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "id", name=op.f("pk_responses")),
    )
    op.create_index(op.f("ix_responses_expires_at"), "responses", ["expires_at"])


def downgrade() -> None:
    op.drop_table("responses")
    with op.batch_alter_table("usage") as usage:
        usage.drop_column("revision")
        usage.drop_column("engine")
