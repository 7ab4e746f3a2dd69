"""Requests that wait for a replica: the shell around routing/admission, and the demand that the controller hears of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from firstkit import metrics
from firstkit.clock import monotonic
from firstkit.errors import Overloaded
from firstkit.routing.admission import Line
from firstkit.routing.table import Pool, Route, RoutingTable

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

    def take(self, model: str, avoid: Route | None = None) -> Route | None:
        """A route at once, if one has room and nobody waits before us."""
        if self.waiting(model) and avoid is None:
            return None
        route = self.table.pools[model].take(avoid)
        if route is not None:
            self._touch(model)
        return route

    def join(self, model: str) -> Ticket:
        """Stand in line; raises Overloaded when the line is full."""
        line = self._lines.setdefault(model, Line(self._max_waiting))
        ticket = Ticket(self.table.pools[model])
        if not line.join(ticket):
            raise Overloaded(retry_after_s=OVERLOAD_RETRY_S)
        metrics.WAITING.labels(model).set(len(line))
        self._on_demand(len(line) == 1)
        return ticket

    def leave(self, model: str, ticket: Ticket) -> None:
        """Give up, at any time: a route that was handed over in the same moment goes back."""
        line = self._lines[model]
        line.leave(ticket)
        metrics.WAITING.labels(model).set(len(line))
        if ticket.route.done() and not ticket.route.cancelled():
            self.give_back(ticket.route.result())
        self._touch(model)

    def give_back(self, route: Route) -> None:
        """A request at ``route`` ended; the next in line gets the room."""
        self.table.pools[route.model].give_back(route)
        self._touch(route.model)
        self.pump(route.model)

    def pump(self, model: str) -> None:
        """Hand out room to those who wait, in order."""
        line = self._lines.get(model)
        while line and (route := self.table.pools[model].take()) is not None:
            ticket = line.next()
            ticket.route.set_result(route)
        if line is not None:
            metrics.WAITING.labels(model).set(len(line))

    def waiting(self, model: str) -> int:
        line = self._lines.get(model)
        return len(line) if line is not None else 0

    def position(self, model: str, ticket: Ticket) -> int:
        """1 for the next in line; 0 when it is no longer in line."""
        return self._lines[model].position(ticket)

    def demand(self) -> dict[str, Any]:
        """What the controller is told: by model waiting, in_flight, idle_s."""
        return {model: self._demand_of(model, pool) for model, pool in self.table.pools.items()}

    def _demand_of(self, model: str, pool: Pool) -> dict[str, Any]:
        last = self._last_used.get(model)
        idle_s = None if last is None else monotonic() - last
        return {"waiting": self.waiting(model), "in_flight": pool.in_flight, "idle_s": idle_s}

    def _touch(self, model: str) -> None:
        self._last_used[model] = monotonic()
        metrics.IN_FLIGHT.labels(model).set(self.table.pools[model].in_flight)
        self._on_demand(False)
