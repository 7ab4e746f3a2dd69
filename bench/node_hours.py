"""What attributing node-hours takes: a month of 2,480 jobs and a million requests, on SQLite. The best of some rounds.

python bench/node_hours.py [--requests N] [--keep]  # prints a table; needs make install. --keep: dated, in results/
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import uvloop
from sqlalchemy import insert

from figures import keep_reported, report
from firstkit.accounting.grouping import NodeHourGrouping
from firstkit.accounting.node_hours import node_hours
from firstkit.gateway.server import COLLECT_EVERY
from firstkit.ids import new_id
from firstkit.schedulers.scheduler import Resources
from firstkit.states import JobState
from firstkit.store.database import Database
from firstkit.store.jobs import Charge, NewReplica, add_job, add_replicas, move_job
from firstkit.store.sql import insert_new, stored_time
from firstkit.store.tables import projects, usage

ROUNDS = 3
MONTH, UNTIL = datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)
WALLTIME = timedelta(hours=6)
AT_A_TIME, PROJECTS, PROJECTS_OF_A_MODEL = 20, 50, 10
"""Jobs that run side by side all month, each with a model of its own; projects, and those that use one model."""
LIMIT_S = 10.0
LIMIT_TURN_MS = 10.0


async def fill(db: Database, requests: int) -> None:
    """Jobs with one replica each, end to end; requests at random."""
    starts = [MONTH + WALLTIME * i for i in range((UNTIL - MONTH) // WALLTIME)]
    served: list[str] = []
    async with db.begin() as conn:
        rows = [{"id": f"p{i}", "name": f"project-{i}", "created_at": MONTH} for i in range(PROJECTS)]
        await conn.execute(insert(projects), rows)
        for start in starts:
            for i in range(AT_A_TIME):
                job_id, replica_id = new_id("job"), new_id("rep")
                charge = Charge(f"account-{i % 3}", "first")
                await add_job(conn, job_id, f"c{i % 4}", Resources(nodes=1 + i % 2), "digest", start, charge)
                new = NewReplica(replica_id, job_id, f"m{i}", f"m{i}@c", "c", 8, Resources())
                await add_replicas(conn, [new], start)
                await move_job(conn, job_id, JobState.SUBMITTING, submitted_at=start)
                await move_job(conn, job_id, JobState.RUNNING, started_at=start)
                await move_job(conn, job_id, JobState.COMPLETED, ended_at=start + WALLTIME)
                served.append(replica_id)
    statement = db.text_of(insert_new(usage, db.dialect))
    for chunk in _chunks(_requests(requests, served, db.dialect), 20_000):
        async with db.begin() as conn:
            await conn.exec_driver_sql(statement, chunk)


def _requests(count: int, served: list[str], dialect: str) -> Iterator[tuple[Any, ...]]:
    """In the order of their arrival, as in a ledger."""
    chance = random.Random(1)
    for moment in sorted(chance.random() for _ in range(count)):
        at = MONTH + (UNTIL - MONTH) * moment
        model = chance.randrange(AT_A_TIME)
        replica_id = served[int(moment * (len(served) // AT_A_TIME)) * AT_A_TIME + model]
        project = (3 * model + chance.randrange(PROJECTS_OF_A_MODEL)) % PROJECTS
        who = (new_id("req"), stored_time(at, dialect), "u1", f"p{project}", "abcdefghijkl", f"m{model}")
        tokens = (chance.randrange(1, 4000), chance.randrange(0, 1000))
        yield (*who, "chat/completions", "c", replica_id, "complete", *tokens, False, 0.1, 0.2, 1.0, None, None)


def _chunks(rows: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    while chunk := [row for row, _ in zip(rows, range(size), strict=False)]:
        yield chunk


async def cpu_s(work: Callable[[], Awaitable[object]]) -> float:
    """CPU seconds of the whole process."""
    began = time.process_time()
    await work()
    return time.process_time() - began


async def longest_turn_ms(work: Callable[[], Awaitable[object]]) -> float:
    """The most CPU time that the loop spends before others have their turn: what is done meanwhile elsewhere on this
    machine does not count."""
    longest_s = 0.0

    async def watch() -> None:
        nonlocal longest_s
        while True:
            began = time.thread_time()
            await asyncio.sleep(0)
            longest_s = max(longest_s, time.thread_time() - began)

    watching = asyncio.create_task(watch())
    await work()
    watching.cancel()
    return longest_s * 1e3


async def measure(requests: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        db = await Database.open(f"sqlite:///{folder}/first.db")
        await fill(db, requests)
        gc.freeze()
        gc.set_threshold(COLLECT_EVERY, 20, 50)  # as in a gateway
        for what, since in (("a month", MONTH), ("its last two days", UNTIL - timedelta(days=2))):
            ask = partial(node_hours, db, since, UNTIL, "idle", [NodeHourGrouping.MONTH])
            report(f"node-hours of {what}, CPU", min([await cpu_s(ask) for _ in range(ROUNDS)]), "s", LIMIT_S)
            turns = [await longest_turn_ms(ask) for _ in range(ROUNDS)]
            report("  the longest turn of the loop", min(turns), "ms", LIMIT_TURN_MS)
        await db.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    uvloop.run(measure(arguments.requests))
    if arguments.keep:
        print(keep_reported("node-hours"))
