"""What the loop of a cluster does: scheduler commands and calls to pilots, beside its passes.

At most one thing at a time for each job and replica. Whatever goes wrong is a line in the log: the next pass sees what
is still to be done. A scheduler that does not answer is left alone for a while, and nothing is concluded from it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Set
from dataclasses import dataclass
from datetime import datetime
from math import inf
from typing import Any, Protocol

from firstkit.clock import monotonic, now
from firstkit.config import ResolvedDeployment
from firstkit.errors import CallFailed, ClaimedBefore, FirstError, LinkLost, SchedulerRefused, SchedulerSilent
from firstkit.ids import digest, new_id, new_secret
from firstkit.links.messages import LinkSpec, PilotSpec
from firstkit.reconciler.books import Books
from firstkit.reconciler.calls import Calls
from firstkit.reconciler.forecast import wait_s
from firstkit.reconciler.plan import Action, CancelJob, EndPilot, MoveEnd, StartReplica, StopReplica, SubmitJob
from firstkit.reconciler.rhythm import Rhythm
from firstkit.schedulers.scheduler import Capacity, Estimate, JobNews, JobSpec, Resources
from firstkit.states import JobState, ReplicaState
from firstkit.store.jobs import Charge, NewReplica
from firstkit.wire import to_dict

logger = logging.getLogger("firstkit.controller")

DRAIN_S = 1800.0
"""How long a replica that is stopped may go on with the requests that it has."""
ESTIMATE_EVERY_S = 60.0
ESTIMATE_LASTS_S = 300.0
"""So often a scheduler is asked when a job of some shape would start, and so long its answer counts."""
REFUSED_S = 86400.0
"""A job that a scheduler would refuse is tried where nothing else is left, as if it had to wait so long."""
CAPACITY_EVERY_S = 300.0
CAPACITY_AGAIN_S = 30.0
"""How often the size of a cluster is read, and how soon again when that failed: nodes come and go."""
TOLD_S = 20.0
"""How long a pilot may take to show that it heard when its job ends."""


class Cluster(Protocol):
    """The scheduler of a cluster; every verb raises SchedulerSilent and SchedulerRefused. See clusters/carrier.py."""

    async def submit(self, spec: JobSpec) -> str: ...

    async def poll(self) -> dict[str, JobNews]: ...

    async def cancel(self, job_id: str) -> None: ...

    async def capacity(self) -> Capacity: ...

    async def estimate(self, resources: Resources) -> Estimate: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Setting:
    """What surrounds the jobs of a cluster. ``link(job_id)``: how the pilot of a job and the gateway meet."""

    name: str
    deployments: Mapping[str, ResolvedDeployment]
    link: Callable[[str], LinkSpec]
    orphan_timeout_s: float
    charge: Charge
    scratch: str | None = None
    interface: str | None = None
    now: Callable[[], datetime] = now
    monotonic: Callable[[], float] = monotonic


@dataclass(slots=True)
class _Said:
    asked_at: float
    starts_at: float | None


class Hands:
    """Acts on one cluster. ``on_done`` is called whenever something that was begun has ended."""

    def __init__(
        self,
        setting: Setting,
        cluster: Cluster,
        store: Books,
        calls: Calls,
        rhythm: Rhythm,
        on_done: Callable[[], None],
    ) -> None:
        self.rhythm = rhythm
        self.under_way: dict[str, asyncio.Task[None]] = {}
        self.capacity: Capacity | None = None
        self.cancelled: set[str] = set()
        """Jobs that we ended."""
        self.asked_at: datetime | None = None
        """When the last poll that was answered began; None: none was."""
        self.trouble = ""
        """What was wrong when the scheduler did not answer last."""
        self._setting = setting
        self._cluster = cluster
        self._books = store
        self._calls = calls
        self._on_done = on_done
        self._news: tuple[float, dict[str, JobNews]] | None = None
        self._handed_over: dict[str, float] = {}
        self._capacity_due = -1.0
        self._said: dict[Resources, _Said] = {}
        self._told: dict[str, tuple[float, float]] = {}

    # -- asking --------------------------------------------------------------------------------------------------------

    def ask(self) -> None:
        """Ask what is due: for news of jobs, and how large the cluster is."""
        if self.rhythm.is_due and "poll" not in self.under_way:
            self.rhythm.asked()
            self.beside("poll", self.poll())
        if self._setting.monotonic() >= self._capacity_due and not self.rhythm.is_silent:
            self._capacity_due = self._setting.monotonic() + CAPACITY_AGAIN_S
            self.beside("capacity", self._read_capacity())

    def take_news(self) -> tuple[float, dict[str, JobNews]] | None:
        """What the last poll said and when it was asked (monotonic), once."""
        news, self._news = self._news, None
        return news

    def speaks_of(self, asked_at: float, job_id: str) -> bool:
        """Whether a poll that began then says something about a job: it was handed over before, or not by us."""
        return job_id not in self.under_way and asked_at > self._handed_over.get(job_id, -inf)

    def ask_start(self, needs: Resources) -> None:
        """Ask when a job of this shape would start, unless that is known or the scheduler has other troubles."""
        known = self._said.get(needs)
        is_known = known is not None and self._setting.monotonic() < known.asked_at + ESTIMATE_EVERY_S
        if not is_known and not self.rhythm.is_silent:
            self.beside("estimate", self._read_estimate(needs))

    def start_s(self, needs: Resources) -> float | None:
        """Seconds until a job of this shape would start, as the scheduler said not long ago; None: it did not."""
        said = self._said.get(needs)
        if said is None or said.starts_at is None or self._setting.monotonic() > said.asked_at + ESTIMATE_LASTS_S:
            return None
        return max(0.0, said.starts_at - self._setting.now().timestamp())

    async def poll(self) -> None:
        asked_at, began_at = self._setting.now(), self._setting.monotonic()
        self._news = (began_at, await self._cluster.poll())
        self.asked_at = asked_at
        self.rhythm.heard()

    async def _read_capacity(self) -> None:
        self.capacity = await self._cluster.capacity()
        self._capacity_due = self._setting.monotonic() + CAPACITY_EVERY_S
        self.rhythm.answered()

    async def _read_estimate(self, needs: Resources) -> None:
        """An estimate only makes a choice better: without one, what was learned has to do."""
        said = self._said[needs] = _Said(self._setting.monotonic(), None)
        try:
            said.starts_at = (await self._cluster.estimate(needs)).starts_at
        except SchedulerRefused as exc:
            logger.warning("a job would be refused: %s", exc.message, extra=self._extra("estimate"))
            said.starts_at = self._setting.now().timestamp() + REFUSED_S
        except SchedulerSilent as exc:
            logger.warning("no estimate: %s", exc.message, extra=self._extra("estimate"))

    # -- acting --------------------------------------------------------------------------------------------------------

    async def apply(self, action: Action) -> None:
        """Begin an action; rows of what is new are written before anybody hears of it."""
        if isinstance(action, (SubmitJob, CancelJob)) and self.rhythm.is_silent:
            return
        if isinstance(action, SubmitJob):
            await self._apply_submit(action)
        elif isinstance(action, StartReplica):
            await self._apply_start(action)
        elif isinstance(action, StopReplica):
            self.beside(action.replica_id, self._stop(action))
        elif isinstance(action, MoveEnd):
            self._apply_end(action)
        elif isinstance(action, EndPilot):
            self.beside(action.job_id, self._end_pilot(action.job_id))
        else:
            self.beside(action.job_id, self._cancel(action))

    async def _apply_submit(self, action: SubmitJob) -> None:
        setting, job_id, token = self._setting, new_id("job"), new_secret()
        deployments = [setting.deployments[name] for name in action.deployments]
        replicas = [_new_replica(deployment, job_id) for deployment in deployments]
        await self._books.add_job(job_id, setting.name, action.resources, digest(token), replicas, setting.charge)
        known = self._books.known(deployments[0].name)
        wait = wait_s(self.start_s(deployments[0].resources), known.usual_wait_s if known.waits else None)
        if wait is not None:
            self._books.promise(job_id, wait)
        pilot = PilotSpec(
            job_id=job_id,
            cluster=setting.name,
            link=setting.link(job_id),
            enrolment_token=token,
            replicas=tuple(
                deployment.replica_spec(replica.id) for deployment, replica in zip(deployments, replicas, strict=True)
            ),
            orphan_timeout_s=setting.orphan_timeout_s,
            scratch=setting.scratch,
            interface=setting.interface,
        )
        self.beside(job_id, self._submit(JobSpec(job_id, action.resources, to_dict(pilot))))

    async def _apply_start(self, action: StartReplica) -> None:
        deployment = self._setting.deployments[action.deployment]
        replica_id = action.replica_id
        if replica_id is None:
            new = _new_replica(deployment, action.job_id)
            await self._books.add_replica(new)
            replica_id = new.id
        if action.is_waiting:
            return
        self.beside(replica_id, self._start_replica(deployment, action.job_id, replica_id))

    def _apply_end(self, action: MoveEnd) -> None:
        told, at = self._told.get(action.job_id), self._setting.monotonic()
        if told is None or told[0] != action.ends_at or at > told[1] + TOLD_S:
            self._told[action.job_id] = (action.ends_at, at)
            self.beside(f"end of {action.job_id}", self._tell_end(action))

    def give_up(self, job_id: str) -> None:
        """End a job that nobody can find."""
        self.beside(job_id, self._give_up(job_id))

    def forget(self, living: Set[str]) -> None:
        """Remember nothing of jobs that have ended."""
        self.cancelled &= living
        self._handed_over = {job_id: at for job_id, at in self._handed_over.items() if job_id in living}
        self._told = {job_id: told for job_id, told in self._told.items() if job_id in living}

    async def _submit(self, spec: JobSpec) -> None:
        """Hand a job to the scheduler, once. If the answer is lost, polls find the job, or it is given up."""
        at = self._setting.now()
        await self._books.move_job(spec.job_id, JobState.SUBMITTING, submitted_at=at)
        logger.info("submitting a job", extra=self._extra("submit", job_id=spec.job_id))
        self.rhythm.hurry()
        try:
            scheduler_id = await self._cluster.submit(spec)
        except ClaimedBefore:
            await self._give_up(spec.job_id)
        except SchedulerRefused as exc:
            await self._books.end_job(spec.job_id, JobState.REJECTED, exc.message)
        except SchedulerSilent:
            self._handed_over[spec.job_id] = self._setting.monotonic()
            raise
        else:
            self._handed_over[spec.job_id] = self._setting.monotonic()
            self.rhythm.answered()
            at = self._setting.now()
            await self._books.move_job(spec.job_id, JobState.PENDING, scheduler_id=scheduler_id, observed_at=at)
        self.rhythm.hurry()

    async def _give_up(self, job_id: str) -> None:
        """By name, so that it does not come after all; its place is planned anew."""
        await self._cluster.cancel(job_id)
        await self._books.end_job(job_id, JobState.CANCELLED, "its submission was never answered")

    async def _cancel(self, action: CancelJob) -> None:
        logger.info("cancelling a job: %s", action.reason, extra=self._extra("cancel", job_id=action.job_id))
        self.cancelled.add(action.job_id)
        await self._cluster.cancel(action.job_id)
        await self._books.move_job(action.job_id, JobState.ENDING, reason=action.reason)
        self.rhythm.hurry()

    async def _start_replica(self, deployment: ResolvedDeployment, job_id: str, replica_id: str) -> None:
        logger.info("starting a replica", extra=self._extra("start", job_id=job_id, replica_id=replica_id))
        try:
            await self._calls.call(job_id, "start", replica=to_dict(deployment.replica_spec(replica_id)))
        except CallFailed as exc:
            at = self._setting.now()
            await self._books.move_replica(replica_id, ReplicaState.FAILED, reason=exc.message, ended_at=at)

    async def _stop(self, action: StopReplica) -> None:
        job_id, replica_id = action.job_id, action.replica_id
        logger.info("stopping a replica", extra=self._extra("stop", job_id=job_id, replica_id=replica_id))
        grace_s = max(0.0, min(DRAIN_S, action.left_s))
        try:
            await self._calls.call(job_id, "stop", replica_id=replica_id, grace_s=grace_s)
        except CallFailed:  # its pilot never had it: the call that should have started it was lost
            await self._books.move_replica(replica_id, ReplicaState.STOPPED, ended_at=self._setting.now())

    async def _tell_end(self, action: MoveEnd) -> None:
        logger.info("telling a pilot when its job ends", extra=self._extra("end", job_id=action.job_id))
        await self._calls.call(action.job_id, "end", ends_at=action.ends_at)

    async def _end_pilot(self, job_id: str) -> None:
        logger.info("ending a pilot whose job is over", extra=self._extra("exit", job_id=job_id))
        await self._calls.call(job_id, "exit")

    # -- beside the loop -----------------------------------------------------------------------------------------------

    def beside(self, key: str, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work`` beside the loop, unless something is under way for ``key`` already; then make a pass."""
        if key in self.under_way:
            work.close()
            return
        task = asyncio.ensure_future(self._guarded(work))
        self.under_way[key] = task
        task.add_done_callback(lambda _: self._done(key))

    async def close(self) -> None:
        """Drop what is under way: scheduler commands that were begun may still take effect, and are found again."""
        await asyncio.sleep(0)  # what was begun in this turn can only be cancelled once it runs
        tasks = list(self.under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._cluster.close()

    def _done(self, key: str) -> None:
        del self.under_way[key]
        self._on_done()

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (SchedulerSilent, SchedulerRefused) as exc:
            self.rhythm.silence()
            self.trouble = exc.message
            logger.warning("the scheduler is left alone for a while: %s", exc.message, extra=self._extra("silent"))
        except (LinkLost, CallFailed) as exc:
            logger.warning("a pilot was not reached: %s", exc.message, extra=self._extra("call"))
        except FirstError as exc:
            logger.warning("not done for now: %s", exc.message, extra=self._extra("act"))
        except Exception:  # a boundary: one bad action must not leave a cluster without a controller
            logger.exception("an action failed for a reason of ours", extra=self._extra("act"))

    def _extra(self, action: str, **more: str) -> dict[str, str]:
        return {"action": action, "cluster": self._setting.name, **more}


def _new_replica(deployment: ResolvedDeployment, job_id: str) -> NewReplica:
    return NewReplica(
        id=new_id("rep"),
        job_id=job_id,
        model=deployment.model,
        deployment=deployment.name,
        cluster=deployment.cluster,
        max_in_flight=deployment.scale.max_in_flight,
        needs=deployment.resources,
    )
