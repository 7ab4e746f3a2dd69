"""One request at the pilot: its body as it arrives, then its answer on the way back, as far as the window lets it."""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Optional

from firstkit.links.connection import Connection
from firstkit.links.frames import LIMIT_BYTES, MAX_PAYLOAD, TAKEN, FrameError, FrameType, Payload, Stage, Streams
from firstkit.links.messages import Exchange, Head, Open, Outcome, Tail, Upstream
from firstkit.wire import encode

BY_GATEWAY = 1
BY_LINK = 2
BY_WINDOW = 4
_HELD_FROM = MAX_PAYLOAD
"""With this many bytes left of LIMIT_BYTES, WINDOW_BYTES are unacknowledged."""


class Answer:
    """One stream at the pilot: gathers the body, then is the Sink of the exchange that answers it.

    The exchange is held while the window is used up. What it had under way still goes, up to LIMIT_BYTES; what is more
    (one event may be megabytes) waits here, and so does the tail behind it.
    """

    __slots__ = (
        "_connection",
        "_exchange",
        "_holds",
        "_missing",
        "_number",
        "_parts",
        "_request",
        "_room",
        "_streams",
        "_tail",
        "_upstream",
        "_waiting",
        "stage",
    )

    def __init__(
        self, connection: Connection, streams: Streams[Answer], upstream: Upstream, number: int, request: Open
    ) -> None:
        self.stage = Stage.RECEIVING
        self._connection = connection
        self._streams = streams
        self._upstream = upstream
        self._number = number
        self._request = request
        self._missing = request.body_bytes
        self._parts: list[bytes] = []
        self._exchange: Optional[Exchange] = None
        self._holds = 0
        self._room = LIMIT_BYTES
        self._waiting: deque[Payload] = deque()
        self._tail: Optional[Tail] = None

    def take(self, part: bytes) -> None:
        """A piece of the body. Raises FrameError for more than was announced."""
        self._missing -= len(part)
        if self._missing < 0:
            raise FrameError(f"more body for stream {self._number} than was announced")
        self._parts.append(part)
        self.start_if_complete()

    def start_if_complete(self) -> None:
        """Open the exchange once the whole body is here."""
        if self._missing:
            return
        self.stage = Stage.SERVING
        body = b"".join(self._parts)
        self._parts.clear()
        self._exchange = self._upstream.open(self._request, body, self)
        if self._holds:
            self._exchange.pause()

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        self._waiting.clear()
        if self._tail is not None:
            self.on_tail(dataclasses.replace(self._tail, outcome=Outcome.CANCELLED))  # it was not delivered whole
        elif self._exchange is not None:
            self._exchange.cancel()
        else:
            self.on_tail(Tail(Outcome.CANCELLED))

    def hold(self, by: int) -> None:
        """Pause for one reason or several (a sum of BY_...); the exchange goes on when none is left."""
        if self._exchange is not None and not self._holds:
            self._exchange.pause()
        self._holds |= by

    def release(self, by: int) -> None:
        was_held, self._holds = self._holds, self._holds & ~by
        if self._exchange is not None and was_held and not self._holds:
            self._exchange.resume()

    def acknowledge(self, payload: bytes) -> None:
        """A RESUME came. Raises FrameError when it acknowledges what was not sent."""
        if len(payload) != TAKEN.size:
            raise FrameError(f"a RESUME of {len(payload)} bytes for stream {self._number}")
        self._room += TAKEN.unpack(payload)[0]
        if self._room > LIMIT_BYTES:
            raise FrameError(f"more was acknowledged of stream {self._number} than was sent")
        self._send_waiting()
        if self._tail is not None and not self._waiting:
            self.on_tail(self._tail)
        self.release(BY_GATEWAY if self._room <= _HELD_FROM else BY_GATEWAY | BY_WINDOW)

    # -- the Sink ----------------------------------------------------------------------------------------------

    def on_head(self, head: Head) -> None:
        self._send(FrameType.HEAD, encode(head))

    def on_data(self, data: bytes) -> None:
        size = len(data)
        if not size or self.stage is not Stage.SERVING:
            return  # after a RESET nobody wants more, and nobody would acknowledge it
        if size <= self._room and size <= MAX_PAYLOAD:
            self._room -= size
            self._connection.gather(FrameType.DATA, self._number, data)
        else:
            self._waiting.append(data)
            self._send_waiting()
        if self._room <= _HELD_FROM:
            self.hold(BY_WINDOW)

    def on_tail(self, tail: Tail) -> None:
        if self._waiting:
            self._tail = tail
            return
        self._send(FrameType.TAIL, encode(tail))
        self._streams.finish(self._number)

    # -- inside ------------------------------------------------------------------------------------------------

    def _send_waiting(self) -> None:
        while self._waiting and self._room:
            data = memoryview(self._waiting.popleft())
            size = min(len(data), MAX_PAYLOAD, self._room)
            if size < len(data):
                self._waiting.appendleft(data[size:])
            self._room -= size
            self._connection.gather(FrameType.DATA, self._number, data[:size])

    def _send(self, kind: FrameType, payload: bytes) -> None:
        if self.stage is not Stage.FINISHED:
            self._connection.send(kind, self._number, payload)
