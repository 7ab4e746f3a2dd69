"""The controller's books: the rows of one cluster, changes to them, and what was learned from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from firstkit.clock import now
from firstkit.links.messages import PilotReport
from firstkit.reconciler.forecast import Experience
from firstkit.reconciler.observe import (
    JobUpdate,
    ReplicaUpdate,
    ending_of_replica,
    job_update,
    replica_updates,
)
from firstkit.schedulers.scheduler import JobNews, Resources
from firstkit.states import JobState, ReplicaState, may_move
from firstkit.store import jobs as stored
from firstkit.store.database import Database
from firstkit.store.jobs import JobRow, NewReplica, Observation, ReplicaRow


@dataclass(slots=True)
class Changes:
    """What one pass has to write down."""

    at: datetime
    jobs: list[tuple[JobRow, JobUpdate]] = field(default_factory=list)
    replicas: list[ReplicaUpdate] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.jobs or self.replicas)

    def poll(self, job: JobRow, replicas: Iterable[ReplicaRow], news: JobNews | None, is_pilot_silent: bool) -> None:
        """Take in what a good poll says of a job."""
        update = job_update(job, news, is_pilot_silent, self.at)
        self.jobs.append((job, update))
        if update.give_up:
            self.given_up.append(job.id)
        if update.state is not None and update.state.is_final:
            reason = str(update.facts.get("reason", ""))
            self.replicas += [ending_of_replica(row, update.state, reason, self.at) for row in replicas]

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

    def __init__(self, db: Database, cluster: str) -> None:
        self._db = db
        self._cluster = cluster
        self.ended: dict[str, list[ReplicaRow]] = {}
        """By deployment: its ended replicas, newest first, the last few."""
        self._loads: dict[str, tuple[Observation, ...]] = {}
        self._waits: tuple[Observation, ...] = ()

    async def open(self, deployments: Iterable[str]) -> tuple[list[JobRow], list[ReplicaRow]]:
        """Read what was learned before; returns the living jobs and replicas."""
        self.ended = {name: [] for name in deployments}
        await self.refresh(*self.ended)
        return await self.read()

    async def read(self) -> tuple[list[JobRow], list[ReplicaRow]]:
        """The living jobs and replicas of the cluster."""
        async with self._db.read() as conn:
            return await stored.live_jobs(conn, self._cluster), await stored.live_replicas(conn, self._cluster)

    def known(self, deployment: str) -> Experience:
        """What forecasts for a deployment are made from."""
        return Experience(self._loads.get(deployment, ()), self._waits)

    async def refresh(self, *deployments: str) -> None:
        """Read again what is remembered of some deployments, and of the cluster: only what was committed is learned."""
        async with self._db.read() as conn:
            for name in set(deployments) & self.ended.keys():
                self.ended[name] = await stored.ended_replicas(conn, name)
                self._loads[name] = tuple(await stored.observed(conn, "load_time", name))
            self._waits = tuple(await stored.observed(conn, "queue_wait", self._cluster))

    async def write(self, changes: Changes) -> None:
        """Write all changes of a pass, in one transaction; those that come late change nothing."""
        async with self._db.begin() as conn:
            for job, update in changes.jobs:
                await self._write_job(conn, job, update, changes.at)
            for replica in changes.replicas:
                await self._write_replica(conn, replica, changes.at)
        await self.refresh(*(update.row.deployment for update in changes.replicas))

    async def add_job(
        self, job_id: str, cluster: str, resources: Resources, token_sha256: str, replicas: list[NewReplica]
    ) -> None:
        """The rows of a job that is about to be submitted."""
        async with self._db.begin() as conn:
            await stored.add_job(conn, job_id, cluster, resources, token_sha256, now())
            await stored.add_replicas(conn, replicas, now())

    async def add_replica(self, replica: NewReplica) -> None:
        """The row of a replica that is about to be started in a running job."""
        async with self._db.begin() as conn:
            await stored.add_replicas(conn, [replica], now())

    async def move_job(self, job_id: str, state: JobState, **facts: Any) -> None:
        async with self._db.begin() as conn:
            await stored.move_job(conn, job_id, state, **facts)

    async def move_replica(self, replica_id: str, state: ReplicaState, **facts: Any) -> None:
        async with self._db.begin() as conn:
            await stored.move_replica(conn, replica_id, state, **facts)
        await self.refresh(*self.ended)

    async def end_job(self, job_id: str, state: JobState, reason: str) -> None:
        """A job is over, and with it all replicas that it still had."""
        at = now()
        async with self._db.begin() as conn:
            if not await stored.move_job(conn, job_id, state, reason=reason, ended_at=at):
                return
            replicas = [row for row in await stored.replicas_of(conn, job_id) if not row.state.is_final]
            for row in replicas:
                await self._write_replica(conn, ending_of_replica(row, state, reason, at), at)
        await self.refresh(*(row.deployment for row in replicas))

    async def _write_job(self, conn: AsyncConnection, job: JobRow, update: JobUpdate, at: datetime) -> None:
        if update.state is None:
            await stored.note_job(conn, job.id, **update.facts)
            return
        has_moved = await stored.move_job(conn, job.id, update.state, **update.facts)
        started_at = update.facts.get("started_at")
        if has_moved and job.started_at is None and started_at is not None and job.submitted_at is not None:
            waited_s = max(0.0, (started_at - job.submitted_at).total_seconds())
            await stored.add_observation(conn, "queue_wait", self._cluster, waited_s, None, at)

    async def _write_replica(self, conn: AsyncConnection, update: ReplicaUpdate, at: datetime) -> None:
        row = update.row
        has_moved = await stored.move_replica(conn, row.id, update.state, **update.facts)
        load_s = update.facts.get("load_s")
        if has_moved and update.state is ReplicaState.READY and load_s is not None:
            forecast_s = self.known(row.deployment).usual_load_s
            await stored.add_observation(conn, "load_time", row.deployment, load_s, forecast_s, at)
