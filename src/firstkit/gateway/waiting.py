"""Requests that wait for a replica: the shell around routing/admission, and the demand that the controller hears of."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, cast

from firstkit import metrics
from firstkit.clock import monotonic
from firstkit.errors import Overloaded, ReplicasFailing
from firstkit.links.messages import Outcome, Tail
from firstkit.routing.admission import HALF_LIFE_S, NOBODY, Claim, Full, Line, Standing
from firstkit.routing.breaker import FIRST_WAIT_S, Circuit
from firstkit.routing.table import Route, RoutingTable
from firstkit.routing.wish import ANYWHERE, Kind, Wish, Within

logger = logging.getLogger("firstkit.gateway")
OVERLOAD_RETRY_S = 5.0


class Ticket:
    """A place in the line of one model; ``route`` is done when it is this request's turn. ``request_id``: of the
    request, where that was told."""

    def __init__(self, wish: Wish = ANYWHERE, claim: Claim = NOBODY) -> None:
        self.route: asyncio.Future[Route] = asyncio.get_running_loop().create_future()
        self.wish = wish
        self.claim = claim
        self.request_id: str | None = None
        self.came_at = monotonic()


class Use:
    """What requests that may go to the same clusters make of a model."""

    __slots__ = ("in_flight", "last_at")

    def __init__(self) -> None:
        self.in_flight = 0
        self.last_at: float | None = None


class WaitingRoom:
    """Lines of waiting requests by model, in the order of fair shares among those whom the same replicas may serve; at
    most ``max_waiting`` a model, and of each user ``max_waiting_per_user``."""

    def __init__(
        self,
        table: RoutingTable,
        max_waiting: int,
        on_demand: Callable[[bool], None],
        max_waiting_per_user: int | None = None,
        half_life_s: float = HALF_LIFE_S,
    ) -> None:
        """``on_demand(urgent)`` is called when the demand changed; urgent: a model got its first waiting request, or
        its first of a kind. ``half_life_s``: after that past use counts half."""
        self.table = table
        self._max_waiting = max_waiting
        self._max_waiting_per_user = max_waiting_per_user
        self._half_life_s = half_life_s
        self._shares: Mapping[str, float] = {}
        self._on_demand = on_demand
        self._lines: dict[str, Line[Ticket]] = {}
        self._uses: dict[tuple[str, Within], Use] = {(model, None): Use() for model in table.pools}

    def take(self, model: str, wish: Wish = ANYWHERE, claim: Claim = NOBODY) -> Route | None:
        """A route at once, if one has room and nobody waits who could have it. It is charged, and then ``used`` has to
        follow."""
        pool = self.table.pools[model]
        pool.retries.earn()
        line = self._lines.get(model)
        if line is None:
            line = self._open(model)
        elif line:
            self.pump(model)
            if line.count(wish.kind):
                return None
        route = pool.take(wish)
        if route is not None:
            line.begin(claim)
            use = self._uses.get((model, wish.within)) or self._use(model, wish)
            use.in_flight += 1
            use.last_at = monotonic()
            self._on_demand(False)
        return route

    def take_another(self, model: str, failed: Route, wish: Wish = ANYWHERE) -> Route | None:
        """A route for a request that ``failed`` could not begin to answer, on another cluster if there is one; None:
        none has room, or the budget of retries is spent."""
        pool = self.table.pools[model]
        if not pool.others_have_room(failed, wish) or not pool.retries.spend():
            return None
        route = pool.take(wish, avoid=failed)
        if route is not None:
            self._came(model, wish)
        return route

    def join(self, model: str, wish: Wish = ANYWHERE, claim: Claim = NOBODY) -> Ticket:
        """Stand in line; raises Overloaded when the line is full, or full for this user, ReplicasFailing where waiting
        would help nobody. The route is charged when it is given; then, ``used`` has to follow, or ``leave``."""
        if self.table.pools[model].is_failing(wish.within):
            raise ReplicasFailing(retry_after_s=FIRST_WAIT_S)
        line = self._lines.get(model)
        if line is None:
            line = self._open(model)
        ticket = Ticket(wish, claim)
        if (full := line.join(ticket, wish.kind, claim)) is not None:
            raise Overloaded(_full(full, model, len(line)), retry_after_s=OVERLOAD_RETRY_S)
        self._on_demand(line.count(wish.kind) == 1)
        return ticket

    def leave(self, model: str, ticket: Ticket) -> None:
        """Give up, at any time: a route that was handed over in the same moment goes back."""
        line = self._lines[model]
        line.leave(ticket)
        if ticket.route.done() and not ticket.route.cancelled() and ticket.route.exception() is None:
            self.used(model, ticket.claim, 0)
            self.give_back(ticket.route.result(), wish=ticket.wish)
        self._touch(self._use(model, ticket.wish))

    def give_back(self, route: Route, outcome: Outcome = Outcome.CANCELLED, wish: Wish = ANYWHERE) -> None:
        """A request at ``route`` ended so; the next in line gets the room."""
        self._judge(route, outcome)
        self.table.pools[route.model].give_back(route)
        use = self._uses.get((route.model, wish.within)) or self._use(route.model, wish)
        use.in_flight -= 1
        use.last_at = monotonic()
        self._on_demand(False)
        if self._lines.get(route.model):
            self.pump(route.model)

    def used(self, model: str, claim: Claim, tokens: int) -> None:
        """A request that was given a route has ended and used so many tokens, of prompt and answer; once for each."""
        self._lines[model].used(claim, tokens, monotonic())

    def share(self, shares: Mapping[str, float]) -> None:
        """By the id of a project its share; 1 for those that are not there."""
        self._shares = shares
        for line in self._lines.values():
            line.reshare()

    def recall(self, model: str, project: str, user: str, tokens: float, age_s: float) -> None:
        """So many tokens were used so long ago, before this room was there."""
        line = self._lines.get(model)
        if line is None:
            line = self._open(model)
        line.recall(project, user, tokens, age_s, monotonic())

    def _open(self, model: str) -> Line[Ticket]:
        line: Line[Ticket] = Line(
            self._max_waiting,
            self._max_waiting_per_user,
            lambda project: self._shares.get(project, 1.0),
            self._half_life_s,
            _are_rivals,
        )
        self._lines[model] = line
        return line

    def measure(self, route: Route, tail: Tail) -> None:
        """``route`` gave an answer whole, and nobody but itself was slow."""
        self.table.pools[route.model].measure(route, tail)

    def _judge(self, route: Route, outcome: Outcome) -> None:
        if outcome in (Outcome.COMPLETE, Outcome.REJECTED):
            route.breaker.succeeded()
        elif outcome is Outcome.CANCELLED:
            route.breaker.left()
        elif (wait_s := route.breaker.failed()) is not None:
            logger.warning(
                "replica %s fails all requests; none are sent to it for %g s", route.replica_id, wait_s,
                extra={"action": "circuit_opened", "model": route.model, "replica_id": route.replica_id},
            )  # fmt: skip
            asyncio.get_running_loop().call_later(wait_s, self._try_again, route, route.breaker.openings)
            self._send_away(route.model)

    def _try_again(self, route: Route, opening: int | None = None) -> None:
        if opening not in (None, route.breaker.openings):
            return  # it closed and opened again meanwhile, and has a wait of its own
        route.breaker.try_again()
        self.table.pools[route.model].reconsider(route)
        self.pump(route.model)

    def _send_away(self, model: str) -> None:
        """Tell those in line of whom nobody is left who could serve them soon."""
        line, pool = self._lines.get(model), self.table.pools[model]
        while line:
            hopeless = [ticket for ticket in line.heads() if pool.is_failing(ticket.wish.within)]
            if not hopeless:
                return
            for ticket in hopeless:
                line.leave(ticket)
                if not ticket.route.done():
                    ticket.route.set_exception(ReplicasFailing(retry_after_s=FIRST_WAIT_S))

    def vouch(self, route: Route) -> None:
        """A replica that was being tried has begun to answer well."""
        if route.breaker.circuit is not Circuit.CLOSED:
            route.breaker.succeeded()
            self.table.pools[route.model].reconsider(route)
            self.pump(route.model)

    def pump(self, model: str) -> None:
        """Hand out room to those who wait, in order."""
        line = self._lines.get(model)
        while line and self._serve_one(model, line):
            pass

    def _serve_one(self, model: str, line: Line[Ticket]) -> bool:
        """Whether there was one in line for whom there was room."""
        pool = self.table.pools[model]
        for ticket in line.heads():
            route = pool.take(ticket.wish)
            if route is not None:
                line.serve(ticket)
                self._came(model, ticket.wish)
                ticket.route.set_result(route)
                return True
        return False

    def pump_all(self) -> None:
        """The same for all models: clusters were opened, or time went by."""
        for model, line in self._lines.items():
            if line:
                self.pump(model)

    def waiting(self, model: str) -> int:
        line = self._lines.get(model)
        return len(line) if line is not None else 0

    def position(self, model: str, ticket: Ticket) -> int:
        """How many would be served before it, and it, if nobody came or went; 0 when it is no longer in line. Those who
        wait for other clusters are not before it."""
        return self._lines[model].position(ticket)

    def of_user(self, user: str) -> Iterator[tuple[str, Ticket]]:
        """By model what waits of a user, with the id of one."""
        for model, line in self._lines.items():
            for ticket in line.of_user(user):
                yield model, ticket

    def standings(self) -> dict[str, list[Standing]]:
        """By model those projects of which anything is known; without the ones who have no id."""
        at = monotonic()
        return {model: [each for each in line.standings(at) if each.id] for model, line in self._lines.items()}

    def count(self) -> None:
        """Bring the gauges up to date; for whoever is about to show them."""
        for model, pool in self.table.pools.items():
            metrics.WAITING.labels(model).set(self.waiting(model))
            metrics.IN_FLIGHT.labels(model).set(pool.in_flight)

    def demand(self) -> dict[str, list[dict[str, Any]]]:
        """What the controller is told: by model an entry for each set of clusters that requests may go to, with
        ``clusters`` (None: all), ``waiting``, ``in_flight``, ``idle_s``, and ``finish_s``: what a replica must have
        left to be given a request. Together they are all requests of a model."""
        waiting = {
            (model, within): count
            for model, line in self._lines.items()
            for within, count in _by_clusters(line).items()
        }
        found: dict[str, list[dict[str, Any]]] = {model: [] for model in self.table.pools}
        for key in {**self._uses, **waiting}:
            model, within = key
            entry = _demand_of(within, waiting.get(key, 0), self._uses.get(key), self.table.pools[model].need_s)
            found.setdefault(model, []).append(entry)
        return found

    def _came(self, model: str, wish: Wish) -> None:
        """A request got a route."""
        use = self._use(model, wish)
        use.in_flight += 1
        self._touch(use)

    def _use(self, model: str, wish: Wish) -> Use:
        use = self._uses.get((model, wish.within))
        if use is None:
            use = self._uses[model, wish.within] = Use()
        return use

    def _touch(self, use: Use) -> None:
        use.last_at = monotonic()
        self._on_demand(False)


def _full(full: Full, model: str, waiting: int) -> str:
    if full is Full.LINE:
        return f"{waiting} requests wait for the model '{model}', and no more may (server.max_waiting)."
    if full is Full.USER:
        return (
            f"As many of your requests wait for the model '{model}' as may of one user (server.max_waiting_per_user)."
        )
    return (
        f"{waiting} requests wait for the model '{model}', some of them yours; the last quarter of the places "
        "(server.max_waiting) is for users of whom none waits."
    )


def _are_rivals(kind: Hashable, other: Hashable) -> bool:
    """Whether one replica may serve both."""
    within, others = cast(Kind, kind)[0], cast(Kind, other)[0]
    return within is None or others is None or bool(within & others)


def _by_clusters(line: Line[Ticket]) -> dict[Within, int]:
    """How many wait in a line, by the clusters that they may go to."""
    counts: dict[Within, int] = {}
    for kind, count in line.counts().items():
        within = cast(Kind, kind)[0]
        counts[within] = counts.get(within, 0) + count
    return counts


def _demand_of(within: Within, waiting: int, use: Use | None, finish_s: float) -> dict[str, Any]:
    last_at = None if use is None else use.last_at
    return {
        "clusters": None if within is None else sorted(within),
        "waiting": waiting,
        "in_flight": 0 if use is None else use.in_flight,
        "idle_s": None if last_at is None else monotonic() - last_at,
        "finish_s": finish_s,
    }
