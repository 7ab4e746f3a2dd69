"""Requests that wait for a replica: the shell around routing/admission, and the demand that the controller hears of."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from firstkit import metrics
from firstkit.clock import monotonic
from firstkit.errors import Overloaded, ReplicasFailing
from firstkit.links.messages import Outcome
from firstkit.routing.admission import Line
from firstkit.routing.breaker import FIRST_WAIT_S, Circuit
from firstkit.routing.table import Pool, Route, RoutingTable

logger = logging.getLogger("firstkit.gateway")
OVERLOAD_RETRY_S = 5.0


class Ticket:
    """A place in the line of one model; ``route`` is done when it is this request's turn."""

    def __init__(self, pool: Pool) -> None:
        self.route: asyncio.Future[Route] = asyncio.get_running_loop().create_future()
        self.pool = pool


class WaitingRoom:
    """Lines of waiting requests by model. First come, first served, at most ``max_waiting`` a model."""

    def __init__(self, table: RoutingTable, max_waiting: int, on_demand: Callable[[bool], None]) -> None:
        """``on_demand(urgent)`` is called when the demand changed; urgent: a model got its first waiting request."""
        self.table = table
        self._max_waiting = max_waiting
        self._on_demand = on_demand
        self._lines: dict[str, Line[Ticket]] = {}
        self._last_used: dict[str, float] = {}

    def take(self, model: str) -> Route | None:
        """A route at once, if one has room and nobody waits before us."""
        pool = self.table.pools[model]
        pool.retries.earn()
        route = None if self._lines.get(model) else pool.take()
        if route is not None:
            self._touch(model)
        return route

    def take_another(self, model: str, failed: Route) -> Route | None:
        """A route for a request that ``failed`` could not begin to answer; None: none has room, or the budget of
        retries is spent."""
        pool = self.table.pools[model]
        return pool.take(failed) if pool.others_have_room(failed) and pool.retries.spend() else None

    def join(self, model: str) -> Ticket:
        """Stand in line; raises Overloaded when the line is full, ReplicasFailing where waiting would help nobody."""
        if self.table.pools[model].is_failing:
            raise ReplicasFailing(retry_after_s=FIRST_WAIT_S)
        line = self._lines.setdefault(model, Line(self._max_waiting))
        ticket = Ticket(self.table.pools[model])
        if not line.join(ticket):
            raise Overloaded(retry_after_s=OVERLOAD_RETRY_S)
        self._on_demand(len(line) == 1)
        return ticket

    def leave(self, model: str, ticket: Ticket) -> None:
        """Give up, at any time: a route that was handed over in the same moment goes back."""
        line = self._lines[model]
        line.leave(ticket)
        if ticket.route.done() and not ticket.route.cancelled() and ticket.route.exception() is None:
            self.give_back(ticket.route.result())
        self._touch(model)

    def give_back(self, route: Route, outcome: Outcome = Outcome.CANCELLED) -> None:
        """A request at ``route`` ended so; the next in line gets the room."""
        self._judge(route, outcome)
        self.table.pools[route.model].give_back(route)
        self._touch(route.model)
        self.pump(route.model)

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
        """Tell those in line when nobody is left who could serve them soon."""
        line = self._lines.get(model)
        while line and self.table.pools[model].is_failing:
            ticket = line.next()
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
        while line and (route := self.table.pools[model].take()) is not None:
            ticket = line.next()
            ticket.route.set_result(route)

    def waiting(self, model: str) -> int:
        line = self._lines.get(model)
        return len(line) if line is not None else 0

    def position(self, model: str, ticket: Ticket) -> int:
        """1 for the next in line; 0 when it is no longer in line."""
        return self._lines[model].position(ticket)

    def count(self) -> None:
        """Bring the gauges up to date; for whoever is about to show them."""
        for model, pool in self.table.pools.items():
            metrics.WAITING.labels(model).set(self.waiting(model))
            metrics.IN_FLIGHT.labels(model).set(pool.in_flight)

    def demand(self) -> dict[str, Any]:
        """What the controller is told: by model waiting, in_flight, idle_s."""
        return {model: self._demand_of(model, pool) for model, pool in self.table.pools.items()}

    def _demand_of(self, model: str, pool: Pool) -> dict[str, Any]:
        last = self._last_used.get(model)
        idle_s = None if last is None else monotonic() - last
        return {"waiting": self.waiting(model), "in_flight": pool.in_flight, "idle_s": idle_s}

    def _touch(self, model: str) -> None:
        self._last_used[model] = monotonic()
        self._on_demand(False)
