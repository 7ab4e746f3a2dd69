"""The session of a link, as both ends run it: joins writes, sends heartbeats, notices silence, outlives the loss of a
connection for a while, ends once."""

from __future__ import annotations

import asyncio
import logging
from math import inf
from typing import ClassVar, Optional, TypeVar

from firstkit.links.frames import Decoder, FrameError, FrameType, Outbox, Payload
from firstkit.links.kept import COUNT, Kept
from firstkit.wire import WireError, decode

logger = logging.getLogger(__name__)

PING_S = 5.0
SILENCE_S = 15.0
LINGER_S = 1.0
"""How long an ended connection may take to write what it still has."""
GATHER_S = 0.002
"""What may wait is written this long after the last write: under load one write, and one TLS record, carries much."""
GATHER_BYTES = 64 * 1024
"""No write becomes cheaper by being larger than this: what has gathered goes at once."""
HEARD_BYTES = 256 * 1024
"""So much may arrive before the other end is told, between heartbeats."""
_TICKS_PER_PING = 5
_TRANSPORT, _UNACKNOWLEDGED = 1, 2
"""Why nothing more should be sent: each a bit."""

T = TypeVar("T")


class Connection(asyncio.Protocol):
    """Both ends extend it. Their ``data_received`` counts what is ``received``, calls ``tell`` when that has come to
    ``_tell_at``, and sets ``quiet_ticks`` to 0. ``on_end`` comes exactly once, last.

    It begins when the hellos were exchanged, with ``attach``. With ``resume_s``, the loss of its transport takes it
    down, and ``attach`` up again; meanwhile what is sent is kept. After ``resume_s`` without one, or with none, it
    ends. Times are seconds.
    """

    write_limit: ClassVar[int] = 256 * 1024
    """With more than this waiting in the transport, in bytes, ``on_full`` comes."""
    kept_limit: ClassVar[int] = 4 * 1024 * 1024
    """With more than this not acknowledged, in bytes, ``on_full`` comes too."""
    kept_most: ClassVar[float] = inf
    """With more than this not acknowledged the session ends: nobody honest lets it come to that."""

    def __init__(self, ping_s: float = PING_S, silence_s: float = SILENCE_S, resume_s: float = 0.0) -> None:
        self.is_up = False
        self.decoder = Decoder()
        self.loop = asyncio.get_running_loop()
        self.received = 0
        """Bytes of the other end's session."""
        self._transport: Optional[asyncio.Transport] = None
        self._wire: Optional[_Wire] = None
        self._has_ended = False
        self._resume_s = resume_s
        self._kept = Kept() if resume_s > 0 else None
        self._tell_at: float = HEARD_BYTES if resume_s > 0 else inf
        self._fullness = 0
        self._outbox = Outbox()
        self._is_flush_due = False
        self._gathering: Optional[asyncio.TimerHandle] = None
        self._flushed_at = 0.0
        self._tick_s = ping_s / _TICKS_PER_PING
        self._ticks_allowed = round(silence_s / self._tick_s)
        self._ticks = 0
        self._timer: Optional[asyncio.TimerHandle] = None
        """Of the next tick while it is up, of its end while it is down."""
        self._down: asyncio.Future[None] = self.loop.create_future()
        self.quiet_ticks = 0
        """Ticks since the other end was heard: whoever receives sets it to 0. Ticks and not times, since a process
        that stood still itself hears nothing either, and must not blame the other end for that."""

    @property
    def has_ended(self) -> bool:
        return self._has_ended

    @property
    def is_full(self) -> bool:
        """Nothing should be sent now that can wait."""
        return self._fullness != 0 or self._transport is None

    async def until_down(self) -> None:
        """Until the transport of now is gone."""
        await asyncio.shield(self._down)

    # -- for whoever extends it --------------------------------------------------------------------------------

    def on_up(self) -> None:
        """There is a transport, for the first time or again."""

    def on_down(self) -> None:
        """The transport is gone; ``on_up`` or ``on_end`` follows."""

    def on_end(self) -> None:
        """The session is over."""

    def on_full(self) -> None:
        """Too much waits to be written, or to be acknowledged."""

    def on_room(self) -> None:
        """Not any more."""

    def fill(self) -> None:
        """What was sent is about to be written: more may be sent."""

    # -- transports --------------------------------------------------------------------------------------------

    def can_resume(self, heard: int) -> bool:
        """Whether it can go on with another end that has ``heard`` bytes of it."""
        return not self._has_ended and self._kept is not None and self._kept.can_resume(heard)

    def attach(self, transport: asyncio.Transport, heard: int = 0) -> None:
        """Go on over ``transport`` after the ``heard`` bytes that the other end has."""
        self._let_go()
        self._down = self.loop.create_future()
        self._transport = transport
        transport.set_write_buffer_limits(high=self.write_limit)
        self._wire = _Wire(self)
        transport.set_protocol(self._wire)
        self.quiet_ticks = 0
        self.is_up = True
        self._timer = self.loop.call_later(self._tick_s, self._tick)
        if self._kept is not None and self._kept.sent > heard:
            transport.writelines(list(self._kept.since(heard)))
        self.flush_soon()
        self.on_up()

    def drop(self) -> None:
        """The transport is gone or of no use: wait for another, or end."""
        if self._has_ended or self._transport is None:
            return
        if self._kept is None:
            self.hang_up()
            return
        self._let_go()
        self.is_up = False
        self._timer = self.loop.call_later(self._resume_s, self._end)
        self.on_down()

    def lost(self, wire: asyncio.BaseProtocol, exc: Optional[Exception]) -> None:
        """A transport is gone; nothing happens when another took its place before that was said."""
        if wire is not self._wire:
            return
        if exc is None or isinstance(exc, OSError):
            self.drop()
        else:  # a fault of ours while frames were dealt with: nobody knows which of them were
            self.hang_up()

    def hang_up(self) -> None:
        """End the session. What was sent before still leaves, if the other end takes it within LINGER_S."""
        if self._has_ended:
            return
        self._write()
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()
            self.loop.call_later(LINGER_S, transport.abort)
        self._end()

    def pause_writing(self) -> None:
        self._set_fullness(self._fullness | _TRANSPORT)

    def resume_writing(self) -> None:
        self._set_fullness(self._fullness & ~_TRANSPORT)

    # -- frames ------------------------------------------------------------------------------------------------

    def send(self, kind: FrameType, stream: int, payload: Payload = b"") -> None:
        """Write a frame at the end of this turn of the loop, after all that gathered; nothing happens on a session
        that ended. Raises FrameError for a payload that is too large."""
        if self._has_ended:
            return
        self._outbox.put(kind, stream, payload)
        if not self._is_flush_due:
            self.flush_soon()

    def gather(self, kind: FrameType, stream: int, payload: Payload) -> None:
        """Write a frame together with others: at the end of this turn where the last write is GATHER_S ago, else when
        it is, or with the next frame that is sent. Frames keep their order. Else as ``send``."""
        if self._has_ended:
            return
        self._outbox.put(kind, stream, payload)
        if not self._is_flush_due and (self._gathering is None or self._outbox.size_bytes >= GATHER_BYTES):
            self._gather()

    def flush_soon(self) -> None:
        """``fill``, then write, at the end of this turn of the loop."""
        if not self._is_flush_due:
            self._is_flush_due = True
            self.loop.call_soon(self._flush)

    def tell(self) -> None:
        """Show that we are here, and how much has arrived."""
        if self._kept is None:
            self.send(FrameType.PING, 0)
        else:
            self._tell_at = float(self.received + HEARD_BYTES)
            self.send(FrameType.PING, 0, COUNT.pack(self.received))

    def on_ping(self, payload: bytes) -> None:
        """The other end is alive, and tells what it has. Raises FrameError when it cannot have that."""
        if self._kept is None:
            return
        if len(payload) != COUNT.size:
            raise FrameError(f"a PING of {len(payload)} bytes")
        self._kept.acknowledge(COUNT.unpack(payload)[0])
        if self._fullness & _UNACKNOWLEDGED and self._kept.size_bytes <= self.kept_limit // 2:
            self._set_fullness(self._fullness & ~_UNACKNOWLEDGED)

    # -- inside ------------------------------------------------------------------------------------------------

    def _gather(self) -> None:
        wait_s = self._flushed_at + GATHER_S - self.loop.time()
        if wait_s <= 0 or self._outbox.size_bytes >= GATHER_BYTES:
            self.flush_soon()
        else:
            self._gathering = self.loop.call_later(wait_s, self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if not self._has_ended:
            self.fill()
            self._write()

    def _write(self) -> None:
        parts = self._outbox.take()
        if not parts:
            return
        self._flushed_at = self.loop.time()
        if self._kept is not None:
            parts = self._keep(self._kept, parts)
        if self._transport is None:
            return
        if len(parts) == 1:
            self._transport.write(parts[0])
        else:
            self._transport.writelines(parts)

    def _keep(self, kept: Kept, parts: list[Payload]) -> list[Payload]:
        written: list[Payload] = [*kept.add(parts)]
        if kept.size_bytes > self.kept_limit:
            self._set_fullness(self._fullness | _UNACKNOWLEDGED)
            if kept.size_bytes > self.kept_most:
                logger.warning("the other end of a link acknowledges nothing", extra={"action": "link_full"})
                self._let_go()
                self._end()
        return written

    def _set_fullness(self, fullness: int) -> None:
        before, self._fullness = self._fullness, fullness
        if fullness and not before:
            self.on_full()
        elif before and not fullness:
            self.on_room()

    def _tick(self) -> None:
        self.quiet_ticks += 1
        self._ticks += 1
        if self.quiet_ticks > self._ticks_allowed:
            logger.warning("the other end of a link is silent", extra={"action": "link_silent"})
            self.drop()
            return
        if self._ticks % _TICKS_PER_PING == 0:
            self.tell()
        self._timer = self.loop.call_later(self._tick_s, self._tick)

    def _let_go(self) -> None:
        """Have no transport any more; what it still brings or says is nobody's."""
        transport, self._transport = self._transport, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._down.done():
            self._down.set_result(None)
        if transport is not None:
            transport.set_protocol(_Nobody())
            transport.abort()
        self._set_fullness(self._fullness & ~_TRANSPORT)

    def _end(self) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        self.is_up = False
        self._outbox.take()
        self._kept = None
        if not self._down.done():
            self._down.set_result(None)
        for timer in (self._timer, self._gathering):
            if timer is not None:
                timer.cancel()
        self.on_end()


class _Wire(asyncio.Protocol):
    """What one transport knows of its session. Data goes straight there: this costs nothing for what arrives."""

    def __init__(self, session: Connection) -> None:
        self.data_received = session.data_received  # type: ignore[method-assign]
        self.pause_writing = session.pause_writing  # type: ignore[method-assign]
        self.resume_writing = session.resume_writing  # type: ignore[method-assign]
        self._session = session

    def connection_lost(self, exc: Optional[Exception]) -> None:
        self._session.lost(self, exc)


class _Nobody(asyncio.Protocol):
    """Whom a connection belongs to that was given up."""


def read_message(cls: type[T], payload: bytes) -> T:
    """The message in a payload; raises FrameError when it has not the shape of ``cls``."""
    try:
        return decode(cls, payload)
    except WireError as exc:
        raise FrameError(f"a message of the wrong shape: {exc}") from None
