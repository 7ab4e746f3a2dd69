"""Who goes next when all replicas of a model are busy: a fair share to each project, and in it to each of its users."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from enum import Enum
from math import exp2
from typing import Any, Generic, NamedTuple, TypeVar

from firstkit.routing.fairness import Kind, Party, Sharing
from firstkit.routing.ranking import in_order

Ticket = TypeVar("Ticket", bound=Hashable)
HALF_LIFE_S = 7 * 86400.0
MOST_DOUBLINGS = 512.0
"""Of the measure of use, until it begins anew."""
STALE = 16
"""The order that positions are told by is worked out anew when as many came or went as this part of those who wait."""


class Claim(NamedTuple):
    """In whose name a request waits, and for how much: ids of project and user, and the tokens that are expected of its
    prompt and its answer. ``is_batch``: nobody sits and waits for it."""

    project: str
    user: str
    tokens: int = 1
    is_batch: bool = False


NOBODY = Claim("", "")
"""For it no bound but that of the line holds."""


class Full(Enum):
    """Which bound a line is at."""

    LINE = "as many wait as may"
    USER = "as many of this user wait as may"
    LAST_PLACES = "the last quarter of the places is for users who have nothing waiting"


Turn = tuple[Kind, Claim, int, Party, Party]
"""What a request waits for and with which claim, as which of all it came, its project and its user."""


class Standing(NamedTuple):
    """Of a project or a user in one line: the present use in tokens, which fades, and what it has."""

    id: str
    share: float
    factor: float
    use: float
    waiting: int
    in_flight: int
    members: list[Standing]


class Line(Generic[Ticket]):
    """Tickets that wait, each at most once, in the order of fair shares: of projects, in each of its users, of each the
    first who came. Joining, leaving and serving take time with the logarithm of the line's length.

    Tickets are of kinds, where the kind says who may serve them: who waits for something rare holds up nobody of
    another kind. Batches wait behind all others of their kind.
    """

    def __init__(
        self,
        bound: int,
        bound_per_user: int | None = None,
        share_of: Callable[[str], float] = lambda _: 1.0,
        half_life_s: float = HALF_LIFE_S,
        are_rivals: Callable[[Hashable, Hashable], bool] = lambda _, __: True,
    ) -> None:
        """``share_of``: of a project, by its id. ``are_rivals``: whether one may serve both kinds."""
        self._bound = bound
        self._bound_per_user = bound if bound_per_user is None else bound_per_user
        self._half_life_s = half_life_s
        self._are_rivals = are_rivals
        self._projects = Sharing(share_of)
        self._turns: dict[Ticket, Turn] = {}
        self._counts: dict[Hashable, int] = {}
        self._of_users: dict[str, int] = {}
        self._began_at = 0.0
        self._came = 0
        self._changes = 0
        self._ranks: dict[Kind, tuple[int, dict[Ticket, int]]] = {}

    def __len__(self) -> int:
        return len(self._turns)

    def __repr__(self) -> str:
        return f"<Line {len(self)} of {self._bound}>"

    # -- in line -----------------------------------------------------------------------------------------------

    def join(self, ticket: Ticket, kind: Hashable = None, claim: Claim = NOBODY) -> Full | None:
        """Stand in line; returns the bound for which that may not be. Who stands in it already keeps the place."""
        if ticket in self._turns:
            return None
        if (full := self._is_full(claim.user)) is not None:
            return full
        self._came += 1
        project, user = self._parties(claim)
        members, whole = project.members, (claim.is_batch, kind)
        self._turns[ticket] = (whole, claim, self._came, project, user)
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._of_users[claim.user] = self._of_users.get(claim.user, 0) + 1
        place = user.places.get(whole) or members.enter(user, whole)
        place.tickets[ticket] = claim.tokens
        if whole not in project.places:
            self._projects.enter(project, whole)
        self._changes += 1
        return None

    def _is_full(self, user: str) -> Full | None:
        if len(self._turns) >= self._bound:
            return Full.LINE
        theirs = self._of_users.get(user, 0) if user else 0
        if theirs >= self._bound_per_user:
            return Full.USER
        return Full.LAST_PLACES if theirs and len(self._turns) >= self._bound - self._bound // 4 else None

    def leave(self, ticket: Ticket) -> None:
        """Give up, from any place; nothing happens to one that is not in line."""
        if ticket not in self._turns:
            return
        kind, _, _, project, user = self._step_out(ticket)
        tickets, members = user.places[kind].tickets, project.members
        del tickets[ticket]
        if not tickets:
            members.exit(user, kind)
            if kind not in members.turns:
                self._projects.exit(project, kind)

    def serve(self, ticket: Ticket) -> None:
        """A route is given to one that is in line, and charged."""
        kind, claim, _, project, user = self._step_out(ticket)
        tickets, members, tokens = user.places[kind].tickets, project.members, claim.tokens
        del tickets[ticket]
        members.serve(user, kind, tokens, stays=bool(tickets))
        self._projects.serve(project, kind, tokens, stays=kind in members.turns)

    def _step_out(self, ticket: Ticket) -> Turn:
        turn = self._turns.pop(ticket)
        _count_down(self._counts, turn[0][1])
        _count_down(self._of_users, turn[1].user)
        self._changes += 1
        return turn

    # -- what is used ------------------------------------------------------------------------------------------

    def begin(self, claim: Claim) -> None:
        """A route is given to a request that did not wait, and charged."""
        project, user = self._parties(claim)
        project.members.begin(user, claim.tokens)
        self._projects.begin(project, claim.tokens)

    def used(self, claim: Claim, tokens: int, at: float) -> None:
        """A request that was given a route has ended ``at`` so many seconds of any clock, and used so many tokens."""
        project, user = self._parties(claim)
        grown = self._grown(at)
        project.members.end(user, claim.tokens, tokens, grown)
        self._projects.end(project, claim.tokens, tokens, grown)
        self._changes += 1

    def recall(self, project: str, user: str, tokens: float, age_s: float, at: float) -> None:
        """So many tokens were used so long before ``at``, by requests that this line has not seen."""
        grown = self._grown(at) * exp2(-age_s / self._half_life_s)
        party, member = self._parties(Claim(project, user))
        party.members.recall(member, tokens * grown)
        self._projects.recall(party, tokens * grown)

    def reshare(self) -> None:
        """The shares of projects are not what they were."""
        self._projects.reshare()

    def _grown(self, at: float) -> float:
        """The measure of what is used ``at`` some time: it doubles with every half life."""
        doublings = (at - self._began_at) / self._half_life_s
        if doublings > MOST_DOUBLINGS:
            for sharing in (self._projects, *(project.members for project in self._projects.parties.values())):
                sharing.shrink(exp2(-doublings))
            self._began_at, doublings = at, 0.0
        return exp2(doublings)

    def _parties(self, claim: Claim) -> tuple[Party, Party]:
        """A project, and a user of it."""
        project = self._projects.parties.get(claim.project)
        if project is None:
            project = self._projects.party(claim.project)
            project.members = Sharing()
        members = project.members
        return project, members.parties.get(claim.user) or members.party(claim.user)

    # -- looking in --------------------------------------------------------------------------------------------

    def heads(self) -> list[Ticket]:
        """The ticket of each kind whose turn it is; of those that first whose turn it is, batches last."""
        kinds = self._projects.turns
        if len(kinds) == 1:
            [(kind, turns)] = kinds.items()
            return [next(iter(turns.first().party.members.turns[kind].first().tickets))]
        heads = [(kind, self._head(kind)) for kind in kinds]
        projects: dict[tuple[bool, Party], float] = {}
        users: dict[tuple[bool, Party], float] = {}
        for kind, head in heads:  # whoever waits for several kinds waits with the lowest tag of theirs
            _lower(projects, (kind[0], head.project), self._projects.effective(kind))
            _lower(users, (kind[0], head.user), head.members.effective(kind))

        def turn(each: tuple[Kind, _Head[Ticket]]) -> tuple[bool, float, str, float, int]:
            (is_batch, _), head = each
            tags = projects[is_batch, head.project], users[is_batch, head.user]
            return is_batch, tags[0], head.project.id, tags[1], self._came_as(head.ticket)

        return [head.ticket for _, head in sorted(heads, key=turn)]

    def _head(self, kind: Kind) -> _Head[Ticket]:
        project = self._projects.turns[kind].first().party
        members = project.members
        place = members.turns[kind].first()
        return _Head(project, members, place.party, next(iter(place.tickets)))

    def count(self, kind: Hashable) -> int:
        """How many of one kind wait."""
        return self._counts.get(kind, 0)

    def counts(self) -> dict[Hashable, int]:
        """How many wait, by kind."""
        return dict(self._counts)

    def position(self, ticket: Ticket) -> int:
        """1 for the next to be served if nobody comes, goes or ends; 0 for one that is not in line. Only kinds that are
        rivals are counted as before it. In a long line it may be that of a moment ago."""
        if ticket not in self._turns:
            return 0
        kind = self._turns[ticket][0]
        made_at, ranks = self._ranks.get(kind, (0, {}))
        if ticket not in ranks or self._changes - made_at > len(self) // STALE:
            ranks = self._ranked(kind)
            self._ranks[kind] = (self._changes, ranks)
        return ranks[ticket]

    def _ranked(self, kind: Kind) -> dict[Ticket, int]:
        is_batch, wanted = kind
        self._ranks = {other: ranks for other, ranks in self._ranks.items() if other in self._projects.turns}
        rivals = [other for other in self._projects.turns if self._are_rivals(wanted, other[1])]
        order = in_order(self._projects, [other for other in rivals if not other[0]], self._came_as)
        if is_batch:
            order += in_order(self._projects, [other for other in rivals if other[0]], self._came_as)
        return {ticket: number for number, ticket in enumerate(order, 1)}

    def _came_as(self, ticket: Ticket) -> int:
        return self._turns[ticket][2]

    def of_user(self, user: str) -> list[Ticket]:
        """All tickets of a user, those that came first before others."""
        parties = (project.members.parties.get(user) for project in self._projects.parties.values())
        places = (place for party in parties if party for place in party.places.values())
        return sorted((ticket for place in places for ticket in place.tickets), key=self._came_as)

    def standings(self, at: float) -> list[Standing]:
        """Of all projects of which anything is known, with those of their users who have anything in line or under way
        ``at`` so many seconds of the same clock as ``used``."""
        grown = self._grown(at)
        found = []
        for project in self._projects.parties.values():
            members = project.members
            busy = [user for user in members.parties.values() if user.places or user.in_flight]
            users = [_standing(members, user, grown, []) for user in busy]
            found.append(_standing(self._projects, project, grown, users))
        return found


class _Head(NamedTuple, Generic[Ticket]):
    """The ticket of a kind whose turn it is, and to whom the turn came."""

    project: Party
    members: Sharing
    user: Party
    ticket: Ticket


def _standing(sharing: Sharing, party: Party, grown: float, members: list[Standing]) -> Standing:
    sharing.weigh(party)
    waiting = sum(len(place.tickets) for place in party.places.values()) + sum(each.waiting for each in members)
    share, weight = party.share, party.weight
    return Standing(party.id, share, weight / share, party.use / grown, waiting, party.in_flight, members)


def _lower(tags: dict[tuple[bool, Party], float], key: tuple[bool, Party], tag: float) -> None:
    tags[key] = min(tag, tags.get(key, tag))


def _count_down(counts: dict[Any, int], key: Any) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
