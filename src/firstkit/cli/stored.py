"""What commands share that ask the store: opening it, and what they say when that fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from firstkit.cli.common import CHECK_IT, fail, open_server
from firstkit.errors import ConfigError, FirstError, StoreUnavailable

if TYPE_CHECKING:
    from firstkit.store.database import Database

T = TypeVar("T")


def ask_store(config: Path | None, work: Callable[[Database], Awaitable[T]]) -> T:
    """The result of ``work`` on the database of the configuration; ends the command when it fails."""
    url = open_server(config).database_url
    import asyncio

    from firstkit.store.database import Database

    async def run() -> T:
        db = await Database.open(url)
        try:
            return await work(db)
        finally:
            await db.close()

    try:
        return asyncio.run(run())
    except StoreUnavailable as exc:
        fail(exc.message, "Is the database of 'server.database' running, and is there room on its disk?")
    except ConfigError as exc:
        fail(exc.message, CHECK_IT)
    except FirstError as exc:
        fail(exc.message, "'first keys list --all' shows the keys that there are.")
