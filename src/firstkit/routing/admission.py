"""Who goes next when all replicas of a model are busy: first come, first served, in a line with a bound."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Ticket = TypeVar("Ticket", bound=Hashable)


class Line(Generic[Ticket]):
    """Tickets in the order in which they came; each at most once. Joining, leaving and serving take constant time.

    Tickets are of kinds, where the kind says who may serve them: within a kind nobody overtakes, and who waits for
    something rare holds up nobody of another kind.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._came = 0
        self._kind_of: dict[Ticket, Hashable] = {}
        self._kinds: dict[Hashable, dict[Ticket, int]] = {}

    def __len__(self) -> int:
        return len(self._kind_of)

    def __repr__(self) -> str:
        return f"<Line {len(self)} of {self._bound}>"

    def join(self, ticket: Ticket, kind: Hashable = None) -> bool:
        """Stand at the end; False when the line is full. Who stands in it already keeps the place."""
        if ticket in self._kind_of:
            return True
        if len(self._kind_of) >= self._bound:
            return False
        self._came += 1
        self._kind_of[ticket] = kind
        self._kinds.setdefault(kind, {})[ticket] = self._came
        return True

    def leave(self, ticket: Ticket) -> None:
        """Give up or be served, from any place; nothing happens to one that is not in line."""
        if ticket not in self._kind_of:
            return
        kind = self._kind_of.pop(ticket)
        tickets = self._kinds[kind]
        del tickets[ticket]
        if not tickets:
            del self._kinds[kind]

    def heads(self) -> list[Ticket]:
        """The ticket of each kind that has waited longest, the longest first."""
        if len(self._kinds) == 1:
            [tickets] = self._kinds.values()
            return [next(iter(tickets))]
        firsts = [next(iter(tickets.items())) for tickets in self._kinds.values()]
        return [ticket for ticket, _ in sorted(firsts, key=lambda first: first[1])]

    def count(self, kind: Hashable) -> int:
        """How many of one kind wait."""
        return len(self._kinds.get(kind, ()))

    def counts(self) -> dict[Hashable, int]:
        """How many wait, by kind."""
        return {kind: len(tickets) for kind, tickets in self._kinds.items()}

    def position(self, ticket: Ticket, is_rival: Callable[[Hashable], bool] | None = None) -> int:
        """1 for the next to be served; 0 for one that is not in line. Only kinds that are rivals are counted as before
        it; None: all. Takes time with the length of the line."""
        if ticket not in self._kind_of:
            return 0
        number = self._kinds[self._kind_of[ticket]][ticket]
        rivals = [tickets for kind, tickets in self._kinds.items() if is_rival is None or is_rival(kind)]
        return 1 + sum(other < number for tickets in rivals for other in tickets.values())
