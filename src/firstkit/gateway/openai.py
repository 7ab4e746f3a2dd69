"""The OpenAI-compatible routes: models; and the schema of those that ``hot.py`` answers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import JSONResponse

from firstkit.auth.permissions import Identity
from firstkit.auth.permissions import Scope as KeyScope
from firstkit.clock import now
from firstkit.errors import ModelNotFound
from firstkit.gateway.call import CHAT, COMPLETIONS, EMBEDDINGS, Api
from firstkit.gateway.identity import identity_of, needs
from firstkit.gateway.schemas import ModelInfo, ModelList
from firstkit.gateway.state import Gateway, gateway_of
from firstkit.gateway.views import View, each

router = APIRouter(prefix="/v1", dependencies=[needs(KeyScope.INFERENCE)], tags=["inference"])


def install(app: FastAPI) -> None:
    """Add the routes to ``app``."""
    app.include_router(router)


def _schema(api: Api, properties: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI of a request body: the fields that FIRST reads; all others go to the engine as they are."""
    fields = {"model": {"type": "string", "description": "A model of GET /v1/models, or an alias."}, **properties}
    if api.streams:
        fields["stream"] = {"type": "boolean", "default": False}
        fields["stream_options"] = {"type": "object", "properties": {"include_usage": {"type": "boolean"}}}
        fields["max_tokens"] = {"type": "integer", "minimum": 1}
    schema = {"type": "object", "required": ["model", api.required], "properties": fields, "additionalProperties": True}
    answers: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if api.streams:
        answers["text/event-stream"] = {}  # of a schema for it some think that it is of the whole, others of each event
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {"200": {"description": "The answer of the engine.", "content": answers}},
    }


def _pinning(schema: dict[str, Any]) -> dict[str, Any]:
    """The same for a path that names the cluster that shall answer."""
    about = "A cluster of GET /v1/clusters: no other answers."
    cluster = {"name": "cluster", "in": "path", "required": True, "description": about, "schema": {"type": "string"}}
    return {**schema, "parameters": [cluster]}


_CHAT = _schema(CHAT, {"messages": {"type": "array", "minItems": 1, "items": {"type": "object"}}})
_COMPLETIONS = _schema(COMPLETIONS, {"prompt": {"description": "A text, a list of texts, or tokens."}})
_EMBEDDINGS = _schema(EMBEDDINGS, {"input": {"description": "A text, a list of texts, or tokens."}})


@router.post("/chat/completions", openapi_extra=_CHAT)
@router.post("/clusters/{cluster}/chat/completions", openapi_extra=_pinning(_CHAT))
async def chat_completions() -> JSONResponse:
    """Answer a conversation, streamed or not."""
    raise NotHere


@router.post("/completions", openapi_extra=_COMPLETIONS)
@router.post("/clusters/{cluster}/completions", openapi_extra=_pinning(_COMPLETIONS))
async def completions() -> JSONResponse:
    """Continue a text, streamed or not."""
    raise NotHere


@router.post("/embeddings", openapi_extra=_EMBEDDINGS)
@router.post("/clusters/{cluster}/embeddings", openapi_extra=_pinning(_EMBEDDINGS))
async def embeddings() -> JSONResponse:
    """Vectors of texts."""
    raise NotHere


class NotHere(Exception):
    """These routes are declared for the schema; ``hot.py`` answers them before ASGI is reached."""


@router.get("/models")
async def list_models(request: Request) -> ModelList:
    """All models that you may use, with what FIRST knows of them under ``first``."""
    gateway, identity = gateway_of(request), identity_of(request)
    return await _list(gateway, identity, gateway.clusters_for(identity))


@router.get("/models/{model_id:path}")
async def retrieve_model(request: Request, model_id: str) -> ModelInfo:
    """One model, by its name or an alias."""
    gateway, identity = gateway_of(request), identity_of(request)
    return _retrieve(gateway, identity, gateway.clusters_for(identity), model_id)


@router.get("/clusters/{cluster}/models")
async def list_models_of_cluster(request: Request, cluster: str) -> ModelList:
    """The models of one cluster: what clients list whose base URL pins it."""
    gateway, identity = gateway_of(request), identity_of(request)
    return await _list(gateway, identity, _pinned(gateway, identity, cluster))


@router.get("/clusters/{cluster}/models/{model_id:path}")
async def retrieve_model_of_cluster(request: Request, cluster: str, model_id: str) -> ModelInfo:
    """One model of one cluster, by its name or an alias."""
    gateway, identity = gateway_of(request), identity_of(request)
    return _retrieve(gateway, identity, _pinned(gateway, identity, cluster), model_id)


async def _list(gateway: Gateway, identity: Identity, within: frozenset[str] | None) -> ModelList:
    view = View(gateway, within, now(), is_operator=False)
    visible = [name for name in gateway.visible_models(identity) if view.clusters_of(name)]
    return ModelList(data=await each(visible, view.model_info))


def _retrieve(gateway: Gateway, identity: Identity, within: frozenset[str] | None, name: str) -> ModelInfo:
    """Raises ModelNotFound, also for a model that is on none of these clusters."""
    view = View(gateway, within, now(), is_operator=False)
    model = gateway.canonical(name, identity)
    if not view.clusters_of(model):
        raise ModelNotFound(f"The model '{name[:200]}' is not on this cluster.")
    return view.model_info(model)


def _pinned(gateway: Gateway, identity: Identity, cluster: str) -> frozenset[str]:
    """The one cluster, when it may be used; raises ClusterNotFound."""
    gateway.reach.check_cluster(identity, cluster)
    return frozenset((cluster,))
