"""The answer to one request while it passes through the gateway: what came, what it counts, how it ended."""

from __future__ import annotations

import asyncio
import json
from math import ceil

from firstkit import metrics
from firstkit.errors import ApiError, EngineFailed, EngineTimeout, InvalidRequest, Overloaded, TooLarge
from firstkit.links.messages import Exchange, Head, Outcome, Tail, Usage

BUFFER_BYTES = 1024 * 1024
"""More than this waits for a slow client nowhere in the gateway: its stream is paused at the pilot."""
ENGINE_RETRY_S = 5.0


class Answer:
    """A Sink that one coroutine consumes: ``wait`` for news, ``take`` the bytes, look at ``tail``."""

    def __init__(self) -> None:
        self.head: Head | None = None
        self.tail: Tail | None = None
        self.exchange: Exchange | None = None
        self.relayed = 0
        self.events = 0
        self._chunks: list[bytes] = []
        self._waiting = 0
        self._paused = False
        self._news = asyncio.Event()

    def on_head(self, head: Head) -> None:
        self.head = head

    def on_data(self, data: bytes) -> None:
        self._chunks.append(data)
        self._waiting += len(data)
        self.relayed += len(data)
        self.events += data.count(b"\n\n")
        metrics.BYTES_DOWN.inc(len(data))
        if self._waiting > BUFFER_BYTES and not self._paused and self.exchange is not None:
            self._paused = True
            self.exchange.pause()
        self._news.set()

    def on_tail(self, tail: Tail) -> None:
        self.tail = tail
        self._news.set()

    @property
    def is_untouched(self) -> bool:
        """Whether nothing of an answer came: only then may the request go to another replica."""
        return self.head is None and self.relayed == 0

    @property
    def is_refusal(self) -> bool:
        return self.head is not None and self.head.status != 200

    async def wait(self, timeout_s: float | None) -> bool:
        """Wait for data or the tail; False when ``timeout_s`` passed first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    def take(self) -> bytes:
        """All bytes that came since the last ``take``."""
        self._news.clear()
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._waiting = 0
        if self._paused and self.exchange is not None:
            self._paused = False
            self.exchange.resume()
        if self.tail is not None:
            self._news.set()
        return data

    def cancel(self) -> None:
        """The client went away; the tail follows."""
        if self.exchange is not None:
            self.exchange.cancel()

    async def ended(self) -> Tail:
        """Wait for the tail, throwing data away."""
        while self.tail is None:
            await self.wait(None)
            self.take()
        return self.tail


def with_usage(tail: Tail, prompt_bytes: int, events: int) -> Tail:
    """``tail`` with an estimate, flagged as one, where nobody could say what was used but something was delivered."""
    if tail.usage is not None or events == 0:
        return tail
    usage = Usage(prompt_tokens=ceil(prompt_bytes / 4), completion_tokens=events, estimated=True)
    return Tail(tail.outcome, usage, tail.error, tail.ttft_s, tail.gap_s, tail.duration_s)


def error_of(tail: Tail, head: Head | None = None, body: bytes = b"") -> ApiError:
    """The error that a client is told for an ending that is not COMPLETE."""
    if tail.outcome is Outcome.TIMEOUT:
        return EngineTimeout()
    if tail.outcome is Outcome.REJECTED and head is not None:
        return _refusal(head.status, body)
    if tail.outcome is Outcome.LOST:
        return EngineFailed("The replica that served this request was lost.", code="replica_lost")
    return EngineFailed(f"The engine failed: {tail.error}." if tail.error else None)


def _refusal(status: int, body: bytes) -> ApiError:
    """An engine's own 4xx as our error: its sentence and parameter are kept, its shape is not.

    What it says of our key is no news for clients, who sent another one, and may repeat it.
    """
    if status in (401, 403):
        return EngineFailed("The engine does not accept the key that it was given.")
    if status == 429:
        return Overloaded("The engine takes no more requests now.", retry_after_s=ENGINE_RETRY_S)
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    inner = data.get("error", data) if isinstance(data, dict) else None
    inner = inner if isinstance(inner, dict) else {"message": inner}
    message = inner.get("message") or inner.get("detail")
    param = inner.get("param")
    kind = TooLarge if status == 413 else InvalidRequest
    return kind(
        message if isinstance(message, str) else f"The engine refused the request (status {status}).",
        param=param if isinstance(param, str) else None,
        code="engine_refused",
    )
