"""What became of one request: for who sent it, so that an answer can be cited, and for administrators."""

from __future__ import annotations

import asyncio
import re

from fastapi import APIRouter, FastAPI, Request

from firstkit.accounting.entries import Entry, UsageEntry
from firstkit.accounting.ledger import entry_of
from firstkit.accounting.spool import find_ended
from firstkit.auth.permissions import Scope
from firstkit.errors import NotFound
from firstkit.gateway.identity import identity_of, needs
from firstkit.gateway.request import Account
from firstkit.gateway.schemas import RequestInfo
from firstkit.gateway.state import Gateway, gateway_of

_ID = re.compile(r"req-[0-9a-f]{32}")


class RequestNotFound(NotFound):
    """There is no such request, or it is not yours."""

    code = "request_not_found"


router = APIRouter(prefix="/v1", dependencies=[needs(Scope.INFERENCE, Scope.ADMIN)], tags=["inference"])


def install(app: FastAPI) -> None:
    """Add the routes to ``app``."""
    app.include_router(router)


@router.get("/requests/{request_id}")
async def retrieve_request(request: Request, request_id: str) -> RequestInfo:
    """One of your requests to a model, by the `x-request-id` of its answer: how it ended, where it was answered, and
    what it used."""
    gateway, identity = gateway_of(request), identity_of(request)
    found = await _find(gateway, request_id) if _ID.fullmatch(request_id) else None
    if found is None:
        raise RequestNotFound
    owner = found.identity.user_id if isinstance(found, Account) else found.user_id
    if owner != identity.user_id and Scope.ADMIN.value not in identity.scopes:
        error = RequestNotFound()
        error.is_denial = True
        raise error
    return _info(found)


async def _find(gateway: Gateway, request_id: str) -> Account | Entry | None:
    """In the order in which a request moves on, so that none is missed while it does."""
    relay = gateway.relay
    here = relay.in_line.get(request_id) or relay.spool.find(request_id)
    if here is not None:
        return here
    ended = await asyncio.to_thread(find_ended, relay.spool.folder, request_id)
    return ended or await entry_of(gateway.db, request_id)


def _info(found: Account | Entry) -> RequestInfo:
    request_id, model, endpoint, at = found.request_id, found.model, found.endpoint, found.at
    if not isinstance(found, UsageEntry):
        return RequestInfo(id=request_id, status="in_progress", model=model, endpoint=endpoint, at=at)
    return RequestInfo(
        id=request_id,
        status=found.outcome,
        model=model,
        endpoint=endpoint,
        cluster=found.cluster,
        replica=found.replica_id,
        engine=found.engine,
        revision=found.revision,
        prompt_tokens=found.prompt_tokens,
        completion_tokens=found.completion_tokens,
        estimated=found.estimated,
        queue_s=found.queue_s,
        ttft_s=found.ttft_s,
        duration_s=found.duration_s,
        at=at,
    )
