"""A model pilot: the engines of one job, and what the controller hears of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from firstkit.config import ResolvedDeployment
from firstkit.links.messages import PilotReport, ReplicaReport, Upstream, end_margin_s
from firstkit.routing.table import Route
from firstkit.schedulers.scheduler import Resources
from firstkit.simulator.engines import SimEngine
from firstkit.simulator.events import Events, drawn
from firstkit.simulator.front import Front
from firstkit.simulator.scenario import EngineSection
from firstkit.simulator.tallies import Tallies, Usage
from firstkit.states import ReplicaState

REQUESTS_S = 2 / 3
"""Share of its margin that a pilot gives to requests under way before its job ends."""


class Books(Protocol):
    """Who writes down what replicas do."""

    def moved(self, replica_id: str, state: ReplicaState, reason: str = "", load_s: float | None = None) -> None: ...


@dataclass(slots=True)
class Setting:
    """What all pilots of a cluster share. ``kinds``: by model, how its engines behave."""

    events: Events
    front: Front
    tallies: Tallies
    usage: Usage
    books: Books
    kinds: dict[str, EngineSection]
    chance: random.Random
    upstream: Upstream


@dataclass(slots=True, eq=False)
class _Unit:
    """One replica in the job."""

    id: str
    deployment: ResolvedDeployment
    engine: SimEngine
    state: ReplicaState = ReplicaState.STARTING
    route: Route | None = None


class SimPilot:
    """Starts and stops engines in one job, and leaves a little before it ends. ``leave()`` is called then."""

    def __init__(
        self,
        setting: Setting,
        job_id: str,
        has: Resources,
        began_at: float,
        ends_at: float,
        leave: Callable[[str], None],
    ) -> None:
        """``has``: what the job has for replicas."""
        self.job_id = job_id
        self.ends_at = ends_at
        self.units: dict[str, _Unit] = {}
        self.gone_at: float | None = None
        self._setting = setting
        self._has = has
        self._leave = leave
        self._report: PilotReport | None = None
        self._margin_s = end_margin_s(ends_at - began_at)
        setting.events.at(ends_at - self._margin_s, self._end)

    # -- what it is told -----------------------------------------------------------------------------------------------

    def start(self, replica_id: str, deployment: ResolvedDeployment) -> None:
        """A replica begins to load."""
        if replica_id in self.units or self.gone_at is not None:
            return
        setting, kind = self._setting, self._setting.kinds[deployment.model]
        engine = SimEngine(setting.events, kind, deployment.scale.max_in_flight, setting.front.done)
        unit = self.units[replica_id] = _Unit(replica_id, deployment, engine)
        self._report = None
        setting.usage.replica(setting.events.now, deployment.resources, 1)
        setting.books.moved(replica_id, ReplicaState.STARTING)
        load_s = min(drawn(setting.chance, kind.load.usual, kind.load.late), deployment.scale.load_timeout)
        if setting.chance.random() < kind.fails:
            setting.events.after(load_s * setting.chance.random(), self._fail, unit, "the engine ended while it loaded")
        else:
            setting.events.after(load_s, self._ready, unit, load_s)

    def stop(self, replica_id: str, grace_s: float) -> bool:
        """A replica ends, with its requests if they are done in time; False: there is none of that name."""
        unit = self.units.get(replica_id)
        if unit is None:
            return False
        if unit.state is ReplicaState.DRAINING:
            return True
        if unit.state is ReplicaState.STARTING or not unit.engine.requests:
            self._over(unit, ReplicaState.STOPPED, "")
            return True
        self._drain(unit)
        self._setting.events.after(grace_s, self._cut, unit)
        return True

    def die(self, why: str) -> None:
        """The job is gone, and all that it had. Nobody hears of it."""
        if self.gone_at is not None:
            return
        self.gone_at = self._setting.events.now
        self._report = None
        for unit in list(self.units.values()):
            self._take_away(unit, why)

    # -- what it tells -------------------------------------------------------------------------------------------------

    def report(self) -> PilotReport | None:
        """As the controller has it; None while it is not heard."""
        if self.gone_at is not None:
            return None
        known, units = self._report, self.units
        if known is not None and all(
            said.in_flight == len(unit.engine.requests)
            for said, unit in zip(known.replicas, units.values(), strict=True)
        ):
            return known
        free = self._has
        cpus, gpus, memory_bytes = free.cpus_per_node, free.gpus_per_node, free.memory_bytes
        for unit in units.values():
            needs = unit.deployment.resources
            cpus -= max(1, needs.cpus_per_node)
            gpus -= needs.gpus_per_node
            memory_bytes -= needs.memory_bytes
        said = tuple(ReplicaReport(unit.id, unit.state, len(unit.engine.requests)) for unit in units.values())
        self._report = PilotReport(self.job_id, said, cpus, gpus, memory_bytes, self.ends_at)
        return self._report

    # -- what happens --------------------------------------------------------------------------------------------------

    def _ready(self, unit: _Unit, load_s: float) -> None:
        if unit.state is not ReplicaState.STARTING or self.gone_at is not None:
            return
        setting, deployment = self._setting, unit.deployment
        unit.state = ReplicaState.READY
        self._report = None
        unit.route = Route(
            unit.id,
            deployment.model,
            deployment.cluster,
            setting.upstream,
            deployment.model,
            deployment.scale.max_in_flight,
            ReplicaState.READY,
            ends_at=self.ends_at,
            born_at=setting.events.now,
        )
        setting.tallies.loads_s.append(load_s)
        setting.books.moved(unit.id, ReplicaState.READY, load_s=load_s)
        setting.front.add(unit.route, unit.engine)
        every_s = setting.kinds[deployment.model].breaks_every
        if every_s is not None:
            setting.events.after(setting.chance.expovariate(1 / every_s), self._fail, unit, "the engine died")

    def _fail(self, unit: _Unit, why: str) -> None:
        if self.gone_at is None and not unit.state.is_final:
            self._over(unit, ReplicaState.FAILED, why)

    def _drain(self, unit: _Unit) -> None:
        unit.state = ReplicaState.DRAINING
        self._report = None
        self._setting.front.drain(unit.engine)
        self._setting.books.moved(unit.id, ReplicaState.DRAINING)

    def emptied(self, replica_id: str) -> None:
        """A replica that drains has ended its last request."""
        unit = self.units.get(replica_id)
        if unit is not None and unit.state is ReplicaState.DRAINING:
            self._over(unit, ReplicaState.STOPPED, "")

    def _cut(self, unit: _Unit) -> None:
        if self.gone_at is None and unit.state is ReplicaState.DRAINING:
            self._over(unit, ReplicaState.STOPPED, "")

    def _over(self, unit: _Unit, state: ReplicaState, why: str) -> None:
        self._take_away(unit, "replica stopped" if state is ReplicaState.STOPPED else "replica failed")
        unit.state = state
        self._setting.books.moved(unit.id, state, why)

    def _take_away(self, unit: _Unit, why: str) -> None:
        del self.units[unit.id]
        self._report = None
        setting = self._setting
        setting.usage.replica(setting.events.now, unit.deployment.resources, -1)
        setting.front.lose(unit.engine, why)

    def _end(self) -> None:
        """The job ends soon: whoever serves drains."""
        if self.gone_at is not None:
            return
        for unit in list(self.units.values()):
            if unit.state is ReplicaState.READY:
                self._setting.tallies.late_ends += 1
                self._drain(unit)
        self._setting.events.after(self._margin_s * REQUESTS_S, self._last)

    def _last(self) -> None:
        if self.gone_at is None:
            self.die("walltime")
            self._leave(self.job_id)
