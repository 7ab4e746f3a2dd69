"""HTTP heads known again by their bytes: a peer sends the same head again and again, with another length. Pure."""

from __future__ import annotations

import re
from typing import Generic, Optional, TypeVar

LONGEST_HEAD_BYTES = 4096
MOST_DIGITS = 8
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([0-9]+)\r\n")

T = TypeVar("T")


class FamiliarHead(Generic[T]):
    """A head that was parsed and accepted on a connection, and ``what`` was read in it.

    The same bytes would be parsed and judged the same again; other digits in ``Content-Length`` change nothing but the
    length, and that is compared with what is there. A head of ours may hold a key: this is kept for as long as its
    connection lasts, no longer.
    """

    __slots__ = ("_after", "_before", "_digits_end", "_start", "what")

    def __init__(self, before: bytes, after: bytes, what: T) -> None:
        """``before`` and ``after`` the digits of the length, to the end of the head."""
        self._before = before
        self._after = after
        self._start = len(before)
        self._digits_end = len(before) + MOST_DIGITS + len(after)
        self.what = what

    def body_of(self, data: bytes) -> Optional[bytes]:
        """The body, where ``data`` is one whole message with this head and nothing else."""
        if not data.startswith(self._before):
            return None
        after, start = self._after, self._start
        end = data.find(after, start, self._digits_end)
        digits = data[start:end]
        begin = end + len(after)
        if end < 0 or not digits.isdigit() or int(digits) != len(data) - begin:
            return None
        return data[begin:]


def learn(data: bytes, what: T) -> Optional[FamiliarHead[T]]:
    """What is to be remembered of ``data``, which was parsed as one whole message; None: nothing of this one."""
    end = data.find(b"\r\n\r\n", 0, LONGEST_HEAD_BYTES)
    length = _LENGTH.search(data, 0, end + 2) if end > 0 else None
    if length is None:
        return None
    head = FamiliarHead(data[: length.start(1)], data[length.end(1) : end + 4], what)
    return head if head.body_of(data) is not None else None
