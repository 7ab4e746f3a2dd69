"""The client's end of one inference request: one answer in our own framing, written straight to the connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Protocol

from firstkit.errors import ApiError
from firstkit.gateway.dialects import CHUNKS, Dialect
from firstkit.gateway.guard import error_head_and_body
from firstkit.links.messages import Exchange

logger = logging.getLogger("firstkit.gateway")

BUFFER_BYTES = 1024 * 1024
"""More than this waits for a slow client nowhere in the gateway."""
_LAST_CHUNK = b"0\r\n\r\n"
_STREAM_HEADERS = (
    b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
)
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class Wire(Protocol):
    """What a connection gives to the answer that is written on it."""

    transport: asyncio.Transport
    keeps_alive: bool
    """Whether it can serve another request after this one."""
    knows_chunks: bool
    """Whether the client speaks HTTP/1.1; to others a body of unknown length ends with the connection."""

    def common_headers(self) -> bytes:
        """The header lines of every answer, the date among them."""

    def answered(self) -> None:
        """The last byte of the answer is written."""


_NO_WIRE: Any = None
"""In place of the wire once an answer is over, so that request and client do not hold each other."""


class Client:
    """Writes one answer: an error, a plain body, or a stream that ends by ``done`` or by ``fail``.

    Nothing here waits. ``source`` is what the answer comes from: it is paused while the client reads slowly, and
    cancelled when the client is gone. After the end, and once the client is gone, all writing does nothing.
    """

    __slots__ = (
        "_dialect", "_gone", "_is_paused", "_source", "_wire", "_write", "has_begun", "is_gone", "is_over", "lines",
        "request_id", "was_quiet", "was_slow", "where",
    )  # fmt: skip

    def __init__(self, wire: Wire, request_id: str, dialect: Dialect = CHUNKS) -> None:
        self.request_id = request_id
        self.lines = b""
        """Header lines of every answer to this client, beside those of its kind."""
        self.where = b""
        """The header line that names the cluster where the request was last."""
        self.has_begun = False
        """Whether a body of unknown length is under way: an error cannot be a status any more."""
        self.is_over = False
        self.is_gone = False
        self.was_quiet = True
        """Nothing was written since somebody set this."""
        self.was_slow = False
        """The answer had to wait for the client, so that its times are not those of the replica."""
        self._dialect = dialect
        self._wire = wire
        self._write = wire.transport.write
        self._is_paused = False
        self._source: Exchange | None = None
        self._gone: asyncio.Future[None] | None = None

    # -- the connection tells ----------------------------------------------------------------------------------

    def hang_up(self) -> None:
        """The client is gone."""
        if not self.is_over and not self.is_gone:
            self.is_gone = self.is_over = True
            self._leave(self._source)

    def _leave(self, source: Exchange | None) -> None:
        """Tell whoever works or waits for this client."""
        self._wire = _NO_WIRE
        if source is not None:
            source.cancel()
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    def pause(self) -> None:
        """The client reads more slowly than the answer comes."""
        self._is_paused = self.was_slow = True
        if self._source is not None:
            self._source.pause()

    def resume(self) -> None:
        self._is_paused = False
        if self._source is not None:
            self._source.resume()

    # -- the relay asks ----------------------------------------------------------------------------------------

    @property
    def gone(self) -> asyncio.Future[None]:
        """Done when the client hung up."""
        if self._gone is None:
            self._gone = asyncio.get_running_loop().create_future()
            if self.is_gone:
                self._gone.set_result(None)
        return self._gone

    def listen_to(self, source: Exchange) -> None:
        """The answer comes from ``source`` now."""
        self._source = source
        if self.is_over:  # it hung up, or we gave up, since this was asked for
            source.cancel()
        elif self._is_paused:
            source.pause()

    def stop_source(self) -> None:
        """The rest of what comes from there is of no use. Here and not at its sink, which it holds: they would be a
        cycle, left to the garbage collector in each request."""
        if self._source is not None:
            self._source.cancel()

    # -- the answer --------------------------------------------------------------------------------------------

    def plain(self, content_type: str, body: bytes) -> None:
        """The whole answer at once."""
        if not self.is_over:
            lines = b"content-type: %b\r\ncontent-length: %d\r\n" % (content_type.encode("latin-1"), len(body))
            self._write(self._head(200, lines) + body)
            self._end()

    def begin(self, content_type: str | None = None) -> None:
        """Begin a body of unknown length: a stream of events, or a plain one of ``content_type``."""
        if self.is_over or self.has_begun:
            return
        self.has_begun = True
        self.was_quiet = False
        lines = _STREAM_HEADERS
        if content_type is not None:
            lines = b"content-type: %b\r\n" % content_type.encode("latin-1")
        if self._wire.knows_chunks:
            lines += b"transfer-encoding: chunked\r\n"
        else:
            self._wire.keeps_alive = False
        self._write(self._head(200, lines))

    def write(self, data: bytes) -> None:
        """A piece of the body that was begun."""
        if self.is_over:
            return
        self.was_quiet = False
        self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._wire.knows_chunks else data)
        if self._is_paused and self._wire.transport.get_write_buffer_size() > BUFFER_BYTES:
            logger.warning("an answer did not pause for a slow client", extra={"action": "slow_client"})
            self.abort()

    def comment(self, text: str) -> None:
        """A sign of life: keeps the connection alive and tells people; clients skip it."""
        self.begin()
        self.write(self._dialect.waiting(text))

    @property
    def end(self) -> bytes:
        """The good end of a stream of events that are not translated."""
        return self._dialect.done

    def done(self, end: bytes | None = None) -> None:
        """The one good ``end`` of a stream of events, where it is not the usual one."""
        self.begin()
        self._finish(self.end if end is None else end)

    def finish(self) -> None:
        """The good end of a plain body that was begun."""
        self._finish(b"")

    def fail(self, error: ApiError) -> None:
        """An error while it can still be one, else the error event, without ``[DONE]``: clients raise on it."""
        if self.has_begun:
            self._finish(self._dialect.error_event(error, self.request_id))
        elif not self.is_over:
            headers, body = error_head_and_body(error, self._dialect.error(error, self.request_id))
            self._write(self._head(self._dialect.status(error), header_lines(headers)) + body)
            self._end()

    def give_up(self, error: ApiError) -> None:
        """We end before the answer does."""
        if self.is_over:
            return
        source = self._source
        self.fail(error)
        self._leave(source)

    def abort(self) -> None:
        """Reset the connection: the one honest end of a body that broke and cannot say so."""
        if not self.is_over:
            self._wire.keeps_alive = False
            self._wire.transport.abort()
            self.hang_up()

    def _finish(self, last: bytes) -> None:
        if self.is_over:
            return
        if self._wire.knows_chunks:
            chunk = b"%x\r\n%b\r\n" % (len(last), last) if last else b""
            self._write(chunk + _LAST_CHUNK)
        elif last:
            self._write(last)
        self._end()

    def _end(self) -> None:
        self.is_over = True
        self._source = None
        wire, self._wire = self._wire, _NO_WIRE
        wire.answered()

    def _head(self, status: int, lines: bytes) -> bytes:
        return b"%b%b%b%b%b%b%b\r\n" % (
            status_line(status),
            self._wire.common_headers(),
            lines,
            self.lines,
            self.where,
            self._dialect.id_lines(self.request_id.encode()),
            b"" if self._wire.keeps_alive else b"connection: close\r\n",
        )


def header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Headers as they go over the wire."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def status_line(status: int) -> bytes:
    """The first line of an answer."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
