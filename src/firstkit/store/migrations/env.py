"""Alembic's entry: runs migrations on the connection, and in the transaction, that the store hands over."""

from __future__ import annotations

from alembic import context

from firstkit.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
