"""The ASGI application: routes, errors in one shape, the API page. The hot path is in relay.py."""

from __future__ import annotations

from copy import copy
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

from firstkit import __version__
from firstkit.auth.permissions import Scope as KeyScope
from firstkit.errors import ApiError, InvalidRequest, MethodNotAllowed, NotFound
from firstkit.gateway import (
    accounts,
    admin,
    audited,
    budgets,
    estimate,
    federation,
    login,
    me,
    older,
    openai,
    projects,
    queue,
    requests,
    responses,
    usage,
    users,
)
from firstkit.gateway.acts import note_denial
from firstkit.gateway.guard import error_head_and_body
from firstkit.gateway.identity import needs
from firstkit.gateway.logins import Logins
from firstkit.gateway.paths import spoken_at
from firstkit.gateway.state import Gateway

_DESCRIPTION = (
    "FIRST, the Federated Inference Resource Scheduling Toolkit: models that run as jobs on batch-scheduled clusters, "
    "behind an OpenAI-compatible API. Send your key as `Authorization: Bearer KEY`."
)


def build_app(gateway: Gateway) -> FastAPI:
    """The application of one gateway, without its middleware. Raises ConfigError for a secret of a login that cannot be
    read."""
    app = copy(routes())
    app.state = State({"gateway": gateway, "logins": Logins(gateway)})
    return app


@cache
def routes() -> FastAPI:
    """All routes, with no gateway behind them: they are made once, which takes longer than many requests."""
    app = FastAPI(
        title="FIRST",
        version=__version__,
        description=_DESCRIPTION,
        openapi_url=None,  # our own route for it names its scope
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    app.router.redirect_slashes = False
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(Exception, _fault)
    for part in (openai, responses, requests, federation, estimate, me, projects, queue, usage, budgets, login):
        part.install(app)
    for part in (admin, accounts, users, audited, older):
        part.install(app)
    _install_docs(app)
    return app


def _install_docs(app: FastAPI) -> None:
    assets = _assets()

    @app.get("/openapi.json", include_in_schema=False, dependencies=[needs(KeyScope.INFERENCE)])
    async def openapi() -> JSONResponse:
        return JSONResponse(_with_key(app.openapi()))

    @app.get("/docs", include_in_schema=False, dependencies=[needs(KeyScope.INFERENCE)])
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title="FIRST API",
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="docs/favicon.png",
        )

    @app.get("/docs/{name}", include_in_schema=False, dependencies=[needs(KeyScope.INFERENCE)])
    async def asset(name: str) -> Response:
        if name not in assets:
            raise NotFound
        return FileResponse(assets[name])


def _with_key(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document with the one way to authenticate that generated clients need."""
    scheme = {"type": "http", "scheme": "bearer", "description": "A key of `first keys create`."}
    components = {**document.get("components", {}), "securitySchemes": {"key": scheme}}
    return {**document, "components": components, "security": [{"key": []}]}


def _assets() -> dict[str, Path]:
    """The files of Swagger UI inside the package fastapi-offline: nothing is fetched from a network."""
    spec = find_spec("fastapi_offline")
    folder = Path((spec and spec.origin) or ".").parent / "static"
    return {path.name: path for path in folder.iterdir() if path.is_file()}


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101 - registered for this class
    note_denial(request, error)
    dialect = spoken_at(request.scope["path"])
    headers, body = error_head_and_body(error, dialect.error(error, ""))
    response = Response(body, status_code=dialect.status(error))
    response.raw_headers = headers
    return response


async def _fault(_: Request, error: Exception) -> Response:
    """Leave a fault of ours to the guard: Starlette would answer in its own shape before it gets there."""
    raise error


async def _http_error(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    if status == 404:
        return await _api_error(request, NotFound())
    if status == 405:
        response = await _api_error(request, MethodNotAllowed())
        response.headers.update(getattr(error, "headers", None) or {})
        return response
    return await _api_error(request, InvalidRequest(str(getattr(error, "detail", "The request is not valid."))))


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this class
    first = error.errors()[0]
    param = next(part for part in reversed(first["loc"]) if isinstance(part, str))  # numbers are places in a list
    return await _api_error(request, InvalidRequest(f"'{param}': {first['msg']}.", param=param))
