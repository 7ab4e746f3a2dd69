"""The loop of one cluster on a real store, with schedulers that misbehave."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from firstkit.clock import now
from firstkit.config import Cluster, Scale
from firstkit.errors import SchedulerRefused, SchedulerSilent
from firstkit.links.messages import LinkSpec, PilotReport, PilotSpec, ReplicaReport
from firstkit.reconciler import observe, rhythm
from firstkit.reconciler.acting import REFUSED_S
from firstkit.reconciler.books import Books
from firstkit.reconciler.calls import Calls
from firstkit.reconciler.loop import BUSY_S, ClusterLoop
from firstkit.reconciler.placement import Share
from firstkit.reconciler.standing import policy_of
from firstkit.reconciler.telling import cluster
from firstkit.reconciler.world import World
from firstkit.schedulers.scheduler import Estimate, JobNews, JobSpec, Resources
from firstkit.states import JobState, ModelStatus, ReplicaState
from firstkit.store import jobs as stored
from firstkit.store import tables
from firstkit.store.database import Database
from firstkit.testing.fake_clusters import (
    ForgetfulCluster,
    LostAnswerCluster,
    QuickCluster,
    RefusingCluster,
    SilentCluster,
)
from firstkit.wire import from_dict, to_dict
from unit.reconciler.support import deployment


class Bench:
    """A loop, driven pass by pass, with what surrounds it."""

    def __init__(self, db: Database, cluster: QuickCluster, hot: int = 1, **section: Any) -> None:
        self.db = db
        self.section = Cluster.model_validate({"graces": {"submit": 0}, **section})
        self.cluster = cluster
        self.hot = hot
        self.is_considered = False
        self.deployment = deployment(scale=Scale(hot=1, max=2))
        self.world = World({"m": [policy_of(self.deployment)]})
        self.said: list[dict[str, Any]] = []
        self.calls = Calls(self.hear)
        self.refusal: str | None = None
        self.loop = self.make_loop()
        self.gateway_came()

    def gateway_came(self) -> None:
        self.world.gateway_came()
        self.world.hear_demand({"m": []})

    def make_loop(self) -> ClusterLoop:
        return ClusterLoop(
            "here",
            [self.deployment],
            self.cluster,
            Books(self.db, "here"),
            self.world,
            self.calls,
            link=lambda _: LinkSpec("socket", "/pilots.sock"),
            orphan_timeout_s=600.0,
            shares=lambda _: {"m@here": Share(self.hot, is_considered=self.is_considered)},
            section=self.section,
        )

    def hear(self, message: dict[str, Any]) -> None:
        self.said.append(message)
        reply = {"result": None} if self.refusal is None else {"error": self.refusal, "refused": True}
        self.calls.hear({"id": message["id"], **reply})

    async def passes(self, count: int = 3) -> None:
        """Some passes, each with all that it began."""
        for _ in range(count):
            await self.loop.step()
            while under_way := list(self.loop.hands.under_way.values()):
                await asyncio.wait(under_way)
                await asyncio.sleep(0)

    async def poll(self) -> None:
        """A poll, taken in."""
        self.loop.hands.beside("poll", self.loop.hands.poll())
        await self.passes(1)
        await self.passes(1)

    async def rows(self, table: Any) -> list[Any]:
        async with self.db.read() as conn:
            return list((await conn.execute(select(table).order_by(table.c.created_at))).all())

    def report(self, job_id: str, *ready: str) -> None:
        """The pilot of a job says that these replicas serve."""
        replicas = tuple(ReplicaReport(replica_id, ReplicaState.READY, load_s=2.5) for replica_id in ready)
        report = PilotReport(job_id, replicas, free_cpus=8, free_memory_bytes=2**30)
        self.world.hear_pilots({"pilots": {job_id: to_dict(report)}})

    async def serving(self) -> Any:
        """The row of the one replica, as it was before its pilot said that it serves, and that was written down."""
        await self.passes()
        (replica,) = await self.rows(tables.replicas)
        self.report(replica.job_id, replica.id)
        await self.passes()
        return replica


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that would only make tests long."""
    monkeypatch.setattr(rhythm, "LONGEST_SILENCE_S", 0.0)


class FullCluster(QuickCluster):
    """Takes every job, and starts none."""

    async def submit(self, spec: JobSpec) -> str:
        scheduler_id = await super().submit(spec)
        self.jobs[spec.job_id] = JobNews(spec.job_id, scheduler_id, JobState.PENDING)
        return scheduler_id


async def bench(db: Database, cluster: QuickCluster, hot: int = 1, **section: Any) -> Bench:
    made = Bench(db, cluster, hot, **section)
    await made.loop.start()
    return made


async def test_a_hot_deployment_gets_one_job_and_no_second(db: Database) -> None:
    here = await bench(db, FullCluster())
    await here.passes(5)
    ((job,), (replica,)) = await here.rows(tables.jobs), await here.rows(tables.replicas)
    assert here.cluster.calls.count("submit") == 1
    assert (job.state, job.scheduler_id) == ("PENDING", f"id-{job.id}")
    assert replica.job_id == job.id


async def test_the_pilot_is_told_all_that_it_needs(db: Database) -> None:
    here = await bench(db, QuickCluster())
    await here.passes()
    (spec,) = here.cluster.specs
    pilot = from_dict(PilotSpec, spec.pilot)
    (replica,) = await here.rows(tables.replicas)
    assert [one.replica_id for one in pilot.replicas] == [replica.id]
    assert (pilot.link.path, pilot.orphan_timeout_s) == ("/pilots.sock", 600.0)
    assert await stored.admit_pilot(db, spec.job_id, "secret", pilot.enrolment_token) is None


async def test_what_pilots_report_is_written_down_and_learned_from(db: Database) -> None:
    here = await bench(db, QuickCluster())
    await here.serving()
    ((job,), (replica,)) = await here.rows(tables.jobs), await here.rows(tables.replicas)
    assert (job.state, replica.state, replica.load_s) == ("RUNNING", "READY", 2.5)
    assert here.loop.outlooks["m@here"].status is ModelStatus.LIVE
    async with db.read() as conn:
        assert [one.seconds for one in await stored.observed(conn, "load_time", "m@here")] == [2.5]
        assert len(await stored.observed(conn, "queue_wait", "here")) == 1


async def test_a_job_whose_answer_was_lost_is_adopted(db: Database) -> None:
    here = await bench(db, LostAnswerCluster())
    await here.passes()
    assert [row.state for row in await here.rows(tables.jobs)] == ["SUBMITTING"]
    await here.poll()
    assert [row.state for row in await here.rows(tables.jobs)] == ["RUNNING"]
    assert here.cluster.calls.count("submit") == 1


async def test_a_job_that_never_arrived_is_cancelled_by_name_and_replaced(db: Database) -> None:
    here = await bench(db, ForgetfulCluster())
    await here.passes()
    for _ in range(observe.POLLS):
        await here.poll()
    await here.passes()
    first, *others = await here.rows(tables.jobs)
    assert first.state == "CANCELLED"
    assert here.cluster.jobs[first.id].state is JobState.CANCELLED
    assert len(others) == 1
    assert [row.state for row in await here.rows(tables.replicas)] == ["STOPPED", "QUEUED"]


async def test_a_refused_job_is_a_failure_and_waits(db: Database) -> None:
    here = await bench(db, RefusingCluster())
    await here.passes(4)
    ((job,), (replica,)) = await here.rows(tables.jobs), await here.rows(tables.replicas)
    assert (job.state, replica.state) == ("REJECTED", "FAILED")
    assert "more than there is" in replica.reason
    assert "more than there is" in here.loop.places["m@here"].obstacle
    assert "more than there is" in here.loop.outlooks["m@here"].reason


async def test_a_silent_scheduler_gets_no_second_job_and_loses_none(db: Database) -> None:
    here = await bench(db, SilentCluster())
    await here.passes()
    for _ in range(4):
        await here.poll()
    ((job,), (replica,)) = await here.rows(tables.jobs), await here.rows(tables.replicas)
    assert (job.state, replica.state) == ("SUBMITTING", "QUEUED")
    assert here.cluster.calls.count("submit") == 1


async def test_a_row_that_was_never_submitted_is_closed_and_replaced(db: Database) -> None:
    here = await bench(db, FullCluster(), hot=0)
    new = stored.NewReplica("rep-old", "job-old", "m", "m@here", "here", 4, deployment().resources)
    await here.loop.books.add_job("job-old", "here", deployment().resources, "digest", [new])
    here.hot = 1
    await here.passes()
    old, fresh = await here.rows(tables.jobs)
    assert (old.state, fresh.state) == ("CANCELLED", "PENDING")
    assert [spec.job_id for spec in here.cluster.specs] == [fresh.id]


async def test_nothing_is_stopped_while_the_demand_is_unknown(db: Database) -> None:
    here = await bench(db, FullCluster())
    await here.passes()
    here.world.gateway_went()
    here.hot = 0
    await here.passes()
    assert "cancel" not in here.cluster.calls
    here.gateway_came()
    await here.passes()
    assert "cancel" in here.cluster.calls


async def test_a_successor_goes_on_where_a_controller_died(db: Database) -> None:
    here = await bench(db, QuickCluster())
    await here.passes()
    there = await bench(db, here.cluster)
    await there.poll()
    (job,) = await here.rows(tables.jobs)
    assert job.state == "RUNNING"
    assert here.cluster.calls.count("submit") == 1


async def test_a_replica_that_the_pilot_refuses_has_failed(db: Database) -> None:
    here = await bench(db, QuickCluster())
    await here.serving()
    here.hot, here.refusal = 2, "does not fit"
    await here.passes(1)
    await here.passes(1)
    _, refused = await here.rows(tables.replicas)
    assert (refused.state, refused.reason) == ("FAILED", "does not fit")
    assert here.said[0]["verb"] == "start"


async def test_an_ended_job_takes_its_replicas_along(db: Database) -> None:
    here = await bench(db, QuickCluster())
    await here.passes()
    (job,) = await here.rows(tables.jobs)
    here.cluster.jobs[job.id] = JobNews(job.id, job.scheduler_id, JobState.NODE_FAIL, "restarted")
    await here.poll()
    first = (await here.rows(tables.replicas))[0]
    assert (first.state, first.reason) == ("FAILED", "its job ended as NODE_FAIL: restarted")


async def test_a_job_that_has_just_started_is_not_held_against_its_pilot(db: Database) -> None:
    """However long the gateway was up before: the pilot has had no time to dial."""
    here = await bench(db, QuickCluster())
    here.world._gateway_since -= 10_000
    await here.passes()
    await here.poll()
    assert [row.state for row in await here.rows(tables.jobs)] == ["RUNNING"]
    assert "cancel" not in here.cluster.calls


async def test_no_job_vanishes_before_pilots_could_dial_a_new_gateway(db: Database) -> None:
    here = await bench(db, QuickCluster())
    await here.passes()
    await here.poll()
    async with db.begin() as conn:
        long_ago = now() - timedelta(hours=1)
        await conn.execute(update(tables.jobs).values(absent_polls=5, absent_since=long_ago))
    here.loop.books.forget()
    here.cluster.jobs.clear()
    here.world.gateway_went()
    here.world.gateway_came()
    await here.poll()
    assert [row.state for row in await here.rows(tables.jobs)] == ["RUNNING"]
    here.world._gateway_since -= here.section.graces.vanish + 1
    await here.poll()
    assert (await here.rows(tables.jobs))[0].state == "VANISHED"


class HangingCluster(QuickCluster):
    async def poll(self) -> dict[str, JobNews]:
        return await asyncio.get_running_loop().create_future()


async def test_a_poll_that_hangs_makes_no_busy_loop(db: Database) -> None:
    here = await bench(db, HangingCluster())
    await here.passes()
    here.loop.hands.rhythm._due = 0.0
    assert await here.loop.step() >= BUSY_S
    assert "poll" in here.loop.hands.under_way
    assert await here.loop.step() >= BUSY_S
    await here.loop.close()


# -- what schedulers are asked for -------------------------------------------------------------------------------------


async def test_a_start_that_is_weighed_is_asked_for_once_a_minute(db: Database) -> None:
    here = await bench(db, QuickCluster())
    here.is_considered = True
    await here.passes(5)
    assert here.cluster.calls.count("estimate") == 1
    assert here.loop.hands.start_s(here.deployment.resources) == pytest.approx(0.0, abs=1.0)


class PonderingCluster(QuickCluster):
    """Never comes to an end with its estimates."""

    async def estimate(self, resources: Resources) -> Estimate:
        return await asyncio.get_running_loop().create_future()


async def test_a_submission_waits_for_no_estimate(db: Database) -> None:
    here = await bench(db, PonderingCluster())
    here.is_considered = True
    await here.loop.step()
    (job_id,) = [key for key in here.loop.hands.under_way if key.startswith("job-")]
    await here.loop.hands.under_way[job_id]
    assert here.cluster.calls.count("submit") == 1
    assert "estimate" in here.loop.hands.under_way
    await here.loop.close()


async def test_a_job_that_is_submitted_while_the_books_are_read_is_not_taken_for_forgotten(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = await bench(db, QuickCluster())
    books, hands, may_submit = here.loop.books, here.loop.hands, asyncio.Event()
    read, move_job = books.read, books.move_job

    async def submitted_late(*words: Any, **more: Any) -> None:
        await may_submit.wait()
        await move_job(*words, **more)

    async def read_meanwhile() -> Any:
        rows = await read()
        may_submit.set()
        await asyncio.gather(*hands.under_way.values())
        await asyncio.sleep(0)
        return rows

    monkeypatch.setattr(books, "move_job", submitted_late)
    await here.loop.step()
    monkeypatch.setattr(books, "read", read_meanwhile)
    await here.loop.step()
    assert [row.state for row in await here.rows(tables.jobs)] == ["PENDING"]
    await here.loop.close()


async def test_nobody_asks_for_starts_that_are_not_weighed(db: Database) -> None:
    here = await bench(db, QuickCluster())
    await here.passes(4)
    assert "estimate" not in here.cluster.calls


class EvasiveCluster(QuickCluster):
    """Does all that it is told, and does not say when."""

    async def estimate(self, resources: Resources) -> Estimate:
        await super().estimate(resources)
        raise SchedulerSilent("no answer in time")


class UnwillingCluster(QuickCluster):
    """Says that it would refuse."""

    async def estimate(self, resources: Resources) -> Estimate:
        await super().estimate(resources)
        raise SchedulerRefused("no such partition")


@pytest.mark.parametrize("kind", [EvasiveCluster, UnwillingCluster])
async def test_an_estimate_that_fails_holds_up_nothing(db: Database, kind: type[QuickCluster]) -> None:
    here = await bench(db, kind())
    here.is_considered = True
    await here.passes(3)
    assert here.loop.hands.rhythm.silent_s is None
    (job,) = await here.rows(tables.jobs)
    assert job.state in ("PENDING", "RUNNING"), "it was submitted, and a slow pass may have seen it start"
    start_s = here.loop.hands.start_s(here.deployment.resources)
    assert start_s == (None if kind is EvasiveCluster else pytest.approx(REFUSED_S, abs=1.0))


async def test_the_size_of_a_cluster_is_read_again_seldom(db: Database) -> None:
    here = await bench(db, QuickCluster())
    await here.passes(5)
    assert here.cluster.calls.count("capacity") == 1
    here.loop.hands._capacity_due = 0.0
    await here.passes(2)
    assert here.cluster.calls.count("capacity") == 2


async def test_a_silent_scheduler_says_so_and_is_asked_again(db: Database) -> None:
    here = await bench(db, SilentCluster())
    await here.passes()
    assert here.loop.places["m@here"].obstacle.startswith("the scheduler has been silent for")
    said = cluster(here.loop)
    assert (said["scheduler"], said["reason"]) == ("silent", "no answer in time")


async def test_what_is_said_of_a_cluster(db: Database) -> None:
    here = await bench(db, QuickCluster(), limits={"nodes": 4})
    assert cluster(here.loop)["scheduler"] == "unknown"
    await here.passes()
    await here.poll()
    said = cluster(here.loop)
    assert (said["scheduler"], said["reason"], said["drained"], said["maintenance"]) == ("answering", "", False, None)
    assert said["capacity"]["nodes"] == 1
    assert said["spent"]["nodes"] == 1
    assert said["asked_at"] is not None


async def test_a_pilot_is_told_once_that_the_end_of_its_job_moved(db: Database) -> None:
    here = await bench(db, QuickCluster())
    await here.passes()
    (replica,) = await here.rows(tables.replicas)
    ends_at = now().timestamp() + 3600
    here.cluster.jobs[replica.job_id] = replace(
        here.cluster.jobs[replica.job_id], started_at=now().timestamp(), ends_at=ends_at
    )
    here.report(replica.job_id, replica.id)
    await here.poll()
    await here.passes(3)
    told = [message for message in here.said if message["verb"] == "end"]
    assert [message["args"] for message in told] == [{"ends_at": pytest.approx(ends_at, abs=0.001)}]


async def test_a_job_that_we_cancelled_leaves_no_failure_behind(db: Database) -> None:
    here = await bench(db, FullCluster())
    await here.passes()
    await here.poll()
    here.hot = 0
    await here.passes()
    (job,) = await here.rows(tables.jobs)
    here.cluster.jobs[job.id] = JobNews(job.id, job.scheduler_id, JobState.FAILED, "exit status 143")
    await here.poll()
    assert [row.state for row in await here.rows(tables.replicas)] == ["STOPPED"]
    assert here.loop.places["m@here"].obstacle == ""


async def test_a_pilot_that_outlives_its_job_is_told_to_leave(db: Database) -> None:
    here = await bench(db, QuickCluster())
    replica = await here.serving()
    here.report("job-of-somebody-else")
    here.cluster.jobs[replica.job_id] = JobNews(replica.job_id, f"id-{replica.job_id}", JobState.NODE_FAIL)
    await here.poll()
    here.said.clear()
    there = here.make_loop()
    here.loop = there
    await there.start()
    await here.passes(1)
    assert [(said["verb"], said["job_id"]) for said in here.said] == [("exit", replica.job_id)]


async def test_whether_the_scheduler_answers_is_remembered(db: Database) -> None:
    for scheduler, figures in ((QuickCluster(), (1, 0)), (SilentCluster(), (1, 1))):
        bench = Bench(db, scheduler)
        await bench.loop.start()
        await bench.poll()
        bench.loop.books._asked_at = None  # a minute later
        await bench.passes(1)
        hours = bench.loop.books.polls
        assert (sum(hour.good for hour in hours), sum(hour.failed for hour in hours)) == figures
        await bench.loop.close()
