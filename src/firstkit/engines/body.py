"""Bodies of answers that are no streams: what of them goes on, how they end, what was used. Pure."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Optional, Union

from firstkit.engines.reported import (
    NOTHING,
    error_in,
    estimate,
    is_json,
    last_usage,
    object_of,
    read_usage,
    said_bytes,
    told_usage,
)
from firstkit.links.messages import Open, Outcome, Usage

BODY_LIMIT_BYTES = 64 * 1024 * 1024
REFUSAL_LIMIT_BYTES = 1024 * 1024
"""Of the body of an error status, of which little is used."""
SIGNED_BYTES = 4096
"""Within so much of it a refusal says why."""
PARSED_WHOLE_BYTES = 256 * 1024
"""A plain answer up to this size is parsed (about 2 ms); of a larger one only the ends and the usage are looked at."""
KEPT_BYTES = 8192
"""So much of a large answer is kept until the next piece comes: a usage object and what stands before it."""

NO_OBJECT = "the engine's answer is not a JSON object"
NO_JSON = "the engine's answer is not JSON"


class Body:
    """A body that says nothing: none came yet, or it is of a kind that is not passed on (then ``failure`` says why)."""

    failure: Optional[str] = None
    is_over = False
    first_at: Optional[float] = None

    def __init__(self, failure: Optional[str] = None) -> None:
        if failure is not None:
            self._fail(failure)

    @property
    def gap_s(self) -> Optional[float]:
        return None

    def feed(self, data: bytes, now: float) -> bytes:  # noqa: ARG002 - others count the time
        return self._fail(f"the engine sent {len(data)} bytes before a head")

    def _fail(self, failure: str) -> bytes:
        """Nothing more passes, and that is why."""
        self.failure = failure
        self.is_over = True
        return b""

    def end(self) -> Optional[str]:
        """Why this is no success; None when it is one."""
        return self.failure or "the engine ended the answer before it began"

    def usage(self, outcome: Outcome) -> Usage:  # noqa: ARG002 - nothing was delivered
        return NOTHING


class Refusal(Body):
    """The body of an error status: passed on as it is, up to the limit. ``signs``: see ``Habits.refusals``."""

    _size = 0

    def __init__(self, signs: tuple[bytes, ...] = ()) -> None:
        super().__init__()
        self._signs = signs
        self._start = b""

    @property
    def is_of_request(self) -> bool:
        """Whether it says that the request is at fault, whatever its status says."""
        return any(sign in self._start for sign in self._signs)

    def feed(self, data: bytes, now: float) -> bytes:  # noqa: ARG002
        if self._signs:
            self._start = (self._start + data)[:SIGNED_BYTES]
        self._size += len(data)
        return data if self._size <= REFUSAL_LIMIT_BYTES else self._fail(_too_long(REFUSAL_LIMIT_BYTES))

    def end(self) -> Optional[str]:
        return self.failure


class Plain(Body):
    """One JSON object, passed on as it comes; read when it is whole. Of a large one only the end is kept."""

    _held: Union[bytes, bytearray] = b""
    _size = 0
    _is_large = False
    _reported: Any = None
    _usage: Optional[Usage] = None
    _start: ClassVar[re.Pattern[bytes]] = re.compile(rb"[ \t\r\n]*\{")
    _ends: ClassVar[tuple[bytes, ...]] = (b"}",)

    def __init__(self, request: Open, is_free: bool = False) -> None:
        """``is_free``: an answer that used no tokens, such as one that only counts them."""
        super().__init__()
        self._request = request
        self._is_free = is_free

    def feed(self, data: bytes, now: float) -> bytes:  # noqa: ARG002
        self._size += len(data)
        if self._size > BODY_LIMIT_BYTES:
            self._held = b""
            return self._fail(_too_long(BODY_LIMIT_BYTES))
        held: Union[bytes, bytearray] = data
        if self._held:
            held = self._held if isinstance(self._held, bytearray) else bytearray(self._held)
            held += data
        self._held = held if len(held) <= PARSED_WHOLE_BYTES else self._end_of(held)
        return data

    def _end_of(self, held: Union[bytes, bytearray]) -> bytes:
        """The end of what is held of a large answer, after a look at the rest."""
        if not self._is_large and not self._start.match(held):
            self._fail(NO_OBJECT)
        self._is_large = True
        self._reported = last_usage(held) or self._reported
        return bytes(held[-KEPT_BYTES:])

    def end(self) -> Optional[str]:
        if self.failure is None:
            held, self._held = self._held, b""
            self.failure = self._glance(held) if self._is_large else self._read(held)
            self.is_over = True
        return self.failure

    def _read(self, body: Union[bytes, bytearray]) -> Optional[str]:
        self._usage = told_usage(body, self._request)
        if self._usage is not None:
            return None
        data = object_of(body)
        if data is None:
            return NO_OBJECT
        if (error := error_in(data)) is not None:
            return error
        self._usage = read_usage(data.get("usage"), self._request) or estimate(self._request, said_bytes(data))
        return None

    def _glance(self, rest: Union[bytes, bytearray]) -> Optional[str]:
        if not rest.rstrip().endswith(self._ends):
            return NO_OBJECT
        reported = last_usage(rest) or self._reported
        self._usage = read_usage(reported, self._request) or estimate(self._request, 0)
        return None

    def usage(self, outcome: Outcome) -> Usage:
        if outcome is not Outcome.COMPLETE or self._usage is None or self._is_free:
            return NOTHING
        return self._usage


class TaskJson(Plain):
    """What a task says in JSON, an object or not: some rank texts in a bare list."""

    _start: ClassVar[re.Pattern[bytes]] = re.compile(rb"[ \t\r\n]*[{\[]")
    _ends: ClassVar[tuple[bytes, ...]] = (b"}", b"]")

    def _read(self, body: Union[bytes, bytearray]) -> Optional[str]:
        if not body.lstrip().startswith(b"["):
            return super()._read(body)
        if not is_json(body):
            return NO_JSON
        self._usage = estimate(self._request, 0)
        return None


class Product(Body):
    """What a task makes, of whatever kind: a subtitle file, a picture. Whole when HTTP says so."""

    _size = 0

    def __init__(self, request: Open) -> None:
        super().__init__()
        self._request = request

    def feed(self, data: bytes, now: float) -> bytes:  # noqa: ARG002
        self._size += len(data)
        return data if self._size <= BODY_LIMIT_BYTES else self._fail(_too_long(BODY_LIMIT_BYTES))

    def end(self) -> Optional[str]:
        self.is_over = True
        return self.failure

    def usage(self, outcome: Outcome) -> Usage:
        return estimate(self._request, 0) if outcome is Outcome.COMPLETE else NOTHING


def _too_long(limit_bytes: int) -> str:
    return f"the engine's answer is longer than {limit_bytes // 1024**2} MiB"
