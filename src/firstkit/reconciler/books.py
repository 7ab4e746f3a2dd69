"""The controller's books: the rows of one cluster, changes to them, and what was learned from them."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from firstkit.clock import now
from firstkit.config import ResolvedDeployment
from firstkit.config.clusters import Graces
from firstkit.links.messages import PilotReport
from firstkit.reconciler.forecast import Experience, Spread
from firstkit.reconciler.observe import (
    USUAL,
    JobUpdate,
    ReplicaUpdate,
    ending_of_replica,
    job_update,
    replica_updates,
)
from firstkit.reconciler.seasons import forecast, shape_of
from firstkit.schedulers.scheduler import JobNews, Resources
from firstkit.states import JobState, ReplicaState, may_move
from firstkit.store import jobs as stored
from firstkit.store.clusters import Drained, drained
from firstkit.store.database import Database
from firstkit.store.jobs import NOBODY, Charge, JobRow, NewReplica, Observation, ReplicaRow, Spent
from firstkit.store.polls import Polled, add_minute, forget_polls, polled

SEEN_EVERY_S = 30.0
"""That a job was seen is written down so often, while there is nothing else to write of it."""
DAY = timedelta(days=1)
FRESH_FOR = timedelta(seconds=5)
"""Rows are read again after so long or up to twice that, while nothing is written: not all clusters' at once."""
SPENT_FOR = timedelta(minutes=1)
"""What was spent is read again so often, while no job moves."""
FORECAST_FOR = timedelta(minutes=5)
"""A forecast of the queue counts for so long while nothing is learned: the hour of the day is in it."""
MINUTE = timedelta(minutes=1)
POLLS_SEEN, POLLS_KEPT = timedelta(days=7), timedelta(days=60)
"""Hours of polls that are told of, and those that are kept."""


@dataclass(slots=True)
class Changes:
    """What one pass has to write down."""

    at: datetime
    jobs: list[tuple[JobRow, JobUpdate]] = field(default_factory=list)
    replicas: list[ReplicaUpdate] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    """Jobs of which a poll said nothing new."""
    given_up: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.moves or self.seen)

    @property
    def moves(self) -> bool:
        """Whether there is more to write than that jobs were seen."""
        return bool(self.jobs or self.replicas)

    def poll(
        self,
        job: JobRow,
        replicas: Iterable[ReplicaRow],
        news: JobNews | None,
        is_pilot_silent: bool,
        *,
        poll_interval_s: float = 0.0,
        graces: Graces = USUAL,
        is_cancelled: bool = False,
    ) -> None:
        """Take in what a good poll says of a job; ``is_cancelled``: by us."""
        update = job_update(job, news, is_pilot_silent, self.at, poll_interval_s, graces)
        if not _says_more(job, update):
            if job.observed_at is None or abs((self.at - job.observed_at).total_seconds()) >= SEEN_EVERY_S:
                self.seen.append(job.id)
            return
        self.jobs.append((job, update))
        if update.give_up:
            self.given_up.append(job.id)
        if update.state is not None and update.state.is_final:
            reason = str(update.facts.get("reason", ""))
            # A job that was ending anyway, and then was forgotten, has failed nobody.
            is_ours = is_cancelled or (job.state is JobState.ENDING and update.state is JobState.VANISHED)
            self.replicas += [
                ending_of_replica(row, update.state, reason, self.at, is_ours=is_ours) for row in replicas
            ]

    def report(self, job: JobRow, replicas: Iterable[ReplicaRow], report: PilotReport) -> None:
        """Take in what the pilot of a job says. A pilot that is heard is proof that its job runs."""
        if may_move(job.state, JobState.RUNNING) and job.state is not JobState.PLANNED:
            facts = {"started_at": job.started_at or self.at, "reason": "", "observed_at": self.at}
            self.jobs.append((job, JobUpdate(job.id, JobState.RUNNING, facts)))
            if job.id in self.given_up:  # the poll of this pass missed it
                self.given_up.remove(job.id)
        self.replicas += replica_updates(replicas, report, self.at)

    def end_job(self, job: JobRow, replicas: Iterable[ReplicaRow], state: JobState, reason: str) -> None:
        """A job is over by our own word."""
        self.jobs.append((job, JobUpdate(job.id, state, {"reason": reason, "ended_at": self.at})))
        self.replicas += [ending_of_replica(row, state, reason, self.at) for row in replicas]


class Books:
    """The store as one cluster's loop sees it. Every method raises StoreUnavailable."""

    def __init__(self, db: Database, cluster: str, now: Callable[[], datetime] = now) -> None:
        self._db = db
        self._cluster = cluster
        self._now = now
        self.drained: dict[str, Drained] = {}
        """Clusters that an operator drained, as of the last read."""
        self.spent: list[Spent] = []
        """Jobs that live or ended within a day, as of the last read after one of them moved."""
        self._spent_at: datetime | None = None
        self._rows: tuple[list[JobRow], list[ReplicaRow]] | None = None
        self._read_at = self._fresh_until = now()
        self._writes = 0
        self._promised: dict[str, Spread] = {}
        self.ended: dict[str, list[ReplicaRow]] = {}
        """By deployment: its ended replicas, newest first, the last few."""
        self._loads: dict[str, tuple[Observation, ...]] = {}
        self._waits: tuple[Observation, ...] = ()
        self._shapes: dict[str, str] = {}
        self._forecasts: dict[str, tuple[datetime, Spread | None]] = {}
        self.polls: list[Polled] = []
        """Of the last week: how often the scheduler answered, hour by hour, oldest first."""
        self._asked = (0, 0)
        self._asked_at: datetime | None = None

    async def open(self, deployments: Mapping[str, ResolvedDeployment]) -> tuple[list[JobRow], list[ReplicaRow]]:
        """Read what was learned before; returns the living jobs and replicas."""
        self.ended = {name: [] for name in deployments}
        self._shapes = {name: shape_of(one.resources) for name, one in deployments.items()}
        await self.refresh(*self.ended)
        await self._read_waits()
        async with self._db.read() as conn:
            self.polls = await polled(conn, self._cluster, self._now() - POLLS_SEEN)
        return await self.read()

    async def read(self) -> tuple[list[JobRow], list[ReplicaRow]]:
        """The living jobs and replicas of the cluster; with them what is drained, and what was spent.

        Nobody else writes to these rows while a controller runs: those of the last read are told again as long as
        nothing was written, for a few seconds at most.
        """
        at = self._now()
        if self._rows is not None and self._read_at <= at <= self._fresh_until:
            return self._rows
        writes = self._writes
        async with self._db.read() as conn:
            self.drained = await drained(conn)
            if self._spent_at is None or not self._spent_at <= at <= self._spent_at + SPENT_FOR:
                self.spent = await stored.spent(conn, self._cluster, at - DAY)
                self._spent_at = at
            rows = await stored.live_jobs(conn, self._cluster), await stored.live_replicas(conn, self._cluster)
        if writes == self._writes:
            self._rows, self._read_at = rows, at
            self._fresh_until = at + FRESH_FOR * random.uniform(1.0, 2.0)  # noqa: S311 - spreads load
        return rows

    async def ended_jobs(self, job_ids: Collection[str]) -> list[str]:
        """Those of some jobs that were of this cluster and have ended."""
        async with self._db.read() as conn:
            return await stored.ended_jobs(conn, self._cluster, job_ids)

    def forget(self) -> None:
        """Read everything anew: something was written."""
        self._writes += 1
        self._rows = self._spent_at = None

    def known(self, deployment: str) -> Experience:
        """What forecasts for a deployment are made from: its queue waits are those of its shape at this hour."""
        shape = self._shapes.get(deployment, "")
        return Experience(self._loads.get(deployment, ()), self._waits, self._forecast(shape))

    @property
    def waits(self) -> Experience:
        """What is known of the cluster's queue, whatever waits in it."""
        return Experience(waits=self._waits, wait=self._forecast(""))

    def _forecast(self, shape: str) -> Spread | None:
        """What a job of ``shape`` waits that is submitted now. Asked many times in a pass, made once in a while."""
        at = self._now()
        known = self._forecasts.get(shape)
        if known is None or not known[0] <= at <= known[0] + FORECAST_FOR:
            known = self._forecasts[shape] = (at, forecast(self._waits, shape, at))
        return known[1]

    async def refresh(self, *deployments: str) -> None:
        """Read again what is remembered of some deployments: only what was committed is learned."""
        async with self._db.read() as conn:
            for name in set(deployments) & self.ended.keys():
                self.ended[name] = await stored.ended_replicas(conn, name)
                self._loads[name] = tuple(await stored.observed(conn, "load_time", name))

    async def _read_waits(self) -> None:
        async with self._db.read() as conn:
            self._waits = tuple(await stored.observed(conn, "queue_wait", self._cluster))
        self._forecasts.clear()

    async def note_polls(self, good: int, failed: int) -> None:
        """Remember whether the scheduler answers: of each minute in which it was asked, once.

        ``good``, ``failed``: how often it answered and did not, since the controller started. A silent scheduler is
        asked more seldom: single polls would say too little of its silences.
        """
        at = self._now()
        if self._asked_at is not None and self._asked_at <= at < self._asked_at + MINUTE:
            return
        before, self._asked, self._asked_at = self._asked, (good, failed), at
        answered, missed = good - before[0], failed - before[1]
        if answered + missed > 0:
            await self._count_minute(at.replace(minute=0, second=0, microsecond=0), is_good=answered >= missed)

    async def _count_minute(self, hour: datetime, *, is_good: bool) -> None:
        is_new = not self.polls or self.polls[-1].hour != hour
        async with self._db.begin() as conn:
            await add_minute(conn, self._cluster, hour, is_good=is_good)
            if is_new:
                await forget_polls(conn, self._cluster, hour - POLLS_KEPT)
        last = Polled(hour, 0, 0) if is_new else self.polls.pop()
        self.polls.append(Polled(hour, last.good + is_good, last.failed + (not is_good)))
        self.polls = [one for one in self.polls if one.hour >= hour - POLLS_SEEN]

    async def write(self, changes: Changes) -> None:
        """Write all changes of a pass, in one transaction; those that come late change nothing."""
        async with self._db.begin() as conn:
            for job, update in changes.jobs:
                await self._write_job(conn, job, update, changes.at)
            if changes.seen:
                await stored.note_seen(conn, changes.seen, changes.at)
            for replica in changes.replicas:
                await self._write_replica(conn, replica, changes.at)
        self.forget()
        if changes.replicas:
            await self.refresh(*(update.row.deployment for update in changes.replicas))
        if self._has_learned(changes):
            await self._read_waits()

    async def add_job(
        self,
        job_id: str,
        cluster: str,
        resources: Resources,
        token_sha256: str,
        replicas: list[NewReplica],
        charge: Charge = NOBODY,
    ) -> None:
        """The rows of a job that is about to be submitted."""
        async with self._db.begin() as conn:
            await stored.add_job(conn, job_id, cluster, resources, token_sha256, self._now(), charge)
            await stored.add_replicas(conn, replicas, self._now())
        wait = self._forecast(shape_of(resources))
        if wait is not None:
            self._promised[job_id] = wait
        self.forget()

    def promise(self, job_id: str, wait_s: float) -> None:
        """Remember how long a job that is about to be submitted was forecast to wait, by all that is known: then it is
        late after that, too, or after what nine of ten waited."""
        learned = self._promised.get(job_id)
        self._promised[job_id] = Spread(wait_s, wait_s if learned is None else max(wait_s, learned.late))

    async def add_replica(self, replica: NewReplica) -> None:
        """The row of a replica that is about to be started in a running job."""
        async with self._db.begin() as conn:
            await stored.add_replicas(conn, [replica], self._now())
        self.forget()

    async def move_job(self, job_id: str, state: JobState, **facts: Any) -> None:
        async with self._db.begin() as conn:
            await stored.move_job(conn, job_id, state, **facts)
        self.forget()

    async def move_replica(self, replica_id: str, state: ReplicaState, **facts: Any) -> None:
        async with self._db.begin() as conn:
            await stored.move_replica(conn, replica_id, state, **facts)
        self.forget()
        await self.refresh(*self.ended)

    async def end_job(self, job_id: str, state: JobState, reason: str) -> None:
        """A job is over, and with it all replicas that it still had."""
        at = self._now()
        async with self._db.begin() as conn:
            if not await stored.move_job(conn, job_id, state, reason=reason, ended_at=at):
                return
            replicas = [row for row in await stored.replicas_of(conn, job_id) if not row.state.is_final]
            for row in replicas:
                await self._write_replica(conn, ending_of_replica(row, state, reason, at), at)
        self.forget()
        self._promised.pop(job_id, None)
        await self.refresh(*(row.deployment for row in replicas))

    async def _write_job(self, conn: AsyncConnection, job: JobRow, update: JobUpdate, at: datetime) -> None:
        if update.state is None:
            await stored.note_job(conn, job.id, **update.facts)
            return
        has_moved = await stored.move_job(conn, job.id, update.state, **update.facts)
        started_at = update.facts.get("started_at")
        promised = self._promised.get(job.id)  # None: another controller submitted it, or nobody knew
        if started_at is not None or update.state.is_final:
            self._promised.pop(job.id, None)
        if has_moved and job.started_at is None and started_at is not None and job.submitted_at is not None:
            waited_s = max(0.0, (started_at - job.submitted_at).total_seconds())
            usual, late = (None, None) if promised is None else (promised.usual, promised.late)
            seen = Observation(waited_s, usual, late, shape_of(job.resources), job.submitted_at)
            await stored.add_observation(conn, "queue_wait", self._cluster, seen, at)

    @staticmethod
    def _has_learned(changes: Changes) -> bool:
        """Whether waits of the queue may have been written."""
        return any(update.state is not None and "started_at" in update.facts for _, update in changes.jobs)

    async def _write_replica(self, conn: AsyncConnection, update: ReplicaUpdate, at: datetime) -> None:
        row = update.row
        has_moved = await stored.move_replica(conn, row.id, update.state, **update.facts)
        load_s = update.facts.get("load_s")
        if has_moved and update.state is ReplicaState.READY and load_s is not None:
            seen = Observation(load_s, self.known(row.deployment).usual_load_s)
            await stored.add_observation(conn, "load_time", row.deployment, seen, at)


def _says_more(job: JobRow, update: JobUpdate) -> bool:
    """Whether there is more to write of a job than that it was seen."""
    facts = update.facts
    if update.state is not None or update.give_up or "observed_at" not in facts:
        return True
    return any(getattr(job, name) != value for name, value in facts.items() if name != "observed_at")
