"""One request at the pilot: its body as it arrives, then its answer on the way back."""

from __future__ import annotations

from typing import Optional

from firstkit.links.connection import Connection
from firstkit.links.frames import MAX_PAYLOAD, FrameError, FrameType, Stage, Streams
from firstkit.links.messages import Exchange, Head, Open, Outcome, Tail, Upstream
from firstkit.wire import encode

BY_GATEWAY = 1
BY_LINK = 2


class Answer:
    """One stream at the pilot: gathers the body, then is the Sink of the exchange that answers it."""

    __slots__ = (
        "_connection",
        "_exchange",
        "_holds",
        "_missing",
        "_number",
        "_parts",
        "_request",
        "_streams",
        "_upstream",
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
        if self._exchange is not None:
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

    def on_head(self, head: Head) -> None:
        self._send(FrameType.HEAD, encode(head))

    def on_data(self, data: bytes) -> None:
        if len(data) <= MAX_PAYLOAD:
            if data:
                self._send(FrameType.DATA, data)
            return
        for start in range(0, len(data), MAX_PAYLOAD):
            self._send(FrameType.DATA, data[start : start + MAX_PAYLOAD])

    def on_tail(self, tail: Tail) -> None:
        self._send(FrameType.TAIL, encode(tail))
        self._streams.finish(self._number)

    def _send(self, kind: FrameType, payload: bytes) -> None:
        if self.stage is not Stage.FINISHED:
            self._connection.send(kind, self._number, payload)
