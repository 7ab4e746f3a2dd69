"""The client's end of one inference request over ASGI: what may still be said, and whether anybody listens."""

from __future__ import annotations

import asyncio
import json

from starlette.types import Receive, Send

from firstkit.errors import ApiError
from firstkit.gateway.guard import send_error

DONE = b"data: [DONE]\n\n"


class Client:
    """Writes one answer: an error or a plain body, or a stream that ends by ``done`` or by ``fail``.

    ``gone`` is done when the client hung up. Use as an async context manager: it owns the task that watches.
    """

    def __init__(self, receive: Receive, send: Send, request_id: str) -> None:
        self.request_id = request_id
        self.is_streaming = False
        self._receive = receive
        self._send = send

    async def __aenter__(self) -> Client:
        self.gone = asyncio.ensure_future(self._watch())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.gone.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            continue

    @property
    def is_gone(self) -> bool:
        return self.gone.done()

    async def plain(self, content_type: str, body: bytes) -> None:
        """The whole answer at once."""
        headers = [
            (b"content-type", content_type.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", self.request_id.encode()),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def start_stream(self) -> None:
        if self.is_streaming:
            return
        self.is_streaming = True
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            (b"x-request-id", self.request_id.encode()),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, data: bytes) -> None:
        """Whole SSE events; opens the stream if it is not open."""
        await self.start_stream()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def comment(self, text: str) -> None:
        """An SSE comment: keeps the connection alive and tells people; clients skip it."""
        await self.write(f": {text}\n\n".encode())

    async def done(self) -> None:
        """The one good end of a stream."""
        await self.start_stream()
        await self._send({"type": "http.response.body", "body": DONE})

    async def fail(self, error: ApiError) -> None:
        """An error while it can still be one, else the error event, without ``[DONE]``: clients raise on it."""
        if not self.is_streaming:
            await send_error(self._send, error, self.request_id)
            return
        event = b"data: " + json.dumps(error.body()).encode() + b"\n\n"
        await self._send({"type": "http.response.body", "body": event})
