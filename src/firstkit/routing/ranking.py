"""The order in which those in line would be served if nobody came, went or ended: what positions are told by."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter, itemgetter
from typing import Any

from firstkit.routing.fairness import Kind, Place, Sharing

Entry = tuple[float, int, Any]
"""The tag with which a ticket would begin, its tokens, and it."""
_BY_TAG = itemgetter(0)
_TAG = attrgetter("tag")
_BY_NUMBER = attrgetter("number")


def in_order(projects: Sharing, kinds: list[Kind], came_as: Callable[[Any], int]) -> list[Any]:
    """The tickets that wait for any of ``kinds``, the next first. ``came_as``: of those of one user the lower first."""
    found: list[tuple[float, Any]] = []
    for places in _waiting(projects, kinds):
        tag, project = min(map(_TAG, places)), places[0].party
        per_token = 1 / project.weight
        for _, tokens, ticket in _of_project(project.members, kinds, came_as):
            found.append((tag, ticket))
            tag += tokens * per_token
    found.sort(key=_BY_TAG)
    return [ticket for _, ticket in found]


def _of_project(users: Sharing, kinds: list[Kind], came_as: Callable[[Any], int]) -> list[Entry]:
    """The tickets of one project in their order."""
    found: list[Entry] = []
    for places in _waiting(users, kinds):
        tag = places[0].tag if len(places) == 1 else min(map(_TAG, places))
        per_token = 1 / places[0].party.weight
        for ticket, tokens in places[0].tickets.items() if len(places) == 1 else _joined(places, came_as):
            found.append((tag, tokens, ticket))
            tag += tokens * per_token
    if len(found) > 1:
        found.sort(key=_BY_TAG)
    return found


def _waiting(sharing: Sharing, kinds: list[Kind]) -> list[list[Place]]:
    """Of all who wait for any of ``kinds`` their places; the first of those who have the same tag is first."""
    turns = [sharing.turns[kind] for kind in kinds if kind in sharing.turns]
    if len(turns) == 1 and turns[0].size == 1:
        return [[turns[0].first()]]
    places = [place for each in turns for place in each.places()]
    places.sort(key=_BY_NUMBER)
    if len(turns) == 1:
        return [[place] for place in places]
    found: dict[str, list[Place]] = {}
    for place in places:
        found.setdefault(place.party.id, []).append(place)
    return list(found.values())


def _joined(places: list[Place], came_as: Callable[[Any], int]) -> list[tuple[Any, int]]:
    """The tickets of one user who waits for several kinds, the first first, with their tokens."""
    return sorted((pair for place in places for pair in place.tickets.items()), key=lambda pair: came_as(pair[0]))
