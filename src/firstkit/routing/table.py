"""Which replicas serve which model right now: rebuilt from what links say, so a restart loses nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

from firstkit.links.messages import Upstream
from firstkit.routing.breaker import Breaker, Circuit
from firstkit.routing.choose import choose
from firstkit.routing.retries import RetryBudget
from firstkit.states import ReplicaState


@dataclass(slots=True, eq=False)
class Route:
    """One replica (or external service) as requests see it. ``served_name`` is what it calls the model."""

    replica_id: str
    model: str
    cluster: str
    upstream: Upstream
    served_name: str
    max_in_flight: int
    state: ReplicaState = ReplicaState.STARTING
    capabilities: frozenset[str] = frozenset()
    context_length: int | None = None
    in_flight: int = 0
    breaker: Breaker = field(default_factory=Breaker)
    slot: int = -1
    """Place in its pool, -1 outside of one."""

    @property
    def load(self) -> float:
        """Share of the room in use; infinite while the replica takes no new requests."""
        if self.state is ReplicaState.READY and self.breaker.lets_pass:
            return self.in_flight / self.max_in_flight
        return inf


@dataclass(slots=True)
class Pool:
    """The routes of one model, with their loads beside them so that choosing is one pass over plain floats."""

    routes: list[Route] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    next_index: int = 0
    in_flight: int = 0
    retries: RetryBudget = field(default_factory=RetryBudget)

    def take(self, avoid: Route | None = None) -> Route | None:
        """The route for the next request, counted as in flight; None when none has room. ``avoid`` is a last resort
        that is never taken: the replica that just failed this request."""
        loads = self.loads
        if avoid is not None:
            loads = [inf if route is avoid else load for route, load in zip(self.routes, loads, strict=True)]
        index = choose(loads, self.next_index)
        if index is None:
            return None
        self.next_index = (index + 1) % len(self.routes)
        route = self.routes[index]
        route.in_flight += 1
        self.in_flight += 1
        route.breaker.passed()
        self.loads[index] = route.load
        return route

    def others_have_room(self, route: Route) -> bool:
        """Whether another than ``route`` could take a request now."""
        return any(load < 1.0 for other, load in zip(self.routes, self.loads, strict=True) if other is not route)

    def refresh(self) -> None:
        """Read the loads again after a route came, went or changed."""
        self.loads = [route.load for route in self.routes]
        for slot, route in enumerate(self.routes):
            route.slot = slot

    def give_back(self, route: Route) -> None:
        """A request at ``route`` ended."""
        route.in_flight -= 1
        self.in_flight -= 1
        self.reconsider(route)

    def reconsider(self, route: Route) -> None:
        """The load of a route, or its breaker, is not what it was."""
        if route.slot >= 0:
            self.loads[route.slot] = route.load

    @property
    def is_failing(self) -> bool:
        """Whether there are ready replicas, and the breakers of all of them are open."""
        ready = self.ready
        return bool(ready) and all(route.breaker.circuit is Circuit.OPEN for route in ready)

    @property
    def ready(self) -> list[Route]:
        return [route for route in self.routes if route.state is ReplicaState.READY]


class RoutingTable:
    """Pools by model, and the names (with aliases) by which clients ask for them."""

    def __init__(self, aliases: dict[str, str]) -> None:
        """``aliases`` maps every name that clients may use, canonical ones too, to the canonical name."""
        self.aliases = aliases
        self.pools = {model: Pool() for model in aliases.values()}

    def add(self, route: Route) -> None:
        pool = self.pools.setdefault(route.model, Pool())
        pool.routes.append(route)
        pool.refresh()

    def remove(self, route: Route) -> None:
        pool = self.pools[route.model]
        if route.slot >= 0:
            pool.routes.remove(route)
            route.slot = -1
            pool.refresh()

    def routes(self) -> Iterator[Route]:
        for pool in self.pools.values():
            yield from pool.routes
