"""Server-sent events as bytes: where one ends, and what is in it. Pure."""

from __future__ import annotations

import re
from typing import Optional

EVENT_LIMIT_BYTES = 8 * 1024 * 1024

_LINE_END = rb"(?:\r\n|\n|\r(?!\n))"
_BLANK_LINE = re.compile(_LINE_END + _LINE_END)  # and not {2}: so re skips to the next line end, five times as fast
_LONGEST_BLANK = 4
_LINE_ENDS = b"\r\n"
_BOM = b"\xef\xbb\xbf"


class EventTooLong(Exception):
    """An event is longer than any that an engine has reason to send."""


class EventSplitter:
    """Cuts a byte stream into whole events, however its bytes come in.

    Events are handed out without the blank line that ends them and with ``\\n`` for ``\\r\\n`` and ``\\r``, which end
    lines too. What comes after the last blank line stays in ``rest``: an event that is not whole. ``is_between``: there
    is none, so what comes next begins an event.
    """

    __slots__ = ("_buffer", "_limit", "_searched", "is_between")

    def __init__(self, limit_bytes: int = EVENT_LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._buffer = bytearray()
        self._searched = 0
        self.is_between = True

    @property
    def rest(self) -> bytes:
        return bytes(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """The events that are whole now; raises EventTooLong after losing them."""
        if self.is_between and b"\r" not in data:
            if data.find(b"\n\n") == len(data) - 2 > 0 and data[0] != 10:
                return [data[:-2]]  # one whole event, as nearly always
            *pieces, rest = data.split(b"\n\n")
            self._buffer += rest.lstrip(_LINE_ENDS)
        else:
            self._buffer += data
            pieces = self._cut()
        self.is_between = not self._buffer
        if len(self._buffer) > self._limit:
            raise EventTooLong
        return [event for event in map(_tidied, pieces) if event]

    def _cut(self) -> list[bytes]:
        """Take the whole events out of the buffer; each byte of it is searched once."""
        pieces = []
        start = 0
        for blank in _BLANK_LINE.finditer(self._buffer, self._searched):
            pieces.append(bytes(self._buffer[start : blank.start()]))
            start = blank.end()
        while start < len(self._buffer) and self._buffer[start] in _LINE_ENDS:
            start += 1
        del self._buffer[:start]
        self._searched = max(0, len(self._buffer) - _LONGEST_BLANK + 1)
        return pieces


def _tidied(event: bytes) -> bytes:
    event = event.strip(_LINE_ENDS)
    return event.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in event else event


def payload_of(event: bytes) -> Optional[bytes]:
    """The data of an event; None when it has none (a comment, a bare ``event:``). A byte order mark is passed over."""
    if event.startswith(_BOM):
        event = event[len(_BOM) :]
    if b"\n" not in event:
        return event[5:].strip() if event.startswith(b"data:") else None
    lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def is_named_error(event: bytes) -> bool:
    """Whether an event carries the name ``error``."""
    return b"\n" in event and any(line.split(b":", 1)[1].strip() == b"error" for line in _event_lines(event))


def _event_lines(event: bytes) -> list[bytes]:
    return [line for line in event.split(b"\n") if line.startswith(b"event:")]
