"""The rules that are compared: where a request may go, and where replicas are wanted. All else is the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from firstkit.reconciler.autoscale import Need
from firstkit.reconciler.placement import Place, Share, allocate
from firstkit.routing.wish import Within


@dataclass(frozen=True, slots=True)
class Seen:
    """What a scheduler says of its cluster: nodes that are free (None: it does not answer), and by deployment how many
    seconds a job would wait (None: it cannot say)."""

    free_nodes: int | None
    said_s: Mapping[str, float | None]


class Policy(Protocol):
    """A rule. ``places``: how the deployments of one model stand, in the order of preference; ``seen``: by cluster."""

    def within(self, places: Sequence[Place], seen: Mapping[str, Seen]) -> Within:
        """Where a request that comes now may go; None: anywhere."""

    def shares(self, places: Sequence[Place], needs: Iterable[Need], seen: Mapping[str, Seen]) -> dict[str, Share]:
        """By name, what each deployment should have."""


class First:
    """The rule of FIRST: ``reconciler.placement.allocate``, and requests go to any replica."""

    def within(self, places: Sequence[Place], seen: Mapping[str, Seen]) -> Within:
        del places, seen
        return None

    def shares(self, places: Sequence[Place], needs: Iterable[Need], seen: Mapping[str, Seen]) -> dict[str, Share]:
        del seen
        return allocate(places, needs)


class Older:
    """The rule of the older system, as its federated route had it: each request is given to one cluster when it comes.
    The first, in the order of the file, on which the model runs; else the first where it is queued; else the first
    that has free nodes; else the first that answers; else the first. It stays there."""

    def within(self, places: Sequence[Place], seen: Mapping[str, Seen]) -> Within:
        answering = [place for place in places if seen[place.cluster].free_nodes is not None]
        ranked = (
            [place for place in answering if place.ready],
            [place for place in answering if place.queued],
            [place for place in answering if seen[place.cluster].free_nodes],
            answering,
            places,
        )
        return frozenset((next(found[0] for found in ranked if found).cluster,))

    def shares(self, places: Sequence[Place], needs: Iterable[Need], seen: Mapping[str, Seen]) -> dict[str, Share]:
        """The demand of each cluster is met there: where that is was decided when the requests came."""
        del seen
        return allocate([_without_obstacle(place) for place in places], needs)


class SoonestSaid:
    """The scheduler's word alone: replicas go where a job would start soonest by its estimate. What was learned of
    queues and loads does not count, and nobody who waits is overtaken."""

    def within(self, places: Sequence[Place], seen: Mapping[str, Seen]) -> Within:
        del places, seen
        return None

    def shares(self, places: Sequence[Place], needs: Iterable[Need], seen: Mapping[str, Seen]) -> dict[str, Share]:
        return allocate([_as_said(place, seen[place.cluster]) for place in places], needs)


def _without_obstacle(place: Place) -> Place:
    return place if place.is_closing else replace(place, obstacle="")


def _as_said(place: Place, seen: Seen) -> Place:
    queued = tuple(replace(one, is_late=False) for one in place.queued)
    wait_s = min(place.wait_s, seen.said_s.get(place.name) or 0.0)
    return replace(place, wait_s=wait_s, load_s=None, queued=queued)


POLICIES: dict[str, Policy] = {"first": First(), "older": Older(), "soonest-said": SoonestSaid()}
