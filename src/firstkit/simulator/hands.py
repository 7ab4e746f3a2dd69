"""What is done on one cluster and what comes of it: jobs are submitted and cancelled, pilots told; rows move on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from firstkit.config import ResolvedDeployment
from firstkit.links.messages import Upstream
from firstkit.reconciler.forecast import wait_s
from firstkit.reconciler.observe import ending_of_replica
from firstkit.reconciler.plan import Action, CancelJob, StartReplica, StopReplica, SubmitJob
from firstkit.schedulers.scheduler import Resources
from firstkit.simulator.batch import BatchSystem
from firstkit.simulator.events import Events
from firstkit.simulator.front import Front
from firstkit.simulator.memory import Memory, new_job, new_replica
from firstkit.simulator.nodes import BatchJob
from firstkit.simulator.pilots import Setting, SimPilot
from firstkit.simulator.scenario import ClusterSection, EngineSection, memory_bytes
from firstkit.simulator.tallies import Tallies, Usage
from firstkit.states import JobState, ReplicaState, may_move
from firstkit.store.jobs import JobRow, ReplicaRow

PILOT_S = 3.0
"""From the start of a job until its pilot is heard."""
POLL_S = 30.0
"""Between two polls of a scheduler: so long it may take until the end of a job is known."""
LOST_S = 60.0
"""How long an unanswered submission may take to show up, once the scheduler answers again."""
ESTIMATE_EVERY_S, ESTIMATE_LASTS_S = 60.0, 300.0
DRAIN_S = 1800.0
EPOCH = datetime.fromtimestamp(0, UTC)


def moment(seconds: float) -> datetime:
    """``seconds`` since 1970 as a date."""
    return EPOCH + timedelta(seconds=seconds)


class Hands:
    """The jobs, replicas and pilots of one cluster, as rows and as what they really are."""

    def __init__(
        self,
        name: str,
        section: ClusterSection,
        deployments: Sequence[ResolvedDeployment],
        kinds: dict[str, EngineSection],
        batch: BatchSystem,
        events: Events,
        front: Front,
        tallies: Tallies,
        chance: random.Random,
        upstream: Upstream,
    ) -> None:
        self.name = name
        self.deployments = {deployment.name: deployment for deployment in deployments}
        self.batch = batch
        self.usage = Usage(section.cpus_per_node, section.gpus_per_node, memory_bytes(section))
        self.memory = Memory(self.deployments)
        self.jobs: dict[str, JobRow] = {}
        self.replicas: dict[str, ReplicaRow] = {}
        self.pilots: dict[str, SimPilot] = {}
        self.is_dirty = True
        """Whether a row moved since the last pass in a way that there may be something to do about."""
        self.has_spent = True
        """Whether a job did."""
        self.silences = [(events.now + one.after, events.now + one.after + one.lasts) for one in section.silent]
        self._section = section
        self._events = events
        self._tallies = tallies
        self._chance = chance
        self._setting = Setting(events, front, tallies, self.usage, self, kinds, chance, upstream)
        self._specs: dict[str, list[str]] = {}
        self._promised: dict[str, float] = {}
        self._cancelled: set[str] = set()
        self._said: dict[Resources, tuple[float, float | None]] = {}
        self._count = 0
        self.usage.begin(events.now)
        batch.on_start = self._on_start
        batch.on_end = self._on_end

    # -- the scheduler's word ------------------------------------------------------------------------------------------

    @property
    def silent_since(self) -> float | None:
        """Since when its scheduler does not answer; None: it does."""
        now = self._events.now
        return next((start for start, end in self.silences if start <= now < end), None)

    def said_s(self, needs: Resources) -> float | None:
        """How long such a job would wait by the scheduler's last word; None: it said nothing, or long ago."""
        asked_at, starts_at = self._said.get(needs, (0.0, None))
        if starts_at is None or self._events.now > asked_at + ESTIMATE_LASTS_S:
            return None
        return max(0.0, starts_at - self._events.now)

    def ask_start(self, needs: Resources) -> None:
        """Ask when such a job would start, unless that was just asked."""
        now = self._events.now
        if self.silent_since is None and now >= self._said.get(needs, (0.0, None))[0] + ESTIMATE_EVERY_S:
            self._said[needs] = (now, self.batch.starts(needs)[1])

    def poll(self) -> None:
        """Hear when jobs that wait would start."""
        waiting = [row for row in self.jobs.values() if row.state is JobState.PENDING]
        if not waiting or self.silent_since is not None:
            return
        starts, _ = self.batch.starts()
        for row in waiting:
            starts_at, place = starts.get(row.id, (None, None))
            when = None if starts_at is None else moment(starts_at)
            self.jobs[row.id] = replace(row, starts_at=when, position=place, observed_at=moment(self._events.now))

    # -- what is done --------------------------------------------------------------------------------------------------

    def apply(self, action: Action) -> None:
        """Do what was planned. The one place where actions of the plan are known."""
        if isinstance(action, SubmitJob):
            self._submit([self.deployments[name] for name in action.deployments], action.resources)
        elif isinstance(action, StartReplica):
            self._start(action)
        elif isinstance(action, StopReplica):
            self._stop(action)
        elif isinstance(action, CancelJob) and self.silent_since is None:
            self._cancelled.add(action.job_id)
            self._move_job(action.job_id, JobState.ENDING, reason=action.reason)
            self._events.after(1.0, self.batch.cancel, action.job_id)

    def _submit(self, deployments: list[ResolvedDeployment], needs: Resources) -> None:
        at, job_id, first = moment(self._events.now), self._new_id("job"), deployments[0]
        self.is_dirty = self.has_spent = True
        self.jobs[job_id] = new_job(job_id, self.name, needs, at)
        self._specs[job_id] = [self._add_replica(deployment, job_id) for deployment in deployments]
        self.memory.charged(job_id, first.name)
        known = self.memory.known(first.name)
        promised = wait_s(self.said_s(first.resources), known.usual_wait_s if known.waits else None)
        if promised is not None:
            self._promised[job_id] = promised
        self._tallies.jobs["submitted"] += 1
        if self.silent_since is None:
            self._move_job(job_id, JobState.PENDING, scheduler_id=job_id, observed_at=at)
            self.batch.submit(job_id, needs)
        else:
            until = next(end for _, end in self.silences if end > self._events.now)
            self._events.at(until + LOST_S, self._news, job_id, JobState.CANCELLED)

    def _start(self, action: StartReplica) -> None:
        deployment = self.deployments[action.deployment]
        replica_id = action.replica_id or self._add_replica(deployment, action.job_id)
        pilot = self.pilots.get(action.job_id)
        if pilot is not None:
            pilot.start(replica_id, deployment)

    def _stop(self, action: StopReplica) -> None:
        pilot = self.pilots.get(action.job_id)
        grace_s = max(0.0, min(DRAIN_S, action.left_s))
        if pilot is not None and not pilot.stop(action.replica_id, grace_s):
            self.moved(action.replica_id, ReplicaState.STOPPED)

    def _add_replica(self, deployment: ResolvedDeployment, job_id: str) -> str:
        row = new_replica(self._new_id("rep"), job_id, deployment, moment(self._events.now))
        self.replicas[row.id] = row
        self.is_dirty = True
        return row.id

    def _new_id(self, kind: str) -> str:
        self._count += 1
        return f"{kind}-{self.name}-{self._count:06}"

    # -- what happens --------------------------------------------------------------------------------------------------

    def _on_start(self, job: BatchJob) -> None:
        self.usage.job(self._events.now, job.needs, 1)
        self._events.after(PILOT_S, self._pilot_up, job)

    def _pilot_up(self, job: BatchJob) -> None:
        row, started_at = self.jobs.get(job.id), job.started_at
        if row is None or started_at is None or job.is_over:
            return
        if may_move(row.state, JobState.RUNNING):
            facts = {"started_at": moment(started_at), "ends_at": moment(job.ends_at), "starts_at": None}
            self._move_job(job.id, JobState.RUNNING, **facts)
            self._learn_wait(job.id, started_at - job.submitted_at)
        pilot = SimPilot(self._setting, job.id, self._room(row.resources), started_at, job.ends_at, self.batch.end)
        self.pilots[job.id] = pilot
        for replica_id in self._specs.pop(job.id):
            if replica_id in self.replicas:
                pilot.start(replica_id, self.deployments[self.replicas[replica_id].deployment])

    def _learn_wait(self, job_id: str, waited_s: float) -> None:
        promised = self._promised.pop(job_id, None)
        self.memory.waited(waited_s, promised)
        self._tallies.queue_s.append(waited_s)
        if promised is not None:
            self._tallies.queue_error_s.append(waited_s - promised)

    def _room(self, asked: Resources) -> Resources:
        """What a job has for replicas: alone on a node, all of it."""
        if not asked.exclusive or asked.nodes > 1:
            return asked
        usage = self.usage
        return replace(asked, cpus_per_node=usage.cpus, gpus_per_node=usage.gpus, memory_bytes=usage.memory_bytes)

    def _on_end(self, job: BatchJob, state: JobState) -> None:
        """A job is over in its scheduler: its pilot is gone now, the news comes with a poll."""
        now = self._events.now
        if (pilot := self.pilots.get(job.id)) is not None:
            pilot.die("job cancelled" if state is JobState.CANCELLED else "node failed")
        if job.started_at is not None:
            self.usage.job(now, job.needs, -1)
        silent_until = [end for start, end in self.silences if start <= now < end]
        self._events.at(max([now, *silent_until]) + self._chance.uniform(1.0, POLL_S), self._news, job.id, state)

    def _news(self, job_id: str, state: JobState) -> None:
        """A poll says how a job ended."""
        if job_id not in self.jobs:
            return
        at = moment(self._events.now)
        for row in [row for row in self.replicas.values() if row.job_id == job_id]:
            update = ending_of_replica(row, state, "", at, is_ours=job_id in self._cancelled)
            self.moved(row.id, update.state, str(update.facts.get("reason", "")))
        self._move_job(job_id, state, ended_at=at)
        self.memory.job_over(self.jobs.pop(job_id))
        self.pilots.pop(job_id, None)
        self._specs.pop(job_id, None)
        self._cancelled.discard(job_id)
        self._tallies.jobs[state.value.lower()] += 1

    # -- rows ----------------------------------------------------------------------------------------------------------

    def emptied(self, replica_id: str) -> None:
        """A replica that drains has ended its last request."""
        row = self.replicas.get(replica_id)
        if row is not None and (pilot := self.pilots.get(row.job_id)) is not None:
            pilot.emptied(replica_id)

    def moved(self, replica_id: str, state: ReplicaState, reason: str = "", load_s: float | None = None) -> None:
        """A replica moves on."""
        row, at = self.replicas.get(replica_id), moment(self._events.now)
        if row is None or not may_move(row.state, state):
            return
        facts: dict[str, Any] = {"state": state, "reason": reason}
        if row.started_at is None and state is not ReplicaState.QUEUED:
            facts["started_at"] = at
        if state is ReplicaState.READY:
            facts |= {"ready_at": at, "load_s": load_s}
            self.memory.loaded(row.deployment, load_s or 0.0)
        self.is_dirty |= state is ReplicaState.READY or state.is_final
        if not state.is_final:
            self.replicas[replica_id] = replace(row, **facts)
            return
        del self.replicas[replica_id]
        self._tallies.replicas[state.value.lower()] += 1
        self.memory.replica_over(replace(row, **facts, ended_at=at))

    def _move_job(self, job_id: str, state: JobState, **facts: Any) -> None:
        row = self.jobs.get(job_id)
        if row is not None and may_move(row.state, state):
            self.jobs[job_id] = replace(row, state=state, **facts)
            self.has_spent = True
            self.is_dirty |= state.is_final
