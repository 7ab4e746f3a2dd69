"""The client of one engine or external service: HTTP on one side, Upstream and Sink on the other."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from typing import Optional, cast

import h11

from firstkit.clock import monotonic
from firstkit.engines.answer import AnswerMeter
from firstkit.engines.connection import Connection, header
from firstkit.engines.target import Target, Way
from firstkit.links.messages import Exchange, Open, Outcome, Sink, Tail

__all__ = ["EngineClient", "Target"]

CONNECT_TIMEOUT_S = 10.0
MOST_KEPT = 64
_NOT_PASSED = frozenset(
    ("host", "content-length", "transfer-encoding", "connection", "authorization", "accept-encoding", "expect", "te")
)


class EngineClient:
    """An Upstream. Connections that the engine keeps alive are used again, as far as its Habits allow.

    A request on a connection that turns out dead before one byte of an answer is sent once more, on a new connection;
    nothing else is ever sent twice. Redirects are not followed.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._way = Way(target)
        self._open: set[Connection] = set()
        self._kept: list[Connection] = []
        self._exchanges: set[_Exchange] = set()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"EngineClient({self._target!r}, kept={len(self._kept)}, in_flight={self.in_flight})"

    @property
    def in_flight(self) -> int:
        return len(self._exchanges)

    def open(self, request: Open, body: bytes, sink: Sink) -> Exchange:
        """Start a request; the sink hears nothing before this returns. Never raises."""
        exchange = _Exchange(self, request, body, sink)
        self._exchanges.add(exchange)
        exchange.start()
        return exchange

    def close(self) -> None:
        """Close all connections; what is under way fails."""
        self._is_closed = True
        for exchange in list(self._exchanges):
            exchange.stop("the engine was stopped")
        for connection in list(self._open):  # those kept, and those whose answer has yet to end as HTTP
            connection.abort()
        self._kept.clear()

    # -- for exchanges and connections -------------------------------------------------------------------------

    def head_of(self, request: Open, body_bytes: int) -> h11.Request:
        """The request line and headers; raises h11.LocalProtocolError or UnicodeError for what HTTP cannot say."""
        habits = self._target.habits
        is_last = not habits.keeps_alive or (request.stream and habits.closes_after_stream)
        headers = {
            "host": self._way.host,
            "accept": "text/event-stream" if request.stream else "application/json",
            "content-type": "application/json",
            **{name.lower(): value for name, value in request.headers.items() if name.lower() not in _NOT_PASSED},
            "accept-encoding": "identity",
            "content-length": str(body_bytes),
            "connection": "close" if is_last else "keep-alive",
        }
        if self._target.key is not None:
            headers["authorization"] = f"Bearer {self._target.key}"
        return h11.Request(method=request.method, target=self._way.path(request.path), headers=list(headers.items()))

    async def connect(self) -> Connection:
        """A new connection; raises OSError, UnicodeError or asyncio.TimeoutError."""
        dialled = self._way.dial(lambda: Connection(self))
        return cast(Connection, await asyncio.wait_for(dialled, CONNECT_TIMEOUT_S))

    def kept(self) -> Optional[Connection]:
        """The connection that was used last of those that wait for use, if it is fresh enough to be alive."""
        while self._kept:
            connection = self._kept.pop()
            age_s = asyncio.get_running_loop().time() - connection.last_at
            if not connection.is_closing and age_s < self._target.habits.keep_s:
                return connection
            connection.abort()
        return None

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)

    def release(self, connection: Connection) -> None:
        if not self._is_closed and len(self._kept) < MOST_KEPT and connection.renew():
            self._kept.append(connection)
        else:
            connection.abort()

    def forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._kept:
            self._kept.remove(connection)

    def ended(self, exchange: _Exchange) -> None:
        self._exchanges.discard(exchange)


class _Exchange:
    """One request and its answer: an Exchange to those who asked, the User of a connection."""

    def __init__(self, client: EngineClient, request: Open, body: bytes, sink: Sink) -> None:
        self._client = client
        self._request = request
        self._body = body
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._meter = AnswerMeter(request, monotonic())
        self._head: h11.Request
        self._connection: Optional[Connection] = None
        self._connecting: Optional[asyncio.Task[None]] = None
        self._timer: Optional[asyncio.TimerHandle] = None
        self._may_retry = False
        self._is_paused = False
        self._has_ended = False

    # -- an Exchange -------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        if not self._has_ended:
            self._end_soon(Outcome.CANCELLED, "cancelled")

    def pause(self) -> None:
        self._is_paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        self._is_paused = False
        if self._connection is not None:
            self._connection.resume()

    # -- from start to end -------------------------------------------------------------------------------------

    def start(self) -> None:
        try:
            self._head = self._client.head_of(self._request, len(self._body))
        except (h11.LocalProtocolError, UnicodeError):
            self._end_soon(Outcome.FAILED, "the request cannot be said in HTTP")
            return
        connection = self._client.kept()
        if connection is None:
            self._connecting = self._loop.create_task(self._connect())
        else:
            self._may_retry = True
            self._use(connection)

    def stop(self, reason: str) -> None:
        """End as failed; the tail comes in the next turn of the loop."""
        if not self._has_ended:
            self._end_soon(Outcome.FAILED, reason)

    async def _connect(self) -> None:
        try:
            connection = await self._client.connect()
        except (OSError, UnicodeError, asyncio.TimeoutError) as exc:
            self._connecting = None
            self._end(self._meter.broken(Outcome.FAILED, f"the engine cannot be reached: {_reason(exc)}", monotonic()))
            return
        self._connecting = None
        if self._has_ended:
            connection.abort()
        else:
            self._use(connection)

    def _use(self, connection: Connection) -> None:
        self._connection = connection
        if self._is_paused:
            connection.pause()
        connection.send(self, self._head, self._body)
        self._watch(self._request.idle_timeout_s)

    def _watch(self, wait_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(wait_s, self._look)

    def _look(self) -> None:
        """End an engine's silence that lasts too long. While we are paused it is we who do not listen."""
        limit_s = self._request.idle_timeout_s
        silent_s = 0.0
        if self._connection is not None and not self._is_paused:
            silent_s = self._loop.time() - self._connection.last_at
        if silent_s < limit_s:
            self._watch(limit_s - silent_s)
            return
        self._end(self._meter.broken(Outcome.TIMEOUT, f"the engine sent nothing for {limit_s:g} s", monotonic()))

    # -- the User of a connection ------------------------------------------------------------------------------

    def received(self, response: Optional[h11.Response], data: bytes, is_whole: bool) -> None:
        if response is not None:
            self._take_head(response)
        if data and not self._has_ended and (passed := self._meter.feed(data, monotonic())):
            self._sink.on_data(passed)
        if not self._has_ended and (is_whole or self._meter.is_over):
            self._finish(is_whole)

    def broke(self, reason: str, is_untouched: bool) -> None:
        self._connection = None
        if self._may_retry and is_untouched:
            self._may_retry = False
            self._connecting = self._loop.create_task(self._connect())
        else:
            self._end(self._meter.broken(Outcome.FAILED, reason, monotonic()))

    def _take_head(self, response: h11.Response) -> None:
        if header(response, b"content-encoding").lower() not in ("", "identity"):
            self._end(self._meter.broken(Outcome.FAILED, "the engine compressed its answer", monotonic()))
            return
        head = self._meter.head(response.status_code, header(response, b"content-type"))
        if head is not None:
            self._sink.on_head(head)

    def _finish(self, is_whole: bool) -> None:
        """The answer is over: its connection may serve others, if HTTP has not lost its place in it."""
        tail = self._meter.end(monotonic())
        if self._connection is not None and (is_whole or tail.outcome is Outcome.COMPLETE):
            self._connection.let_go(is_whole)
            self._connection = None
        self._end(tail)

    def _end_soon(self, outcome: Outcome, error: str) -> None:
        """End now, and say so in the next turn of the loop: the caller is not yet ready to hear it."""
        self._close()
        self._loop.call_soon(self._sink.on_tail, self._meter.broken(outcome, error, monotonic()))

    def _end(self, tail: Tail) -> None:
        self._close()
        self._sink.on_tail(tail)

    def _close(self) -> None:
        self._has_ended = True
        self._client.ended(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.abort()
            self._connection = None


def _reason(exc: Exception) -> str:
    """Why there is no connection, in the system's words: those of event loops differ, and name addresses."""
    if isinstance(exc, asyncio.TimeoutError):
        return "no connection in time"
    if isinstance(exc, OSError) and exc.errno and not isinstance(exc, (ssl.SSLError, socket.gaierror)):
        return os.strerror(exc.errno)
    return getattr(exc, "strerror", None) or type(exc).__name__
