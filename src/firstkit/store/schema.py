"""Which version of the schema a database has, and how it gets the one that this code was written for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from firstkit.errors import ConfigError

VERSIONS = ("0001", "0002", "0003", "0004", "0005")
"""Every version since the first, oldest first; the names of the files in migrations/versions."""
HEAD = VERSIONS[-1]
_LOCK = 0x46495253545F3031
"""Key of the advisory lock under which one process at a time migrates a PostgreSQL database."""
_TABLE_EXISTS = {
    "sqlite": "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'",
    "postgresql": "SELECT to_regclass('alembic_version') IS NOT NULL",
}


async def stored_version(conn: AsyncConnection) -> str | None:
    """The version of the schema, None for an empty database; raises ConfigError for one that we do not know."""
    if not await conn.scalar(text(_TABLE_EXISTS[conn.dialect.name])):
        return None
    version: str | None = await conn.scalar(text("SELECT version_num FROM alembic_version"))
    if version is not None and version not in VERSIONS:
        raise ConfigError(
            f"server.database: its schema has version {version}, which is newer than this FIRST knows ({HEAD}); "
            "upgrade FIRST, or choose another database"
        )
    return version


async def migrate(conn: AsyncConnection) -> None:
    """Bring the database to HEAD inside the transaction of ``conn``; waits for another process that does so."""
    if conn.dialect.name == "postgresql":
        await conn.execute(text("SET LOCAL lock_timeout = '60s'"))
        await conn.execute(text("SET LOCAL statement_timeout = 0"))
        await conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    if await stored_version(conn) != HEAD:
        await conn.run_sync(_upgrade)


def alembic_config(connection: Connection | None = None) -> Any:
    """Alembic's configuration for our migrations, run on ``connection``. Imported only here: it takes 150 ms."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection) -> None:
    from alembic import command

    command.upgrade(alembic_config(connection), HEAD)
