"""The answers of engines as HTTP/1.1: the contract of their parsers, what both refuse, the choice of one. No I/O."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Callable, NamedTuple, Optional, Protocol

HEAD_LIMIT_BYTES = 64 * 1024
"""Of one head, of all heads before an answer, of what a body needs beside its data: more is refused."""
_FRAMING = (b"content-length", b"transfer-encoding")
_READ = frozenset((*_FRAMING, b"content-type", b"content-encoding"))
_WITHOUT_BODY = (204, 304)


class ResponseHead(NamedTuple):
    """What is read of a head. The two texts are empty where the header is missing.

    ``lasts_until_eof``: only the end of the connection ends the body.
    """

    status: int
    content_type: str
    content_encoding: str
    is_chunked: bool
    lasts_until_eof: bool


class ResponseParser(Protocol):
    """Reads the answers on one connection, one after the other; informational ones are skipped.

    ``head``: of the answer that is being read, once it is complete. ``is_over``: the answer is whole, or can never be;
    then nothing more may be fed until ``renew``. ``is_whole``: it came to its end as HTTP counts it.
    """

    head: Optional[ResponseHead]
    is_over: bool
    is_whole: bool

    def feed(self, data: bytes) -> bytes:
        """What ``data`` brings of the body; never raises."""

    def end(self) -> None:
        """The connection ended: the answer is over."""

    def renew(self) -> bool:
        """Make ready for the next answer; False when none may come: after one that was not whole, that said so, or
        that more bytes came after."""


class BrokenAnswer(Exception):
    """An answer that is no HTTP/1.x, or of which two readers might not see the same end."""


class HeadReader:
    """Takes the headers of one answer after the other."""

    __slots__ = ("_found", "_is_doubtful", "_size")

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._found: dict[bytes, bytes] = {}
        self._is_doubtful = False
        self._size = 0

    def add(self, name: bytes, value: bytes) -> None:
        self._size += len(name) + len(value)
        name = name.lower()
        if name not in _READ:
            return
        if name not in self._found:
            self._found[name] = value
        elif name in _FRAMING:
            self._is_doubtful = True

    def head(self, version: str, status: int) -> Optional[ResponseHead]:
        """The head with the headers that were added; None for an informational one. Raises BrokenAnswer."""
        found = self._found.get
        coding, length = found(b"transfer-encoding"), found(b"content-length")
        is_framed = coding is not None or length is not None
        if self._is_doubtful or self._size > HEAD_LIMIT_BYTES or version not in ("1.1", "1.0"):
            raise BrokenAnswer
        if coding is not None and (length is not None or version == "1.0" or coding.strip().lower() != b"chunked"):
            raise BrokenAnswer
        if status < 200:
            if status < 100 or status == 101 or is_framed:
                raise BrokenAnswer
            return None
        lasts_until_eof = not is_framed and status not in _WITHOUT_BODY
        kind, encoding = found(b"content-type", b""), found(b"content-encoding", b"")
        return _remembered(status, kind, encoding, coding is not None, lasts_until_eof)


@lru_cache(maxsize=64)
def _remembered(status: int, kind: bytes, encoding: bytes, is_chunked: bool, lasts_until_eof: bool) -> ResponseHead:
    """The heads of an engine differ little from one another."""
    return ResponseHead(status, _text(kind), _text(encoding).lower(), is_chunked, lasts_until_eof)


def _text(value: bytes) -> str:
    return value.strip().decode("latin-1")


@cache
def response_parser() -> Callable[[], ResponseParser]:
    """httptools where it is installed and strict (clusters have old ones that are not), else h11."""
    try:
        from firstkit.engines.parsing_httptools import HttptoolsParser
    except ImportError:
        pass
    else:
        if is_strict(HttptoolsParser):
            return HttptoolsParser
    from firstkit.engines.parsing_h11 import H11Parser

    return H11Parser


_CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
_BAD = (
    _CHUNKED + b"3\r\nabcXX0\r\n\r\n",
    _CHUNKED + b"3\nabc\r\n0\r\n\r\n",
    _CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n",
    _CHUNKED + b"fffffffffffffffff3\r\nabc\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: +3\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\ncontent-length : 3\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nx: y\ncontent-length: 3\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551619\r\n\r\nabc",
)


def is_strict(parser: Callable[[], ResponseParser]) -> bool:
    """Whether such a parser takes none of the bad answers for a good one."""
    for answer in _BAD:
        tried = parser()
        tried.feed(answer)
        if tried.is_whole:
            return False
    return True
