"""Which replicas serve which model right now: rebuilt from what links say, so a restart loses nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf

import msgspec

from firstkit.links.messages import Tail, Upstream
from firstkit.routing.affinity import BONUS, Holders
from firstkit.routing.breaker import Breaker, Circuit
from firstkit.routing.calendar import Calendar
from firstkit.routing.choose import REFRESH_S, choose, expected_finish, prefer, time_left
from firstkit.routing.pace import Durations, Pace, slowness
from firstkit.routing.retries import RetryBudget
from firstkit.routing.wish import ANYWHERE, Wish
from firstkit.states import ReplicaState

MOST_TOLD = 200
"""Longest name of an engine or a revision, in characters."""
ORIGIN = {
    "cluster": b"x-first-cluster",
    "replica": b"x-first-replica",
    "engine": b"x-first-engine",
    "revision": b"x-first-revision",
}
"""The header by which an answer says each thing of where it comes from."""


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
    ends_at: float | None = None
    """When the job of the replica ends, in seconds since 1970; None: no end is known."""
    born_at: float = field(default_factory=time.time)
    in_flight: int = 0
    breaker: Breaker = field(default_factory=Breaker)
    pace: Pace = field(default_factory=Pace)
    slowness: float = 1.0
    """Beside the others of its pool; see ``pace.slowness``."""
    left_s: float = inf
    """Until it must have finished what it has; minus infinity on a cluster that is closed."""
    has_time: bool = True
    """Whether that is enough for most requests."""
    burden: float = 0.0
    """By the engine's own numbers; see ``choose.burden``."""
    engine: str | None = None
    """The engine and its version, as it says it."""
    revision: str | None = None
    """Of the weights."""
    slot: int = -1
    """Place in its pool, -1 outside of one."""
    served_json: msgspec.Raw = field(init=False)
    """``served_name`` as it stands in a request."""
    where: bytes = field(init=False)
    """The header lines by which an answer says where it comes from."""

    def __post_init__(self) -> None:
        self.served_json = msgspec.Raw(msgspec.json.encode(self.served_name))
        self.where = self._where()

    @property
    def origin(self) -> dict[str, str | None]:
        """Where an answer comes from, so that it can be cited."""
        here = {"cluster": self.cluster, "replica": self.replica_id, "engine": self.engine, "revision": self.revision}
        return {**here, "model": self.model}

    def tell_origin(self, engine: str | None, revision: str | None) -> None:
        """It is known which engine, and which weights, this replica has."""
        told = _line(engine), _line(revision)
        if told != (self.engine, self.revision):
            self.engine, self.revision = told
            self.where = self._where()

    def _where(self) -> bytes:
        told = [(name, value) for key, name in ORIGIN.items() if (value := self.origin[key]) is not None]
        return b"".join(b"%b: %b\r\n" % (name, _ascii(value)) for name, value in told)

    @property
    def finish(self) -> float:
        """When it would finish one more request, see ``expected_finish``; infinite while it takes no new ones."""
        if self.has_time and self.state is ReplicaState.READY and self.breaker.lets_pass:
            return expected_finish(self.in_flight, self.max_in_flight, self.slowness, self.burden)
        return inf

    @property
    def finish_in_time(self) -> float:
        """The same for a request that is known to end before the replica does."""
        if self.state is ReplicaState.READY and self.breaker.lets_pass:
            return expected_finish(self.in_flight, self.max_in_flight, self.slowness, self.burden)
        return inf

    @property
    def is_ending(self) -> bool:
        """Whether it ends too soon for most requests, and may have time for short ones."""
        return not self.has_time and self.left_s > 0

    @property
    def is_live(self) -> bool:
        """Whether it serves, on a cluster that is not closed. It may be full, or about to end."""
        return self.state is ReplicaState.READY and self.left_s > -inf


class Pool:
    """The routes of one model, with what is expected of each beside them, so that choosing is one pass over plain
    floats. What depends on time is read anew by whoever takes, once in REFRESH_S."""

    __slots__ = (
        "_clock", "_due", "_durations", "_holders", "_read_at", "calendar", "ending", "finishes", "in_flight",
        "is_plain", "next_index", "retries", "routes",
    )  # fmt: skip

    def __init__(self, calendar: Calendar | None = None, clock: Callable[[], float] = time.time) -> None:
        """``clock``: seconds since 1970."""
        self.calendar = calendar or Calendar()
        self.routes: list[Route] = []
        self.finishes: list[float] = []
        self.ending: list[Route] = []
        self.is_plain = True
        """There is nothing to choose by: one replica at most, and that has time."""
        self.next_index = 0
        self.in_flight = 0
        self.retries = RetryBudget()
        self._clock = clock
        self._read_at = self._due = 0.0
        self._durations = Durations()
        self._holders: Holders[Route] = Holders()

    def take(self, wish: Wish = ANYWHERE, avoid: Route | None = None) -> Route | None:
        """The route for the next request, counted as in flight; None when none has room. ``avoid``: the replica that
        just failed this request. It is never taken, and others of its cluster only if there is none elsewhere."""
        now = self._clock()
        if not self._read_at <= now < self._due:
            self.refresh()
        finishes = self.finishes
        if wish is not ANYWHERE:
            finishes = self._for(wish)
        if avoid is not None:
            finishes = self._without(avoid, finishes)
        index = choose(finishes, self.next_index)
        if index is None:
            return None
        if wish.prefixes:
            index = self._where_known(wish.prefixes, finishes, index)
        self.next_index = (index + 1) % len(self.routes)
        route = self.routes[index]
        route.in_flight += 1
        self.in_flight += 1
        route.breaker.passed()
        self.finishes[index] = route.finish
        return route

    def _for(self, wish: Wish) -> list[float]:
        """What is expected of each for a request with a ``wish``."""
        finishes, within, tokens = self.finishes, wish.within, wish.most_tokens
        if tokens is not None and self.ending:
            finishes = finishes.copy()
            for route in self.ending:
                bound_s = route.pace.bound_s(tokens)
                if bound_s is not None and bound_s <= route.left_s:
                    finishes[route.slot] = route.finish_in_time
        if within is not None:
            pairs = zip(self.routes, finishes, strict=True)
            finishes = [finish if route.cluster in within else inf for route, finish in pairs]
        return finishes

    def _without(self, failed: Route, finishes: list[float]) -> list[float]:
        pairs = list(zip(self.routes, finishes, strict=True))
        elsewhere = [inf if route.cluster == failed.cluster else finish for route, finish in pairs]
        if any(finish < inf for finish in elsewhere):
            return elsewhere
        return [inf if route is failed else finish for route, finish in pairs]

    def _where_known(self, prefixes: tuple[bytes, ...], finishes: list[float], index: int) -> int:
        """``index``, or that of a replica that saw the beginning of the prompt and is not clearly busier; noted either
        way. Where a long beginning is known, what it begins with was noted with it."""
        holders = self._holders
        for prefix, bonus in zip(prefixes, BONUS[len(prefixes)], strict=True):
            known = [route.slot for route in holders.of(prefix)]
            best = prefer(finishes, index, known, bonus) if known else None
            if best is not None and prefix is prefixes[0]:
                holders.note(prefix, self.routes[best])
                return best
            if best is not None:
                index = best
                break
        for prefix in prefixes:
            holders.note(prefix, self.routes[index])
        return index

    def others_have_room(self, route: Route, wish: Wish = ANYWHERE) -> bool:
        """Whether another than ``route`` could take such a request now."""
        pairs = zip(self.routes, self._for(wish), strict=True)
        return any(finish < inf for other, finish in pairs if other is not route)

    def refresh(self) -> None:
        """Read all again: routes came or went, or time went by."""
        now = self._clock()
        self._read_at, self._due = now, now + REFRESH_S
        need_s = self._durations.need_s
        found = slowness([route.pace.seconds_per_token(now) for route in self.routes])
        for slot, (route, slow) in enumerate(zip(self.routes, found, strict=True)):
            route.slot = slot
            route.slowness = slow
            self._look_at_time(route, now, need_s)
        self._note_ending()
        self.finishes = [route.finish for route in self.routes]

    def _look_at_time(self, route: Route, now: float, need_s: float) -> None:
        ends_at = self.calendar.open_until(route.cluster, now)
        if route.ends_at is not None and route.ends_at < ends_at:
            ends_at = route.ends_at
        route.left_s, need_s = time_left(route.born_at, ends_at, now, need_s)
        route.has_time = need_s <= route.left_s

    @property
    def need_s(self) -> float:
        """What a replica must have left to be given a request, in seconds."""
        return self._durations.need_s

    def changed(self, route: Route) -> None:
        """The state or the end of one route is not what it was; those of the others need not be read again."""
        if route.slot >= 0:
            self._look_at_time(route, self._clock(), self._durations.need_s)
            if self.ending or route.is_ending:
                self._note_ending()
            self.finishes[route.slot] = route.finish

    def _note_ending(self) -> None:
        self.ending = [route for route in self.routes if route.is_ending]
        self.is_plain = len(self.routes) < 2 and not self.ending

    def give_back(self, route: Route) -> None:
        """A request at ``route`` ended."""
        route.in_flight -= 1
        self.in_flight -= 1
        self.reconsider(route)

    def reconsider(self, route: Route) -> None:
        """The load of a route, or its breaker, is not what it was."""
        if route.slot >= 0:
            self.finishes[route.slot] = route.finish

    def measure(self, route: Route, tail: Tail) -> None:
        """An answer of ``route`` was given whole, as fast as the replica could."""
        self._durations.hear(tail.duration_s)
        route.pace.hear(self._read_at, tail)

    def forget(self, route: Route) -> None:
        """The replica is gone."""
        self.routes.remove(route)
        route.slot = -1
        self._holders.forget(route)
        self.refresh()

    @property
    def ready(self) -> list[Route]:
        return [route for route in self.routes if route.state is ReplicaState.READY]

    def live(self, within: frozenset[str] | None = None) -> list[Route]:
        """Those that serve, on clusters that are not closed."""
        if not self._read_at <= self._clock() < self._due:
            self.refresh()
        return [route for route in self.routes if route.is_live and (within is None or route.cluster in within)]

    def is_failing(self, within: frozenset[str] | None = None) -> bool:
        """Whether there are live replicas, and the breakers of all of them are open."""
        live = self.live(within)
        return bool(live) and all(route.breaker.circuit is Circuit.OPEN for route in live)


class RoutingTable:
    """Pools by model, and the names (with aliases) by which clients ask for them."""

    def __init__(self, aliases: dict[str, str], clock: Callable[[], float] = time.time) -> None:
        """``aliases`` maps every name that clients may use, canonical ones too, to the canonical name."""
        self.aliases = aliases
        self.calendar = Calendar()
        self.clock = clock
        self.pools = {model: Pool(self.calendar, clock) for model in aliases.values()}

    def add(self, route: Route) -> None:
        pool = self.pools.get(route.model)
        if pool is None:
            pool = self.pools[route.model] = Pool(self.calendar, self.clock)
        pool.routes.append(route)
        pool.refresh()

    def remove(self, route: Route) -> None:
        if route.slot >= 0:
            self.pools[route.model].forget(route)

    def refresh(self) -> None:
        """The calendar changed."""
        for pool in self.pools.values():
            pool.refresh()

    def routes(self) -> Iterator[Route]:
        for pool in self.pools.values():
            yield from pool.routes


def _line(text: str | None) -> str | None:
    """What a pilot tells, as it may be stored and shown."""
    return None if text is None else "".join(letter if letter.isprintable() else "?" for letter in text[:MOST_TOLD])


def _ascii(text: str) -> bytes:
    """``text`` as it may stand in a header."""
    return text.encode("ascii", "replace")
