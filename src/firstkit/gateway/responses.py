"""Routes to answers of /v1/responses that were kept: only their owner finds them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, FastAPI, Query, Request
from starlette.responses import Response

from firstkit.auth.permissions import Scope
from firstkit.errors import InvalidRequest
from firstkit.gateway.identity import identity_of, needs
from firstkit.gateway.state import gateway_of

router = APIRouter(prefix="/v1/responses", dependencies=[needs(Scope.INFERENCE)], tags=["inference"])
_Item = dict[str, msgspec.Raw]
_ITEMS = msgspec.json.Decoder(list[_Item])
_TEXT = msgspec.json.Decoder(str)
_MESSAGE, _COMPLETED = msgspec.Raw(b'"message"'), msgspec.Raw(b'"completed"')


def install(app: FastAPI) -> None:
    """Add the routes to ``app``."""
    app.include_router(router)


@router.get("/{response_id}")
async def retrieve_response(request: Request, response_id: str, stream: bool = False) -> Response:
    """A response that was kept, as it was answered."""
    if stream:
        raise InvalidRequest("'stream': what was kept is not streamed again.", param="stream")
    kept = await gateway_of(request).stored.get(identity_of(request).user_id, response_id)
    return Response(kept.response, media_type="application/json")


@router.delete("/{response_id}")
async def delete_response(request: Request, response_id: str) -> dict[str, Any]:
    """Delete a response that was kept, now and not only when it expires."""
    await gateway_of(request).stored.delete(identity_of(request).user_id, response_id)
    return {"id": response_id, "object": "response", "deleted": True}


@router.get("/{response_id}/input_items")
async def list_input_items(
    request: Request,
    response_id: str,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> Response:
    """What was said before a response that was kept: all of the conversation up to it."""
    kept = await gateway_of(request).stored.get(identity_of(request).user_id, response_id)
    items = dict(_named(_ITEMS.decode(kept.input)))
    ids = list(items) if order == "asc" else list(reversed(items))
    if after is not None and after not in items:
        raise InvalidRequest("'after': nothing of this id is known here.", param="after")
    start = 0 if after is None else ids.index(after) + 1
    page = ids[start : start + limit]
    first, last = (page[0], page[-1]) if page else (None, None)
    data = [{**_written_out(items[each]), "id": each} for each in page]
    more = {"first_id": first, "last_id": last, "has_more": start + limit < len(ids)}
    return Response(msgspec.json.encode({"object": "list", "data": data, **more}), media_type="application/json")


def _named(items: list[_Item]) -> Iterator[tuple[str, _Item]]:
    """Each item with its id, or one that it gets by its place: pages are counted by them, so each is there once."""
    seen: set[str] = set()
    for place, item in enumerate(items):
        name = _text_of(item.get("id"))
        if not name or name in seen:
            name = f"item_{place}"
        seen.add(name)
        yield name, item


def _written_out(item: _Item) -> dict[str, Any]:
    """An item in its long form: clients read what was written in short ones, too, as what it is."""
    item = {"type": _MESSAGE, "status": _COMPLETED, **item}
    if item["type"] != _MESSAGE or (text := item.get("content")) is None or bytes(memoryview(text)[:1]) != b'"':
        return item
    if _text_of(item.get("role")) == "assistant":
        return {**item, "content": [{"type": "output_text", "text": text, "annotations": []}]}
    return {**item, "content": [{"type": "input_text", "text": text}]}


def _text_of(value: msgspec.Raw | None) -> str:
    """A text; empty where it is none, or none that can be written."""
    if value is None:
        return ""
    try:
        text = _TEXT.decode(value)
        text.encode()
    except (msgspec.DecodeError, UnicodeEncodeError):
        return ""
    return text
