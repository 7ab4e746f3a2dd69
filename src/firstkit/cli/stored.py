"""What administrators ask the store: through the gateway where it runs, else at the database itself.

The gateway has all that a store needs loaded already. Importing it takes longer than a command may take in all, so that
only those who have no gateway wait for it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from firstkit.cli.admin import GatewayAway, NotRunning, Refusal, fetch
from firstkit.cli.common import CHECK_IT, fail, open_server
from firstkit.errors import ConfigError, FirstError, StoreUnavailable

if TYPE_CHECKING:
    from firstkit.store.database import Database

T = TypeVar("T")
DATABASE_AWAY = "Is the database of 'server.database' running, and is there room on its disk?"
WHICH_KEYS = "'first keys list --all' shows the keys that there are."


def ask(
    config: Path | None, path: str, body: dict[str, Any] | None, directly: Callable[[Database], Awaitable[Any]]
) -> Any:
    """What the gateway answers to ``path``, or ``directly`` where none runs; ends the command when it fails."""
    server = open_server(config)
    try:
        return json.loads(fetch(server.state_dir, path, body))
    except NotRunning:
        return _ask_store(server.database_url, directly)
    except GatewayAway as exc:
        fail(exc.message, exc.next_step)
    except Refusal as exc:
        fail(exc.message, DATABASE_AWAY if exc.status == StoreUnavailable.status else WHICH_KEYS)


def _ask_store(url: str, work: Callable[[Database], Awaitable[T]]) -> T:
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
        fail(exc.message, DATABASE_AWAY)
    except ConfigError as exc:
        fail(exc.message, CHECK_IT)
    except FirstError as exc:
        fail(exc.message, WHICH_KEYS)
