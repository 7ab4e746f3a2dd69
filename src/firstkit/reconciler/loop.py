"""The loop of one cluster: read, take in news, plan, act, write back. A slow cluster delays no other.

What takes time (scheduler commands, calls to pilots) runs beside the loop, at most one thing at a time for each job and
replica. A pass that is cut off anywhere leaves rows from which the next one goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from datetime import datetime
from typing import Any, Protocol

from firstkit.clock import monotonic, now
from firstkit.config import ResolvedDeployment
from firstkit.errors import CallFailed, ClaimedBefore, FirstError, LinkLost, SchedulerRefused, SchedulerSilent
from firstkit.ids import digest, new_id, new_secret
from firstkit.links.messages import LinkSpec, PilotSpec
from firstkit.reconciler import books
from firstkit.reconciler.backoff import retry_at
from firstkit.reconciler.books import Books
from firstkit.reconciler.calls import Calls
from firstkit.reconciler.forecast import Outlook, deployment_outlook
from firstkit.reconciler.observe import VANISH_GRACE_S
from firstkit.reconciler.plan import (
    Action,
    CancelJob,
    Desired,
    ObservedJob,
    StartReplica,
    StopReplica,
    SubmitJob,
    plan,
)
from firstkit.reconciler.rhythm import Rhythm
from firstkit.reconciler.world import World
from firstkit.schedulers.scheduler import Capacity, JobNews, JobSpec
from firstkit.states import JobState, ReplicaState
from firstkit.store.jobs import JobRow, NewReplica, ReplicaRow
from firstkit.wire import to_dict

logger = logging.getLogger("firstkit.controller")

DRAIN_S = 1800.0
"""How long a replica that is stopped may go on with the requests that it has."""
CALM_S, BUSY_S = 15.0, 1.0
"""Pause between passes when all is as it should be, and while something is on its way. News wakes the loop anyway."""
LONGEST_PAUSE_S = 30.0


class Cluster(Protocol):
    """The scheduler of a cluster; every verb raises SchedulerSilent and SchedulerRefused. See clusters/carrier.py."""

    async def submit(self, spec: JobSpec) -> str: ...

    async def poll(self) -> dict[str, JobNews]: ...

    async def cancel(self, job_id: str) -> None: ...

    async def capacity(self) -> Capacity: ...


class ClusterLoop:
    """Keeps one cluster as it should be. ``run`` it as a task, ``wake`` it when there is news."""

    def __init__(
        self,
        name: str,
        deployments: Iterable[ResolvedDeployment],
        cluster: Cluster,
        store: Books,
        world: World,
        calls: Calls,
        *,
        link: LinkSpec,
        orphan_timeout_s: float,
        wanted: Callable[[str], dict[str, int]],
        on_pass: Callable[[], None] = lambda: None,
    ) -> None:
        """``wanted(name)``: replicas by deployment of this cluster. ``on_pass`` is called after each pass."""
        self.name = name
        self.deployments = {deployment.name: deployment for deployment in deployments}
        self.outlooks: dict[str, Outlook] = {}
        """By deployment, as of the last pass."""
        self.blocked: set[str] = set()
        """Deployments that may not start a replica now."""
        self.alive: Counter[str] = Counter()
        """Replicas by deployment, as of the last pass; those that drain do not count."""
        self._cluster = cluster
        self._books = store
        self._world = world
        self._calls = calls
        self._link = link
        self._orphan_timeout_s = orphan_timeout_s
        self._wanted = wanted
        self._on_pass = on_pass
        self._wake = asyncio.Event()
        self._rhythm = Rhythm(monotonic)
        self._news: tuple[datetime, dict[str, JobNews]] | None = None
        self._capacity: Capacity | None = None
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def wake(self) -> None:
        """Make a pass now."""
        self._wake.set()

    async def run(self) -> None:
        """Pass after pass, for ever. What the store or a fault of ours spoils is tried again, ever more seldom."""
        await self._start()
        pause_s, trouble_s = 0.0, BUSY_S
        while True:
            await self._wait(pause_s)
            try:
                pause_s, trouble_s = await self.step(), BUSY_S
            except FirstError as exc:
                logger.warning("a pass was cut off: %s", exc.message, extra=self._extra("pass"))
                pause_s = trouble_s = min(LONGEST_PAUSE_S, 2 * trouble_s)
            except Exception:  # a boundary: one bad pass must not leave a cluster without a controller
                logger.exception("a pass failed for a reason of ours", extra=self._extra("pass"))
                pause_s = trouble_s = min(LONGEST_PAUSE_S, 2 * trouble_s)

    def forecast_error_s(self, deployment: str) -> float | None:
        """Mean absolute error of the deployment's recent forecasts of load times; None without any."""
        return self._books.known(deployment).error_s

    async def close(self) -> None:
        """Drop what is under way: scheduler commands that were begun may still take effect, and are found again."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def step(self) -> float:
        """One pass; returns how long the next may wait, in seconds, unless there is news."""
        jobs, replicas = await self._take_in()
        self.alive = Counter(row.deployment for row in replicas if row.state is not ReplicaState.DRAINING)
        desired = self._desired()
        observed = [self._observed(job) for job in jobs]
        actions = plan(
            desired, observed, replicas, now(), cluster=self._capacity, orphan_timeout_s=self._orphan_timeout_s
        )
        for action in actions:
            await self._apply(action)
        self._look_ahead(jobs, replicas)
        self._on_pass()
        return self._pause_s(desired, observed, replicas, bool(actions))

    # -- what is there -----------------------------------------------------------------------------------------

    async def _start(self) -> None:
        while True:
            try:
                _, replicas = await self._books.open(self.deployments)
            except FirstError as exc:
                logger.warning("the store cannot be read yet: %s", exc.message, extra=self._extra("start"))
                await asyncio.sleep(BUSY_S)
            else:
                break
        for deployment in self.deployments.values():
            # What runs was wanted by somebody: it is not stopped just because we have forgotten by whom.
            alive = sum(row.deployment == deployment.name for row in replicas)
            self._world.assume_more(deployment.model, alive * deployment.scale.max_in_flight)

    async def _take_in(self) -> tuple[list[JobRow], list[ReplicaRow]]:
        """The living jobs and replicas, after all that was heard of them has been written down."""
        at = now()
        jobs, replicas = await self._books.read()
        by_job: dict[str, list[ReplicaRow]] = {job.id: [] for job in jobs}
        for row in replicas:
            by_job.setdefault(row.job_id, []).append(row)
        changes = books.Changes(at)
        news, self._news = self._news, None
        for job in jobs:
            self._take_in_job(job, by_job[job.id], news, changes)
        if not changes:
            return jobs, replicas
        await self._books.write(changes)
        for job_id in changes.given_up:
            self._beside(job_id, self._give_up(job_id))
        return await self._books.read()

    def _take_in_job(
        self,
        job: JobRow,
        replicas: list[ReplicaRow],
        news: tuple[datetime, dict[str, JobNews]] | None,
        to: books.Changes,
    ) -> None:
        report = self._world.reports.get(job.id)
        if job.state is JobState.PLANNED and job.id not in self._under_way:
            to.end_job(job, replicas, JobState.CANCELLED, "a controller died before it was submitted")
            return
        if news is not None and job.id not in self._under_way and _was_asked_later(news[0], job):
            # After a restart of the gateway pilots need a moment to dial again.
            is_silent = self._world.silent_s(job.id) > VANISH_GRACE_S
            to.poll(job, replicas, news[1].get(job.id), is_silent)
        if report is not None:
            to.report(job, replicas, report)

    def _observed(self, job: JobRow) -> ObservedJob:
        """A pilot cannot have been silent for longer than its job has run, however long the gateway was up before."""
        ran_s = 0.0 if job.started_at is None else max(0.0, (now() - job.started_at).total_seconds())
        return ObservedJob(job, self._world.reports.get(job.id), min(ran_s, self._world.silent_s(job.id)))

    # -- what should be there ----------------------------------------------------------------------------------

    def _desired(self) -> list[Desired]:
        at = now()
        retries = {name: retry_at(self._books.ended[name]) for name in self.deployments}
        self.blocked = {name for name, retry in retries.items() if retry is not None and retry > at}
        wanted = self._wanted(self.name)
        if not self._world.is_gateway_up:  # nobody knows the demand: nothing is stopped for want of it
            wanted = {name: max(count, self.alive[name]) for name, count in wanted.items()}
        return [Desired(deployment, wanted[name], retries[name]) for name, deployment in self.deployments.items()]

    def _look_ahead(self, jobs: list[JobRow], replicas: list[ReplicaRow]) -> None:
        at, by_id = now(), {job.id: job for job in jobs}
        by_deployment: dict[str, list[ReplicaRow]] = {name: [] for name in self.deployments}
        for row in replicas:
            by_deployment.setdefault(row.deployment, []).append(row)
        self.outlooks = {
            name: deployment_outlook(by_deployment[name], by_id, self._books.ended[name], self._books.known(name), at)
            for name in self.deployments
        }

    def _pause_s(
        self, desired: list[Desired], jobs: list[ObservedJob], replicas: list[ReplicaRow], has_acted: bool
    ) -> float:
        is_settled = all(job.row.state is JobState.RUNNING and job.report is not None for job in jobs)
        if self._capacity is None and not self._rhythm.is_silent:
            self._beside("capacity", self._read_capacity())
        self._rhythm.note(has_jobs=bool(jobs), is_calm=is_settled)
        if self._rhythm.is_due and "poll" not in self._under_way:
            self._beside("poll", self._poll())
        wanted = sum(want.wanted for want in desired)
        is_more = wanted > sum(want.deployment.scale.hot for want in desired)
        is_calm = is_settled and len(replicas) == wanted and not is_more and not has_acted
        at = now()
        retries_s = [(want.retry_at - at).total_seconds() for want in desired if want.retry_at and want.retry_at > at]
        until_poll_s = CALM_S if "poll" in self._under_way else self._rhythm.left_s
        return min(CALM_S if is_calm else BUSY_S, until_poll_s, *retries_s)

    # -- acting ------------------------------------------------------------------------------------------------

    async def _apply(self, action: Action) -> None:
        if isinstance(action, (SubmitJob, CancelJob)) and self._rhythm.is_silent:
            return
        if isinstance(action, SubmitJob):
            await self._apply_submit(action)
        elif isinstance(action, StartReplica):
            await self._apply_start(action)
        elif isinstance(action, StopReplica):
            self._beside(action.replica_id, self._stop(action.job_id, action.replica_id))
        else:
            self._beside(action.job_id, self._cancel(action))

    async def _apply_submit(self, action: SubmitJob) -> None:
        deployment = self.deployments[action.deployment]
        job_id, token = new_id("job"), new_secret()
        replicas = [_new_replica(deployment, job_id) for _ in range(action.count)]
        await self._books.add_job(job_id, self.name, deployment.resources, digest(token), replicas)
        pilot = PilotSpec(
            job_id=job_id,
            cluster=self.name,
            link=self._link,
            enrolment_token=token,
            replicas=tuple(deployment.replica_spec(replica.id) for replica in replicas),
            orphan_timeout_s=self._orphan_timeout_s,
        )
        self._beside(job_id, self._submit(JobSpec(job_id, deployment.resources, to_dict(pilot))))

    async def _apply_start(self, action: StartReplica) -> None:
        deployment = self.deployments[action.deployment]
        replica_id = action.replica_id
        if replica_id is None:
            new = _new_replica(deployment, action.job_id)
            await self._books.add_replica(new)
            replica_id = new.id
        self._beside(replica_id, self._start_replica(deployment, action.job_id, replica_id))

    async def _submit(self, spec: JobSpec) -> None:
        """Hand a job to the scheduler, once. If the answer is lost, polls find the job, or it is given up."""
        await self._books.move_job(spec.job_id, JobState.SUBMITTING, submitted_at=now())
        logger.info("submitting a job", extra=self._extra("submit", job_id=spec.job_id))
        try:
            scheduler_id = await self._cluster.submit(spec)
        except ClaimedBefore:
            await self._give_up(spec.job_id)
        except SchedulerRefused as exc:
            await self._books.end_job(spec.job_id, JobState.REJECTED, exc.message)
        else:
            await self._books.move_job(spec.job_id, JobState.PENDING, scheduler_id=scheduler_id, observed_at=now())
        self._rhythm.hurry()

    async def _give_up(self, job_id: str) -> None:
        """End a job that nobody can find: by name, so that it does not come after all; its place is planned anew."""
        await self._cluster.cancel(job_id)
        await self._books.end_job(job_id, JobState.CANCELLED, "its submission was never answered")

    async def _cancel(self, action: CancelJob) -> None:
        logger.info("cancelling a job: %s", action.reason, extra=self._extra("cancel", job_id=action.job_id))
        await self._cluster.cancel(action.job_id)
        await self._books.move_job(action.job_id, JobState.ENDING, reason=action.reason)
        self._rhythm.hurry()

    async def _start_replica(self, deployment: ResolvedDeployment, job_id: str, replica_id: str) -> None:
        logger.info("starting a replica", extra=self._extra("start", job_id=job_id, replica_id=replica_id))
        try:
            await self._calls.call(job_id, "start", replica=to_dict(deployment.replica_spec(replica_id)))
        except CallFailed as exc:
            await self._books.move_replica(replica_id, ReplicaState.FAILED, reason=exc.message, ended_at=now())

    async def _stop(self, job_id: str, replica_id: str) -> None:
        logger.info("stopping a replica", extra=self._extra("stop", job_id=job_id, replica_id=replica_id))
        try:
            await self._calls.call(job_id, "stop", replica_id=replica_id, grace_s=DRAIN_S)
        except CallFailed:  # its pilot never had it: the call that should have started it was lost
            await self._books.move_replica(replica_id, ReplicaState.STOPPED, ended_at=now())

    async def _poll(self) -> None:
        asked_at = now()
        self._news = (asked_at, await self._cluster.poll())
        self._rhythm.heard()

    async def _read_capacity(self) -> None:
        self._capacity = await self._cluster.capacity()

    def _beside(self, key: str, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work`` beside the loop, unless something is under way for ``key`` already; then make a pass."""
        if key in self._under_way:
            work.close()
            return
        task = asyncio.ensure_future(self._guarded(work))
        self._under_way[key] = task
        task.add_done_callback(lambda _: self._done(key))

    def _done(self, key: str) -> None:
        del self._under_way[key]
        self.wake()

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """Whatever goes wrong beside the loop is a line in the log: the next pass sees what is still to be done."""
        try:
            await work
        except (SchedulerSilent, SchedulerRefused) as exc:
            self._rhythm.silence()
            logger.warning("the scheduler is left alone for a while: %s", exc.message, extra=self._extra("silent"))
        except (LinkLost, CallFailed) as exc:
            logger.warning("a pilot was not reached: %s", exc.message, extra=self._extra("call"))
        except FirstError as exc:
            logger.warning("not done for now: %s", exc.message, extra=self._extra("act"))
        except Exception:  # a boundary, as in ``run``
            logger.exception("an action failed for a reason of ours", extra=self._extra("act"))

    async def _wait(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    def _extra(self, action: str, **more: str) -> dict[str, str]:
        return {"action": action, "cluster": self.name, **more}


def _was_asked_later(asked_at: datetime, job: JobRow) -> bool:
    """Whether a poll began after the job was handed over: only then does it say something about it."""
    return job.submitted_at is not None and asked_at > job.submitted_at


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
