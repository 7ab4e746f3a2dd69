"""Connections of clients: uvicorn's HTTP protocol, with a guard before every request and a short cut for hot routes.

What is relied on of uvicorn is named by tests/unit/gateway/test_uvicorn_contract.py.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import urllib.parse
from collections import deque
from math import inf
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from firstkit.engines.familiar import FamiliarHead
from firstkit.errors import (
    ApiError,
    AtCapacity,
    HeadersTooLarge,
    InvalidRequest,
    MethodNotAllowed,
    RequestTimeout,
    ShuttingDown,
    TooLarge,
)
from firstkit.gateway.callers import Caller, familiar, read_caller
from firstkit.gateway.client import header_lines, status_line
from firstkit.gateway.guard import error_head_and_body
from firstkit.gateway.hot import HotRequest, HotRoutes
from firstkit.gateway.request import MAX_BODY_BYTES, MAX_HEADER_BYTES, MAX_HEADERS, SMALL_BODY_BYTES, RequestHead, guard

logger = logging.getLogger("firstkit.gateway")

HEAD_S = 10.0
"""So long a head may take, from the connection or its first byte; and so long a body may be slower than it must be."""
BODY_BYTES_PER_S = 1024.0
IDLE_S = 75.0
LINGER_S = 5.0
"""So long a refused client may still send what nobody reads, so that it can read why."""
STALLED_S = 300.0
"""A client that takes nothing of its answer for so long is taken for gone."""
SURPLUS = 32
"""Connections beyond the limit that are told so; still more are just closed."""
MOST_LINGERING_BYTES = 2 * MAX_BODY_BYTES
_UPGRADE_HEADERS = (b"connection", b"upgrade", b"http2-settings")
MOST_FRAMING_BYTES = 64 * 1024
"""Of chunk heads, extensions and trailers between two pieces of a body."""


class Phase(enum.Enum):
    """What a connection waits for; the deadline is that of the phase."""

    IDLE = "idle"  # the first byte of a head
    HEAD = "head"  # the rest of it
    BODY = "body"  # the rest of the body
    ANSWER = "answer"  # us
    DEAF = "deaf"  # nothing: what comes is thrown away


class Door:
    """What the connections of one server share. Without ``hot`` all requests go to ASGI."""

    def __init__(self, hot: HotRoutes | None = None, most_connections: int = 1_000_000) -> None:
        self.hot = hot
        self.most_connections = most_connections
        self._dated: list[tuple[bytes, bytes]] = []
        self._lines = b""

    def header_lines(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """``headers`` as they go over the wire; uvicorn makes a new list once a second."""
        if headers is not self._dated:
            self._dated = headers
            self._lines = header_lines(headers)
        return self._lines


class Refused(Exception):
    """Thrown through the parser to stop it."""


class Protocol(HttpToolsProtocol):
    """One connection. Times are those of the loop, in seconds."""

    cycle: Any
    """The last request: a cycle of uvicorn's, or a HotRequest, which looks like one."""
    pipeline: deque[Any]

    def __init__(self, *args: Any, door: Door, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._door = door
        self._phase = Phase.IDLE
        self._deadline = inf
        self._reader_deadline = inf
        self._is_surplus = False
        self._is_held = False
        self._head_bytes = 0
        self._heads_begun = 0
        self._body_bytes = 0
        self._framing_bytes = 0
        self._body_began = 0.0
        self._refusal: ApiError | None = None
        self._last_words: ApiError | None = None
        self._lingering_bytes = 0
        self._unsent = 0
        self._familiar: FamiliarHead[Caller] | None = None
        self._running: RequestResponseCycle | None = None
        """The ASGI request whose turn it is, or was."""
        self._hot: HotRequest | None = None
        """The hot request whose turn it is."""
        self._incoming: HotRequest | None = None
        """The hot request whose body comes."""

    # -- the loop tells ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        count = len(self.connections)
        self._is_surplus = count > self._door.most_connections
        if count > self._door.most_connections + SURPLUS:
            transport.abort()
        self._wait_for(Phase.IDLE, HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = Phase.DEAF
        self._deadline = inf
        self._reader_deadline = inf
        waiting = [cycle for cycle, _ in self.pipeline if isinstance(cycle, HotRequest)]
        self.pipeline.clear()
        for request in {self._hot, self._incoming, *waiting} - {None}:
            cast(HotRequest, request).hang_up()
        self._hot = self._incoming = None
        if self._running is not None and not self._running.response_complete:  # uvicorn tells the newest cycle only
            self._running.disconnected = True
            self._running.message_event.set()
        if isinstance(self.cycle, HotRequest):
            self.cycle = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._phase is Phase.DEAF:
            self._throw_away(len(data))
            return
        if self._familiar is not None and self._phase is Phase.IDLE and self._is_recognised(data, self._familiar):
            return
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        phase, body_bytes = self._phase, self._body_bytes
        self._heads_begun = 0
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._feed_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError:
            if self._refusal is None:
                logger.exception("a request cannot be read for a reason of ours", extra={"action": "internal_error"})
            self._refuse(self._refusal or ApiError())
        except httptools.HttpParserError as exc:
            self._refuse(self._refusal or InvalidRequest(f"This is not HTTP as it is spoken here: {_sentence(exc)}."))
        else:
            if self._phase is not Phase.ANSWER and self._phase is not Phase.IDLE:
                self._count(len(data), phase, self._body_bytes - body_bytes)
            if self._incoming is not None and self._incoming is self._hot:
                self._incoming.start()
            elif phase is Phase.IDLE and self._hot is not None and not self._is_surplus:
                self._familiar = familiar(data, self._hot.caller)

    def _feed_without_upgrade(self, rest: bytes) -> None:
        """Read the request once more, as if it had not asked for another protocol: so httptools would pass over its
        body, and clients that try HTTP/2 send that with each request."""
        kept = [header for header in self.headers if header[0] not in _UPGRADE_HEADERS]
        version = self.parser.get_http_version().encode()
        start = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)
        self.parser = httptools.HttpRequestParser(self)
        self._feed(b"%b%bconnection: close\r\n\r\n%b" % (start, header_lines(kept), rest))

    def _is_recognised(self, data: bytes, head: FamiliarHead[Caller]) -> bool:
        """Whether ``data`` is a whole request with the head of the one before it, of a key that is known: it is
        answered without the parser."""
        hot, body = self._door.hot, head.body_of(data)
        if hot is None or body is None:
            return False
        identity = hot.gateway.authenticator.known(head.what.key_digest)
        if identity is None:
            return False
        self._phase, self._deadline = Phase.ANSWER, inf
        request = HotRequest(hot, self, head.what)
        self.cycle = request
        self._give_turn(request)
        request.answer_at_once(identity, body)
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unsent = 0
        self._reader_deadline = self.loop.time() + STALLED_S
        if self._hot is not None:
            self._hot.client.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reader_deadline = inf
        if self._hot is not None:
            self._hot.client.resume()
        if self._is_held and not self.transport.is_closing():
            self._is_held = False
            self._next()

    def shutdown(self) -> None:
        """The server ends: idle connections close at once, others after their answer."""
        if self._hot is not None:
            self._hot.keeps_alive = False
        else:
            super().shutdown()

    def end_now(self) -> None:
        """The server's grace is over."""
        for request in {self._hot, self._incoming} - {None}:
            cast(HotRequest, request).client.give_up(ShuttingDown())

    def look(self, now: float) -> None:
        """End the connection if it is overdue. Called about once a second."""
        if now >= self._reader_deadline:
            self._look_at_reader(now)
        if now < self._deadline:
            return
        if self.flow.read_paused:
            self._deadline = now + HEAD_S  # it is we who do not listen
        elif self._phase in (Phase.HEAD, Phase.BODY):
            self._refuse(RequestTimeout())
        elif not self.transport.is_closing():
            self.transport.close()

    def _look_at_reader(self, now: float) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent == self._unsent:
            self.transport.abort()
        self._unsent = unsent
        self._reader_deadline = now + STALLED_S

    # -- the parser tells --------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """As uvicorn's, without the scope: hot requests need none. Nothing is begun on a connection that closes."""
        if self.transport.is_closing():
            self._stop(InvalidRequest("The connection is closing."))
        self.url = b""
        self.headers = []
        self._head_bytes = 0
        self._heads_begun += 1
        self._wait_for(Phase.HEAD, HEAD_S)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is not Phase.HEAD:
            self._stop(InvalidRequest("Trailers are not accepted."))
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        hot = self._door.hot
        try:
            head = self._checked_head()
            api = hot.api(head.method, head.path) if hot is not None else None
            guard(head, SMALL_BODY_BYTES if api is None else MAX_BODY_BYTES)
            if self._is_surplus:
                raise AtCapacity("The gateway has as many connections as it can hold.", retry_after_s=HEAD_S)
        except ApiError as error:
            self._stop(error)
        if self.parser.should_upgrade():
            return
        self._body_bytes = self._framing_bytes = 0
        self._body_began = self.loop.time()
        self._phase, self._deadline = Phase.BODY, self._body_began + HEAD_S
        if api is None or hot is None:
            self._to_asgi(head)
            return
        keeps_alive = head.version != "1.0" and self.parser.should_keep_alive()
        self._incoming = HotRequest(hot, self, read_caller(head, api, keeps_alive, hot.patience, hot.public_url), head)
        self._queue(self._incoming)

    def _to_asgi(self, head: RequestHead) -> None:
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        self.headers.extend(headers)
        self.expect_100_continue = bool(head.values(b"expect"))
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._deadline = self._body_began + HEAD_S + self._body_bytes / BODY_BYTES_PER_S
        if self._incoming is not None:
            self._incoming.receive(body)
            return
        if self._body_bytes > SMALL_BODY_BYTES and self.cycle.response_complete:
            self._stop(TooLarge())
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # it is read once more
        self._phase = Phase.ANSWER
        self._deadline = inf
        request = self._incoming
        if request is not None:
            self._incoming = None
            request.received()
            if request is self._hot:
                request.start()
            return
        super().on_message_complete()
        if self.cycle.response_complete:
            self._wait_for(Phase.IDLE, IDLE_S)

    def _checked_head(self) -> RequestHead:
        """The head that the parser has read; raises InvalidRequest where its target is none, HeadersTooLarge."""
        if len(self.url) > MAX_HEADER_BYTES:
            raise HeadersTooLarge(f"At most {MAX_HEADER_BYTES} bytes of head are allowed.")
        try:
            raw_path = httptools.parse_url(self.url).path
            path = raw_path.decode("ascii")
        except (httptools.HttpParserError, UnicodeDecodeError, AttributeError, TypeError):  # or without a path: None
            raise InvalidRequest("The request target is not valid.") from None
        if "%" in path:
            path = urllib.parse.unquote(path)
            if not path.isprintable():  # a line end at the end of a path is none to some routers
                raise InvalidRequest("The request target is not valid.")
        method = self.parser.get_method().decode("ascii")
        if method == "CONNECT":
            raise MethodNotAllowed
        return RequestHead(method, path, self.headers, self.parser.get_http_version())

    def _stop(self, error: ApiError) -> None:
        """Stop the parser; the refusal follows when it has unwound."""
        self._refusal = error
        raise Refused

    # -- whose turn it is --------------------------------------------------------------------------------------

    @property
    def _is_busy(self) -> bool:
        return self._hot is not None or (self.cycle is not None and not self.cycle.response_complete)

    def _queue(self, request: HotRequest) -> None:
        """Let a hot request have its turn, or wait behind those that came before it on this connection."""
        is_busy = self._is_busy
        self.cycle = request
        if is_busy:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))
        else:
            self._give_turn(request)  # and start it as soon as its body is here, or has to be waited for

    def _give_turn(self, request: HotRequest) -> None:
        self._hot = request
        if self.flow.write_paused:  # by the answer before
            request.client.pause()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, HotRequest):
            self._give_turn(cycle)
            self.loop.call_soon(cycle.start)  # not now: of thousands that wait, each may be over at once
        else:
            self._running = cycle
            super()._start_asgi_task(cycle, app)

    def answered(self, request: HotRequest) -> None:
        """For hot requests: the last byte of the answer is written."""
        self._hot = None
        request.response_complete = True
        if not request.keeps_alive:
            self._close(has_rest=not request.is_received)
        else:
            self.on_response_complete()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.write_paused:  # who takes no answers gets no further requests taken
            self._is_held = True
            self.flow.pause_reading()
        else:
            self._next()

    def _next(self) -> None:
        """An answer is written, and taken or on its way: what comes now?"""
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif self._last_words is not None:
            self._say(self._last_words)
        elif self._phase is Phase.DEAF:
            self.transport.close()
        elif self._phase is Phase.ANSWER:
            self._wait_for(Phase.IDLE, IDLE_S)
        if not self.pipeline and self.flow.read_paused and not self.transport.is_closing():
            self._read_on()  # and not before: those that wait would be joined by more for each that is answered

    def _read_on(self) -> None:
        """Read again. What we did not listen to in the meantime cannot be late."""
        self.flow.resume_reading()
        if self._phase is Phase.HEAD or self._phase is Phase.BODY:
            self._body_began = self.loop.time()
            self._deadline = self._body_began + HEAD_S

    # -- for hot requests --------------------------------------------------------------------------------------

    def common_headers(self) -> bytes:
        return self._door.header_lines(self.server_state.default_headers)

    def pause_reading(self) -> None:
        self.flow.pause_reading()

    def resume_reading(self) -> None:
        if self.flow.read_paused and not self.pipeline:
            self._read_on()

    # -- refusals ----------------------------------------------------------------------------------------------

    def _count(self, received: int, phase: Phase, of_body: int) -> None:
        """See to it that neither a head nor the framing of a body goes on without end. ``phase``: that before the
        bytes came; those that end something and begin a head are not counted for either."""
        if self._phase is Phase.HEAD:
            is_alone = self._heads_begun == (0 if phase is Phase.HEAD else 1) and phase in (Phase.IDLE, Phase.HEAD)
            self._head_bytes += received if is_alone else 0
            parsed = len(self.url) + sum([len(name) + len(value) for name, value in self.headers])
            if max(self._head_bytes, parsed) > MAX_HEADER_BYTES or len(self.headers) > MAX_HEADERS:
                self._refuse(HeadersTooLarge(f"At most {MAX_HEADER_BYTES} bytes of head are allowed."))
        elif self._phase is Phase.BODY:
            self._framing_bytes = 0 if of_body else self._framing_bytes + received
            if self._framing_bytes > MOST_FRAMING_BYTES:
                self._refuse(InvalidRequest("The framing of the body is longer than any has to be."))

    def _refuse(self, error: ApiError) -> None:
        """Say no to what comes now, after the answers to what came before, and hear nothing more."""
        is_in_body = self._phase is Phase.BODY
        self._go_deaf()
        if is_in_body and self._incoming is not None:
            request, self._incoming = self._incoming, None
            request.break_off(error)
            if request is self._hot:
                request.start()
        elif is_in_body and self.cycle is not None and not isinstance(self.cycle, HotRequest):
            self._break_off(self.cycle, error)
        elif self._is_busy:
            self._last_words = error
        else:
            self._say(error)

    def _break_off(self, cycle: RequestResponseCycle, error: ApiError) -> None:
        """The body of an ASGI request will never be whole."""
        if cycle.response_complete:
            self._close(has_rest=True)
            return
        if self.pipeline and self.pipeline[0][0] is cycle:  # those before it have yet to be answered
            self.pipeline.popleft()
            self._last_words = error
            return
        cycle.waiting_for_100_continue = False
        has_begun = cycle.response_started
        cycle.disconnected = True
        cycle.message_event.set()
        if has_begun:
            self.transport.abort()
        else:
            self._say(error)

    def _say(self, error: ApiError) -> None:
        """Write a refusal, and close when the client has had time to read it."""
        if self.transport.is_closing():
            return
        headers, body = error_head_and_body(error)
        head = status_line(error.status) + self.common_headers() + header_lines(headers)
        self.transport.write(b"%bconnection: close\r\n\r\n%b" % (head, body))
        self._close(has_rest=True)

    def _close(self, has_rest: bool) -> None:
        """Close; first hear out a client that may still be sending, or a reset would take our answer from it."""
        if has_rest:
            self._go_deaf()
            self.flow.resume_reading()
            self.transport.write_eof()
            self._deadline = self.loop.time() + LINGER_S
        else:
            self.transport.close()

    def _go_deaf(self) -> None:
        self._phase = Phase.DEAF
        self._deadline = inf

    def _throw_away(self, size_bytes: int) -> None:
        self._lingering_bytes += size_bytes
        if self._lingering_bytes > MOST_LINGERING_BYTES:
            self.transport.abort()

    def _wait_for(self, phase: Phase, seconds: float) -> None:
        self._phase = phase
        self._deadline = self.loop.time() + seconds


def _sentence(error: Exception) -> str:
    """What the parser says is wrong, without what it quotes."""
    return str(error).strip().rstrip(".")[:200] or "it cannot be read"
