"""Answers parsed by h11: pure Python, so it runs wherever a pilot does."""

from __future__ import annotations

from typing import Any, Optional

import h11

from firstkit.engines.parsing import HEAD_LIMIT_BYTES, BrokenAnswer, HeadReader, ResponseHead

_REQUEST = h11.Request(method="POST", target="/", headers=[("host", "engine"), ("content-length", "0")])
"""Stands for whatever was asked: h11 reads no answer before it has seen a request go out."""


class H11Parser:
    """A ResponseParser. What h11 lets pass is refused by its HeadReader or seen here."""

    __slots__ = ("_http", "_overhead", "_reader", "head", "is_over", "is_whole")

    def __init__(self) -> None:
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT_BYTES)
        self._reader = HeadReader()
        self._start()

    def _start(self) -> None:
        self.head: Optional[ResponseHead] = None
        self.is_over = self.is_whole = False
        self._overhead = 0
        self._http.send(_REQUEST)
        self._http.send(h11.EndOfMessage())

    # -- a ResponseParser --------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> bytes:
        pieces: list[bytes] = []
        try:
            self._http.receive_data(data)
            for event in iter(self._http.next_event, h11.NEED_DATA):
                if isinstance(event, h11.Data):
                    pieces.append(bytes(event.data))
                else:
                    self._note(event)
                if self.is_over:
                    break
        except (h11.RemoteProtocolError, BrokenAnswer, ValueError):  # ValueError: a number of thousands of digits
            self.is_over = True
        if pieces:
            self._overhead = 0
        else:
            self._count(len(data))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def end(self) -> None:
        if self.is_over:
            self._http.receive_data(b"")
        else:
            self.feed(b"")
        self.is_over = True

    def renew(self) -> bool:
        http = self._http
        if not self.is_whole or http.our_state is not h11.DONE or http.their_state is not h11.DONE:
            return False
        if http.trailing_data != (b"", False):
            return False
        http.start_next_cycle()
        self._start()
        return True

    # -- what h11 says -----------------------------------------------------------------------------------------

    def _note(self, event: Any) -> None:
        if isinstance(event, h11.EndOfMessage):
            self.is_over = self.is_whole = True
        elif isinstance(event, (h11.Response, h11.InformationalResponse)):
            self._reader.start()
            for name, value in event.headers:
                self._reader.add(bytes(name), bytes(value))
            self.head = self._reader.head(event.http_version.decode("ascii"), event.status_code)
        else:  # h11.PAUSED, or the connection was closed
            self.is_over = True

    def _count(self, size: int) -> None:
        """Bound what comes without a body: heads, a chunk's extensions, trailers."""
        self._overhead += size
        if self._overhead > HEAD_LIMIT_BYTES and not self.is_whole:
            self.is_over = True
