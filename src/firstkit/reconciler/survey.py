"""What lives on a cluster at one moment, as decisions look at it; made once a pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf

from firstkit.links.messages import PilotReport
from firstkit.reconciler.handover import ENDLESS, Life, life_of
from firstkit.reconciler.packing import Room, Rooms, waiting_room
from firstkit.schedulers.scheduler import Capacity
from firstkit.states import JobState, ReplicaState
from firstkit.store.jobs import JobRow, ReplicaRow

_WAITING = (JobState.SUBMITTING, JobState.PENDING)


@dataclass(frozen=True, slots=True)
class ObservedJob:
    """A living job. ``report``: of its pilot, while there is a link; ``silent_s``: for how long there is none."""

    row: JobRow
    report: PilotReport | None = None
    silent_s: float = 0.0

    def untold(self, rows: Iterable[ReplicaRow]) -> list[ReplicaRow]:
        """Of its replicas those that its pilot has not heard of: the call that started them was lost, or is under
        way."""
        queued = [row for row in rows if row.state is ReplicaState.QUEUED]
        if not queued or self.report is None:
            return queued
        heard = {said.replica_id for said in self.report.replicas}
        return [row for row in queued if row.id not in heard]


@dataclass(frozen=True, slots=True)
class Survey:
    """The living jobs (by id) and replicas, how long each job has left, and how large the cluster is; None: nobody has
    said."""

    now: datetime
    jobs: Mapping[str, ObservedJob]
    replicas: Sequence[ReplicaRow]
    by_job: Mapping[str, list[ReplicaRow]]
    by_deployment: Mapping[str, list[ReplicaRow]]
    lives: Mapping[str, Life]
    rooms: Rooms
    """What further replicas may take of jobs; nothing of those that run and whose pilots could not be told. Whoever
    gives them away works on a copy."""
    cluster: Capacity | None = None

    @classmethod
    def of(
        cls,
        jobs: Iterable[ObservedJob],
        replicas: Sequence[ReplicaRow],
        now: datetime,
        *,
        cluster: Capacity | None = None,
        leaves_at: datetime | None = None,
    ) -> Survey:
        """``leaves_at``: when all jobs end because of maintenance."""
        by_id = {job.row.id: job for job in jobs}
        lives = {job_id: life_of(job.row, job.report, leaves_at, now) for job_id, job in by_id.items()}
        by_job, by_deployment = grouped(replicas, "job_id"), grouped(replicas, "deployment")
        found = (_room(job, by_job.get(job_id, ()), lives[job_id], cluster) for job_id, job in by_id.items())
        rooms = Rooms(room for room in found if room is not None)
        return cls(now, by_id, replicas, by_job, by_deployment, lives, rooms, cluster)

    def life(self, row: ReplicaRow) -> Life:
        return self.lives.get(row.job_id, ENDLESS)

    def is_alive(self, row: ReplicaRow) -> bool:
        """Whether a replica may be counted on: it does not drain, and its job is not ending."""
        job = self.jobs.get(row.job_id)
        return row.state is not ReplicaState.DRAINING and (job is None or job.row.state is not JobState.ENDING)


def _room(job: ObservedJob, rows: Sequence[ReplicaRow], life: Life, cluster: Capacity | None) -> Room | None:
    report, asked = job.report, job.row.resources
    if job.row.state in _WAITING and asked.exclusive:
        return waiting_room(job.row.id, asked, cluster, [row.needs for row in rows])
    if report is None or report.free_cpus < 1 or job.row.state is not JobState.RUNNING:
        return None
    room = Room(
        job.row.id,
        report.free_cpus,
        report.free_gpus,
        report.free_memory_bytes,
        asked,
        life.left_s,
        usual_s=life.whole_s if asked.walltime_s is None else inf,
    )
    for row in job.untold(rows):
        room = room.without(row.needs)
    return room


def grouped(replicas: Iterable[ReplicaRow], key: str) -> dict[str, list[ReplicaRow]]:
    """Rows by one of their columns."""
    groups: dict[str, list[ReplicaRow]] = defaultdict(list)
    for row in replicas:
        groups[getattr(row, key)].append(row)
    return groups
