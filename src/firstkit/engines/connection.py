"""One HTTP/1.1 connection to an engine: one exchange at a time, no decisions of its own."""

from __future__ import annotations

import asyncio
from typing import Callable, Optional, Protocol, cast

from firstkit.clock import monotonic
from firstkit.engines.familiar import FamiliarHead, learn
from firstkit.engines.parsing import ResponseHead, ResponseParser

JOINED_BYTES = 64 * 1024
"""Head and body up to this size are joined. Of a larger one at most a slice is, by loops that write one buffer."""
LESSONS = 8
"""So many heads in a row may be learnt of which none is seen again; then each is different, and no more are."""
SLICE_BYTES = 256 * 1024
"""So much of a large body is given to the transport at once; what the kernel does not take of it may be copied."""


class User(Protocol):
    """The exchange that a connection serves."""

    def began(self) -> None:
        """The first byte of an answer came: the request cannot be sent again."""

    def answered(self, head: ResponseHead) -> None:
        """The head of the answer is complete."""

    def received(self, data: bytes, now: float) -> None:
        """Some of the body; never empty."""

    def whole(self) -> None:
        """The answer came to its end as HTTP counts it."""

    def broke(self, reason: str, is_untouched: bool) -> None:
        """The connection is of no use any more; ``is_untouched``: not one byte of an answer came."""


class Owner(Protocol):
    """The pool of connections."""

    def opened(self, connection: Connection) -> None:
        """The connection is made."""

    def linger(self, connection: Connection) -> None:
        """The connection serves nobody, but its answer has yet to end as HTTP."""

    def release(self, connection: Connection) -> None:
        """The connection serves nobody and its answer is over."""

    def forget(self, connection: Connection) -> None:
        """The connection is closed, or soon will be."""


class Connection(asyncio.Protocol):
    """Sends a request for a User, tells it what comes. After ``let_go`` or ``abort`` the User hears nothing more.

    ``last_at``: when the last byte came, some of the request was taken, or the User let go; monotonic.
    """

    __slots__ = (
        "_familiar",
        "_first",
        "_is_answered",
        "_is_full",
        "_is_lingering",
        "_is_paused",
        "_lessons",
        "_made",
        "_may_be_kept",
        "_owner",
        "_parser",
        "_transport",
        "_unsent",
        "_user",
        "_was_recognised",
        "last_at",
    )

    def __init__(self, owner: Owner, parser: ResponseParser, made: Callable[[Connection], None]) -> None:
        """``made`` is called once it can be sent on."""
        self._owner = owner
        self._parser = parser
        self._made = made
        self._transport: asyncio.Transport
        self._user: Optional[User] = None
        self._unsent: Optional[memoryview] = None
        self._is_answered = False
        self._is_full = False
        self._is_lingering = False
        self._is_paused = False
        self._may_be_kept = True
        self._familiar: Optional[FamiliarHead[ResponseHead]] = None
        self._first = b""
        self._lessons = LESSONS
        self._was_recognised = False
        self.last_at = monotonic()

    # -- what users and the owner do ---------------------------------------------------------------------------

    def send(self, user: User, head: bytes, body: bytes, is_last: bool) -> None:
        """``is_last``: the head says that no other request follows."""
        self._user = user
        self._is_answered = False
        self._may_be_kept = not is_last
        self.last_at = monotonic()
        if len(body) <= JOINED_BYTES:
            self._transport.write(head + body)
        else:
            view = memoryview(body)
            self._transport.writelines((head, view[:SLICE_BYTES]))
            self._unsent = view[SLICE_BYTES:] or None
            self._send_on()

    def let_go(self) -> None:
        """Serve nobody any more and go back to the owner: at once, or when the answer has ended also as HTTP."""
        self._user = None
        self.resume()
        self.last_at = monotonic()
        if self._was_recognised or self._parser.is_over:
            self._owner.release(self)
        else:
            self._is_lingering = True
            self._owner.linger(self)

    def abort(self) -> None:
        """Close at once; nobody is told."""
        self._user = None
        self._unsent = None
        self._is_lingering = False
        self._owner.forget(self)
        self._transport.abort()

    def pause(self) -> None:
        if not self._is_paused and not self._transport.is_closing():
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._is_paused and not self._transport.is_closing():
            self.last_at = monotonic()
            self._transport.resume_reading()
        self._is_paused = False

    @property
    def is_closing(self) -> bool:
        return self._transport.is_closing()

    @property
    def is_whole(self) -> bool:
        """Whether the answer came to its end as HTTP counts it."""
        return self._was_recognised or self._parser.is_whole

    def renew(self) -> bool:
        """Make ready for another request; False when that cannot be."""
        transport = self._transport
        if not self._may_be_kept or self._unsent is not None or transport.is_closing():
            return False
        if transport.get_write_buffer_size():
            return False
        if self._was_recognised:
            self._was_recognised = False
            return True
        head, data, self._first = self._parser.head, self._first, b""
        if not self._parser.renew():
            return False
        if head is not None and data and self._lessons:
            self._lessons -= 1
            self._familiar = learn(data, head)
        return True

    # -- what the loop does ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._owner.opened(self)
        self._made(self)

    def data_received(self, data: bytes) -> None:
        user = self._user
        if user is None:
            self._read_alone(data)
            return
        self.last_at = now = monotonic()
        if self._familiar is not None and not self._is_answered and self._is_recognised(user, data, self._familiar):
            return
        parser = self._parser
        body = self._read_head(user, data) if parser.head is None else parser.feed(data)
        if body and self._user is user:
            user.received(body, now)
        if parser.is_over and self._user is user:
            self._end(user)

    def eof_received(self) -> bool:
        user = self._user
        if user is not None:
            self._parser.end()
            self._end(user)
        return False

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self.last_at = monotonic()
        self._send_on()

    def connection_lost(self, exc: Optional[Exception]) -> None:  # noqa: ARG002 - any end is the same to us
        self._owner.forget(self)
        self._unsent = None
        self._break("the engine closed the connection")

    # -- inside ------------------------------------------------------------------------------------------------

    def _send_on(self) -> None:
        """Give the transport as much of a large body as it takes."""
        while self._unsent is not None and not self._is_full:
            piece, rest = self._unsent[:SLICE_BYTES], self._unsent[SLICE_BYTES:]
            self._unsent = rest if rest else None
            self._transport.write(piece)

    def _is_recognised(self, user: User, data: bytes, familiar: FamiliarHead[ResponseHead]) -> bool:
        """Whether ``data`` is a whole answer with the head of one before it: then it is told without the parser."""
        body = familiar.body_of(data)
        if body is None:
            return False
        self._lessons = LESSONS
        self._is_answered = self._was_recognised = True
        user.began()
        user.answered(familiar.what)
        if body and self._user is user:
            user.received(body, self.last_at)
        if self._user is user:
            user.whole()
        return True

    def _read_head(self, user: User, data: bytes) -> bytes:
        is_first = not self._is_answered
        if is_first:
            self._is_answered = True
            user.began()
        body = self._parser.feed(data)
        head = self._parser.head
        self._first = data if is_first and self._parser.is_whole else b""
        if head is not None:
            user.answered(head)
        return body

    def _read_alone(self, data: bytes) -> None:
        """What comes for nobody: the end of an answer that said all; of an idle connection nothing should."""
        if not self._is_lingering:
            self.abort()
            return
        self._parser.feed(data)
        if self._parser.is_over:
            self._is_lingering = False
            self._owner.release(self)

    def _end(self, user: User) -> None:
        if self._parser.is_whole:
            user.whole()
        else:
            self._break("the engine broke off or does not speak HTTP")
            self.abort()

    def _break(self, reason: str) -> None:
        user, self._user = self._user, None
        if user is not None:
            user.broke(reason, not self._is_answered)
