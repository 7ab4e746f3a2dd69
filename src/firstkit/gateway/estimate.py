"""Where a model would run, when it would be live, and how well such forecasts came true: for whoever may use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from math import inf
from typing import Any, Literal

from fastapi import APIRouter, FastAPI, Request
from pydantic import Field

from firstkit.auth.permissions import Scope
from firstkit.clock import now
from firstkit.gateway.identity import identity_of, needs
from firstkit.gateway.schemas import Answer, Availability, Maintenance, QueueForecast
from firstkit.gateway.state import gateway_of
from firstkit.gateway.views import View, availability, queue_forecast, without_nodes
from firstkit.soonest import soonest, start_s, usual_load_s
from firstkit.states import ModelStatus

_BY = {
    "room": "a job that runs there has room",
    "free": "the scheduler says that nodes are free",
    "plan": "the wait is the scheduler's plan, which is later than what jobs waited before",
    "waits": "the wait is that of jobs before it, those of its shape and hour most",
    "nobody": "no job has waited there yet",
}

router = APIRouter(prefix="/v1", dependencies=[needs(Scope.INFERENCE, Scope.ADMIN)], tags=["federation"])


def install(app: FastAPI) -> None:
    """Add the routes to ``app``."""
    app.include_router(router)


class Expected(Answer):
    """When a model would be live; null: nobody can say. ``late``: what nine of ten do not exceed."""

    status: ModelStatus
    live_in_s: float | None = None
    late_s: float | None = None
    live_at: datetime | None = None
    late_at: datetime | None = None
    why: list[str] = Field(default_factory=list)


class ClusterEstimate(Expected):
    """On one cluster."""

    cluster: str
    wait_s: float | None = Field(default=None, description="Of that, until it begins to load.")
    load_s: float | None = Field(default=None, description="Of that, while it loads.")
    obstacle: str = Field(default="", description="Why nothing is started there for now.")
    maintenance: Maintenance | None = Field(default=None, description="The present one, or the next.")
    availability: Availability = Availability()
    queue: QueueForecast = QueueForecast()


class Estimate(Expected):
    """Where a model would run, and when, for a request that comes now."""

    object: Literal["estimate"] = "estimate"
    model: str
    cluster: str | None = Field(description="Where; null: nobody can say.")
    controller: Literal["connected", "silent"] = Field(description="Silent: all this is what it said last.")
    clusters: list[ClusterEstimate]


@router.get("/estimate/{model:path}")
async def estimate(request: Request, model: str) -> Estimate:
    """Where a model would run, when it would be live, and why: of the clusters that you may use."""
    gateway, identity = gateway_of(request), identity_of(request)
    name = gateway.canonical(model, identity)
    view = View(gateway, gateway.clusters_for(identity), now(), is_operator=False)
    found = [_on_cluster(view, name, cluster) for cluster in view.clusters_of(name)]
    said = gateway.forecasts.explain(name)
    best = _best(found, {cluster: new for cluster, part in said.items() if (new := part.get("new")) is not None})
    overall = view.overall(name)
    return Estimate(
        model=name,
        cluster=None if best is None else best.cluster,
        controller="connected" if gateway.wake.is_connected else "silent",
        clusters=found,
        status=overall.status,
        **{} if best is None else {part: getattr(best, part) for part in ("live_in_s", "late_s", "live_at", "late_at")},
        why=[overall.reason] if best is None and overall.reason else [] if best is None else best.why,
    )


def _on_cluster(view: View, model: str, cluster: str) -> ClusterEstimate:
    gateway, place, facts = view.gateway, view.on(model, cluster), view.gateway.forecasts.cluster_facts(cluster)
    said = gateway.forecasts.explain(model).get(cluster, {})
    found = ClusterEstimate(
        cluster=cluster,
        status=place.status,
        maintenance=view.maintenance(cluster),
        availability=availability(facts),
        queue=queue_forecast(facts),
    )
    if place.status == ModelStatus.LIVE:
        found.live_in_s = found.late_s = 0.0
    elif cluster in gateway.closures.drained:
        found.obstacle = place.reason
    elif place.status == ModelStatus.OFFLINE:
        _would_start(found, said.get("new"), place.eta_s)
    else:
        found.live_in_s, found.why = place.eta_s, [place.reason]
        found.late_s = _at_least(gateway.forecasts.left_s(model, said.get("late_s")), place.eta_s)
        found.wait_s = gateway.forecasts.left_s(model, said.get("start_in_s"))
    if found.obstacle:
        found.why = [found.obstacle, *found.why]
    found.live_at, found.late_at = _moment(view.at, found.live_in_s), _moment(view.at, found.late_s)
    return found


def _would_start(found: ClusterEstimate, new: Mapping[str, Any] | None, eta_s: float | None) -> None:
    """Fill in what a start would take; ``eta_s``: with the pause after a failure."""
    if new is None:
        found.why = ["the controller has not said anything of it yet"]
        return
    found.wait_s, found.load_s = new["wait_s"], new["load_s"]
    found.obstacle = without_nodes(new["obstacle"])
    found.why = [_BY[new["by"]]]
    if new["load_s"] is None:
        found.why.append("it never loaded there")
    if new["after"] is not None:
        found.why.append("its job could not finish before the next maintenance, and would start after it")
    found.live_in_s = _at_least(_sum(new["wait_s"], new["load_s"]), eta_s)
    found.late_s = _at_least(_sum(new["late_wait_s"], new["late_load_s"]), found.live_in_s)


def _best(found: Sequence[ClusterEstimate], starts: Mapping[str, Mapping[str, Any]]) -> ClusterEstimate | None:
    """Where a request would be answered: where it is live; where it is on its way; where a start is soonest.

    ``starts``: by cluster, what the controller said of a start there.
    """
    usual_s = usual_load_s(one.load_s for one in found)

    def serves_in_s(one: ClusterEstimate) -> float:
        if one.status != ModelStatus.OFFLINE:
            return inf if one.live_in_s is None else one.live_in_s
        wait_s = (one.wait_s or 0.0) + float(starts[one.cluster]["handicap_s"])
        day = one.availability.day
        return start_s(wait_s, usual_s if one.load_s is None else one.load_s, 1.0 if day is None else day)

    would_start = [one for one in found if one.status == ModelStatus.OFFLINE and one.cluster in starts]
    groups: list[list[ClusterEstimate]] = [
        [one for one in found if one.status == ModelStatus.LIVE],
        [one for one in found if one.status not in (ModelStatus.LIVE, ModelStatus.OFFLINE)],
        [one for one in would_start if not one.obstacle],
        [one for one in would_start if one.live_in_s is not None],
    ]
    group = next((group for group in groups if group), [])
    return group[soonest([serves_in_s(one) for one in group])] if group else None


def _moment(at: datetime, after_s: float | None) -> datetime | None:
    return None if after_s is None else (at + timedelta(seconds=after_s)).replace(microsecond=0)


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def _at_least(one: float | None, least: float | None) -> float | None:
    return one if one is None or least is None else max(one, least)
