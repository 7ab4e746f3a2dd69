"""One framed connection, as both ends of a link run it: joins writes, sends heartbeats, notices silence, ends once."""

from __future__ import annotations

import asyncio
import logging
from typing import Optional, TypeVar, cast

from firstkit.links.frames import Decoder, FrameError, FrameType, Outbox, Payload
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
_TICKS_PER_PING = 5

T = TypeVar("T")


class Connection(asyncio.Protocol):
    """Both ends extend it: ``data_received`` feeds ``decoder``, ``on_end`` comes exactly once, last.

    Times are seconds. ``is_up`` is set by the end once the hellos were exchanged; heartbeats are sent from then on,
    silence is counted from the start.
    """

    def __init__(self, ping_s: float = PING_S, silence_s: float = SILENCE_S) -> None:
        self.is_up = False
        self.decoder = Decoder()
        self.loop: asyncio.AbstractEventLoop
        self._transport: Optional[asyncio.Transport] = None
        self._has_ended = False
        self._outbox = Outbox()
        self._is_flush_due = False
        self._gathering: Optional[asyncio.TimerHandle] = None
        self._flushed_at = 0.0
        self._tick_s = ping_s / _TICKS_PER_PING
        self._ticks_allowed = round(silence_s / self._tick_s)
        self._ticks = 0
        self._timer: Optional[asyncio.TimerHandle] = None
        self.quiet_ticks = 0
        """Ticks since the other end was heard: whoever receives sets it to 0. Ticks and not times, since a process
        that stood still itself hears nothing either, and must not blame the other end for that."""

    @property
    def has_ended(self) -> bool:
        return self._has_ended

    def on_end(self) -> None:
        """The connection is gone, or was given up."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.loop = asyncio.get_running_loop()
        self._transport = cast(asyncio.Transport, transport)
        self._timer = self.loop.call_later(self._tick_s, self._tick)

    def connection_lost(self, exc: Optional[Exception]) -> None:  # noqa: ARG002 - asyncio's signature
        self._end()

    def send(self, kind: FrameType, stream: int, payload: Payload = b"") -> None:
        """Write a frame at the end of this turn of the loop, after all that gathered; nothing happens on a connection
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

    def fill(self) -> None:
        """What was sent is about to be written: more may be sent."""

    def hang_up(self) -> None:
        """End the connection. What was sent before still leaves, if the other end takes it within LINGER_S."""
        if self._has_ended or self._transport is None:
            return
        self._write()
        self._transport.close()
        self.loop.call_later(LINGER_S, self._transport.abort)
        self._end()

    def set_write_limit(self, size_bytes: int) -> None:
        """How much may wait to be written before ``pause_writing`` comes."""
        if self._transport is not None:
            self._transport.set_write_buffer_limits(high=size_bytes)

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
        if self._transport is None or not parts:
            return
        self._flushed_at = self.loop.time()
        if len(parts) == 1:
            self._transport.write(parts[0])
        else:
            self._transport.writelines(parts)

    def _tick(self) -> None:
        self.quiet_ticks += 1
        self._ticks += 1
        if self.quiet_ticks > self._ticks_allowed:
            logger.warning("the other end of a link is silent", extra={"action": "link_silent"})
            self.hang_up()
            return
        if self.is_up and self._ticks % _TICKS_PER_PING == 0:
            self.send(FrameType.PING, 0)
        self._timer = self.loop.call_later(self._tick_s, self._tick)

    def _end(self) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        self.is_up = False
        self._outbox.take()
        for timer in (self._timer, self._gathering):
            if timer is not None:
                timer.cancel()
        self.on_end()


def read_message(cls: type[T], payload: bytes) -> T:
    """The message in a payload; raises FrameError when it has not the shape of ``cls``."""
    try:
        return decode(cls, payload)
    except WireError as exc:
        raise FrameError(f"a message of the wrong shape: {exc}") from None
