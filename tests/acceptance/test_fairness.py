"""One user with hundreds of requests at once beside ten who ask one thing after the other, on a real engine.

The ten fill the engine by themselves, so that they wait for each other; the question is how much longer they wait
because of the one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from acceptance.conftest import weights
from firstkit.auth import api_keys
from lab import Lab, running, wait_for

POLITE = 10
SLOTS = 2
AT_ONCE = 500
ROUNDS = 3
EACH = 3
"""Requests of each polite user in a round."""
MOST_TIMES = 1.5
BODY = json.dumps(
    {"model": "smollm2", "messages": [{"role": "user", "content": "Three fruits?"}], "max_tokens": 4}
).encode()


@pytest.fixture(scope="module", params=["of one project", "of projects of their own"])
def crowd(request: pytest.FixtureRequest) -> Iterator[Crowd]:
    """Users with keys, and a gateway that lets one of them have as many in line as may be."""
    deployment = {
        "cluster": "here",
        "engine": {"kind": "llamacpp"},
        "weights": str(weights()),
        "args": {"ctx-size": 256},
        "resources": {"cpus_per_node": 1, "memory_gib": 1},
        "scale": {"hot": 1, "max": 1, "max_in_flight": SLOTS},
    }
    # In one case all of the 500 stand in line, in the other most are refused and try again.
    bounds = {} if request.param == "of one project" else {"max_waiting": 1000, "max_waiting_per_user": AT_ONCE}
    with running({"smollm2": {"deployments": [deployment]}}, **bounds) as lab:
        lab.wait_live("smollm2")
        names = ["aggressive", *(f"polite-{i}" for i in range(POLITE))]
        keys = asyncio.run(_keys(lab, {name: "ours" if not bounds else f"of {name}" for name in names}))
        yield Crowd(lab, keys, is_bounded=not bounds)


async def _keys(lab: Lab, project_of: dict[str, str]) -> dict[str, str]:
    made = {}
    async with lab.database() as db:
        for name, project in project_of.items():
            made[name], _ = await api_keys.create(db, name, user=name, project=project, scopes=("inference",))
    return made


@dataclass
class Crowd:
    """``asked``: of the polite, by whether they were alone, round by round the ids of their requests."""

    lab: Lab
    keys: dict[str, str]
    is_bounded: bool
    asked: dict[bool, list[list[str]]] = field(default_factory=lambda: {True: [], False: []})
    statuses: dict[str, Counter[int]] = field(default_factory=lambda: {"polite": Counter(), "aggressive": Counter()})
    most_waiting: int = 0

    async def rounds(self) -> None:
        """Alone, and beside the aggressive one, in turns: the machine may be faster at one time than at another."""
        for _ in range(ROUNDS):
            await self.polite_round(is_alone=True)
            async with self.attack():
                await self.polite_round(is_alone=False)
            await asyncio.to_thread(wait_for, "the line is empty", lambda: not any(self._load()))

    async def polite_round(self, is_alone: bool) -> None:
        self.asked[is_alone].append([])
        await asyncio.gather(*(self._polite(self.keys[f"polite-{i}"], is_alone) for i in range(POLITE)))

    async def _polite(self, key: str, is_alone: bool) -> None:
        for _ in range(EACH):
            status, request_id = await self._ask(key)
            self.statuses["polite"][status] += 1
            self.asked[is_alone][-1].append(request_id)

    @contextlib.asynccontextmanager
    async def attack(self) -> AsyncIterator[None]:
        """Within, hundreds of requests of one user are under way or try to be."""
        tasks = [asyncio.ensure_future(self._aggressive()) for _ in range(AT_ONCE)]
        least = 50 if self.is_bounded else AT_ONCE - SLOTS
        await asyncio.to_thread(wait_for, "the line is long", lambda: self._load()[0] >= least)
        yield
        self.most_waiting = max(self.most_waiting, self._load()[0])
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, asyncio.CancelledError), outcome

    async def _aggressive(self) -> None:
        while True:
            status, _ = await self._ask(self.keys["aggressive"])
            self.statuses["aggressive"][status] += 1
            if status != 200:
                await asyncio.sleep(2.0)

    async def _ask(self, key: str) -> tuple[int, str]:
        """The status of the answer, and the id of the request."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.lab.port)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            f"authorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n"
        )
        try:
            writer.write(head.encode() + BODY)
            answer = await reader.read()
        finally:
            writer.close()
        first, *lines = answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        return int(first.split()[1]), headers["x-request-id"]

    def _load(self) -> tuple[int, int]:
        [row] = self.lab.status()["models"]
        return row["waiting"], row["in_flight"]

    def waits(self) -> dict[bool, list[list[float]]]:
        """How long the polite waited for a replica, as the ledger has it, in seconds, round by round."""
        wanted = {name for rounds in self.asked.values() for names in rounds for name in names}

        def rows() -> dict[str, Any]:
            found = {row["request_id"]: row for row in self.lab.usage()}
            return found if wanted <= found.keys() else {}

        found = wait_for("all lines are loaded", rows)
        assert {found[name]["outcome"] for name in wanted} == {"complete"}
        return {
            is_alone: [[found[name]["queue_s"] for name in names] for names in rounds]
            for is_alone, rounds in self.asked.items()
        }


@pytest.mark.timeout(400)
def test_the_polite_wait_hardly_longer(crowd: Crowd) -> None:
    asyncio.run(crowd.rounds())
    assert set(crowd.statuses["polite"]) == {200}
    assert set(crowd.statuses["aggressive"]) <= ({200, 429} if crowd.is_bounded else {200})
    assert crowd.most_waiting <= (64 if crowd.is_bounded else AT_ONCE) + POLITE
    waits = crowd.waits()
    alone, beside = ([statistics.quantiles(each, n=20)[-1] for each in waits[is_alone]] for is_alone in (True, False))
    print("p95 of waits, alone and beside, in seconds:", *zip(alone, beside, strict=True))
    assert statistics.median(waits[True][0]) > 0.01, "alone they wait for each other"
    times = [both / one for one, both in zip(alone, beside, strict=True)]
    assert statistics.median(times) <= MOST_TIMES, "of three, for the machine may be busy with something else in one"
    assert crowd.statuses["aggressive"][200] > 0, "and the other is served, too"
