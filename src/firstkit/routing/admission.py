"""Who goes next when all replicas of a model are busy: first come, first served, in a line with a bound."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Ticket = TypeVar("Ticket", bound=Hashable)


class Line(Generic[Ticket]):
    """Tickets in the order in which they came; each at most once. Joining, leaving and serving take constant time."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._tickets: dict[Ticket, None] = {}

    def __len__(self) -> int:
        return len(self._tickets)

    def __repr__(self) -> str:
        return f"<Line {len(self)} of {self._bound}>"

    def join(self, ticket: Ticket) -> bool:
        """Stand at the end; False when the line is full. Who stands in it already keeps the place."""
        if ticket in self._tickets:
            return True
        if len(self._tickets) >= self._bound:
            return False
        self._tickets[ticket] = None
        return True

    def leave(self, ticket: Ticket) -> None:
        """Give up, from any place; nothing happens to one that is not in line."""
        self._tickets.pop(ticket, None)

    def next(self) -> Ticket:
        """Take out the ticket that has waited longest; raises LookupError when nobody waits."""
        for ticket in self._tickets:
            del self._tickets[ticket]
            return ticket
        raise LookupError("nobody waits in this line")

    def position(self, ticket: Ticket) -> int:
        """1 for the next to be served; 0 for one that is not in line. Takes time with the length of the line."""
        return next((place for place, waiting in enumerate(self._tickets, 1) if waiting == ticket), 0)
