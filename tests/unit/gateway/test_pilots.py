"""The pilots' door: what a pilot reports becomes routes, as far as the database says that it may serve it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from firstkit import metrics
from firstkit.clock import now
from firstkit.errors import CallFailed, LinkLost, StoreUnavailable
from firstkit.gateway.pilots import Pilots
from firstkit.gateway.state import Gateway
from firstkit.gateway.waiting import WaitingRoom
from firstkit.ids import digest
from firstkit.links.messages import Hello, PilotReport, Refusal, ReplicaReport
from firstkit.routing.table import RoutingTable
from firstkit.schedulers.scheduler import Resources
from firstkit.states import JobState, ReplicaState
from firstkit.store.jobs import NewReplica, add_job, add_replicas, move_job
from waiting import until

NEEDS = Resources()
HELLO = Hello(1, "v", "job-1", "secret", "token")


@dataclass(eq=False)
class Link:
    """Stands in for the link of one pilot; remembers what was called."""

    job_id: str = "job-1"
    calls: list[Any] = field(default_factory=list)
    is_closed: bool = False

    async def call(self, verb: str, args: dict[str, Any]) -> str:
        self.calls.append((verb, args))
        return "done"

    def close(self) -> None:
        self.is_closed = True


class Door(Pilots):
    """Pilots, with what was told to the controller."""

    def __init__(self, gateway: Gateway) -> None:
        self.told: list[str] = []
        self.table = RoutingTable({"m": "m", "n": "n"})
        super().__init__(gateway.db, WaitingRoom(self.table, 4, lambda urgent: None), self.told.append)

    def hear(self, link: Link, *replicas: ReplicaReport) -> None:
        self.on_report(link, PilotReport(link.job_id, replicas))  # type: ignore[arg-type]

    def lose(self, link: Link) -> None:
        self.on_lost(link)  # type: ignore[arg-type]

    def drop(self, link: Link) -> None:
        self.on_down(link)  # type: ignore[arg-type]

    def resume(self, link: Link) -> None:
        self.on_up(link)  # type: ignore[arg-type]

    def ready(self, model: str = "m") -> list[str]:
        return [route.replica_id for route in self.table.pools[model].ready]


@pytest.fixture
async def door(gateway: Gateway) -> Door:
    """Two jobs: job-1 with rep-1 of m and rep-2 of n, job-2 with rep-3 of m. The pilot of job-1 was admitted."""
    async with gateway.db.begin() as conn:
        for job_id in ("job-1", "job-2"):
            await add_job(conn, job_id, "here", NEEDS, digest("token"), now())
            await move_job(conn, job_id, JobState.RUNNING)
        new = [("rep-1", "job-1", "m"), ("rep-2", "job-1", "n"), ("rep-3", "job-2", "m")]
        await add_replicas(conn, [NewReplica(r, j, m, f"{m}@here", "here", 4, NEEDS) for r, j, m in new], now())
    door = Door(gateway)
    assert await door.admit(HELLO) is None
    return door


def says(replica_id: str, state: ReplicaState = ReplicaState.READY, **more: Any) -> ReplicaReport:
    return ReplicaReport(replica_id, state, **more)


async def test_who_is_not_the_pilot_of_the_job_stays_outside(door: Door) -> None:
    another = await door.admit(Hello(1, "v", "job-1", "another", "token"))
    assert another == Refusal("over", "another pilot has this job")
    assert await door.admit(Hello(1, "v", "job-9", "secret", "token")) == Refusal("refused", "there is no such job")


async def test_the_pilot_of_a_job_that_is_over_is_told_so(gateway: Gateway, door: Door) -> None:
    async with gateway.db.begin() as conn:
        for state in (JobState.SUBMITTING, JobState.VANISHED):
            assert await move_job(conn, "job-1", state)
    assert await door.admit(HELLO) == Refusal("over", "this job is over")


async def test_a_silent_database_is_told_as_such(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> Any:
        raise StoreUnavailable

    monkeypatch.setattr(door.db, "begin", away)
    refusal = await door.admit(HELLO)
    assert refusal is not None
    assert (refusal.code, refusal.message) == ("refused", "the database is not answering; try again")


async def test_what_is_ready_gets_requests(door: Door) -> None:
    link = Link()
    ticket = door.room.join("m")
    door.hear(link, says("rep-1", capabilities=("chat",), context_length=512), says("rep-2", ReplicaState.STARTING))
    route = ticket.route.result()
    assert (route.replica_id, route.upstream, route.context_length) == ("rep-1", link, 512)
    assert (route.max_in_flight, route.capabilities) == (4, {"chat"})
    assert (door.ready("m"), door.ready("n"), door.in_flight("rep-1")) == (["rep-1"], [], 1)
    assert door.told == ["job-1"]
    assert door.snapshot("job-1")["job-1"]["replicas"][0]["replica_id"] == "rep-1"


async def test_what_an_engine_says_of_its_load_is_a_burden(door: Door) -> None:
    link = Link()
    door.hear(link, says("rep-1", running=9, waiting=1, others=2, cache_use=0.5))
    [route] = door.table.pools["m"].ready
    assert (route.burden, door.table.pools["m"].finishes) == (3.0, [1.0])
    door.hear(link, says("rep-1"))
    assert (route.burden, door.table.pools["m"].finishes) == (0.0, [0.25])


async def test_a_pilot_cannot_serve_what_is_not_of_its_job(door: Door) -> None:
    door.hear(Link(), says("rep-3"), says("rep-9"))
    await until(lambda: not door._reading)
    assert list(door.table.routes()) == []


async def test_a_replica_that_came_later_is_looked_up(gateway: Gateway, door: Door) -> None:
    link = Link()
    door.hear(link)
    async with gateway.db.begin() as conn:
        await add_replicas(conn, [NewReplica("rep-4", "job-1", "m", "m@here", "here", 4, NEEDS)], now())
    door.hear(link, says("rep-4"))
    await until(lambda: door.ready() == ["rep-4"])


@pytest.mark.parametrize("after", [(), (says("rep-1", ReplicaState.FAILED),), (says("rep-1", ReplicaState.STOPPED),)])
async def test_what_ended_gets_none(door: Door, after: tuple[ReplicaReport, ...]) -> None:
    link = Link()
    door.hear(link, says("rep-1"))
    door.hear(link, *after)
    assert list(door.table.routes()) == []


async def test_with_its_link_a_replica_is_gone_and_comes_back_with_the_next(door: Door) -> None:
    first, second = Link(), Link()
    door.hear(first, says("rep-1"))
    door.lose(first)
    assert (door.ready(), door.is_up("job-1"), door.snapshot()) == ([], False, {})
    assert door.told == ["job-1", "job-1"]
    assert await door.admit(HELLO) is None
    door.hear(second, says("rep-1"))
    assert [route.upstream for route in door.table.routes()] == [second]


async def test_a_link_that_is_down_gets_nothing_new_until_it_is_up_again(door: Door) -> None:
    link, other = Link(), Link()
    door.resume(link)  # its first connection: what it serves is not known yet
    door.hear(link, says("rep-1"), says("rep-2", ReplicaState.STARTING))
    (route,) = door.table.pools["m"].routes
    assert door.room.table.pools["m"].take() is route
    door.drop(other)
    assert door.ready() == ["rep-1"]
    door.drop(link)
    assert (door.ready(), door.in_flight("rep-1"), door.is_up("job-1")) == ([], 1, True)
    assert list(door.table.routes()) == []
    assert door.told == ["job-1"], "the controller need not hear of it"
    ticket = door.room.join("m")
    door.resume(link)
    assert ticket.route.result() is route
    assert (door.ready(), route.in_flight, len(list(door.table.routes()))) == (["rep-1"], 2, 2)
    door.drop(link)
    door.lose(link)
    assert (list(door.table.routes()), door.told) == ([], ["job-1", "job-1"])


async def test_a_pilot_that_reports_what_nobody_knows_has_it_looked_up_once_at_a_time(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    read_rows = door._read_rows

    async def counted(job_id: str) -> None:
        nonlocal reads
        reads += 1
        await read_rows(job_id)

    monkeypatch.setattr(door, "_read_rows", counted)
    for n in range(200):
        door.hear(Link(), says(f"rep-of-nobody-{n}"))
    await until(lambda: not door._reading)
    assert reads <= 2
    assert list(door.table.routes()) == []


async def test_the_younger_of_two_links_counts(door: Door) -> None:
    old, new = Link(), Link()
    door.hear(old, says("rep-1"))
    door.hear(new, says("rep-1"))
    assert (old.is_closed, new.is_closed) == (True, False)
    door.lose(old)
    assert door.ready() == ["rep-1"]
    assert [route.upstream for route in door.table.routes()] == [new]


@pytest.mark.parametrize("verb", ["drain", "stop"])
async def test_a_drain_holds_from_the_moment_that_it_is_asked_for(door: Door, verb: str) -> None:
    link = Link()
    door.hear(link, says("rep-1"))
    assert await door.call("job-1", verb, {"replica_id": "rep-1"}) == "done"
    assert door.ready() == []
    door.hear(link, says("rep-1"))  # under way already when the pilot was told
    assert door.ready() == []


async def test_calls_reach_the_pilot_of_the_job(door: Door) -> None:
    link = Link()
    with pytest.raises(LinkLost, match="job-1"):
        await door.call("job-1", "status", {})
    door.hear(link, says("rep-1"))
    assert await door.log("rep-1", 7) == "done"
    assert link.calls == [("log", {"replica_id": "rep-1", "lines": 7})]
    with pytest.raises(CallFailed, match="rep-3"):
        await door.log("rep-3", 7)


async def test_replicas_are_counted_by_state(door: Door) -> None:
    door.hear(Link(), says("rep-1"), says("rep-2", ReplicaState.STARTING), says("rep-9"))
    door.count_replicas()
    shown = {line for line in metrics.exposition().decode().splitlines() if line.startswith("first_replicas{")}
    assert shown == {
        'first_replicas{cluster="here",model="m",state="READY"} 1.0',
        'first_replicas{cluster="here",model="n",state="STARTING"} 1.0',
    }
