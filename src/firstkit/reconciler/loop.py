"""The loop of one cluster: read, take in news, plan, act, write back. A slow cluster delays no other.

What takes time (scheduler commands, calls to pilots) runs beside the loop. A pass that is cut off anywhere leaves rows
from which the next one goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from firstkit.clock import now
from firstkit.config import ResolvedDeployment
from firstkit.config.clusters import Cluster as ClusterSection
from firstkit.errors import FirstError
from firstkit.links.messages import LinkSpec
from firstkit.reconciler.acting import Cluster, Hands, Setting
from firstkit.reconciler.books import Books, Changes
from firstkit.reconciler.budget import DAY, Budget, budget
from firstkit.reconciler.calls import Calls
from firstkit.reconciler.charge import charge_of
from firstkit.reconciler.closing import Site, site
from firstkit.reconciler.forecast import Outlook, deployment_outlook
from firstkit.reconciler.placement import Place, Share
from firstkit.reconciler.plan import Desired, EndPilot, Plan, plan
from firstkit.reconciler.rhythm import Rhythm
from firstkit.reconciler.seasons import availability
from firstkit.reconciler.standing import Picture, desired, places
from firstkit.reconciler.survey import ObservedJob, Survey, grouped
from firstkit.reconciler.world import World
from firstkit.schedulers.scheduler import JobNews
from firstkit.states import JobState, ReplicaState
from firstkit.store.jobs import JobRow, ReplicaRow

__all__ = ["Cluster", "ClusterLoop"]
logger = logging.getLogger("firstkit.controller")

CALM_S, BUSY_S = 15.0, 1.0
"""Pause between passes when all is as it should be, and while something is on its way. News wakes the loop anyway."""
LONGEST_PAUSE_S = 30.0
MOMENT_S = 0.05
"""There is always so much time between passes that nobody asked for."""


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
        link: Callable[[str], LinkSpec],
        orphan_timeout_s: float,
        shares: Callable[[str], Mapping[str, Share]],
        elsewhere: Callable[[str], Mapping[str, float]] = lambda _: {},
        section: ClusterSection | None = None,
        on_pass: Callable[[bool], None] = lambda _: None,
        now: Callable[[], datetime] = now,
    ) -> None:
        """``shares(name)``: what each deployment of this cluster should have, by ``places`` of all of them;
        ``elsewhere(name)``: how long a start of its model would take on the other clusters.
        ``on_pass(is_news)`` is called after each pass; whether other clusters have to look at it."""
        self.name = name
        self.deployments = {deployment.name: deployment for deployment in deployments}
        self.section = section or ClusterSection()
        self.places: dict[str, Place] = {}
        """By deployment, as of the last pass; empty before the first."""
        self.shares: Mapping[str, Share] = {}
        self.outlooks: dict[str, Outlook] = {}
        self.waits_for: dict[str, str] = {}
        self.states: dict[str, Counter[ReplicaState]] = {}
        self.site = Site()
        self.budget = Budget()
        setting = Setting(
            name,
            self.deployments,
            link,
            orphan_timeout_s,
            charge_of(self.section),
            self.section.scratch,
            self.section.interface,
            now,
            world.clock,
        )
        interval_s = getattr(self.section.scheduler, "poll_interval", 0.0)
        self.hands = Hands(setting, cluster, store, calls, Rhythm(world.clock, interval_s), self.wake)
        self._books = store
        self._world = world
        self._orphan_timeout_s = orphan_timeout_s
        self._shares = shares
        self._elsewhere = elsewhere
        self._on_pass = on_pass
        self.now = now
        self._wake = asyncio.Event()
        self._kept: Counter[str] = Counter()
        self._began_at = world.clock()

    @property
    def books(self) -> Books:
        return self._books

    def wake(self) -> None:
        """Make a pass now."""
        self._wake.set()

    async def run(self) -> None:
        """Pass after pass, for ever. What the store or a fault of ours spoils is tried again, ever more seldom."""
        await self.start()
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

    async def close(self) -> None:
        """Drop what is under way."""
        await self.hands.close()

    async def start(self) -> None:
        """Read what is there. What runs was wanted by somebody: it is not stopped because we have forgotten by whom."""
        while True:
            try:
                jobs, replicas = await self._books.open(self.deployments)
            except FirstError as exc:
                logger.warning("the store cannot be read yet: %s", exc.message, extra=self._extra("start"))
                await asyncio.sleep(BUSY_S)
            else:
                break
        self._kept = Counter(row.deployment for row in replicas if row.state is not ReplicaState.DRAINING)
        self._look(self._picture(jobs, replicas))

    async def step(self) -> float:
        """One pass; returns how long the next may wait, in seconds, unless there is news."""
        await self._books.note_polls(self.hands.rhythm.good, self.hands.rhythm.failed)
        jobs, replicas = await self._take_in()
        picture = self._picture(jobs, replicas)
        is_news = self._look(picture)
        self.shares = self._shares(self.name)
        wants = [self._desired(picture, deployment) for deployment in self.deployments.values()]
        made = plan(wants, picture.survey, budget=picture.budget, orphan_timeout_s=self._orphan_timeout_s)
        for action in [*made.actions, *await self._ends()]:
            await self.hands.apply(action)
        self._look_ahead(picture, made)
        self._on_pass(is_news)
        return self._pause_s(picture, wants, bool(made.actions))

    # -- what is there -------------------------------------------------------------------------------------------------

    async def _take_in(self) -> tuple[list[JobRow], list[ReplicaRow]]:
        """The living jobs and replicas, after all that was heard of them has been written down."""
        under_way = frozenset(self.hands.under_way)  # before the read: what is submitted during it is read as planned
        jobs, replicas = await self._books.read()
        by_job = grouped(replicas, "job_id")
        changes = Changes(self.now())
        news = self.hands.take_news()
        for job in jobs:
            if job.state is JobState.PLANNED and job.id not in under_way:
                forgotten = "a controller died before it was submitted"
                changes.end_job(job, by_job.get(job.id, []), JobState.CANCELLED, forgotten)
            else:
                self._take_in_job(job, by_job.get(job.id, []), news, changes)
        if not changes:
            return jobs, replicas
        await self._books.write(changes)
        for job_id in changes.given_up:
            self.hands.give_up(job_id)
        if not changes.moves:
            return jobs, replicas
        return await self._books.read()

    def _take_in_job(
        self,
        job: JobRow,
        replicas: list[ReplicaRow],
        news: tuple[float, dict[str, JobNews]] | None,
        to: Changes,
    ) -> None:
        report = self._world.reports.get(job.id) or self._world.take_last_words(job.id)
        if news is not None and job.submitted_at is not None and self.hands.speaks_of(news[0], job.id):
            to.poll(
                job,
                replicas,
                news[1].get(job.id),
                # After a restart of the gateway pilots need a moment to dial again.
                self._world.silent_s(job.id) > self.section.graces.vanish,
                poll_interval_s=self.hands.rhythm.interval_s,
                graces=self.section.graces,
                is_cancelled=job.id in self.hands.cancelled,
            )
        if report is not None:
            to.report(job, replicas, report)

    def _observed(self, job: JobRow, at: datetime) -> ObservedJob:
        """A pilot cannot have been silent for longer than its job has run, however long the gateway was up before."""
        ran_s = 0.0 if job.started_at is None else max(0.0, (at - job.started_at).total_seconds())
        return ObservedJob(job, self._world.reports.get(job.id), min(ran_s, self._world.silent_s(job.id)))

    def _picture(self, jobs: list[JobRow], replicas: list[ReplicaRow]) -> Picture:
        at, clock_s = self.now(), self._world.clock()
        drained = self._books.drained.get(self.name)
        idle_s = clock_s - self._began_at
        living = self._world.living[self.name] = frozenset(job.id for job in jobs)
        self.hands.forget(living)
        self.site = site(self.section.maintenance, None if drained is None else drained.message, at)
        self.budget = budget(self.section.limits, self._books.spent, at)
        observed = [self._observed(job, at) for job in jobs]
        return Picture(
            survey=Survey.of(observed, replicas, at, cluster=self.hands.capacity, leaves_at=self.site.leaves_at),
            site=self.site,
            budget=self.budget,
            silent_s=self.hands.rhythm.silent_s,
            handicap_s=self.section.handicap,
            known={name: self._books.known(name) for name in self.deployments},
            ended=self._books.ended,
            said={name: self.hands.start_s(one.resources) for name, one in self.deployments.items()},
            kept={
                name: count
                for name, count in self._kept.items()
                if name in self.deployments and idle_s < self.deployments[name].scale.idle_timeout
            },
            finish_s={one.model: self._world.finish_s(one.model) for one in self.deployments.values()},
            elsewhere=self._elsewhere(self.name),
            availability=self._availability(at),
        )

    def _availability(self, at: datetime) -> float:
        """To a hundredth: less is no news."""
        share = availability(self._books.polls, at - DAY)
        return 1.0 if share is None else round(share, 2)

    def _look(self, picture: Picture) -> bool:
        """See how the deployments stand; whether that is news for other clusters."""
        before = {name: _gist(place) for name, place in self.places.items()}
        self.places = places(picture, list(self.deployments.values()))
        return before != {name: _gist(place) for name, place in self.places.items()}

    # -- what should be there ------------------------------------------------------------------------------------------

    def _desired(self, picture: Picture, deployment: ResolvedDeployment) -> Desired:
        share, place = self.shares.get(deployment.name, Share()), self.places[deployment.name]
        wanted, stand_in = share.wanted, share.stand_in
        if not self._world.is_demand_known and not picture.site.closed:
            # Nobody knows the demand: nothing is stopped for want of it.
            wanted, stand_in = max(wanted, place.alive), max(stand_in, place.leaving)
        return desired(picture, deployment, place, wanted, stand_in)

    async def _ends(self) -> list[EndPilot]:
        """Pilots that live on although their job is over: their scheduler has lost them, and others serve instead."""
        strays = self._world.strays()
        return [EndPilot(job_id) for job_id in await self._books.ended_jobs(strays)] if strays else []

    def _look_ahead(self, picture: Picture, made: Plan) -> None:
        """What people are told, and what the scheduler is asked for the next decision."""
        survey = picture.survey
        by_id = {job_id: job.row for job_id, job in survey.jobs.items()}
        reports = [job.report for job in survey.jobs.values() if job.report]
        doing = {said.replica_id: said.doing for report in reports for said in report.replicas if said.doing}
        self.waits_for = made.waits_for
        self.outlooks = {
            name: deployment_outlook(
                survey.by_deployment.get(name, []),
                by_id,
                self._books.ended[name],
                self._books.known(name),
                picture.now,
                picture.start_s(deployment),
                doing,
            )
            for name, deployment in self.deployments.items()
        }
        self.states = {name: Counter(row.state for row in rows) for name, rows in survey.by_deployment.items()}
        for name, share in self.shares.items():
            if share.is_considered and name in self.deployments:
                self.hands.ask_start(self.deployments[name].resources)

    def _pause_s(self, picture: Picture, wants: list[Desired], has_acted: bool) -> float:
        hands, jobs = self.hands, picture.survey.jobs.values()
        is_settled = all(job.row.state is JobState.RUNNING and job.report is not None for job in jobs)
        hands.rhythm.note(has_jobs=bool(jobs), is_calm=is_settled)
        hands.ask()
        wanted = sum(want.wanted for want in wants)
        is_more = wanted > sum(want.deployment.scale.hot for want in wants)
        is_asked = any(self._world.is_waited_for(one.model) for one in self.deployments.values())
        is_there = is_settled and len(picture.survey.replicas) == wanted
        is_calm = is_there and not is_more and not has_acted and not is_asked
        retries_s = [(want.retry_at - picture.now).total_seconds() for want in wants if want.retry_at]
        moments_s = [moment_s for moment_s in [*retries_s, *_moments_s(picture, wants)] if moment_s > 0]
        until_poll_s = CALM_S if "poll" in hands.under_way else hands.rhythm.left_s
        return max(MOMENT_S, min(CALM_S if is_calm else BUSY_S, until_poll_s, *moments_s))

    async def _wait(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    def _extra(self, action: str) -> dict[str, str]:
        return {"action": action, "cluster": self.name}


def _gist(place: Place) -> tuple[object, ...]:
    """What other clusters decide differently for."""
    return (place.ready, place.running, len(place.queued), place.leaving, bool(place.obstacle), place.is_closing)


def _moments_s(picture: Picture, wants: list[Desired]) -> list[float]:
    """Seconds until replicas have to be handed over, or only have time to drain."""
    warm_s = {want.deployment.name: want.warm_s for want in wants}
    survey, moments = picture.survey, list[float]()
    for row in survey.replicas:
        life = survey.life(row)
        moments += [life.left_s - life.lead_s(warm_s.get(row.deployment, 0.0)), life.left_s - life.margin_s]
    return moments
