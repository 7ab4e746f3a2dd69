"""The routes of the service that had this name before, in its words, for clients that know no others.

What they answer is made of the same as our own routes about models, clusters and jobs. The paths of requests to models
are taken apart by ``paths.place_of``; how errors look is in ``dialects.Older``.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, FastAPI, Request

from firstkit.auth.permissions import Identity, Scope
from firstkit.clock import now
from firstkit.errors import InvalidRequest, ModelNotFound, NotFound
from firstkit.gateway.apis import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES_API, RESPONSES_API
from firstkit.gateway.identity import identity_of, needs
from firstkit.gateway.openai import list_models
from firstkit.gateway.paths import FEDERATED, RESOURCE_SERVER
from firstkit.gateway.schemas import JobInfo
from firstkit.gateway.state import Gateway, gateway_of
from firstkit.gateway.views import View, each
from firstkit.states import JobState, ModelStatus
from firstkit.store.running import Running, page

open_router = APIRouter(prefix=RESOURCE_SERVER.rstrip("/"), include_in_schema=False)
router = APIRouter(prefix=open_router.prefix, include_in_schema=False, dependencies=[needs(Scope.INFERENCE)])

Entry = dict[str, str]
UNKNOWN = "N/A"
ROWS = 500
APIS = (CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES_API, MESSAGES_API)
_PROTOCOLS = {CHAT.path: "chat_completions"}
_STATUSES = {
    "live": ("running", "running"),
    "starting": ("running", "starting"),
    "queued": ("queued", "queued"),
    "ending": ("others", "other"),
}
"""By our status of a replica: the list in which its job stands, and the word for its model."""
_LETTERS = {JobState.RUNNING: "R", JobState.ENDING: "E"}


class BatchUnavailable(InvalidRequest):
    """Batches are not available here yet: send the requests one by one."""

    code = "batch_unavailable"


class BatchNotFound(NotFound):
    """There is no such batch, or it is not yours."""

    code = "batch_not_found"


def install(app: FastAPI) -> None:
    """Add the routes to ``app``."""
    app.include_router(open_router)
    app.include_router(router)
    app.get(f"{FEDERATED}models", include_in_schema=False, dependencies=[needs(Scope.INFERENCE)])(list_models)


# -- for everybody -----------------------------------------------------------------------------------------------------


@open_router.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@open_router.get("/status")
async def status(request: Request) -> dict[str, bool]:
    """By name: whether a cluster takes requests; only of those that everybody may use."""
    gateway = gateway_of(request)
    public = [name for name, cluster in gateway.config.clusters.items() if cluster.access is None]
    return {name: not _is_closed(gateway, name) for name in public}


# -- who, and what there is --------------------------------------------------------------------------------------------


@router.get("/whoami")
async def whoami(request: Request) -> dict[str, Any]:
    """Who the key belongs to. Groups are those of an identity provider: a key has none."""
    identity = identity_of(request)
    return {
        "id": identity.user_id,
        "name": identity.user_name,
        "username": identity.user_name,
        "user_group_uuids": [],
        "idp_id": "first",
        "idp_name": "FIRST",
        "auth_service": "api_key",
    }


@router.get("/list-endpoints")
async def list_endpoints(request: Request) -> dict[str, Any]:
    """By cluster: its models, and the paths that one of them serves."""
    gateway, identity = gateway_of(request), identity_of(request)
    within = gateway.clusters_for(identity)
    names = [name for name in gateway.config.clusters if within is None or name in within]
    return {"clusters": dict(await each(names, lambda name: (name, _cluster(gateway, identity, name))))}


def _cluster(gateway: Gateway, identity: Identity, name: str) -> dict[str, Any]:
    models = _models_on(gateway, identity, name)
    served = [api.path for api in APIS if any(gateway.reach.serves(model, api, name) for model in models)]
    found = {"models": sorted(models), "endpoints": served}
    return {"base_url": f"{router.prefix}/{name}", "frameworks": {_framework(gateway, name): found} if models else {}}


@router.get("/{cluster}/models")
async def cluster_models(request: Request, cluster: str, model_id: str | None = None) -> list[dict[str, Any]]:
    """The models of a cluster, or one of them, as a list."""
    gateway, identity = gateway_of(request), identity_of(request)
    gateway.reach.check_cluster(identity, cluster)
    models = sorted(_models_on(gateway, identity, cluster), key=str.lower)
    if model_id is not None:
        asked = gateway.canonical(model_id, identity)
        if asked not in models:
            raise ModelNotFound(f"The model '{model_id[:200]}' is not on this cluster.")
        models = [asked]
    view = View(gateway, frozenset((cluster,)), now(), is_operator=False)
    return await each(models, lambda model: _model(view, model, cluster))


def _model(view: View, model: str, cluster: str) -> dict[str, Any]:
    """What is known of a model. What it can beyond its protocols nobody has told us, and so it is not said."""
    gateway, info = view.gateway, view.model_info(model)
    apis = [api for api in APIS if gateway.reach.serves(model, api, cluster)]
    can = {
        "schema_version": 1,
        "api_protocols": [_PROTOCOLS.get(api.path, api.endpoint) for api in apis],
        "streaming": any(api.streams for api in apis),
    }
    if info.first.context_length is not None:
        can["context_window_tokens"] = info.first.context_length
    return {
        "id": model,
        "object": "model",
        "cluster": cluster,
        "framework": _framework(gateway, cluster),
        "display_name": model,
        "description": info.first.description,
        "capabilities": can,
    }


def _framework(gateway: Gateway, cluster: str) -> str:
    """How its clients name what is behind a path: both names are taken everywhere."""
    return "api" if gateway.config.clusters[cluster].kind == "external" else "vllm"


def _models_on(gateway: Gateway, identity: Identity, cluster: str) -> list[str]:
    """The models on a cluster that may be used."""
    return [model for model in gateway.visible_models(identity) if cluster in gateway.reach.deployments[model]]


def _is_closed(gateway: Gateway, cluster: str) -> bool:
    return gateway.table.calendar.why_closed(cluster, gateway.table.clock()) is not None


# -- jobs --------------------------------------------------------------------------------------------------------------


@router.get("/{cluster}/jobs")
async def cluster_jobs(request: Request, cluster: str) -> dict[str, Any]:
    """What runs, starts and waits on a cluster, of the models that may be used."""
    gateway, identity = gateway_of(request), identity_of(request)
    gateway.reach.check_cluster(identity, cluster)
    models = sorted(_models_on(gateway, identity, cluster))
    if _is_closed(gateway, cluster):
        return _lists({}, stopped=[_entry(gateway, cluster, model) for model in models])
    view = View(gateway, frozenset((cluster,)), now(), is_operator=False)
    if gateway.config.clusters[cluster].kind == "external":
        return await _of_others(view, models, cluster)
    found: dict[str, list[Entry]] = {}
    jobs: dict[tuple[str, str], Entry] = {}
    rows = await _running(gateway, models, cluster)
    for row, info in zip(rows, await each(rows, view.job_info), strict=True):
        where, word = _STATUSES[info.status]
        if (row.job_id, word) in jobs:
            jobs[row.job_id, word]["Models"] += f",{row.model}"
            continue
        entry = jobs[row.job_id, word] = {**_entry(gateway, cluster, row.model), **_job(row, info, word, view.at)}
        found.setdefault(where, []).append(entry)
    capacity = view.cluster_state(cluster, {}).capacity
    return _lists({"free_nodes": -1 if capacity is None else capacity["free_nodes"]}, **found)


async def _running(gateway: Gateway, models: list[str], cluster: str) -> list[Running]:
    """All that ``page`` has, page by page: no other transaction waits for a whole cluster."""
    rows: list[Running] = []
    found: list[Running] | None = None
    while found is None or len(found) == ROWS:
        async with gateway.db.read() as conn:
            found = await page(conn, models, (cluster,), ROWS, rows[-1].id if rows else None) or []
        rows += found
    return rows


async def _of_others(view: View, models: list[str], cluster: str) -> dict[str, Any]:
    """A service that others run has models and no jobs."""
    lists: dict[str, list[Entry]] = {"running": [], "stopped": []}
    for model, is_live in await each(models, lambda model: (model, _is_live(view, model, cluster))):
        about = view.gateway.config.models[model].description
        said = {"Model Status": "running" if is_live else "stopped", "Description": about, "Model Version": UNKNOWN}
        lists["running" if is_live else "stopped"].append({**_entry(view.gateway, cluster, model), **said})
    counts = {"total_models": len(models)} | {
        f"{word}_models": len(lists[name]) for word, name in (("live", "running"), ("stopped", "stopped"))
    }
    return _lists({"cluster": cluster, **counts}, **lists)


def _is_live(view: View, model: str, cluster: str) -> bool:
    return view.on(model, cluster).status == ModelStatus.LIVE.value


def _entry(gateway: Gateway, cluster: str, model: str) -> Entry:
    return {"Models": model, "Framework": _framework(gateway, cluster), "Cluster": cluster}


def _job(row: Running, info: JobInfo, word: str, at: datetime) -> Entry:
    """Nodes are counted and not named: their names are for operators."""
    said = {
        "Model Status": word,
        "Job ID": row.job_id,
        "Job State": _LETTERS.get(row.job_state, "Q"),
        "Host Name": UNKNOWN,
        "Job Comments": info.reason or UNKNOWN,
        "Nodes Reserved": str(row.nodes),
    }
    if row.job_started_at is not None:
        said["Walltime"] = _clock(int((at - row.job_started_at).total_seconds()))
    if info.starts_at is not None:
        said["Estimated Start Time"] = f"{info.starts_at.astimezone(UTC):%a %b %e %H:%M:%S %Y} (UTC)"
    return said


def _clock(seconds: int) -> str:
    minutes, left = divmod(max(0, seconds), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{left:02}"


def _lists(cluster_status: dict[str, Any], **lists: Iterable[Entry]) -> dict[str, Any]:
    """All lists, the others empty."""
    names = ("running", "queued", "stopped", "others", "private_batch_running", "private_batch_queued")
    return {**{name: list(lists.get(name, ())) for name in names}, "cluster_status": cluster_status}


# -- what this service does not have -----------------------------------------------------------------------------------


@router.post("/{cluster}/{framework}/v1/batches")
async def submit_batch() -> None:
    raise BatchUnavailable


@router.get("/v1/batches")
async def list_batches() -> list[dict[str, str]]:
    """None: nobody can make one."""
    return []


@router.get("/v1/batches/{batch_id}")
@router.get("/v1/batches/{batch_id}/result")
async def batch(batch_id: str) -> None:
    raise BatchNotFound(f"There is no batch '{batch_id[:100]}'.")


@router.put("/data/staging")
async def staging() -> None:
    raise InvalidRequest("This service has no staging area: it moves no files.", code="unsupported_endpoint")


@router.post("/{cluster}/{service:path}/process")
@router.get("/{cluster}/{service:path}/tasks/{task_id}")
async def process(request: Request, cluster: str, service: str) -> None:
    gateway_of(request).reach.check_cluster(identity_of(request), cluster)
    raise ModelNotFound(
        f"The service '{service[:100]}' is not on the cluster '{cluster}': only models are served here."
    )
