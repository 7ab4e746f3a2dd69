"""Routes about clusters and what runs on them, for users; and those by which operators drain, resume and explain."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from firstkit.auth.permissions import Identity, Scope
from firstkit.clock import now
from firstkit.errors import ClusterNotFound, InvalidRequest
from firstkit.gateway.acts import by
from firstkit.gateway.identity import identity_of, needs
from firstkit.gateway.schemas import ClusterInfo, ClusterList, ClusterState, Explanation, JobList
from firstkit.gateway.state import Gateway, gateway_of
from firstkit.gateway.views import JobCounts, View, each
from firstkit.store.clusters import drain, resume
from firstkit.store.running import job_counts, page

router = APIRouter(prefix="/v1", dependencies=[needs(Scope.INFERENCE)], tags=["federation"])
operators = APIRouter(prefix="/admin", dependencies=[needs(Scope.ADMIN)], tags=["operation"])


def install(app: FastAPI) -> None:
    """Add the routes to ``app``."""
    app.include_router(router)
    app.include_router(operators)


class Message(BaseModel):
    """Why a cluster is drained, and until when: what users are told."""

    model_config = ConfigDict(extra="forbid")
    message: str = Field(min_length=1, max_length=500)


# -- for users ---------------------------------------------------------------------------------------------------------


@router.get("/clusters")
async def list_clusters(request: Request) -> ClusterList:
    """All clusters that you may use: whether they are open, what is free, what runs and waits."""
    gateway, identity = gateway_of(request), identity_of(request)
    within = gateway.clusters_for(identity)
    names = [name for name in gateway.config.clusters if within is None or name in within]
    return ClusterList(data=await _clusters(gateway, identity, names))


@router.get("/clusters/{cluster}")
async def retrieve_cluster(request: Request, cluster: str) -> ClusterInfo:
    """One cluster."""
    gateway, identity = gateway_of(request), identity_of(request)
    gateway.reach.check_cluster(identity, cluster)
    [found] = await _clusters(gateway, identity, [cluster])
    return found


@router.get("/jobs")
async def list_jobs(
    request: Request, limit: Annotated[int, Query(ge=1, le=100)] = 50, after: str | None = None
) -> JobList:
    """What runs, starts and waits, and where, of the models that you may use; the oldest first."""
    gateway, identity = gateway_of(request), identity_of(request)
    models, within = gateway.visible_models(identity), gateway.clusters_for(identity)
    async with gateway.db.read() as conn:
        found = await page(conn, models, within, limit + 1, after)
    if found is None:
        raise InvalidRequest("'after': nothing of this id is known here.", param="after")
    view = View(gateway, within, now(), is_operator=False)
    return JobList(data=[view.job_info(row) for row in found[:limit]], has_more=len(found) > limit)


async def _clusters(gateway: Gateway, identity: Identity, names: list[str]) -> list[ClusterInfo]:
    models = gateway.visible_models(identity)
    async with gateway.db.read() as conn:
        counts = await job_counts(conn, models, names)
    view = View(gateway, gateway.clusters_for(identity), now(), is_operator=False)
    return await each(names, lambda name: view.cluster_info(view.cluster_state(name, counts), models))


# -- for operators -----------------------------------------------------------------------------------------------------


@operators.post("/clusters/{cluster}/drain")
async def drain_cluster(request: Request, cluster: str, told: Message) -> ClusterState:
    """Take a cluster out of service: no new requests and no new jobs; what runs there finishes. Once more changes the
    message."""
    gateway = gateway_of(request)
    _exists(gateway, cluster)
    async with gateway.db.begin() as conn:
        await drain(conn, cluster, message=told.message, **by(request))
    return await _changed(gateway, cluster)


@operators.post("/clusters/{cluster}/resume")
async def resume_cluster(request: Request, cluster: str) -> ClusterState:
    """Take a cluster into service again; nothing happens to one that is not drained."""
    gateway = gateway_of(request)
    _exists(gateway, cluster)
    async with gateway.db.begin() as conn:
        await resume(conn, cluster, **by(request))
    return await _changed(gateway, cluster)


@operators.get("/explain/{model:path}")
async def explain(request: Request, model: str) -> Explanation:
    """What is wanted of a model, why, and what it waits for, on each cluster."""
    gateway = gateway_of(request)
    name = gateway.canonical(model)
    view = _operators_view(gateway)
    counts = await _all_jobs(gateway)
    return view.explanation(name, [view.cluster_state(cluster, counts) for cluster in view.clusters_of(name)])


def _operators_view(gateway: Gateway) -> View:
    return View(gateway, None, now(), is_operator=True)


async def _all_jobs(gateway: Gateway) -> JobCounts:
    async with gateway.db.read() as conn:
        return await job_counts(conn, list(gateway.config.models), None)


def _exists(gateway: Gateway, cluster: str) -> None:
    """Operators see all clusters, whoever may use them."""
    if cluster not in gateway.config.clusters:
        raise ClusterNotFound(f"There is no cluster '{cluster[:100]}'.")


async def _changed(gateway: Gateway, cluster: str) -> ClusterState:
    """After COMMIT: the gateway and the controller hear of it, and the operator is told how it is now."""
    gateway.wake.send({"kind": "clusters"})
    await gateway.closures.refresh(gateway.db)
    return _operators_view(gateway).cluster_state(cluster, await _all_jobs(gateway))
