"""A process that writes the spool is killed in the middle, again and again: each request is in the ledger once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sqlalchemy import select

from firstkit.accounting.ledger import Loader
from firstkit.accounting.spool import BAD_LINES, Spool, lines_of
from firstkit.store.database import Database
from firstkit.store.tables import usage

KILLS = 10
# Opens and ends requests, eight at a time, loading meanwhile; says on stdout what was opened and what has ended.
GATEWAY = """
import asyncio, sys
from pathlib import Path
from usage_entries import open_entry, usage_entry
from firstkit.accounting import ledger
from firstkit.accounting.ledger import Loader
from firstkit.accounting.spool import Spool
from firstkit.store.database import Database

async def main(folder, url, life):
    ledger.EVERY_S = 0.005
    db = await Database.open(url)
    spool = Spool(Path(folder))
    spool.close_lost()
    loader = Loader(spool.folder, db)
    await asyncio.gather(*(serve(spool, f"{life}-{line}") for line in range(8)), loader.run(), turn_over(spool))

async def turn_over(spool):
    while True:
        await asyncio.sleep(0.005)
        spool.turn_over()

async def serve(spool, name):
    for number in range(10**9):
        request = f"{name}-{number}"
        spool.opened(open_entry(request))
        print("+" + request, flush=True)
        await asyncio.sleep(0.001)
        spool.ended(usage_entry(request))
        print("-" + request, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def _live_and_die(folder: Path, url: str, life: int) -> list[str]:
    """What one gateway said between its start and a kill -9; the last line may be torn."""
    command = [sys.executable, "-c", GATEWAY, str(folder), url, str(life)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(400 + 37 * life)]
    process.kill()
    said += process.stdout.readlines()
    process.wait()
    process.stdout.close()
    return [line.strip() for line in said if line.endswith("\n")]


async def test_killed_writers(tmp_path: Path, database_url: str) -> None:
    said = [line for life in range(KILLS) for line in _live_and_die(tmp_path, database_url, life)]
    opened = {line[1:] for line in said if line.startswith("+")}
    ended = {line[1:] for line in said if line.startswith("-")}

    db = await Database.open(database_url)
    spool = Spool(tmp_path)
    spool.close_lost()
    loader = Loader(spool.folder, db)
    await loader.load_once()
    spool.turn_over()
    await loader.load_once()
    async with db.read() as conn:
        rows = (await conn.execute(select(usage.c.request_id, usage.c.outcome))).all()
    await db.close()
    spool.close()

    outcomes = dict(rows)  # type: ignore[arg-type]
    assert len(outcomes) == len(rows)
    assert {name for name, outcome in outcomes.items() if outcome == "complete"} >= ended
    assert outcomes.keys() >= opened
    # At most eight lines and eight opens of each life may have been written and not yet said.
    assert len(outcomes.keys() - opened) <= 8 * KILLS
    assert len([name for name in outcomes if outcomes[name] == "complete" and name not in ended]) <= 8 * KILLS
    assert sum(outcome == "lost" for outcome in outcomes.values()) > 0
    torn = list(lines_of(tmp_path / BAD_LINES)) if (tmp_path / BAD_LINES).exists() else []
    assert len(torn) <= KILLS, "a kill may tear the one line that is being written"
    assert not any(line.endswith(b"}") for line in torn)
    assert {path.name for path in tmp_path.iterdir() if path.stat().st_size} <= {"lock", BAD_LINES}
