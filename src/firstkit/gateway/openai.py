"""The OpenAI-compatible routes: models; and the schema of those that ``hot.py`` answers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import JSONResponse

from firstkit.auth.permissions import Scope as KeyScope
from firstkit.gateway.call import CHAT, COMPLETIONS, EMBEDDINGS, Api
from firstkit.gateway.identity import needs
from firstkit.gateway.state import Gateway

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


_MESSAGES = {"messages": {"type": "array", "minItems": 1, "items": {"type": "object"}}}
_PROMPT = {"prompt": {"description": "A text, a list of texts, or tokens."}}
_INPUT = {"input": {"description": "A text, a list of texts, or tokens."}}


@router.post("/chat/completions", openapi_extra=_schema(CHAT, _MESSAGES))
async def chat_completions() -> JSONResponse:
    """Answer a conversation, streamed or not."""
    raise NotHere


@router.post("/completions", openapi_extra=_schema(COMPLETIONS, _PROMPT))
async def completions() -> JSONResponse:
    """Continue a text, streamed or not."""
    raise NotHere


@router.post("/embeddings", openapi_extra=_schema(EMBEDDINGS, _INPUT))
async def embeddings() -> JSONResponse:
    """Vectors of texts."""
    raise NotHere


class NotHere(Exception):
    """These routes are declared for the schema; ``hot.py`` answers them before ASGI is reached."""


@router.get("/models")
async def list_models(request: Request) -> JSONResponse:
    """All models that you may use, with what FIRST knows of them under ``first``."""
    gateway: Gateway = request.app.state.gateway
    return JSONResponse({"object": "list", "data": [_model(gateway, name) for name in gateway.config.models]})


@router.get("/models/{model_id:path}")
async def retrieve_model(request: Request, model_id: str) -> JSONResponse:
    """One model, by its name or an alias."""
    gateway: Gateway = request.app.state.gateway
    return JSONResponse(_model(gateway, gateway.canonical(model_id)))


def _model(gateway: Gateway, name: str) -> dict[str, Any]:
    outlook = gateway.forecasts.outlook(name)
    ready = gateway.table.pools[name].ready
    return {
        "id": name,
        "object": "model",
        "created": int(gateway.started_at.timestamp()),
        "owned_by": "first",
        "first": {
            "status": outlook.status.value,
            "eta_s": outlook.eta_left_s,
            "reason": outlook.reason,
            "clusters": _clusters(gateway, name),
            "replicas_ready": len(ready),
            "context_length": gateway.context_length(name),
            "capabilities": sorted(gateway.capabilities(name)),
            "aliases": list(gateway.config.models[name].aliases),
            "description": gateway.config.models[name].description,
        },
    }


def _clusters(gateway: Gateway, name: str) -> list[dict[str, Any]]:
    outlooks = gateway.forecasts.clusters(name)
    rows = []
    for deployment in gateway.config.models[name].deployments:
        outlook = outlooks.get(deployment.cluster)
        rows.append(
            {
                "name": deployment.cluster,
                "status": outlook.status.value if outlook else "offline",
                "eta_s": outlook.eta_left_s if outlook else None,
                "reason": outlook.reason if outlook else "",
            }
        )
    return rows
