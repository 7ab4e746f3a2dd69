"""Books on paper: what the store keeps, as values in memory, for histories that are too many for a database.

The rules of the store are kept: rows move forward only, and a move that comes late changes nothing. tests of the real
books and of the loop on a real store are elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from firstkit.config import ResolvedDeployment
from firstkit.reconciler.books import Books, Changes
from firstkit.reconciler.forecast import Experience
from firstkit.reconciler.observe import ending_of_replica
from firstkit.schedulers.scheduler import Resources
from firstkit.states import JobState, ReplicaState, may_move
from firstkit.store.clusters import Drained
from firstkit.store.jobs import NOBODY, REMEMBERED, Charge, JobRow, NewReplica, Observation, ReplicaRow, Spent


@dataclass
class Paper:
    """What outlives a controller."""

    jobs: dict[str, JobRow] = field(default_factory=dict)
    replicas: dict[str, ReplicaRow] = field(default_factory=dict)
    drained: dict[str, Drained] = field(default_factory=dict)
    loads: dict[str, list[Observation]] = field(default_factory=dict)
    waits: dict[str, list[Observation]] = field(default_factory=dict)

    def drain(self, name: str, message: str, at: datetime) -> None:
        self.drained[name] = Drained(at, "op", message)


class PaperBooks(Books):
    """Books of one cluster on paper."""

    def __init__(self, paper: Paper, cluster: str, now: Callable[[], datetime]) -> None:
        super().__init__(None, cluster, now)  # type: ignore[arg-type]
        self._paper = paper

    async def open(self, deployments: Mapping[str, ResolvedDeployment]) -> tuple[list[JobRow], list[ReplicaRow]]:
        self.ended = {name: [] for name in deployments}
        await self.refresh(*self.ended)
        return await self.read()

    async def read(self) -> tuple[list[JobRow], list[ReplicaRow]]:
        self.drained = dict(self._paper.drained)
        since = self._now() - timedelta(days=1)
        ours = [row for row in self._paper.jobs.values() if row.cluster == self._cluster]
        self.spent = [self._spent(row) for row in ours if row.ended_at is None or row.ended_at > since]
        replicas = [row for row in self._paper.replicas.values() if row.cluster == self._cluster]
        return (
            [row for row in ours if not row.state.is_final],
            [row for row in replicas if not row.state.is_final],
        )

    async def ended_jobs(self, job_ids: Collection[str]) -> list[str]:
        known = [self._paper.jobs[job_id] for job_id in sorted(job_ids) if job_id in self._paper.jobs]
        return [row.id for row in known if row.cluster == self._cluster and row.state.is_final]

    async def refresh(self, *deployments: str) -> None:
        for name in deployments:
            ended = [r for r in self._paper.replicas.values() if r.deployment == name and r.state.is_final]
            self.ended[name] = ended[::-1][:REMEMBERED]

    def known(self, deployment: str) -> Experience:
        return Experience(tuple(self._paper.loads.get(deployment, ())), self.waits.waits)

    @property
    def waits(self) -> Experience:
        return Experience(waits=tuple(self._paper.waits.get(self._cluster, ())))

    async def note_polls(self, good: int, failed: int) -> None:
        """Nothing is made of it on paper."""

    async def write(self, changes: Changes) -> None:
        for job_id in changes.seen:
            self._paper.jobs[job_id] = replace(self._paper.jobs[job_id], observed_at=changes.at)
        for job, update in changes.jobs:
            before = self._paper.jobs[job.id]
            if update.state is None:
                self._paper.jobs[job.id] = replace(before, **update.facts)
            elif self._move_job(job.id, update.state, update.facts):
                started_at = update.facts.get("started_at")
                if before.started_at is None and started_at is not None and before.submitted_at is not None:
                    waited_s = max(0.0, (started_at - before.submitted_at).total_seconds())
                    self._learn(self._paper.waits, self._cluster, waited_s)
        for moved in changes.replicas:
            if self._move_replica(moved.row.id, moved.state, moved.facts) and moved.state is ReplicaState.READY:
                self._learn(self._paper.loads, moved.row.deployment, moved.facts["load_s"])
        await self.refresh(*self.ended)

    async def add_job(
        self,
        job_id: str,
        cluster: str,
        resources: Resources,
        token_sha256: str,
        replicas: list[NewReplica],
        charge: Charge = NOBODY,
    ) -> None:
        del token_sha256, charge
        self._paper.jobs[job_id] = JobRow(
            job_id, cluster, JobState.PLANNED, "", None, resources, None, None, self._now(), None, None, None, None,
            None, 0, None,
        )  # fmt: skip
        for new in replicas:
            await self.add_replica(new)

    async def add_replica(self, replica: NewReplica) -> None:
        assert not self._paper.jobs[replica.job_id].state.is_final
        self._paper.replicas[replica.id] = ReplicaRow(
            replica.id, replica.job_id, replica.model, replica.deployment, replica.cluster, ReplicaState.QUEUED, "",
            "", replica.max_in_flight, replica.needs, None, self._now(), None, None, None, None,
        )  # fmt: skip

    async def move_job(self, job_id: str, state: JobState, **facts: Any) -> None:
        self._move_job(job_id, state, facts)

    async def move_replica(self, replica_id: str, state: ReplicaState, **facts: Any) -> None:
        self._move_replica(replica_id, state, facts)
        await self.refresh(*self.ended)

    async def end_job(self, job_id: str, state: JobState, reason: str) -> None:
        at = self._now()
        if not self._move_job(job_id, state, {"reason": reason, "ended_at": at}):
            return
        for row in list(self._paper.replicas.values()):
            if row.job_id == job_id and not row.state.is_final:
                update = ending_of_replica(row, state, reason, at)
                self._move_replica(row.id, update.state, update.facts)
        await self.refresh(*self.ended)

    def _move_job(self, job_id: str, state: JobState, facts: dict[str, Any]) -> bool:
        row = self._paper.jobs[job_id]
        if not may_move(row.state, state):
            return False
        self._paper.jobs[job_id] = replace(row, state=state, **facts)
        return True

    def _move_replica(self, replica_id: str, state: ReplicaState, facts: dict[str, Any]) -> bool:
        row = self._paper.replicas[replica_id]
        if not may_move(row.state, state):
            return False
        self._paper.replicas[replica_id] = replace(row, state=state, **facts)
        return True

    def _learn(self, where: dict[str, list[Observation]], subject: str, seconds: float) -> None:
        where[subject] = [Observation(seconds, None), *where.get(subject, [])][:REMEMBERED]

    def _spent(self, row: JobRow) -> Spent:
        whose = [one.deployment for one in self._paper.replicas.values() if one.job_id == row.id]
        return Spent.of(row, whose[0] if whose else None)
