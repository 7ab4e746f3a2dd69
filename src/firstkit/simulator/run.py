"""A whole simulation: clusters, load and passes on one clock."""

from __future__ import annotations

from time import process_time

from firstkit.errors import ConfigError
from firstkit.links.messages import Exchange, Open, Sink
from firstkit.reconciler.autoscale import Need
from firstkit.reconciler.placement import Place, Share, warm_elsewhere
from firstkit.reconciler.standing import policy_of
from firstkit.reconciler.world import World
from firstkit.routing.calendar import Window
from firstkit.routing.table import Route
from firstkit.routing.wish import Within
from firstkit.simulator.batch import BatchSystem
from firstkit.simulator.events import Events, stream
from firstkit.simulator.front import Front
from firstkit.simulator.hands import Hands
from firstkit.simulator.load import load_of
from firstkit.simulator.nodes import Nodes
from firstkit.simulator.others import Failures, Others
from firstkit.simulator.policies import POLICIES, Policy, Seen
from firstkit.simulator.scenario import (
    ClusterSection,
    EngineSection,
    QueueScheduler,
    Scenario,
    SimModel,
    clusters_of,
    memory_bytes,
    models_of,
)
from firstkit.simulator.side import Side
from firstkit.simulator.tallies import SAMPLES, Moment, Tallies

HURRY_S = 1.0
"""From the first request that waits until a pass is made for it."""


class _Nowhere:
    """Where requests would go: model engines take them by another way."""

    def open(self, request: Open, body: bytes, sink: Sink) -> Exchange:
        raise NotImplementedError


class _Looks(dict[str, Seen]):
    """What the scheduler of each cluster says, asked only where a policy wants to know."""

    def __init__(self, sides: dict[str, Side]) -> None:
        super().__init__()
        self._sides = sides

    def __missing__(self, cluster: str) -> Seen:
        found = self[cluster] = self._sides[cluster].seen
        return found


class Simulation:
    """One scenario under one policy. ``run`` it once; what came of it is in ``tallies`` and ``sides``."""

    def __init__(self, scenario: Scenario, policy: str = "first") -> None:
        """Raises ConfigError for a policy that there is not."""
        if policy not in POLICIES:
            raise ConfigError(f"'{policy}' is not a policy; allowed: {', '.join(POLICIES)}")
        self.scenario = scenario
        self.policy_name = policy
        self.tallies = Tallies()
        self.models = models_of(scenario)
        self.cpu_s = 0.0
        self._policy: Policy = POLICIES[policy]
        self._events = Events(scenario.start.timestamp())
        self._began_at = self._events.now
        self._deployments = {one.name: one for model in self.models for one in model.deployments}
        self._targets: dict[str, Within] = {}
        self._hurry_at: dict[str, float] = {}
        self._finish_s: dict[str, float] = {}
        self._front = Front(
            self._events,
            [model.name for model in self.models],
            self.tallies,
            within=self._within,
            on_wait=self._on_wait,
            look_s=scenario.look_every,
            patience_s=scenario.load.patience,
            max_waiting=scenario.load.max_waiting,
        )
        self._front.on_empty = self._on_empty
        policies = {model.name: [policy_of(one) for one in model.deployments] for model in self.models}
        self._world = World(policies, self._events.clock)
        self._by_name: dict[str, SimModel] = {model.name: model for model in self.models}
        self.sides = {name: self._side(name, section) for name, section in clusters_of(scenario).items()}
        self._front.calendar.windows = {
            name: [self._window(one.after, one.lasts, one.message) for one in section.maintenance]
            for name, section in clusters_of(scenario).items()
        }

    def run(self) -> Simulation:
        """From the start of the scenario to its end."""
        began, scenario, events = process_time(), self.scenario, self._events
        load_of(events, scenario, self.models, stream(scenario.seed, "load"), self._front.ask).begin()
        until = self._began_at + scenario.duration
        self._tick()
        self._sample()
        self.tallies.events = events.run(until)
        for side in self.sides.values():
            side.hands.usage.look(until)
        self.cpu_s = process_time() - began
        return self

    # -- what there is -------------------------------------------------------------------------------------------------

    def _side(self, name: str, section: ClusterSection) -> Side:
        events, seed, scheduler = self._events, self.scenario.seed, section.scheduler
        closed = [(events.now + one.after, events.now + one.after + one.lasts) for one in section.maintenance]
        nodes = Nodes(section.nodes, section.cpus_per_node, section.gpus_per_node, memory_bytes(section))
        wait = None if isinstance(scheduler, QueueScheduler) else scheduler.wait
        backfill = not isinstance(scheduler, QueueScheduler) or scheduler.backfill
        batch = BatchSystem(events, nodes, stream(seed, "waits", name), closed, backfill=backfill, wait=wait)
        if isinstance(scheduler, QueueScheduler):
            Others(events, batch, scheduler.others, stream(seed, "others", name)).begin()
        if section.node_failures is not None:
            Failures(events, batch, section.node_failures, stream(seed, "failures", name)).begin()
        ours = [one for one in self._deployments.values() if one.cluster == name]
        kinds: dict[str, EngineSection] = {one.model: self._by_name[one.model].engine for one in ours}
        chance = stream(seed, "engines", name)
        hands = Hands(name, section, ours, kinds, batch, events, self._front, self.tallies, chance, _Nowhere())
        return Side(hands, section, events, self.tallies)

    def _window(self, after_s: float, lasts_s: float, message: str) -> Window:
        start = self._began_at + after_s
        return Window(start, start + lasts_s, message)

    # -- passes --------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Look at all that is due, decide for all models, act where something is to be done."""
        self._events.after(self.scenario.pass_every, self._tick)
        self._world.hear_demand(self._front.demand())
        self._finish_s = {model.name: self._world.finish_s(model.name) for model in self.models}
        sides = [side for side in self.sides.values() if side.is_due]
        self._pass(sides, self.models)

    def _hurry(self, model: str) -> None:
        """Decide for one model, and act on those of its clusters where that changes something."""
        self._world.hear_demand({model: self._front.demand_of(model)})
        self._pass([], [self._by_name[model]])

    def _pass(self, sides: list[Side], models: list[SimModel]) -> None:
        for side in sides:
            side.look(self._finish_s, self._elsewhere(side))
        changed = self._allocate(models) - {side.hands.name for side in sides}
        for side in sides:
            side.act()
        for name in sorted(changed):
            self.sides[name].look(self._finish_s, self._elsewhere(self.sides[name]))
            self.sides[name].act()

    def _allocate(self, models: list[SimModel]) -> set[str]:
        """Shares of all deployments of some models; the clusters on which one changed."""
        changed: set[str] = set()
        seen = _Looks(self.sides)
        for model in models:
            places = self._places(model)
            if places is None:
                changed |= {one.cluster for one in model.deployments}
                continue
            self._targets[model.name] = self._policy.within(places, seen)
            for name, share in self._policy.shares(places, self._needs(model), seen).items():
                side = self.sides[self._deployments[name].cluster]
                before = side.shares.get(name, Share())
                if (share.wanted, share.stand_in) != (before.wanted, before.stand_in):
                    changed.add(self._deployments[name].cluster)
                side.shares[name] = share
        return changed

    def _places(self, model: SimModel) -> list[Place] | None:
        places = [place for place in self._seen_places(model) if place is not None]
        return places if len(places) == len(model.deployments) else None

    def _seen_places(self, model: SimModel) -> list[Place | None]:
        return [self.sides[one.cluster].places.get(one.name) for one in model.deployments]

    def _needs(self, model: SimModel) -> list[Need]:
        return self._world.needs(model.name)

    def _elsewhere(self, side: Side) -> dict[str, float]:
        """By deployment, how long a start of the same model takes where it would take least, on another cluster."""
        found: dict[str, float] = {}
        for deployment in side.deployments:
            warm_s = warm_elsewhere(side.hands.name, self._seen_places(self._by_name[deployment.model]))
            if warm_s is not None:
                found[deployment.name] = warm_s
        return found

    # -- what the front asks -------------------------------------------------------------------------------------------

    def _within(self, model: str) -> Within:
        return self._targets.get(model)

    def _on_wait(self, model: str) -> None:
        if self._events.now >= self._hurry_at.get(model, 0.0):
            self._hurry_at[model] = self._events.now + max(HURRY_S, self.scenario.pass_every)
            self._events.after(HURRY_S, self._hurry, model)

    def _on_empty(self, route: Route) -> None:
        self.sides[route.cluster].hands.emptied(route.replica_id)

    def _sample(self) -> None:
        """Note how things stand, for the plots."""
        waiting, in_flight, ready = self._front.counts()
        nodes = sum(side.hands.usage.nodes for side in self.sides.values())
        at_h = (self._events.now - self._began_at) / 3600
        self.tallies.moments.append(Moment(at_h, waiting, in_flight, ready, nodes))
        self.tallies.most_replicas = max(self.tallies.most_replicas, ready)
        self._events.after(self.scenario.duration / SAMPLES, self._sample)
