"""Frames, the unit of a link: how they look, which may follow which, how much may be under way. Pure: no I/O, no clock.

A frame is a header of 8 bytes and a payload of at most MAX_PAYLOAD bytes. The header is two unsigned 32-bit numbers
in network order: the stream, then the type in the upper 8 bits and the payload's length in the lower 24.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Mapping
from typing import Generic, Optional, Protocol, TypeVar, Union

MAX_PAYLOAD = 256 * 1024
"""Longest payload of one frame, in bytes."""
WINDOW_BYTES = 512 * 1024
"""Of one stream: with so much DATA unacknowledged, the pilot stops the engine."""
LIMIT_BYTES = WINDOW_BYTES + MAX_PAYLOAD
"""Of one stream: the pilot never has more unacknowledged. The difference is for what the engine had already said."""
ACKNOWLEDGED_BYTES = WINDOW_BYTES // 2
"""Of one stream: when the gateway has taken so much, it acknowledges it, unless it wants no more now."""
HEADER = struct.Struct(">II")
TAKEN = struct.Struct(">I")
"""Payload of a RESUME: the bytes of DATA of its stream that the gateway took since the RESUME before it."""
_MAX_HEADER_NUMBER = 0xFFFFFFFF
_HALF = 1 << 31
_LARGE_BYTES = 16 * 1024

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


class Taking(Protocol):
    """A stream whose DATA the decoder hands over itself. All DATA passes here: one look-up and one call for each."""

    stage: Stage
    taken: int
    """Bytes of DATA that came since the last acknowledgement."""
    on_data: Callable[[bytes], None]

    def on_window(self) -> None:
        """``taken`` has reached ACKNOWLEDGED_BYTES or more. Raises FrameError when it is more than may be."""


OnFrame = Callable[["FrameType", int, bytes], None]


class Decoder:
    """Bytes in, in pieces of any size; whole frames out. Keeps less than one frame between two calls."""

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
        frames: list[Frame] = []
        self.deliver(data, _NOBODY, lambda *frame: frames.append(frame))
        return frames

    def deliver(self, data: bytes, live: Mapping[int, Taking], on_frame: OnFrame) -> None:
        """Hand over the frames that ``data`` completes, in order: DATA to the stream of ``live`` that is being
        answered, all else to ``on_frame``. Raises what they raise, and FrameError as ``feed`` does."""
        start = self._finish_frame(data, on_frame) if self._rest else 0
        position, end, most = start + _HEADER_BYTES, len(data), self.max_payload
        last_data = _DATA_WORD + most
        while position <= end:
            number, word = _unpack(data, position - _HEADER_BYTES)
            if _DATA_WORD < word <= last_data:
                stream, size = live.get(number), word - _DATA_WORD
                stop = position + size
                if stop <= end and stream is not None and stream.stage is _ANSWERING:
                    stream.on_data(data[position:stop])
                    stream.taken += size
                    if stream.taken >= ACKNOWLEDGED_BYTES:
                        stream.on_window()
                    position = stop + _HEADER_BYTES
                    continue
            kind, size = _read_word(word, most)
            stop = position + size
            if stop > end:
                self._needed = _HEADER_BYTES + size
                break
            on_frame(kind, number, data[position:stop])
            position = stop + _HEADER_BYTES
        if position - _HEADER_BYTES < end:
            self._rest += memoryview(data)[position - _HEADER_BYTES :]

    def _finish_frame(self, data: bytes, on_frame: OnFrame) -> int:
        """Complete the frame that began in an earlier piece; returns where in ``data`` the next one begins.

        Only what the frame lacks is copied, and that once: large bodies come in pieces, and so do single bytes."""
        rest, start, view = self._rest, 0, memoryview(data)
        while True:
            stop = start + self._needed - len(rest)
            rest += view[start:stop]
            if len(rest) < self._needed:
                return len(data) + 1
            start = stop
            number, word = _unpack(rest)
            kind, size = _read_word(word, self.max_payload)
            if len(rest) == _HEADER_BYTES + size:
                break
            self._needed = _HEADER_BYTES + size
        self._rest, self._needed = bytearray(), _HEADER_BYTES
        on_frame(kind, number, bytes(memoryview(rest)[_HEADER_BYTES:]))
        return start


def first_frame(data: bytes, max_payload: int) -> Optional[tuple[FrameType, int, bytes, bytes]]:
    """The frame at the beginning of ``data``, and what follows it; None when it is not whole yet. Raises FrameError as
    a decoder does. It is for hellos: what follows them belongs to a session, which has a decoder of its own."""
    if len(data) < _HEADER_BYTES:
        return None
    number, word = _unpack(data)
    kind, size = _read_word(word, max_payload)
    stop = _HEADER_BYTES + size
    return None if len(data) < stop else (kind, number, data[_HEADER_BYTES:stop], data[stop:])


def _read_word(word: int, most: int) -> tuple[FrameType, int]:
    """Type and length in the second half of a header, when they are allowed."""
    kind, size = _TYPES.get(word >> 24), word & 0xFFFFFF
    if kind is None:
        raise FrameError(f"a frame of the unknown type {word >> 24}")
    if size > most:
        raise FrameError(f"a {kind.name} of {size} bytes: at most {most} are allowed here")
    return kind, size


class Outbox:
    """Frames that are written together: a write for each would cost more than the frames do."""

    def __init__(self) -> None:
        self._parts: list[Payload] = []
        self._small: list[Payload] = []
        self.size_bytes = 0

    def put(self, kind: FrameType, stream: int, payload: Payload = b"") -> None:
        """Add a frame; raises FrameError when its payload is too long."""
        size = len(payload)
        self.size_bytes += _HEADER_BYTES + size
        if size < _LARGE_BYTES:
            self._small += (_pack(stream, kind << 24 | size), payload)
        else:
            self._small.append(header(kind, stream, size))
            self._join()
            self._parts.append(payload)

    def take(self) -> list[Payload]:
        """All that was put, as buffers to write one after the other: what is small is joined, what is large is not
        copied."""
        self._join()
        parts, self._parts, self.size_bytes = self._parts, [], 0
        return parts

    def _join(self) -> None:
        if self._small:
            self._parts.append(b"".join(self._small))
            self._small.clear()


class Stage(enum.Enum):
    """How far a stream is, as one end sees it: what the other end may send next follows from it."""

    __hash__ = object.__hash__  # an enum's own is slow, and there is a look-up for each frame
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


_ANSWERING = Stage.ANSWERING
_DATA_WORD = FrameType.DATA << 24
_HEADER_BYTES = HEADER.size
_NOBODY: Mapping[int, Taking] = {}
_pack = HEADER.pack
_unpack = HEADER.unpack_from


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
