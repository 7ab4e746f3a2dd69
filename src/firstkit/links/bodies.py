"""Bodies of requests on their way out: large ones go piece by piece, each stream in its turn. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from firstkit.links.frames import MAX_PAYLOAD


class Bodies:
    """What is left of each body, by stream. Nothing is copied: pieces are views."""

    def __init__(self) -> None:
        self._left: dict[int, memoryview] = {}

    def put(self, number: int, body: bytes) -> None:
        """Add the body of a stream, which may be empty."""
        if body:
            self._left[number] = memoryview(body)

    def drop(self, number: int) -> None:
        """What is left of this stream's body shall not go out."""
        self._left.pop(number, None)

    def take(self, size_bytes: int) -> Iterator[tuple[int, memoryview]]:
        """Take the next pieces, with their streams: ``size_bytes`` in all, or what is left."""
        while self._left and size_bytes > 0:
            number = next(iter(self._left))
            left = self._left.pop(number)
            piece = left[: min(MAX_PAYLOAD, size_bytes)]
            if len(piece) < len(left):
                self._left[number] = left[len(piece) :]
            size_bytes -= len(piece)
            yield number, piece
