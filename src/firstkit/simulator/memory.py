"""What is remembered of one cluster: ended replicas, loads, waits, what was spent. The rows are those of the store."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import cached_property

from firstkit.config import ResolvedDeployment
from firstkit.reconciler.forecast import Experience
from firstkit.schedulers.scheduler import Resources
from firstkit.states import JobState, ReplicaState
from firstkit.store.jobs import REMEMBERED, JobRow, Observation, ReplicaRow, Spent

DAY = timedelta(days=1)


class Known(Experience):
    """Experience whose medians are worked out once: it is made anew when something was learned."""

    @cached_property
    def usual_load_s(self) -> float | None:
        return Experience.usual_load_s.fget(self)  # type: ignore[attr-defined,no-any-return]

    @cached_property
    def usual_wait_s(self) -> float:
        return Experience.usual_wait_s.fget(self)  # type: ignore[attr-defined,no-any-return]

    @cached_property
    def warm_s(self) -> float | None:
        return Experience.warm_s.fget(self)  # type: ignore[attr-defined,no-any-return]


class Memory:
    """Of one cluster."""

    def __init__(self, deployments: Iterable[str]) -> None:
        self.ended: dict[str, list[ReplicaRow]] = {name: [] for name in deployments}
        """By deployment, newest first."""
        self._loads: dict[str, deque[Observation]] = {name: deque(maxlen=REMEMBERED) for name in self.ended}
        self._waits: deque[Observation] = deque(maxlen=REMEMBERED)
        self.seen_s: list[float] = []
        """How long each job waited, all of them."""
        self._known: dict[str, Known] = {}
        self._whose: dict[str, str] = {}
        self._over: deque[JobRow] = deque()

    def known(self, deployment: str) -> Known:
        """What forecasts for a deployment are made from."""
        found = self._known.get(deployment)
        if found is None:
            found = self._known[deployment] = Known(tuple(self._loads[deployment]), tuple(self._waits))
        return found

    def loaded(self, deployment: str, load_s: float) -> None:
        forecast_s = self.known(deployment).usual_load_s
        self._loads[deployment].appendleft(Observation(load_s, forecast_s))
        self._known.pop(deployment, None)

    def waited(self, waited_s: float, forecast_s: float | None) -> None:
        self.seen_s.append(waited_s)
        self._waits.appendleft(Observation(waited_s, forecast_s))
        self._known.clear()

    def replica_over(self, row: ReplicaRow) -> None:
        ended = self.ended[row.deployment]
        ended.insert(0, row)
        del ended[REMEMBERED:]

    def charged(self, job_id: str, deployment: str) -> None:
        """For whom a job was submitted."""
        self._whose[job_id] = deployment

    def job_over(self, row: JobRow) -> None:
        self._over.append(row)

    def spent(self, living: Iterable[JobRow], at: datetime) -> list[Spent]:
        """Jobs that live or ended within the last day."""
        while self._over and (self._over[0].ended_at or at) < at - DAY:
            self._whose.pop(self._over.popleft().id, None)
        return [Spent.of(row, self._whose.get(row.id)) for row in (*self._over, *living)]


def new_job(job_id: str, cluster: str, needs: Resources, at: datetime) -> JobRow:
    """A job that is being submitted."""
    return JobRow(
        id=job_id,
        cluster=cluster,
        state=JobState.SUBMITTING,
        reason="",
        scheduler_id=None,
        resources=needs,
        exit_code=None,
        node=None,
        created_at=at,
        submitted_at=at,
        started_at=None,
        ends_at=None,
        ended_at=None,
        observed_at=None,
        absent_polls=0,
        absent_since=None,
    )


def new_replica(replica_id: str, job_id: str, deployment: ResolvedDeployment, at: datetime) -> ReplicaRow:
    """A replica that waits for its job."""
    return ReplicaRow(
        id=replica_id,
        job_id=job_id,
        model=deployment.model,
        deployment=deployment.name,
        cluster=deployment.cluster,
        state=ReplicaState.QUEUED,
        reason="",
        log_tail="",
        max_in_flight=deployment.scale.max_in_flight,
        needs=deployment.resources,
        load_s=None,
        created_at=at,
        started_at=None,
        ready_at=None,
        ended_at=None,
        observed_at=None,
    )
