"""The OpenAI-compatible routes: models, chat completions, completions, embeddings."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from firstkit.auth.permissions import Scope as KeyScope
from firstkit.errors import InvalidRequest
from firstkit.gateway.call import APIS, CHAT, COMPLETIONS, EMBEDDINGS, Api, Call, check_body, parse_body, patience
from firstkit.gateway.client import Client
from firstkit.gateway.identity import identity_of, needs
from firstkit.gateway.relay import Relay
from firstkit.gateway.request import Account, RequestHead
from firstkit.gateway.state import Gateway

router = APIRouter(prefix="/v1", dependencies=[needs(KeyScope.INFERENCE)], tags=["inference"])


def install(app: FastAPI) -> None:
    """Add the routes to ``app``."""
    app.include_router(router)


class RelayedAnswer(Response):
    """A response that the relay writes: it owns the transport's ``send`` from the status to the last byte."""

    def __init__(self, relay: Relay, call: Call) -> None:
        self.relay = relay
        self.call = call
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - as ASGI has it
        async with Client(receive, send, self.call.account.request_id) as client:
            await self.relay.serve(self.call, client)


def _schema(api: Api, properties: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI of a request body: the fields that FIRST reads; all others go to the engine as they are."""
    fields = {"model": {"type": "string", "description": "A model of GET /v1/models, or an alias."}, **properties}
    if api.streams:
        fields["stream"] = {"type": "boolean", "default": False}
        fields["stream_options"] = {"type": "object", "properties": {"include_usage": {"type": "boolean"}}}
        fields["max_tokens"] = {"type": "integer", "minimum": 1}
    schema = {"type": "object", "required": ["model", api.required], "properties": fields, "additionalProperties": True}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


_MESSAGES = {"messages": {"type": "array", "minItems": 1, "items": {"type": "object"}}}
_PROMPT = {"prompt": {"description": "A text, a list of texts, or tokens."}}
_INPUT = {"input": {"description": "A text, a list of texts, or tokens."}}


@router.post("/chat/completions", openapi_extra=_schema(CHAT, _MESSAGES))
async def chat_completions(request: Request) -> Response:
    """Answer a conversation, streamed or not."""
    return await _answer(request, CHAT)


@router.post("/completions", openapi_extra=_schema(COMPLETIONS, _PROMPT))
async def completions(request: Request) -> Response:
    """Continue a text, streamed or not."""
    return await _answer(request, COMPLETIONS)


@router.post("/embeddings", openapi_extra=_schema(EMBEDDINGS, _INPUT))
async def embeddings(request: Request) -> Response:
    """Vectors of texts."""
    return await _answer(request, EMBEDDINGS)


async def _answer(request: Request, api: Api) -> Response:
    gateway: Gateway = request.app.state.gateway
    head = RequestHead(request.method, request.url.path, request.scope["headers"])
    data = await request.body()
    body = parse_body(data)
    name, stream, wants_usage = check_body(body, api)
    model = gateway.canonical(name)
    _check_capability(gateway, model, api)
    call = Call(
        api=api,
        model=model,
        body=body,
        stream=stream,
        wants_usage=wants_usage,
        patience=patience(head, gateway.config.server.hold, gateway.config.server.max_wait),
        account=Account(identity_of(request), model, api.endpoint, len(data)),
        idle_timeout_s=gateway.config.server.idle_timeout,
    )
    return RelayedAnswer(gateway.relay, call)


def _check_capability(gateway: Gateway, model: str, api: Api) -> None:
    can = gateway.capabilities(model)
    if api.capability not in can:
        other = ", ".join(sorted(other.path for other in APIS.values() if other.capability in can)) or "none"
        raise InvalidRequest(
            f"The model '{model}' does not serve {api.path}; it serves: {other}.",
            param="model",
            code="unsupported_endpoint",
        )


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
