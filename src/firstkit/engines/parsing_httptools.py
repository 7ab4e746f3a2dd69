"""Answers parsed by httptools: C, a fifth of the cost of h11. Raises ImportError where it is not installed."""

from __future__ import annotations

from typing import Optional

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from firstkit.engines.parsing import HEAD_LIMIT_BYTES, BrokenAnswer, HeadReader, ResponseHead


class HttptoolsParser:
    """A ResponseParser. What httptools lets pass is refused by its HeadReader or seen here."""

    __slots__ = (
        "_feed",
        "_has_chunk",
        "_http",
        "_is_between",
        "_is_clean",
        "_overhead",
        "_pieces",
        "_reader",
        "head",
        "is_over",
        "is_whole",
        "on_body",
        "on_header",
    )

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._reader = HeadReader()
        self.on_body = self._pieces.append
        self.on_header = self._reader.add  # of trailers too, which count as bytes without a body
        self._http = HttpResponseParser(self)
        self._feed = self._http.feed_data
        self._start()

    def _start(self) -> None:
        self.head: Optional[ResponseHead] = None
        self.is_over = self.is_whole = False
        self._is_clean = True
        self._has_chunk = self._is_between = False
        self._overhead = 0

    # -- a ResponseParser --------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> bytes:
        if self._is_between and (body := _one_chunk(data)) is not None:
            self._overhead = 0
            return body
        try:
            self._feed(data)
        except (HttpParserError, HttpParserUpgrade):
            self.is_over = True
            self._is_clean = False
        self._is_between = self._has_chunk and not self.is_over and data.endswith(b"\r\n")
        pieces = self._pieces
        if self.is_whole and not self._ends_with(data):
            self._is_clean = False
        if not pieces:
            self._count(len(data))
            return b""
        self._overhead = 0
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return body

    def end(self) -> None:
        self.is_whole = self.is_whole or (not self.is_over and self.head is not None and self.head.lasts_until_eof)
        self.is_over = True
        self._is_clean = False

    def renew(self) -> bool:
        if not self.is_whole or not self._is_clean:
            return False
        self._start()
        return True

    # -- what httptools calls ----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.is_whole:
            raise BrokenAnswer
        self._reader.start()

    def on_headers_complete(self) -> None:
        version = self._http.get_http_version()
        self.head = self._reader.head(version, self._http.get_status_code())
        self._is_clean = version == "1.1"

    def on_chunk_header(self) -> None:
        self._has_chunk = False

    def on_chunk_complete(self) -> None:
        self._has_chunk = True

    def on_message_complete(self) -> None:
        if self.head is not None:
            self.is_over = self.is_whole = True
            self._is_clean = self._is_clean and self._http.should_keep_alive()

    # -- what httptools does not look at -----------------------------------------------------------------------

    def _count(self, size: int) -> None:
        """Bound what comes without a body: a head, a chunk's extensions, trailers."""
        self._overhead += size
        if self._overhead > HEAD_LIMIT_BYTES and not self.is_whole:
            self.is_over = True

    def _ends_with(self, data: bytes) -> bool:
        """Whether the answer ends where ``data`` does: httptools passes over line ends that follow it."""
        if self._pieces and self.head is not None and not self.head.is_chunked:
            return data.endswith(self._pieces[-1])
        return not data.endswith(b"\r\n\r\n\r\n")


def _one_chunk(data: bytes) -> Optional[bytes]:
    """The body of a chunk, where ``data`` is one whole chunk and nothing else, as it is nearly always in a stream of
    tokens: half the work of the parser, which need not see what leaves it where it was, before a chunk."""
    end = data.find(b"\r\n", 1, 5)
    if end < 0 or not data.endswith(b"\r\n"):
        return None
    size = len(data) - end - 4
    return data[end + 2 : -2] if size > 0 and data.startswith(b"%x\r\n" % size) else None
