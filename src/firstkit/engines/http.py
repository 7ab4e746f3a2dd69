"""The client of one engine or external service: HTTP on one side, Upstream and Sink on the other."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from typing import Optional

from firstkit.clock import monotonic
from firstkit.engines.answer import AnswerMeter
from firstkit.engines.connection import Connection
from firstkit.engines.heads import Heads, Unsayable
from firstkit.engines.parsing import ResponseHead, response_parser
from firstkit.engines.target import Target, Way
from firstkit.links.messages import Exchange, Open, Outcome, Sink, Tail

__all__ = ["EngineClient", "Target"]

CONNECT_TIMEOUT_S = 10.0
MOST_KEPT = 256
LINGER_S = 1.0
"""So long an answer that said all may take to end as HTTP; then its connection is closed."""
SWEEP_S = 1.0
"""How often time-outs are looked at; for those under ten seconds more often."""
SHORTEST_SWEEP_S = 0.01


class EngineClient:
    """An Upstream. Connections that the engine keeps alive are used again, as far as its Habits allow.

    A request on a connection that turns out dead before one byte of an answer is sent once more, on a new connection;
    nothing else is ever sent twice. Redirects are not followed. A request that would need more connections than the
    target allows fails at once. One timer serves all time-outs: each may come late by a tenth, at most by a second.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._way = Way(target)
        self.heads = Heads(self._way.host, self._way.path, target.key, target.habits)
        self._parser = response_parser()
        self._open: set[Connection] = set()
        self._kept: list[Connection] = []
        self._lingering: set[Connection] = set()
        self._exchanges: set[_Exchange] = set()
        self._dials: set[asyncio.Task[None]] = set()
        self._timer: Optional[asyncio.TimerHandle] = None
        self._every_s = SWEEP_S
        self.is_closed = False

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
        if self._timer is None or exchange.every_s < self._every_s:
            self._sweep_in(exchange.every_s)
        return exchange

    def close(self) -> None:
        """Close all connections; what is under way fails."""
        self.is_closed = True
        for exchange in list(self._exchanges):
            exchange.stop("the engine was stopped")
        for connection in list(self._open):  # those kept, and those whose answer has yet to end as HTTP
            connection.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- for exchanges and connections -------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether the request that was added last is one too many: each has a connection or is about to make one."""
        return len(self._exchanges) + len(self._lingering) > self._target.most_connections

    def dial(self, user: _Exchange) -> asyncio.Task[None]:
        """Make a connection for ``user``; it may be used before the task has ended, which then may not be cancelled."""
        task = asyncio.get_running_loop().create_task(self._dial(user))
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)
        return task

    async def _dial(self, user: _Exchange) -> None:
        try:
            await self._way.dial(lambda: Connection(self, self._parser(), user.connected))
        except (OSError, UnicodeError) as exc:
            user.unreachable(_reason(exc))

    def kept(self, now: float) -> Optional[Connection]:
        """The connection that was used last of those that wait for use, if it is fresh enough to be alive."""
        while self._kept:
            connection = self._kept.pop()
            if now - connection.last_at < self._target.habits.keep_s and not connection.is_closing:
                return connection
            connection.abort()
        return None

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)

    def linger(self, connection: Connection) -> None:
        self._lingering.add(connection)

    def release(self, connection: Connection) -> None:
        self._lingering.discard(connection)
        if not self.is_closed and len(self._kept) < MOST_KEPT and connection.renew():
            self._kept.append(connection)
        else:
            connection.abort()

    def forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._lingering.discard(connection)
        if connection in self._kept:
            self._kept.remove(connection)

    def ended(self, exchange: _Exchange) -> None:
        self._exchanges.discard(exchange)

    # -- time ----------------------------------------------------------------------------------------------------

    def _sweep_in(self, every_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._every_s = every_s
        self._timer = None if self.is_closed else asyncio.get_running_loop().call_later(every_s, self._sweep)

    def _sweep(self) -> None:
        """End exchanges that last too long, close what nobody uses; again, as long as there is something."""
        self._timer = None
        now = monotonic()
        for exchange in list(self._exchanges):
            exchange.look(now)
        keep_s = self._target.habits.keep_s
        spent = [connection for connection in self._kept if now - connection.last_at >= keep_s]
        spent += [connection for connection in self._lingering if now - connection.last_at >= LINGER_S]
        for connection in spent:
            connection.abort()
        if self._exchanges or self._kept or self._lingering:
            self._sweep_in(min([SWEEP_S, *(exchange.every_s for exchange in self._exchanges)]))


class _Exchange:
    """One request and its answer: an Exchange to those who asked, the User of a connection."""

    __slots__ = (
        "_body",
        "_client",
        "_connection",
        "_dialled",
        "_dialling",
        "_has_ended",
        "_head",
        "_is_paused",
        "_may_retry",
        "_meter",
        "_request",
        "_sink",
        "_started",
        "every_s",
    )

    def __init__(self, client: EngineClient, request: Open, body: bytes, sink: Sink) -> None:
        self._client = client
        self._request = request
        self._body = body
        self._sink = sink
        self._started = monotonic()
        self._meter = AnswerMeter(request, self._started, client.heads.habits.refusals)
        self._head = b""
        self._connection: Optional[Connection] = None
        self._dialling: Optional[asyncio.Task[None]] = None
        self._dialled = 0.0
        self._may_retry = False
        self._is_paused = False
        self._has_ended = False
        limit_s = min(request.idle_timeout_s, request.timeout_s)
        self.every_s = SWEEP_S if limit_s >= 10 * SWEEP_S else max(limit_s / 10, SHORTEST_SWEEP_S)
        """How often the time-outs of this request are to be looked at."""

    # -- an Exchange -------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        if not self._has_ended:
            self._end_soon(Outcome.CANCELLED, "cancelled")

    def pause(self) -> None:
        self._is_paused = True
        if self._connection is not None:
            self._connection.pause()

    def _pause_still(self) -> None:
        if self._is_paused:
            self.pause()

    def resume(self) -> None:
        self._is_paused = False
        if self._connection is not None:
            self._connection.resume()

    # -- from start to end -------------------------------------------------------------------------------------

    def start(self) -> None:
        client = self._client
        try:
            self._head = client.heads.head(self._request, len(self._body))
        except Unsayable:
            self._end_soon(Outcome.FAILED, "the request cannot be said in HTTP")
            return
        connection = client.kept(self._started)
        if connection is not None:
            self._may_retry = True
            self._use(connection)
        elif client.is_closed:
            self._end_soon(Outcome.FAILED, "the engine was stopped")
        elif client.is_full:
            self._end_soon(Outcome.FAILED, "too many connections")
        else:
            self._dial()

    def stop(self, reason: str) -> None:
        """End as failed; the tail comes in the next turn of the loop."""
        if not self._has_ended:
            self._end_soon(Outcome.FAILED, reason)

    def look(self, now: float) -> None:
        """End what lasts too long. While we are paused it is we who do not listen."""
        request, connection = self._request, self._connection
        if self._has_ended:
            return
        if self._dialling is not None and now - self._dialled >= CONNECT_TIMEOUT_S:
            self._fail(Outcome.FAILED, "the engine cannot be reached: no connection in time")
        elif now - self._started >= request.timeout_s:
            self._time_out(f"the request took longer than {request.timeout_s:g} s")
        elif connection is not None and not self._is_paused and now - connection.last_at >= request.idle_timeout_s:
            self._time_out(f"the engine sent nothing for {request.idle_timeout_s:g} s")

    def _dial(self) -> None:
        self._dialled = monotonic()
        self._dialling = self._client.dial(self)

    def connected(self, connection: Connection) -> None:
        """The connection that was dialled is made."""
        self._dialling = None
        if self._has_ended:
            connection.abort()
        else:
            self._use(connection)

    def unreachable(self, reason: str) -> None:
        """It cannot be."""
        self._dialling = None
        if not self._has_ended:
            self._fail(Outcome.FAILED, f"the engine cannot be reached: {reason}")

    def _use(self, connection: Connection) -> None:
        self._connection = connection
        if self._is_paused:  # uvloop does not pause what it is just making
            asyncio.get_running_loop().call_soon(self._pause_still)
        connection.send(self, self._head, self._body, self._client.heads.is_last(self._request))
        if not self._may_retry:
            self._head = self._body = b""

    # -- the User of a connection ------------------------------------------------------------------------------

    def began(self) -> None:
        self._head = self._body = b""

    def answered(self, head: ResponseHead) -> None:
        if head.content_encoding not in ("", "identity"):
            self._fail(Outcome.FAILED, "the engine compressed its answer")
            return
        passed = self._meter.head(head.status, head.content_type)
        if passed is not None:
            self._sink.on_head(passed)

    def received(self, data: bytes, now: float) -> None:
        meter = self._meter
        passed = meter.feed(data, now)
        if passed:
            self._sink.on_data(passed)
        if meter.is_over and not self._has_ended:
            self._finish()

    def whole(self) -> None:
        self._finish()

    def broke(self, reason: str, is_untouched: bool) -> None:
        self._connection = None
        if self._may_retry and is_untouched:
            self._may_retry = False
            self._dial()
        else:
            self._fail(Outcome.FAILED, reason)

    def _finish(self) -> None:
        """The answer is over: its connection may serve others, if HTTP has not lost its place in it."""
        tail = self._meter.end(monotonic())
        connection = self._connection
        if connection is not None and (connection.is_whole or tail.outcome is Outcome.COMPLETE):
            self._connection = None
            connection.let_go()
        self._end(tail)

    def _time_out(self, error: str) -> None:
        self._fail(Outcome.TIMEOUT, error)

    def _fail(self, outcome: Outcome, error: str) -> None:
        self._end(self._meter.broken(outcome, error, monotonic()))

    def _end_soon(self, outcome: Outcome, error: str) -> None:
        """End now, and say so in the next turn of the loop: the caller is not yet ready to hear it."""
        self._close()
        tail = self._meter.broken(outcome, error, monotonic())
        asyncio.get_running_loop().call_soon(self._sink.on_tail, tail)

    def _end(self, tail: Tail) -> None:
        self._close()
        self._sink.on_tail(tail)

    def _close(self) -> None:
        self._has_ended = True
        self._client.ended(self)
        self._head = self._body = b""
        if self._dialling is not None:
            self._dialling.cancel()
        if self._connection is not None:
            self._connection.abort()
            self._connection = None


def _reason(exc: Exception) -> str:
    """Why there is no connection, in plain words: those of event loops differ, and name addresses."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {exc.verify_message.rstrip('.')}"
    if isinstance(exc, ssl.SSLError):
        return f"TLS failed: {(exc.reason or type(exc).__name__).replace('_', ' ').lower()}"
    if isinstance(exc, OSError) and exc.errno and not isinstance(exc, socket.gaierror):
        return os.strerror(exc.errno)
    if isinstance(exc, ConnectionError):
        return "the connection was closed"
    return getattr(exc, "strerror", None) or type(exc).__name__
