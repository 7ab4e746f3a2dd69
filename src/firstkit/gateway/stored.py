"""Answers of /v1/responses that are kept for their owner, where the operator allows that: for how long, and for whom.

Engines are never asked to keep anything: each replica would have another part of a conversation, and anybody's.
"""

from __future__ import annotations

import asyncio
import logging
import re
from datetime import timedelta
from typing import Any

import msgspec
from sqlalchemy.exc import IntegrityError

from firstkit.clock import now
from firstkit.engines.sse import payload_of
from firstkit.errors import EngineFailed, InvalidRequest, NotFound, StoreUnavailable
from firstkit.gateway.call import Body, Call, read
from firstkit.store.database import Database
from firstkit.store.responses import Kept, add_response, delete_expired, delete_response, response_of

logger = logging.getLogger("firstkit.gateway")
MOST_BYTES = 4 * 1024 * 1024
"""Of a conversation that is kept with its answer."""
SWEEP_EVERY_S = 60.0
SWEPT_AT_ONCE = 200
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_FALSE = msgspec.Raw(b"false")
_NO_RETRY = {"should_retry": False}
"""An answer was made and is charged; SDKs would have the next one made by themselves."""


class _Response(msgspec.Struct):
    id: str
    output: list[msgspec.Raw] = []


class _Event(msgspec.Struct):
    response: msgspec.Raw


class ResponseNotFound(NotFound):
    """There is no such response, or it is not yours, or it is not kept any more."""

    code = "response_not_found"
    is_denial = True  # whether or not somebody else has it: that is not looked up


class StoredResponses:
    """``keep_s``: how long answers are kept, in seconds; 0: not at all."""

    def __init__(self, db: Database, keep_s: float) -> None:
        self._db = db
        self.keep_s = keep_s

    def arrange(self, call: Call) -> str | None:
        """Take what is for us out of a request: whether its answer shall be kept (it shall if nothing is said, as at
        OpenAI), and the id of the answer that it goes on from, which is returned.

        Raises InvalidRequest where answers are not kept and one is named, or one shall be that is too long.
        """
        body = call.body
        wants, says_so = read(body, "store", bool, True), read(body, "store", bool, False)
        previous = read(body, "previous_response_id", str, "") or None
        body.pop("previous_response_id", None)
        body["store"] = _FALSE
        if previous is not None and not self.keep_s:
            raise InvalidRequest(
                "'previous_response_id': this service does not keep responses; send the whole conversation as 'input'.",
                param="previous_response_id",
                code="responses_not_kept",
            )
        call.keeps = wants and self.keep_s > 0
        call.previous = previous
        _fit(call, must_be_kept=says_so)
        return previous

    async def resume(self, call: Call, previous: str) -> None:
        """Put what was said before at the beginning of a request. Raises InvalidRequest where nothing of that id is
        kept, or the conversation has become too long, StoreUnavailable."""
        kept = await self._find(call.account.identity.user_id, previous)
        if kept is None:
            raise InvalidRequest(
                f"'previous_response_id': there is no response '{previous[:100]}' that is kept for you.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        asked = _size(call.body["input"])
        items = [*_LIST.decode(kept.input), *_read(kept.response.encode()).output, *items_of(call.body)]
        call.body["input"] = msgspec.Raw(msgspec.json.encode(items))
        call.account.prompt_bytes += _size(call.body["input"]) - asked
        _fit(call, must_be_kept=True)

    async def keep(self, call: Call, said: bytes) -> None:
        """Keep the answer ``said``: a response object, or the events that end with it. Raises StoreUnavailable,
        EngineFailed for one that cannot be kept."""
        response = _response_in(said)
        at = now()
        try:
            kept = Kept(
                user_id=call.account.identity.user_id,
                id=_read(response).id,
                model=call.model,
                created_at=at,
                expires_at=at + timedelta(seconds=self.keep_s),
                input=msgspec.json.encode(items_of(call.body)).decode(),
                response=response.decode(),
            )
        except UnicodeDecodeError:
            raise EngineFailed("The engine sent a response that is not UTF-8.") from None
        try:
            async with self._db.begin() as conn:
                await add_response(conn, kept)
        except IntegrityError:
            raise EngineFailed("The engine gave its response an id that is taken.", details=_NO_RETRY) from None
        except StoreUnavailable:
            raise StoreUnavailable(
                "The answer cannot be kept now; with 'store': false it need not be.", details=_NO_RETRY
            ) from None

    async def get(self, user_id: str, response_id: str) -> Kept:
        """Raises ResponseNotFound."""
        kept = await self._find(user_id, response_id)
        if kept is None:
            raise ResponseNotFound
        return kept

    async def delete(self, user_id: str, response_id: str) -> None:
        """Raises ResponseNotFound."""
        if not _ID.fullmatch(response_id):
            raise ResponseNotFound
        async with self._db.begin() as conn:
            if not await delete_response(conn, user_id, response_id, now()):
                raise ResponseNotFound

    async def sweep(self) -> None:
        """Delete what has expired, again and again, also when nothing is kept any more; returns only when cancelled."""
        while True:
            try:
                while await self._sweep_some():
                    pass
            except StoreUnavailable:
                logger.debug("expired responses cannot be deleted now", extra={"action": "sweep_responses"})
            await asyncio.sleep(SWEEP_EVERY_S)

    async def _sweep_some(self) -> bool:
        """Delete a part of what has expired, so that other writers have their turn; whether there may be more."""
        async with self._db.begin() as conn:
            return await delete_expired(conn, now(), SWEPT_AT_ONCE) == SWEPT_AT_ONCE

    async def _find(self, user_id: str, response_id: str) -> Kept | None:
        if not _ID.fullmatch(response_id):  # nor does every database take every text
            return None
        async with self._db.read() as conn:
            return await response_of(conn, user_id, response_id, now())


def items_of(body: Body) -> list[Any]:
    """The input of a checked request as a list of items."""
    asked = body["input"]
    if bytes(memoryview(asked)[:1]) == b'"':
        return [{"type": "message", "role": "user", "content": asked}]
    return _LIST.decode(asked)


def _fit(call: Call, must_be_kept: bool) -> None:
    """A conversation that is too long is not kept, and its answer says so; for who relies on it, that is an error
    before any work is done."""
    if not call.keeps or _size(call.body["input"]) <= MOST_BYTES:
        return
    if must_be_kept:
        raise InvalidRequest(
            f"The conversation is longer than the {MOST_BYTES // 1024**2} MiB that are kept; send 'store': false.",
            param="store",
            code="response_too_long",
        )
    call.keeps = False


def _size(value: msgspec.Raw) -> int:
    return memoryview(value).nbytes


def _response_in(said: bytes) -> bytes:
    """The response object of an answer, which it is, or which is in its last event."""
    if not said.startswith((b"event:", b"data:")):
        return said
    last = said.rstrip(b"\n").rpartition(b"\n\n")[2]
    try:
        return bytes(msgspec.json.decode(payload_of(last) or b"", type=_Event).response)
    except (msgspec.DecodeError, RecursionError):
        raise EngineFailed("The engine sent a last event without a response.") from None


def _read(response: bytes) -> _Response:
    try:
        read = msgspec.json.decode(response, type=_Response)
    except (msgspec.DecodeError, RecursionError):
        raise EngineFailed("The engine sent a response without an id or an output.") from None
    if not _ID.fullmatch(read.id):
        raise EngineFailed("The engine gave its response an id that is none.", details=_NO_RETRY)
    return read
