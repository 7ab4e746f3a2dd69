"""One HTTP/1.1 connection to an engine: h11 inside, one exchange at a time, no decisions of its own."""

from __future__ import annotations

import asyncio
from typing import Any, Optional, Protocol, cast

import h11

HEAD_LIMIT_BYTES = 64 * 1024
LINGER_S = 1.0
"""So long an answer that said all may take to end as HTTP; then its connection is not kept."""
JOINED_BYTES = 64 * 1024
"""Head and body up to this size go out in one write."""


class User(Protocol):
    """The exchange that a connection serves."""

    def received(self, response: Optional[h11.Response], data: bytes, is_whole: bool) -> None:
        """News of the answer; ``is_whole``: it came to its end as HTTP counts it."""

    def broke(self, reason: str, is_untouched: bool) -> None:
        """The connection is of no use any more; ``is_untouched``: not one byte of an answer came."""


class Owner(Protocol):
    """The pool of connections."""

    def opened(self, connection: Connection) -> None:
        """The connection is made."""

    def release(self, connection: Connection) -> None:
        """The connection serves nobody and its answer is whole."""

    def forget(self, connection: Connection) -> None:
        """The connection is closed."""


class Connection(asyncio.Protocol):
    """Sends a request for a User, tells it what comes. After ``let_go`` or ``abort`` the User hears nothing more."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT_BYTES)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._user: Optional[User] = None
        self._is_answered = False
        self._head_bytes = 0
        self._is_paused = False
        self._linger: Optional[asyncio.TimerHandle] = None
        self.last_at = self._loop.time()
        """When the last byte came, or the request was sent, or the connection became idle; time of the loop."""

    # -- what users and the owner do ---------------------------------------------------------------------------

    def send(self, user: User, request: h11.Request, body: bytes) -> None:
        self._user = user
        self._is_answered = False
        self._head_bytes = 0
        self.last_at = self._loop.time()
        head = self._http.send(request) or b""
        if body:
            self._http.send_with_data_passthrough(h11.Data(data=body))
        self._http.send(h11.EndOfMessage())
        if len(body) <= JOINED_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    def let_go(self, is_whole: bool) -> None:
        """Serve nobody any more and go back to the owner: at once, or when the answer has ended also as HTTP."""
        self._user = None
        self.resume()
        if is_whole:
            self._owner.release(self)
        else:
            self._linger = self._loop.call_later(LINGER_S, self.abort)

    def abort(self) -> None:
        """Close at once; nobody is told."""
        self._user = None
        self._transport.abort()

    def pause(self) -> None:
        if not self._is_paused and not self._transport.is_closing():
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._is_paused and not self._transport.is_closing():
            self.last_at = self._loop.time()
            self._transport.resume_reading()
        self._is_paused = False

    @property
    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def renew(self) -> bool:
        """Make ready for another request; False when that cannot be."""
        http = self._http
        if http.our_state is not h11.DONE or http.their_state is not h11.DONE or http.trailing_data[0]:
            return False
        if self._transport.is_closing() or self._transport.get_write_buffer_size():
            return False
        self.resume()
        http.start_next_cycle()
        self.last_at = self._loop.time()
        return True

    # -- what the loop does ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        self._is_answered = True
        self.last_at = self._loop.time()
        self._read(data)

    def eof_received(self) -> bool:
        self._read(b"")
        return False

    def connection_lost(self, exc: Optional[Exception]) -> None:  # noqa: ARG002 - any end is the same to us
        if self._linger is not None:
            self._linger.cancel()
        self._owner.forget(self)
        self._break("the engine closed the connection")

    def _read(self, data: bytes) -> None:
        if self._user is None and self._linger is None:
            self.abort()  # an idle connection has nothing to say but that it ends
            return
        response: Optional[h11.Response] = None
        pieces: list[bytes] = []
        is_whole = is_broken = False
        try:
            self._http.receive_data(data)
            for event in iter(self._http.next_event, h11.NEED_DATA):
                if isinstance(event, h11.Data):
                    pieces.append(bytes(event.data))
                elif isinstance(event, h11.Response):
                    response = event
                elif not isinstance(event, h11.InformationalResponse):
                    is_whole = isinstance(event, h11.EndOfMessage)
                    is_broken = not is_whole
                    break
        except h11.RemoteProtocolError:
            is_broken = True
        self._tell(response, b"".join(pieces), is_whole)
        if is_broken or self._is_head_too_long(len(data)):
            self._break("the engine broke off or does not speak HTTP")
            self.abort()

    def _tell(self, response: Optional[h11.Response], data: bytes, is_whole: bool) -> None:
        if self._user is not None:
            if response is not None or data or is_whole:
                self._user.received(response, data, is_whole)
        elif is_whole and self._linger is not None:
            self._linger.cancel()
            self._linger = None
            self._owner.release(self)

    def _is_head_too_long(self, received: int) -> bool:
        if self._http.their_state is not h11.SEND_RESPONSE:
            return False
        self._head_bytes += received
        return self._head_bytes > HEAD_LIMIT_BYTES

    def _break(self, reason: str) -> None:
        user, self._user = self._user, None
        if user is not None:
            user.broke(reason, not self._is_answered)


def header(response: h11.Response, name: bytes) -> str:
    """The first header of this name, in lower case, or an empty text."""
    values: Any = (value for key, value in response.headers if key == name)
    return next(values, b"").decode("latin-1")
