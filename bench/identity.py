"""What it costs to know who asks, on this machine: CPU time of an identity that is remembered, the best of several
rounds.

python bench/identity.py [--keep]  # prints a table; needs make install. --keep: dated, in results/
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from decisions import cpu_s
from figures import keep_reported, report
from firstkit.auth import api_keys
from firstkit.auth.authenticator import REMEMBERED, Authenticator
from firstkit.clock import now
from firstkit.ids import digest, new_secret
from firstkit.store.database import Database
from firstkit.store.tables import api_keys as table

MOST_US = 15.0
"""What a remembered identity may cost a request."""
TIMES = 20_000


async def keys(db: Database, count: int) -> list[str]:
    """So many good keys of one user."""
    await api_keys.create(db, "first", user="ada", project="climate")
    texts = [f"first-{new_secret()[:12]}-{new_secret()}" for _ in range(count)]
    async with db.begin() as conn:
        first = (await conn.execute(table.select())).mappings().one()
        shared = {name: first[name] for name in ("user_id", "project_id", "scopes", "is_personal", "created_at")}
        rows = [_row(text, number, shared) for number, text in enumerate(texts)]
        await conn.execute(insert(table), rows)
    return texts


def _row(text: str, number: int, shared: dict[str, Any]) -> dict[str, Any]:
    expires_at = now() + timedelta(days=1)
    own = {"prefix": text[6:18], "secret_sha256": digest(text), "name": f"key-{number}", "expires_at": expires_at}
    return {**shared, **own}


async def measure(folder: str) -> None:
    """With as many tokens remembered as ever are, each asked for in turn, so that none is in a nearer cache."""
    db = await Database.open(f"sqlite:///{Path(folder) / 'first.db'}")
    try:
        authenticator = Authenticator(db, clock=_slow_clock)
        tokens = await keys(db, REMEMBERED)
        for token in tokens:
            await authenticator.identify(token)
    finally:
        await db.close()
    if not all(map(authenticator.cached, tokens)):
        raise SystemExit("not all tokens are remembered: nothing was measured")
    digests = list(map(digest, tokens))
    report(f"known by its digest, {REMEMBERED:,} remembered", _each(authenticator.known, digests), "us", MOST_US)
    report(f"known by the token, {REMEMBERED:,} remembered", _each(authenticator.cached, tokens), "us", MOST_US)


def _slow_clock() -> float:
    """Read as the real one is, and slow enough that nothing ends while it is measured."""
    return time.monotonic() * 1e-6


def _each(ask: Callable[[str], object], whom: list[str]) -> float:
    """CPU microseconds of one question."""
    turn: Iterator[str] = itertools.cycle(whom)
    return 1e6 * cpu_s(lambda: ask(next(turn)), TIMES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true")
    keeps = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(folder))
    if keeps:
        print(keep_reported("identity"))


if __name__ == "__main__":
    main()
