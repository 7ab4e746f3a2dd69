"""ASGI middleware: the guard, the count of body bytes as they arrive, errors in the OpenAI shape."""

from __future__ import annotations

import json
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from firstkit.errors import ApiError, TooLarge
from firstkit.gateway.request import MAX_BODY_BYTES, RequestHead, guard

logger = logging.getLogger("firstkit.gateway")


def error_head_and_body(error: ApiError) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of an error answer."""
    headers = [(b"content-type", b"application/json")]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b'Basic realm="first", charset="UTF-8"'))
    if "should_retry" in error.details:
        headers.append((b"x-should-retry", b"true" if error.details["should_retry"] else b"false"))
    body = json.dumps(error.body()).encode()
    headers.append((b"content-length", str(len(body)).encode()))
    return headers, body


async def send_error(send: Send, error: ApiError, request_id: str | None = None) -> None:
    """Answer with an error, in the OpenAI shape."""
    headers, body = error_head_and_body(error)
    if request_id:
        headers.append((b"x-request-id", request_id.encode()))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Guard:
    """Outermost layer: nothing that the guard refuses reaches a route, and no error leaves in another shape.

    This is the one broad ``except`` of the gateway: a fault of ours becomes a 500 with an id, its text only a log line.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started = False

        async def noting_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            guard(RequestHead(scope["method"], scope["path"], scope["headers"]))
            await self.app(scope, counting(receive), noting_send)
        except ApiError as error:
            if started:
                raise
            await send_error(send, error)
        except Exception:
            logger.exception("a request failed for a reason of ours", extra={"action": "internal_error"})
            if started:
                raise
            await send_error(send, ApiError("Something went wrong on our side; it has been logged."))


def counting(receive: Receive, limit: int = MAX_BODY_BYTES) -> Receive:
    """``receive`` that raises TooLarge as soon as a body grows beyond ``limit`` bytes."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise TooLarge(f"The request body is larger than {limit} bytes.")
        return message

    return counted
