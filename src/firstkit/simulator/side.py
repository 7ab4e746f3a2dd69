"""One cluster as the controller sees it: pass after pass, by the real decisions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from math import inf
from time import perf_counter

from firstkit.config import ResolvedDeployment
from firstkit.config.clusters import Maintenance
from firstkit.reconciler.budget import Budget, budget
from firstkit.reconciler.closing import Site, site
from firstkit.reconciler.placement import Place, Share
from firstkit.reconciler.plan import Desired, StopReplica, plan
from firstkit.reconciler.standing import Picture, desired, places
from firstkit.reconciler.survey import ObservedJob, Survey
from firstkit.schedulers.scheduler import Capacity
from firstkit.simulator.events import Events
from firstkit.simulator.hands import POLL_S, Hands, moment
from firstkit.simulator.policies import Seen
from firstkit.simulator.scenario import ClusterSection
from firstkit.simulator.tallies import Tallies
from firstkit.states import JobState, ReplicaState
from firstkit.store.jobs import JobRow

CALM_S, BUSY_S = 300.0, 60.0
"""So often a cluster is looked at, at rest and while something waits; and in any case whenever a row has moved."""
SPARE_S = 120.0
"""More than a hand-over needs beside the time that its successor takes."""
ORPHAN_S = 1800.0


class Side:
    """Looks and plans. ``places`` and ``shares``: by deployment, as of the last look."""

    def __init__(self, hands: Hands, section: ClusterSection, events: Events, tallies: Tallies) -> None:
        self.hands = hands
        self.deployments = list(hands.deployments.values())
        self.places: dict[str, Place] = {}
        self.shares: dict[str, Share] = {}
        self.next_at = -inf
        """When the next pass is due, unless a row moves before."""
        self.site = Site()
        self._section = section
        self._events = events
        self._tallies = tallies
        self._picture: Picture | None = None
        self._polled_at = self._size_at = self._budget_at = -inf
        self._size: Capacity | None = None
        self._budget = Budget()
        began = events.now
        self._maintenance = [
            Maintenance(start=moment(began + one.after), end=moment(began + one.after + one.lasts), message=one.message)
            for one in section.maintenance
        ]

    @property
    def is_due(self) -> bool:
        return self.hands.is_dirty or self.next_at <= self._events.now

    @property
    def seen(self) -> Seen:
        """What the scheduler says."""
        said_s = {one.name: self.hands.said_s(one.resources) for one in self.deployments}
        if self.hands.silent_since is not None:
            return Seen(None, said_s)
        return Seen(0 if self.site.closed else len(self.hands.batch.nodes.idle), said_s)

    # -- looking -------------------------------------------------------------------------------------------------------

    def look(self, finish_s: Mapping[str, float], elsewhere: Mapping[str, float]) -> None:
        """See how the deployments stand. ``finish_s``: by model; ``elsewhere``: by deployment; see ``Picture``."""
        began, now, hands = perf_counter(), self._events.now, self.hands
        if now >= self._polled_at + POLL_S:
            self._polled_at = now
            hands.poll()
        at = moment(now)
        silent_since = hands.silent_since
        self.site = site(self._maintenance, None, at)
        self._picture = Picture(
            survey=Survey.of(
                [self._observed(row) for row in hands.jobs.values()],
                list(hands.replicas.values()),
                at,
                cluster=self._capacity(),
                leaves_at=self.site.leaves_at,
            ),
            site=self.site,
            budget=self._spent(at),
            silent_s=None if silent_since is None else now - silent_since,
            handicap_s=self._section.handicap,
            known={one.name: hands.memory.known(one.name) for one in self.deployments},
            ended=hands.memory.ended,
            said={one.name: hands.said_s(one.resources) for one in self.deployments},
            finish_s=finish_s,
            elsewhere=elsewhere,
        )
        self.places = places(self._picture, self.deployments)
        self._tallies.plan_s += perf_counter() - began

    def _observed(self, row: JobRow) -> ObservedJob:
        pilot = self.hands.pilots.get(row.id)
        if pilot is None:
            return ObservedJob(row)
        return ObservedJob(row, pilot.report(), 0.0 if pilot.gone_at is None else self._events.now - pilot.gone_at)

    def _capacity(self) -> Capacity | None:
        if self._events.now >= self._size_at + CALM_S and self.hands.silent_since is None:
            self._size_at, self._size = self._events.now, self.hands.batch.capacity()
        return self._size

    def _spent(self, at: datetime) -> Budget:
        if self.hands.has_spent or self._events.now >= self._budget_at + CALM_S:
            self.hands.has_spent, self._budget_at = False, self._events.now
            spent = self.hands.memory.spent(self.hands.jobs.values(), at)
            self._budget = budget(self._section.limits, spent, at)
        return self._budget

    # -- acting --------------------------------------------------------------------------------------------------------

    def act(self) -> None:
        """Plan by the last look and the shares, and do it."""
        picture, began, hands = self._picture, perf_counter(), self.hands
        if picture is None:
            return
        wants = [self._desired(picture, deployment) for deployment in self.deployments]
        made = plan(wants, picture.survey, budget=picture.budget, orphan_timeout_s=ORPHAN_S)
        self._tallies.plan_s += perf_counter() - began
        self._tallies.passes += 1
        hands.is_dirty = False
        for action in made.actions:
            if isinstance(action, StopReplica):
                self._count_hand_over(picture, action)
            hands.apply(action)
        for one in self.deployments:
            if self.shares.get(one.name, Share()).is_considered:
                hands.ask_start(one.resources)
        self.next_at = self._next_at(picture, wants)

    def _desired(self, picture: Picture, deployment: ResolvedDeployment) -> Desired:
        share = self.shares.get(deployment.name, Share())
        return desired(picture, deployment, self.places[deployment.name], share.wanted, share.stand_in)

    def _count_hand_over(self, picture: Picture, action: StopReplica) -> None:
        """One that serves is stopped because its job ends soon, and a successor serves."""
        row = self.hands.replicas.get(action.replica_id)
        if row is None or row.state is not ReplicaState.READY:
            return
        life = picture.survey.life(row)
        if self.places[row.deployment].alive and life.is_nearly_leaving(self.places[row.deployment].successor_s):
            self._tallies.hand_overs += 1

    def _next_at(self, picture: Picture, wants: list[Desired]) -> float:
        """When it has to be looked at if nothing moves."""
        now, survey = self._events.now, picture.survey
        is_settled = all(job.row.state is JobState.RUNNING for job in survey.jobs.values())
        is_settled &= sum(want.wanted for want in wants) == len(survey.replicas)
        moments = [now + (CALM_S if is_settled else BUSY_S)]
        warm_s = {want.deployment.name: want.warm_s for want in wants}
        for row in survey.replicas:
            life, lead_s = survey.life(row), warm_s.get(row.deployment, 0.0)
            if life.left_s <= CALM_S + SPARE_S + lead_s:
                moments += [now + life.left_s - life.lead_s(lead_s), now + life.left_s - life.margin_s]
        moments += [want.retry_at.timestamp() for want in wants if want.retry_at is not None]
        moments += [edge.timestamp() for one in self._maintenance for edge in (one.start, one.end)]
        moments += [edge for window in self.hands.silences for edge in window]
        return min(at for at in moments if at > now)
