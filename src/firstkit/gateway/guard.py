"""Errors in one shape, whoever carries them; and the ASGI middleware that keeps to it and counts bodies."""

from __future__ import annotations

import json
import logging
from math import ceil
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from firstkit.errors import ApiError, TooLarge
from firstkit.gateway.paths import spoken_at
from firstkit.gateway.request import SMALL_BODY_BYTES

logger = logging.getLogger("firstkit.gateway")


def error_head_and_body(error: ApiError, said: dict[str, Any] | None = None) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of an error answer; ``said``: in another shape than that of OpenAI."""
    headers = [(b"content-type", b"application/json")]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, ceil(error.retry_after_s))))
    if error.status == 401:
        headers.append((b"www-authenticate", b'Basic realm="first", charset="UTF-8"'))
    if "should_retry" in error.details:
        headers.append((b"x-should-retry", b"true" if error.details["should_retry"] else b"false"))
    headers.extend(error.headers)
    body = json.dumps(error.body() if said is None else said).encode()
    headers.append((b"content-length", str(len(body)).encode()))
    return headers, body


async def send_error(send: Send, error: ApiError, path: str) -> None:
    """Answer with an error, in the shape that clients of ``path`` know."""
    dialect = spoken_at(path)
    headers, body = error_head_and_body(error, dialect.error(error, ""))
    await send({"type": "http.response.start", "status": dialect.status(error), "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Guard:
    """Outermost layer of the ASGI routes: bodies are counted, and no error leaves in another shape.

    What a head may look like was decided before: by ``http.Protocol``, for every request. This is the one broad
    ``except`` of the ASGI routes: a fault of ours becomes a 500, its text only a log line.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started = False
        body = CountedBody(receive)

        async def noting_send(message: Message) -> None:
            nonlocal started
            if body.is_too_large and not started:
                return  # whatever the application makes of it
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, body, noting_send)
        except ApiError as error:
            if started:
                raise
            await send_error(send, error, scope["path"])
        except Exception:
            logger.exception("a request failed for a reason of ours", extra={"action": "internal_error"})
            if started:
                raise
            await send_error(send, ApiError(), scope["path"])
        else:
            if body.is_too_large and not started:
                await send_error(send, body.refusal, scope["path"])


class CountedBody:
    """``receive`` that raises TooLarge as soon as a body grows beyond ``limit`` bytes, and remembers that it did:
    FastAPI takes what is raised while it reads a body for a fault of the body."""

    def __init__(self, receive: Receive, limit: int = SMALL_BODY_BYTES) -> None:
        self.is_too_large = False
        self.refusal = TooLarge(f"The request body is larger than {limit} bytes.")
        self._receive = receive
        self._left = limit

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self.is_too_large = True
            raise self.refusal
        return message
