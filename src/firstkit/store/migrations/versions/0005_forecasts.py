"""Forecasts grown up: what queue waits are like, what was promised at most, and whether schedulers answer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from firstkit.store.tables import UtcTime

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("observations", sa.Column("late_s", sa.Float()))
    op.add_column(
        "observations", sa.Column("shape", sa.String(length=500), nullable=False, server_default=sa.text("''"))
    )
    op.add_column("observations", sa.Column("began_at", UtcTime()))
    op.create_table(
        "polls",
        sa.Column("cluster", sa.String(length=200), nullable=False),
        sa.Column("hour", UtcTime(), nullable=False),
        sa.Column("good", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.CheckConstraint("good >= 0 AND failed >= 0", name=op.f("ck_polls_not_negative")),
        sa.PrimaryKeyConstraint("cluster", "hour", name=op.f("pk_polls")),
    )


def downgrade() -> None:
    op.drop_table("polls")
    for column in ("began_at", "shape", "late_s"):
        op.drop_column("observations", column)
