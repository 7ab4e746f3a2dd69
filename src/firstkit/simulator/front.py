"""The gateway's side: requests come, are given a replica or wait in line, and end. Choosing and the line are the real
ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import Any, cast

from firstkit.links.messages import Outcome, Tail, Usage
from firstkit.routing.admission import Claim, Line
from firstkit.routing.calendar import Calendar
from firstkit.routing.table import Pool, Route
from firstkit.routing.wish import ANYWHERE, Kind, Wish, Within
from firstkit.simulator.engines import Request, SimEngine
from firstkit.simulator.events import Events
from firstkit.simulator.load import Asked
from firstkit.simulator.tallies import Tallies
from firstkit.states import ReplicaState


class CalmPool(Pool):
    """A pool that looks at the time less often than once a second: that would be most of what a simulation does."""

    __slots__ = ("look_s",)

    def __init__(self, calendar: Calendar, clock: Callable[[], float], look_s: float) -> None:
        self.look_s = look_s
        super().__init__(calendar, clock)

    def refresh(self) -> None:
        super().refresh()
        self._due = self._read_at + self.look_s

    def add(self, route: Route) -> None:
        """A replica comes. The others are as they were."""
        route.slot = len(self.routes)
        self.routes.append(route)
        self.finishes.append(inf)
        self.changed(route)


class Front:
    """All models as requests see them. ``within(model)``: where a request may go by the policy; ``on_wait(model)`` is
    called when the first one begins to wait."""

    def __init__(
        self,
        events: Events,
        models: Iterable[str],
        tallies: Tallies,
        *,
        within: Callable[[str], Within],
        on_wait: Callable[[str], None],
        look_s: float,
        patience_s: float,
        max_waiting: int,
    ) -> None:
        self.calendar = Calendar()
        self.pools = {model: CalmPool(self.calendar, events.clock, look_s) for model in models}
        self.on_empty: Callable[[Route], None] = lambda _: None
        """Called when a replica that drains has ended its last request."""
        self._events = events
        self._tallies = tallies
        self._within = within
        self._on_wait = on_wait
        self._patience_s = patience_s
        self._lines: dict[str, Line[Request]] = {
            model: Line(max_waiting, are_rivals=_are_rivals) for model in self.pools
        }
        self._in_flight: dict[str, dict[Within, int]] = {model: {} for model in self.pools}
        self._last_at: dict[str, dict[Within, float]] = {model: {} for model in self.pools}
        self._wishes: dict[Within, Wish] = {None: ANYWHERE}
        self._engines: dict[Route, SimEngine] = {}

    # -- requests ------------------------------------------------------------------------------------------------------

    def ask(self, asked: Asked) -> None:
        """A request comes."""
        model = asked.model
        claim = Claim(asked.project, asked.user, asked.prompt + asked.answer)
        request = Request(model, claim, asked.prompt, asked.answer, self._events.now)
        within = self._within(model)
        if within is not None:
            request.wish = self._wishes.get(within) or self._wishes.setdefault(within, Wish(within))
        self._tallies.came(request)
        pool, line = self.pools[model], self._lines[model]
        pool.retries.earn()
        if line:
            self.pump(model)
            if line.count(request.wish.kind):
                self._join(request)
                return
        route = pool.take(request.wish)
        if route is None:
            self._join(request)
        else:
            line.begin(claim)
            self._begin(request, route)

    def _join(self, request: Request) -> None:
        line = self._lines[request.model]
        if line.join(request, request.wish.kind, request.claim) is not None:
            request.is_over = True
            self._tallies.failed(request, "refused")
            return
        self._touch(request)
        self._events.after(self._patience_s, self._give_up, request)
        if line.count(request.wish.kind) == 1:
            self._on_wait(request.model)

    def _give_up(self, request: Request) -> None:
        if request.route is None and not request.is_over:
            request.is_over = True
            self._lines[request.model].leave(request)
            self._touch(request)
            self._tallies.failed(request, "gave up")

    def _begin(self, request: Request, route: Route) -> None:
        request.route = route
        in_flight, within = self._in_flight[request.model], request.wish.within
        in_flight[within] = in_flight.get(within, 0) + 1
        self._touch(request)
        self._engines[route].begin(request)

    def done(self, engine: SimEngine, request: Request) -> None:
        """An engine gave an answer whole."""
        route, now = request.route, self._events.now
        if route is None:
            return
        request.is_over = True
        duration_s = now - request.got_at
        ttft_s = request.first_at - request.got_at
        usage = Usage(request.prompt, request.answer)
        gap_s = max(0.0, duration_s - ttft_s) / request.answer
        tail = Tail(Outcome.COMPLETE, usage, None, ttft_s, gap_s, duration_s)
        pool = self.pools[request.model]
        route.breaker.succeeded()
        pool.give_back(route)
        pool.measure(route, tail)
        self._ended(request)
        self._tallies.answered(request, now)
        if not engine.requests and route.state is ReplicaState.DRAINING:
            self.on_empty(route)
        self.pump(request.model)

    def lose(self, engine: SimEngine, why: str) -> None:
        """A replica is gone, with what it had. What had no token yet may be given to another, once."""
        left, route = engine.drop(), engine.route
        self.remove(engine)
        for request in left:
            pool = self.pools[request.model]
            pool.in_flight -= 1
            self._ended(request)
            retried = None
            can_retry = self._events.now < request.first_at and route is not None
            if can_retry and route is not None and pool.others_have_room(route, request.wish) and pool.retries.spend():
                retried = pool.take(request.wish, avoid=route)
            if retried is None:
                request.is_over = True
                self._tallies.failed(request, why)
            else:
                self._tallies.retried += 1
                self._lines[request.model].begin(request.claim)
                self._begin(request, retried)

    def _ended(self, request: Request) -> None:
        self._in_flight[request.model][request.wish.within] -= 1
        self._touch(request)
        self._lines[request.model].used(request.claim, request.claim.tokens, self._events.now)

    def pump(self, model: str) -> None:
        """Hand out room to those who wait, in order."""
        line, pool = self._lines[model], self.pools[model]
        while line:
            for request in line.heads():
                route = pool.take(request.wish)
                if route is not None:
                    line.serve(request)
                    self._begin(request, route)
                    break
            else:
                return

    # -- replicas ------------------------------------------------------------------------------------------------------

    def add(self, route: Route, engine: SimEngine) -> None:
        """A replica serves."""
        engine.route = route
        self._engines[route] = engine
        self.pools[route.model].add(route)
        self.pump(route.model)

    def drain(self, engine: SimEngine) -> None:
        """It takes no new requests."""
        if (route := engine.route) is not None:
            route.state = ReplicaState.DRAINING
            self.pools[route.model].changed(route)

    def remove(self, engine: SimEngine) -> None:
        """It is gone. ``engine`` has no requests any more."""
        route, engine.route = engine.route, None
        if route is not None:
            del self._engines[route]
            self.pools[route.model].forget(route)

    # -- demand --------------------------------------------------------------------------------------------------------

    def demand(self) -> dict[str, list[dict[str, Any]]]:
        """What the controller is told, as the gateway tells it."""
        return {model: self.demand_of(model) for model in self.pools}

    def demand_of(self, model: str) -> list[dict[str, Any]]:
        """The same of one model."""
        line, now = self._lines[model], self._events.now
        waiting: dict[Within, int] = {}
        for kind, count in line.counts().items() if line else ():
            within = cast(Kind, kind)[0]
            waiting[within] = waiting.get(within, 0) + count
        in_flight, last_at = self._in_flight[model], self._last_at[model]
        return [
            {
                "clusters": None if within is None else sorted(within),
                "waiting": waiting.get(within, 0),
                "in_flight": in_flight.get(within, 0),
                "idle_s": None if within not in last_at else now - last_at[within],
                "finish_s": self.pools[model].need_s,
            }
            for within in {**in_flight, **waiting}
        ]

    def counts(self) -> tuple[int, int, int]:
        """How many wait, how many are at replicas, and how many replicas serve."""
        return (
            sum(len(line) for line in self._lines.values()),
            sum(pool.in_flight for pool in self.pools.values()),
            sum(len(pool.routes) for pool in self.pools.values()),
        )

    def _touch(self, request: Request) -> None:
        self._last_at[request.model][request.wish.within] = self._events.now


def _are_rivals(kind: object, other: object) -> bool:
    within, others = cast(Kind, kind)[0], cast(Kind, other)[0]
    return within is None or others is None or bool(within & others)
