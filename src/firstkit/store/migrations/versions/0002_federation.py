"""Several clusters: when waiting jobs shall start, where pilots can be dialled, clusters that an operator drained."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from firstkit.store.tables import UtcTime, Words

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("starts_at", UtcTime()))
        jobs.add_column(sa.Column("position", sa.Integer()))
        jobs.add_column(sa.Column("address", sa.String(length=300)))
        jobs.create_index(op.f("ix_jobs_cluster_created_at"), ["cluster", "created_at"])
    with op.batch_alter_table("replicas") as replicas:
        replicas.create_index(op.f("ix_replicas_job_id"), ["job_id"])
    op.create_table(
        "drained_clusters",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("message", Words(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_drained_clusters")),
    )


def downgrade() -> None:
    op.drop_table("drained_clusters")
    with op.batch_alter_table("replicas") as replicas:
        replicas.drop_index(op.f("ix_replicas_job_id"))
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_index(op.f("ix_jobs_cluster_created_at"))
        for column in ("starts_at", "position", "address"):
            jobs.drop_column(column)
