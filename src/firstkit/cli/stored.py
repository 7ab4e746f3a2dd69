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
from firstkit.cli.common import CHECK_IT, Server, fail, has_config, open_server
from firstkit.errors import ConfigError, FirstError, StoreUnavailable

if TYPE_CHECKING:
    from firstkit.cli.remote import Remote
    from firstkit.store.database import Database

DATABASE_AWAY = "Is the database of 'server.database' running, and is there room on its disk?"
WHICH_KEYS = "'first keys list --all' shows the keys that there are."


def ask(
    config: Path | None,
    path: str,
    body: dict[str, Any] | None,
    directly: Callable[[Database], Awaitable[Any]] | None,
    mine: str | None = None,
    my_body: dict[str, Any] | None = None,
    hint: str = WHICH_KEYS,
) -> Any:
    """What the gateway answers to ``path``, or ``directly`` where none runs; None: then nobody can say. Ends the
    command when it fails. ``mine``: the path, and ``my_body`` the body where it is another, for those who have no
    configuration and are logged in at a gateway. ``hint``: what to do about a refusal."""
    try:
        if mine is not None and (remote := _remote(config)) is not None:
            return remote.fetch(mine, my_body or body)
        return _answer(open_server(config), path, body, directly)
    except GatewayAway as exc:
        fail(exc.message, exc.next_step)
    except ConfigError as exc:
        fail(exc.message, CHECK_IT)
    except (Refusal, StoreUnavailable) as exc:
        fail(exc.message, DATABASE_AWAY if exc.status == StoreUnavailable.status else hint)
    except FirstError as exc:
        fail(exc.message, hint)


def _remote(config: Path | None) -> Remote | None:
    """Where somebody is logged in, who has no configuration."""
    if has_config(config):
        return None
    from firstkit.cli.remote import logged_in

    return logged_in()


def _answer(
    server: Server, path: str, body: dict[str, Any] | None, directly: Callable[[Database], Awaitable[Any]] | None
) -> Any:
    try:
        return json.loads(fetch(server.state_dir, path, body))
    except NotRunning:
        if directly is None:
            raise
        import asyncio

        return asyncio.run(_at_the_store(server.database_url, directly))


async def _at_the_store(url: str, work: Callable[[Database], Awaitable[Any]]) -> Any:
    from firstkit.store.database import Database

    db = await Database.open(url)
    try:
        return await work(db)
    finally:
        await db.close()
