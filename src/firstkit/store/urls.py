"""From the ``server.database`` of the configuration to what SQLAlchemy opens; pure but for ``refuse_network_files``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from firstkit.errors import ConfigError
from firstkit.store.network_files import NETWORK_FILE_SYSTEMS, file_system_of

ALLOWED = "allowed are sqlite:///PATH and postgresql://USER@HOST/DATABASE"


def database_url(text: str) -> URL:
    """``sqlite:///PATH`` or ``postgresql://...`` with its asynchronous driver; raises ConfigError, never showing it."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigError(f"server.database: not a database URL; {ALLOWED}") from None
    backend = url.get_backend_name()
    if backend == "sqlite":
        return _sqlite(url)
    if backend in ("postgresql", "postgres"):
        return _postgresql(url)
    raise ConfigError(f"server.database: '{backend}' is not supported; {ALLOWED}")


def _sqlite(url: URL) -> URL:
    if url.database in (None, "", ":memory:") or str(url.database).startswith("file:"):
        raise ConfigError(
            "server.database: SQLite needs the path of a file, for example sqlite:////var/lib/first/first.db"
        )
    return url.set(drivername="sqlite+aiosqlite")


def _postgresql(url: URL) -> URL:
    if find_spec("asyncpg") is None:
        raise ConfigError("server.database: PostgreSQL needs the extra: pip install 'firstkit[postgres]'")
    query = dict(url.query)
    if "sslmode" in query:  # libpq's word for what asyncpg calls ssl
        query["ssl"] = query.pop("sslmode")
    return url.set(drivername="postgresql+asyncpg", query=query)


def refuse_network_files(path: Path) -> None:
    """Raise ConfigError where ``path`` lies on a file system that several hosts share."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return  # not Linux: nothing to ask
    kind = file_system_of(path.resolve(), mounts)
    if kind and NETWORK_FILE_SYSTEMS.fullmatch(kind):
        raise ConfigError(
            f"server.database: {path} is on a network file system ({kind}), where SQLite loses data; "
            "choose a local disk (server.database or server.state_dir) or PostgreSQL"
        )
