"""What one end of a link has sent and the other has not acknowledged: it may have to be sent again. Pure.

Both ends count the bytes of their session, which is all that follows the hellos, whatever connection carries it. A
connection that is cut takes an unknown part of what was under way with it; the next begins with how much each end has.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator

from firstkit.links.frames import FrameError, Payload

COUNT = struct.Struct(">Q")
"""Payload of a PING: how many bytes of the other end's session have arrived."""


class Kept:
    """The buffers that were written, oldest first, as far as they are not acknowledged."""

    def __init__(self) -> None:
        self.sent = 0
        """Bytes since the session began."""
        self._parts: deque[bytes] = deque()
        self._begin = 0
        """Where in the session the oldest buffer begins."""
        self._acknowledged = 0

    @property
    def size_bytes(self) -> int:
        """What is held, less than one buffer of it acknowledged."""
        return self.sent - self._begin

    def add(self, parts: list[Payload]) -> list[bytes]:
        """Note what is about to be written, and return it to write. A view of something larger is copied: what was
        written must not keep a body of megabytes alive."""
        written = [part if isinstance(part, bytes) else bytes(part) for part in parts]
        self._parts += written
        self.sent += sum(map(len, written))
        return written

    def acknowledge(self, count: int) -> None:
        """The other end has ``count`` bytes. Raises FrameError when that cannot be."""
        if not self._acknowledged <= count <= self.sent:
            raise FrameError(f"{count} bytes acknowledged, of {self.sent}, after {self._acknowledged}")
        self._acknowledged = count
        parts = self._parts
        while parts and self._begin + len(parts[0]) <= count:
            self._begin += len(parts.popleft())

    def can_resume(self, count: int) -> bool:
        """Whether all that follows the first ``count`` bytes is here."""
        return self._acknowledged <= count <= self.sent

    def since(self, count: int) -> Iterator[Payload]:
        """All that follows the first ``count`` bytes, for which ``can_resume`` holds."""
        begin = self._begin
        for part in self._parts:
            end = begin + len(part)
            if end > count:
                yield part if begin >= count else memoryview(part)[count - begin :]
            begin = end
