"""A short cut for the events of a stream, which differ from one to the next only in one piece of text. Pure."""

from __future__ import annotations

MOST_SHAPES = 4
"""Streams of a few choices have one for each; of some engines, one for each second."""
_END = b"\n\n"
_SPECIAL = bytes(range(32)) + b'"\\'
"""What stands in a JSON string only to mean something else."""


class TokenShape:
    """The bytes around the text of an event that was parsed and found to be one token and nothing else.

    An event with the same bytes around another text is the same JSON but for that one string, so it need not be parsed:
    a tenth of the cost. Nothing is assumed of an engine: it writes as it likes, and what does not match is parsed.
    """

    __slots__ = ("_after", "_before", "_others", "_size")

    def __init__(self) -> None:
        self._before = self._after = b""  # with these nothing fits
        self._size = 0
        self._others: list[tuple[bytes, bytes]] = []

    def learn(self, event: bytes, text: str) -> None:
        """Take the shape of ``event`` (without the blank line that ends it), whose JSON holds ``text`` as the token;
        where it is not certain that the bytes of the text are the token, nothing is learnt."""
        quoted = b'"' + text.encode("utf-8", "replace") + b'"'
        at = event.find(quoted)
        if event[at + len(quoted) :].lstrip().startswith(b":"):
            return  # a key
        if at < 0 or event.find(quoted, at + 1) >= 0 or b"\n" in event or not _is_plain(quoted[1:-1]):
            return
        if self._before:
            self._others = [(self._before, self._after), *self._others][: MOST_SHAPES - 1]
        self._set(event[: at + 1], event[at + len(quoted) - 1 :] + _END)

    def fits(self, data: bytes) -> bool:
        """Whether ``data`` is one event, with the blank line that ends it, that is a token of a shape that was learnt,
        with some text that needs no second look."""
        if not (data.startswith(self._before) and data.endswith(self._after)) and not self._turn_to(data):
            return False
        text = data[self._size : -len(self._after)]
        return len(text.translate(None, _SPECIAL)) == len(text) > 0 and (text.isascii() or _is_utf8(text))

    def _turn_to(self, data: bytes) -> bool:
        """Try first from now on the shape that ``data`` begins and ends with; False where there is none."""
        for i, (before, after) in enumerate(self._others):
            if data.startswith(before) and data.endswith(after):
                self._others[i] = (self._before, self._after)
                self._set(before, after)
                return True
        return False

    def _set(self, before: bytes, after: bytes) -> None:
        self._before, self._after, self._size = before, after, len(before)


def _is_plain(text: bytes) -> bool:
    """Whether the bytes, in quotes, are a JSON string that is not empty and means what it shows."""
    return len(text.translate(None, _SPECIAL)) == len(text) > 0 and _is_utf8(text)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
