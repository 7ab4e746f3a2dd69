"""The requests that are under way at one replica: counted truly, and ended when their engine is no more."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Optional

from firstkit.links.messages import Exchange, Open, Outcome, Sink, Tail, Upstream


class InFlight:
    """Opens requests at ``upstream``; ``on_change`` comes whenever their number has changed."""

    def __init__(self, upstream: Upstream, on_change: Callable[[], None]) -> None:
        self._upstream = upstream
        self._on_change = on_change
        self._requests: set[_Request] = set()
        self._empty: Optional[asyncio.Future[None]] = None

    def __len__(self) -> int:
        return len(self._requests)

    def open(self, request: Open, body: bytes, sink: Sink) -> Exchange:
        """Start a request; its Exchange is the engine client's own."""
        counted = _Request(self, sink)
        self._requests.add(counted)
        self._on_change()
        counted.exchange = self._upstream.open(request, body, counted)
        return counted.exchange

    def fail(self, reason: str) -> None:
        """The engine is gone or given up: end what is open, as failed for ``reason``. Their usage still counts."""
        for request in list(self._requests):
            request.failure = reason
            if request.exchange is not None:
                request.exchange.cancel()

    async def wait_empty(self, timeout_s: float) -> bool:
        """Whether no request is left, now or within ``timeout_s``."""
        if self._requests:
            if self._empty is None:
                self._empty = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._empty}, timeout=timeout_s)
        return not self._requests

    def ended(self, request: _Request) -> None:
        """For the requests: this one has its tail."""
        self._requests.discard(request)
        if not self._requests and self._empty is not None:
            self._empty.set_result(None)
            self._empty = None
        self._on_change()


class _Request:
    """The sink of one request, which passes everything on. Data goes to the real sink without a step between."""

    __slots__ = ("_owner", "_sink", "exchange", "failure", "on_data", "on_head")

    def __init__(self, owner: InFlight, sink: Sink) -> None:
        self.on_head = sink.on_head
        self.on_data = sink.on_data
        self.exchange: Optional[Exchange] = None
        self.failure = ""
        self._owner = owner
        self._sink = sink

    def on_tail(self, tail: Tail) -> None:
        if self.failure and tail.outcome is Outcome.CANCELLED:
            tail = dataclasses.replace(tail, outcome=Outcome.FAILED, error=self.failure)
        self._owner.ended(self)
        self._sink.on_tail(tail)
