"""Routes for operators: metrics, status, logs, health. Also served on the admin socket, to whoever may open it."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime, timedelta
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, FastAPI, Query, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from firstkit import __version__, metrics
from firstkit.auth.permissions import Scope as KeyScope
from firstkit.clock import now
from firstkit.errors import CallFailed, LinkLost, NotFound, StoreUnavailable
from firstkit.gateway.identity import needs
from firstkit.gateway.schemas import Answer
from firstkit.gateway.state import Gateway, gateway_of
from firstkit.gateway.views import WAITING_STATES, View, each
from firstkit.schedulers.scheduler import Resources
from firstkit.store.jobs import JobRow, ReplicaRow, recent

router = APIRouter()
SHOWN_AFTER_END = timedelta(hours=1)
OPEN: dict[str, Any] = {"security": []}
"""In the schema: no key is needed."""


def install(app: FastAPI) -> None:
    """Add the routes to ``app``."""
    app.include_router(router)


@router.get("/health", tags=["operation"], openapi_extra=OPEN)
async def health() -> dict[str, str]:
    """The process is alive."""
    return {"status": "ok"}


@router.get("/ready", tags=["operation"], openapi_extra=OPEN)
async def ready(request: Request) -> JSONResponse:
    """New work is taken: the database answers. 503 where it does not."""
    gateway = gateway_of(request)
    try:
        async with gateway.db.begin():
            return JSONResponse({"status": "ready"})
    except StoreUnavailable:
        return JSONResponse({"status": "not ready", "reason": "the database is not answering"}, status_code=503)


@router.get("/metrics", dependencies=[needs(KeyScope.METRICS)], tags=["operation"], response_class=PlainTextResponse)
async def prometheus(request: Request) -> Response:
    """Metrics in Prometheus' text format."""
    gateway = gateway_of(request)
    gateway.pilots.count_replicas()
    gateway.room.count()
    metrics.TASKS.set(len(asyncio.all_tasks()))
    return PlainTextResponse(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/admin/status", dependencies=[needs(KeyScope.ADMIN)], tags=["operation"])
async def status(request: Request) -> Response:
    """Clusters, models, jobs and replicas as they are now, with those that ended in the last hour."""
    gateway = gateway_of(request)
    view = View(gateway, None, now(), is_operator=True)
    async with gateway.db.read() as conn:
        jobs, replicas = await recent(conn, view.at - SHOWN_AFTER_END)
    counts = Counter((row.cluster, row.state) for row in jobs if not row.state.is_final)
    ends = {row.id: row.ends_at for row in jobs}
    found = {
        "version": __version__,
        "started_at": _iso(gateway.started_at),
        "controller": "connected" if gateway.wake.is_connected else "silent",
        "clusters": await each(gateway.config.clusters, lambda name: _dumped(view.cluster_state(name, counts))),
        "models": await each(gateway.config.models, lambda name: _model(view, name)),
        "jobs": await each(jobs, lambda row: _job(gateway, row)),
        "replicas": await each(replicas, lambda row: _replica(view, row, ends.get(row.job_id))),
    }
    return Response(msgspec.json.encode(found), media_type="application/json")


@router.get(
    "/admin/replicas/{replica_id}/log",
    dependencies=[needs(KeyScope.ADMIN)],
    tags=["operation"],
    response_class=PlainTextResponse,
)
async def replica_log(
    request: Request, replica_id: str, lines: Annotated[int, Query(ge=1, le=1000)] = 100
) -> PlainTextResponse:
    """The end of an engine's log: from its pilot, or what was kept of a replica that failed."""
    gateway = gateway_of(request)
    try:
        return PlainTextResponse(await gateway.pilots.log(replica_id, lines))
    except (LinkLost, CallFailed):
        async with gateway.db.read() as conn:
            _, replicas = await recent(conn, now() - SHOWN_AFTER_END)
        kept = next((row for row in replicas if row.id == replica_id), None)
        if kept is None:
            raise NotFound(f"No replica '{replica_id[:100]}' is known here.") from None
        return PlainTextResponse(kept.log_tail or f"No log is left; the replica is {kept.state.value}: {kept.reason}\n")


def _dumped(part: Answer) -> dict[str, Any]:
    return part.model_dump(mode="json")


def _model(view: View, name: str) -> dict[str, Any]:
    gateway, pool = view.gateway, view.gateway.table.pools[name]
    return {
        "id": name,
        "aliases": list(gateway.config.models[name].aliases),
        "capabilities": sorted(gateway.capabilities(name)),
        "context_length": gateway.context_length(name),
        **_dumped(view.overall(name)),
        "clusters": [_on_cluster(view, name, cluster) for cluster in view.clusters_of(name)],
        "ready": len(pool.live()),
        "in_flight": pool.in_flight,
        "waiting": gateway.room.waiting(name),
    }


def _on_cluster(view: View, model: str, cluster: str) -> dict[str, Any]:
    routes = [route for route in view.gateway.table.pools[model].routes if route.cluster == cluster]
    live = [route for route in routes if route.is_live]
    return {
        **_dumped(view.on(model, cluster)),
        "ready": len(live),
        "in_flight": sum(route.in_flight for route in routes),
        "room": sum(route.max_in_flight for route in live),
    }


def _job(gateway: Gateway, row: JobRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "cluster": row.cluster,
        "state": row.state.value,
        "reason": row.reason,
        "exit_code": row.exit_code,
        "scheduler_id": row.scheduler_id,
        "node": row.node,
        "resources": _resources(row.resources),
        "position": row.position if row.state in WAITING_STATES else None,
        "starts_at": _iso(row.starts_at) if row.state in WAITING_STATES else None,
        "link": "up" if gateway.pilots.is_up(row.id) else "down",
        "created_at": _iso(row.created_at),
        "started_at": _iso(row.started_at),
        "ends_at": _iso(row.ends_at),
        "observed_at": _iso(row.observed_at),
    }


def _resources(asked: Resources) -> dict[str, Any]:
    return {
        "nodes": asked.nodes,
        "gpus_per_node": asked.gpus_per_node,
        "cpus_per_node": asked.cpus_per_node,
        "memory_bytes": asked.memory_bytes,
        "walltime_s": asked.walltime_s,
        "exclusive": asked.exclusive,
    }


def _replica(view: View, row: ReplicaRow, job_ends_at: datetime | None) -> dict[str, Any]:
    ends_at = None if row.state.is_final else view.end_of(row.cluster, job_ends_at)
    return {
        "id": row.id,
        "model": row.model,
        "cluster": row.cluster,
        "job_id": row.job_id,
        "state": row.state.value,
        "in_flight": view.gateway.pilots.in_flight(row.id),
        "max_in_flight": row.max_in_flight,
        "load_s": row.load_s,
        "created_at": _iso(row.created_at),
        "ready_at": _iso(row.ready_at),
        "ends_at": _iso(ends_at),
        "reason": row.reason,
        "log_tail": row.log_tail,
    }


def _iso(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat()
