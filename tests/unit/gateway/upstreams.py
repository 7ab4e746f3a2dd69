"""Replicas that a test plays by hand, and ways to wait for what they are asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from firstkit.links.messages import Head, Open, Outcome, Sink, Tail, Usage

CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
SSE = Head(200, "text/event-stream")
USAGE = Usage(3, 2)


class ByHand:
    """An upstream whose answers the test gives. ``opened`` are its requests, the oldest first."""

    def __init__(self) -> None:
        self.opened: list[Exchanged] = []

    def open(self, request: Open, body: bytes, sink: Sink) -> Exchanged:
        self.opened.append(Exchanged(request, body, sink))
        return self.opened[-1]

    @property
    def last(self) -> Exchanged:
        return self.opened[-1]

    async def asked(self, count: int = 1) -> Exchanged:
        """The request that makes it ``count``, as soon as it is there."""
        await until(f"{count} requests at the replica", lambda: len(self.opened) >= count)
        return self.opened[count - 1]


class Exchanged:
    """One request at a ``ByHand``. Ends as a pilot ends it: after its tail all calls do nothing."""

    def __init__(self, request: Open, body: bytes, sink: Sink) -> None:
        self.request = request
        self.body = body
        self.calls: list[str] = []
        self.has_head = False
        self.has_ended = False
        self._sink = sink

    def cancel(self) -> None:
        self.calls.append("cancel")
        self.end(Outcome.CANCELLED, usage=Usage(3, 1, True))

    def pause(self) -> None:
        self.calls.append("pause")

    def resume(self) -> None:
        self.calls.append("resume")

    # -- what the test has it do -------------------------------------------------------------------------------

    def head(self, status: int = 200, content_type: str = "application/json") -> None:
        self.has_head = True
        self._sink.on_head(Head(status, content_type))

    def data(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._sink.on_data(piece)

    def stream(self, *pieces: bytes) -> None:
        """Begin a stream."""
        self.has_head = True
        self._sink.on_head(SSE)
        self.data(*pieces)

    def end(
        self,
        outcome: Outcome,
        error: str | None = None,
        usage: Usage | None = USAGE,
        ttft_s: float | None = None,
        gap_s: float | None = None,
    ) -> None:
        if not self.has_ended:
            self.has_ended = True
            self._sink.on_tail(Tail(outcome, usage, error, ttft_s, gap_s))

    def complete(self) -> None:
        self.end(Outcome.COMPLETE)

    def answer(self, body: bytes = b"{}") -> None:
        """A whole plain answer."""
        self.head()
        self.data(body)
        self.complete()


class AtOnce(ByHand):
    """An upstream that answers every request in the next turn of the loop: with an empty object, or an empty stream."""

    def open(self, request: Open, body: bytes, sink: Sink) -> Exchanged:
        exchange = super().open(request, body, sink)
        asyncio.get_running_loop().call_soon(self._answer, exchange)
        return exchange

    def _answer(self, exchange: Exchanged) -> None:
        if exchange.has_ended:
            return
        if exchange.request.stream:
            exchange.stream(CHUNK)
            exchange.complete()
        else:
            exchange.answer()


# -- waiting -----------------------------------------------------------------------------------------------------------


async def until(what: str, is_so: Callable[[], bool], turns: int = 3000) -> None:
    """Let the loop run until ``is_so``; fails, saying ``what`` never came, after so many turns: where nothing comes
    from outside, that is long, on any machine."""
    for _ in range(turns):
        if is_so():
            return
        await asyncio.sleep(0)
    raise AssertionError(f"never: {what}")


async def settle(turns: int = 20) -> None:
    """Let the loop do what is due, and what follows from it."""
    for _ in range(turns):
        await asyncio.sleep(0)
