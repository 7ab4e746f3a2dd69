"""The demonstration's key: made at the first start, kept in a file that only its owner reads."""

from __future__ import annotations

from pathlib import Path

from firstkit.cli.admin import actor, login
from firstkit.cli.common import Server
from firstkit.cli.demonstration import write_private

FILE = "demonstration.key"
NAME = "demonstration"
SCOPES = ("inference", "metrics")


def read_key(state_dir: Path) -> str | None:
    """The key; None: there is no demonstration, or it is not ours to read."""
    try:
        return (state_dir / FILE).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def ensure_key(server: Server) -> str:
    """The key in the file if it is still good, else a new one. Raises ConfigError, StoreUnavailable."""
    import asyncio

    key = asyncio.run(_living_key(server, read_key(server.state_dir)))
    write_private(server.state_dir / FILE, key + "\n")
    return key


async def _living_key(server: Server, known: str | None) -> str:
    from firstkit.auth import api_keys
    from firstkit.store.database import Database

    prefix = None if known is None else api_keys.parse_key(known)
    db = await Database.open(server.database_url)
    try:
        living = await api_keys.list_keys(db)
        if known is not None and any(key.prefix == prefix for key in living):
            return known
        for key in living:
            if (key.name, key.user) == (NAME, login()):  # its text is lost
                await api_keys.revoke(db, f"first-{key.prefix}", actor=actor())
        return (await api_keys.create(db, NAME, user=login(), scopes=SCOPES, actor=actor()))[0]
    finally:
        await db.close()
