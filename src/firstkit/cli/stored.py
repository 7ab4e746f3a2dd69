"""What administrators ask the store: through the gateway where it runs, else at the database itself.

The gateway has all that a store needs loaded already. Importing it takes longer than a command may take in all, so that
only those who have no gateway wait for it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firstkit.cli.admin import GatewayAway, NotRunning, Refusal, fetch
from firstkit.cli.common import CHECK_IT, Server, fail, open_server
from firstkit.errors import ConfigError, FirstError, StoreUnavailable

if TYPE_CHECKING:
    from firstkit.store.database import Database

DATABASE_AWAY = "Is the database of 'server.database' running, and is there room on its disk?"
WHICH_KEYS = "'first keys list --all' shows the keys that there are."


def ask(
    config: Path | None, path: str, body: dict[str, Any] | None, directly: Callable[[Database], Awaitable[Any]]
) -> Any:
    """What the gateway answers to ``path``, or ``directly`` where none runs; ends the command when it fails."""
    server = open_server(config)
    try:
        return _answer(server, path, body, directly)
    except GatewayAway as exc:
        fail(exc.message, exc.next_step)
    except ConfigError as exc:
        fail(exc.message, CHECK_IT)
    except (Refusal, StoreUnavailable) as exc:
        fail(exc.message, DATABASE_AWAY if exc.status == StoreUnavailable.status else WHICH_KEYS)
    except FirstError as exc:
        fail(exc.message, WHICH_KEYS)


def _answer(
    server: Server, path: str, body: dict[str, Any] | None, directly: Callable[[Database], Awaitable[Any]]
) -> Any:
    try:
        return json.loads(fetch(server.state_dir, path, body))
    except NotRunning:
        import asyncio

        return asyncio.run(_at_the_store(server.database_url, directly))


async def _at_the_store(url: str, work: Callable[[Database], Awaitable[Any]]) -> Any:
    from firstkit.store.database import Database

    db = await Database.open(url)
    try:
        return await work(db)
    finally:
        await db.close()
