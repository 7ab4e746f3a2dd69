"""Frames, the unit of a link: how they look, and which may follow which. Pure: no I/O, no clock.

A frame is a header of 8 bytes and a payload of at most MAX_PAYLOAD bytes. The header is two unsigned 32-bit numbers
in network order: the stream, then the type in the upper 8 bits and the payload's length in the lower 24.
"""

from __future__ import annotations

import enum
import struct
from typing import Generic, Optional, Protocol, TypeVar, Union

MAX_PAYLOAD = 256 * 1024
"""Longest payload of one frame, in bytes."""
HEADER = struct.Struct(">II")
_MAX_HEADER_NUMBER = 0xFFFFFFFF
_HALF = 1 << 31

Payload = Union[bytes, memoryview]


class FrameError(ValueError):
    """The other end of a link sent what the protocol does not allow."""


class FrameType(enum.IntEnum):
    """What a frame says. docs/reference/frames.md is the table of them."""

    HELLO = 1
    OPEN = 2
    BODY = 3
    HEAD = 4
    DATA = 5
    TAIL = 6
    RESET = 7
    PAUSE = 8
    RESUME = 9
    PING = 10
    CALL = 11
    REPLY = 12


Frame = tuple[FrameType, int, bytes]
"""Type, stream, payload. A plain tuple: one is made for every token."""

_TYPES: dict[int, FrameType] = {int(kind): kind for kind in FrameType}


def header(kind: FrameType, stream: int, size: int) -> bytes:
    """The 8 bytes before a payload of ``size`` bytes; raises FrameError when they cannot say it."""
    if size > MAX_PAYLOAD:
        raise FrameError(f"a payload of {size} bytes: at most {MAX_PAYLOAD} are allowed")
    if not 0 <= stream <= _MAX_HEADER_NUMBER:
        raise FrameError(f"stream {stream}: a number from 0 to 2**32 - 1 is needed")
    return HEADER.pack(stream, kind << 24 | size)


def frame(kind: FrameType, stream: int, payload: Payload = b"") -> bytes:
    """One whole frame; raises FrameError for a payload or stream number that is too large."""
    return header(kind, stream, len(payload)) + payload


class Decoder:
    """Bytes in, in pieces of any size; whole frames out. Keeps less than one frame between two calls.

    ``max_payload`` may be lower than the protocol's own limit, for a peer that is not trusted yet, and be raised later.
    """

    def __init__(self, max_payload: int = MAX_PAYLOAD) -> None:
        self.max_payload = max_payload
        self._rest = bytearray()
        self._needed = HEADER.size

    @property
    def kept_bytes(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes. Raises FrameError at the first header that is not allowed, before its
        payload is kept; the frames before it in ``data`` are lost, as the connection is then."""
        if self._rest:
            self._rest += data
            # Joined once per frame, not once per piece: a peer that sends single bytes costs no more than its bytes.
            if len(self._rest) < self._needed:
                return []
            data = bytes(self._rest)
            self._rest.clear()
        return self._split(data)

    def _split(self, data: bytes) -> list[Frame]:
        frames: list[Frame] = []
        position, end, size = 0, len(data), HEADER.size
        while end - position >= size:
            stream, word = HEADER.unpack_from(data, position)
            kind, length = _TYPES.get(word >> 24), word & 0xFFFFFF
            if kind is None or length > self.max_payload:
                raise _refusal(word >> 24, length, self.max_payload)
            stop = position + size + length
            if stop > end:
                self._keep(data[position:], size + length)
                return frames
            frames.append((kind, stream, data[position + size : stop]))
            position = stop
        self._keep(data[position:], size)
        return frames

    def _keep(self, rest: bytes, needed: int) -> None:
        self._rest += rest
        self._needed = needed


def _refusal(kind: int, length: int, limit: int) -> FrameError:
    if kind not in _TYPES:
        return FrameError(f"a frame of the unknown type {kind}")
    return FrameError(f"a {_TYPES[kind].name} of {length} bytes: at most {limit} are allowed here")


class Outbox:
    """Frames that one turn of the loop writes together: a write for each would cost more than the frames do."""

    def __init__(self) -> None:
        self._parts: list[Payload] = []
        self.size_bytes = 0

    def put(self, kind: FrameType, stream: int, payload: Payload = b"") -> bool:
        """Add a frame; True for the first since ``take``, when a flush has to be planned. Raises FrameError."""
        is_first = not self._parts
        self._parts.append(header(kind, stream, len(payload)))
        self._parts.append(payload)
        self.size_bytes += HEADER.size + len(payload)
        return is_first

    def take(self) -> list[Payload]:
        """All that was put, in order, as buffers to write one after the other."""
        parts, self._parts, self.size_bytes = self._parts, [], 0
        return parts


class Stage(enum.Enum):
    """How far a stream is, as one end sees it: what the other end may send next follows from it."""

    ASKED = "asked"  # gateway: the request is out, no HEAD yet
    ANSWERING = "answering"  # gateway: HEAD came
    CALLED = "called"  # gateway: a call is out, no REPLY yet
    RECEIVING = "receiving"  # pilot: the body is not complete
    SERVING = "serving"  # pilot: the body is complete
    ENDING = "ending"  # pilot: the gateway said RESET, our TAIL is not out yet
    FINISHED = "finished"


_NEXT: dict[tuple[Stage, FrameType], Stage] = {
    (Stage.ASKED, FrameType.HEAD): Stage.ANSWERING,
    (Stage.ASKED, FrameType.TAIL): Stage.FINISHED,
    (Stage.ANSWERING, FrameType.DATA): Stage.ANSWERING,
    (Stage.ANSWERING, FrameType.TAIL): Stage.FINISHED,
    (Stage.CALLED, FrameType.REPLY): Stage.FINISHED,
    (Stage.RECEIVING, FrameType.BODY): Stage.RECEIVING,
    (Stage.RECEIVING, FrameType.PAUSE): Stage.RECEIVING,
    (Stage.RECEIVING, FrameType.RESUME): Stage.RECEIVING,
    (Stage.RECEIVING, FrameType.RESET): Stage.ENDING,
    (Stage.SERVING, FrameType.PAUSE): Stage.SERVING,
    (Stage.SERVING, FrameType.RESUME): Stage.SERVING,
    (Stage.SERVING, FrameType.RESET): Stage.ENDING,
}


class Staged(Protocol):
    """What a stream has to have to be kept in ``Streams``."""

    stage: Stage


S = TypeVar("S", bound=Staged)


class Streams(Generic[S]):
    """The streams of one link at one end, by number, and the order rules.

    Numbers rise by one from 1; after 2**32 - 1 comes 1 again, and numbers still in use are skipped. ``live`` may be
    read by the owner; only these methods change it.
    """

    def __init__(self) -> None:
        self.live: dict[int, S] = {}
        self._last = 0
        self._travelled = 0

    def open(self, stream: S) -> int:
        """Give the next free number to ``stream``, which this end opens."""
        number = self._last
        while True:
            number = (number + 1) & _MAX_HEADER_NUMBER
            if number and number not in self.live:
                break
        self._advance(number, stream)
        return number

    def accept(self, number: int, stream: S) -> None:
        """Take a stream that the other end opens; raises FrameError for a number that is not new."""
        if not number or number in self.live or not 0 < self._ahead(number) < _HALF:
            raise FrameError(f"stream {number} was opened twice or out of order")
        self._advance(number, stream)

    def step(self, kind: FrameType, number: int) -> Optional[S]:
        """The stream that a frame is for, moved on to its next stage; None when the frame is late and means nothing.

        Raises FrameError for a frame that may not come now, or for a stream that never was.
        """
        stream = self.live.get(number)
        if stream is None:
            if not number or (-self._ahead(number)) & _MAX_HEADER_NUMBER >= min(self._travelled, _HALF):
                raise FrameError(f"a {kind.name} for stream {number}, which was never opened")
            return None
        stage = _NEXT.get((stream.stage, kind))
        if stage is None:
            raise FrameError(f"a {kind.name} for stream {number}, which is {stream.stage.value}")
        stream.stage = stage
        if stage is Stage.FINISHED:
            del self.live[number]
        return stream

    def finish(self, number: int) -> None:
        """This end is done with a stream: what still comes for it is late. Nothing happens when it was finished."""
        stream = self.live.pop(number, None)
        if stream is not None:
            stream.stage = Stage.FINISHED

    def finish_all(self) -> list[S]:
        """The link is gone: all live streams, finished."""
        streams = list(self.live.values())
        for stream in streams:
            stream.stage = Stage.FINISHED
        self.live.clear()
        return streams

    def _ahead(self, number: int) -> int:
        return (number - self._last) & _MAX_HEADER_NUMBER

    def _advance(self, number: int, stream: S) -> None:
        self._travelled += self._ahead(number)
        self._last = number
        self.live[number] = stream
