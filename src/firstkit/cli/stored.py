"""What commands share that ask the store: opening it, and showing rows."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from firstkit.cli.common import fail, open_config
from firstkit.errors import ConfigError, FirstError, StoreUnavailable

if TYPE_CHECKING:
    from firstkit.store.database import Database

T = TypeVar("T")


def ask_store(config: Path | None, work: Callable[[Database], Awaitable[T]]) -> T:
    """The result of ``work`` on the database of the configuration; ends the command when it fails."""
    from firstkit.store.database import Database

    url = open_config(config).server.database_url

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
        fail(exc.message, "'first config check' looks at the whole file.")
    except FirstError as exc:
        fail(exc.message, "'first keys list --all' shows the keys that there are.")


def show(columns: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[str] = ()) -> None:
    """Rows as a table on a terminal, as tab-separated lines elsewhere; ``numbers``: columns set to the right."""
    texts = [["" if value is None else str(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        sys.stdout.writelines("\t".join(row) + "\n" for row in [list(columns), *texts])
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in texts:
        table.add_row(*map(Text, row))
    Console().print(table)


def show_json(value: Any) -> None:
    """``value`` as indented JSON; times as ISO 8601."""
    sys.stdout.write(json.dumps(value, indent=2, default=lambda moment: moment.isoformat()) + "\n")
