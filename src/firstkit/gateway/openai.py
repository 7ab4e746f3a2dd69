"""The OpenAI-compatible routes: models; and the schema of those that ``hot.py`` answers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import JSONResponse

from firstkit.auth.permissions import Identity
from firstkit.auth.permissions import Scope as KeyScope
from firstkit.clock import now
from firstkit.errors import ModelNotFound, NotFound
from firstkit.gateway.apis import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EMBEDDINGS,
    MESSAGES_API,
    RERANK,
    RESPONSES_API,
    SCORE,
    TRANSCRIPTIONS,
    TRANSLATIONS,
    Api,
    task,
)
from firstkit.gateway.identity import identity_of, needs
from firstkit.gateway.schemas import ModelInfo, ModelList
from firstkit.gateway.state import Gateway, gateway_of
from firstkit.gateway.views import View, each

router = APIRouter(prefix="/v1", dependencies=[needs(KeyScope.INFERENCE)], tags=["inference"])


def install(app: FastAPI) -> None:
    """Add the routes to ``app``."""
    app.include_router(router)


def _schema(api: Api, properties: dict[str, Any] | None = None) -> dict[str, Any]:
    """OpenAPI of a request body: the fields that FIRST reads; all others go to the engine as they are."""
    fields: dict[str, Any] = {"model": {"type": "string", "description": "A model of GET /v1/models, or an alias."}}
    fields |= properties or {}
    fields["x_first"] = {"type": "boolean", "default": False, "description": "Say in the answer where it comes from."}
    if api.streams:
        fields["stream"] = {"type": "boolean", "default": False}
        fields["max_output_tokens" if api is RESPONSES_API else "max_tokens"] = {"type": "integer", "minimum": 1}
    if api.takes_forms:
        fields["file"] = {"type": "string", "format": "binary"}
    if api.streams and api.dialect is CHAT.dialect:
        fields["stream_options"] = {"type": "object", "properties": {"include_usage": {"type": "boolean"}}}
    required = ["model"] if api.required is None else ["model", api.required]
    schema = {"type": "object", "required": required, "properties": fields, "additionalProperties": True}
    content = {"application/json": {"schema": schema}}
    if api.takes_forms:
        content["multipart/form-data"] = {"schema": schema}
    answers: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if api.streams:
        answers["text/event-stream"] = {}  # of a schema for it some think that it is of the whole, others of each event
    return {
        "requestBody": {"required": True, "content": content},
        "responses": {"200": {"description": "The answer of the engine.", "content": answers}},
    }


def _pinning(schema: dict[str, Any]) -> dict[str, Any]:
    """The same for a path that names the cluster that shall answer."""
    about = "A cluster of GET /v1/clusters: no other answers."
    cluster = {"name": "cluster", "in": "path", "required": True, "description": about, "schema": {"type": "string"}}
    return {**schema, "parameters": [cluster]}


_ITEMS = {"type": "array", "minItems": 1, "items": {"type": "object"}}
_TEXTS = {"description": "A text, a list of texts, or tokens."}
_DECLARED: dict[Api, tuple[str, dict[str, Any]]] = {
    CHAT: ("Answer a conversation, streamed or not.", {"messages": _ITEMS}),
    COMPLETIONS: ("Continue a text, streamed or not.", {"prompt": _TEXTS}),
    EMBEDDINGS: ("Vectors of texts.", {"input": _TEXTS}),
    RESPONSES_API: ("Answer a conversation in OpenAI's newer form.", {"input": {"description": "A text, or items."}}),
    MESSAGES_API: ("Answer a conversation in Anthropic's form.", {"messages": _ITEMS}),
    COUNT_TOKENS: ("How many tokens a conversation in Anthropic's form has.", {"messages": _ITEMS}),
    RERANK: ("Order documents by how well they fit a query.", {"query": {"type": "string"}, "documents": _TEXTS}),
    SCORE: ("How well texts fit each other.", {"text_1": _TEXTS, "text_2": _TEXTS}),
    TRANSCRIPTIONS: ("What is said in a recording.", {}),
    TRANSLATIONS: ("What is said in a recording, in English.", {}),
}


def _declare(api: Api, about: str, properties: dict[str, Any]) -> None:
    """The routes of ``api`` for the schema."""
    schema, path = _schema(api, properties), api.path.removeprefix("/v1")

    async def stub() -> JSONResponse:
        raise NotHere

    stub.__doc__, stub.__name__ = about, api.endpoint.replace("/", "_")
    router.post(path, openapi_extra=schema)(stub)
    router.post(f"/clusters/{{cluster}}{path}", openapi_extra=_pinning(schema))(stub)


for _api, _said in _DECLARED.items():
    _declare(_api, *_said)


_TASK = _schema(task("tasks/{name}"))


@router.post("/tasks/{name}", openapi_extra=_TASK)
async def task_of_a_model(name: str) -> JSONResponse:
    """What a deployment declares as `tasks/NAME`: its engine's path of that name, with JSON or a form."""
    raise NotFound(f"No deployment declares 'tasks/{name[:100]}'.")  # else ``hot.py`` had answered it


@router.post("/clusters/{cluster}/tasks/{name}", openapi_extra=_TASK)
async def task_on_a_cluster(cluster: str, name: str) -> JSONResponse:  # noqa: ARG001 - of no cluster either
    """The same, on one cluster."""
    return await task_of_a_model(name)


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
