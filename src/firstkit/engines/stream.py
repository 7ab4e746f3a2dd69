"""Streams of server-sent events: what goes on of them, how they end, what was used. Pure."""

from __future__ import annotations

import json
from typing import Any, Optional

from firstkit.engines.body import Body
from firstkit.engines.reported import (
    NOTHING,
    error_in,
    estimate,
    is_text,
    message_of,
    object_of,
    piece_of,
    read_usage,
)
from firstkit.engines.shape import TokenShape
from firstkit.engines.sse import EventSplitter, EventTooLong, is_named_error, payload_of
from firstkit.links.messages import Open, Outcome, Usage

MOST_CHOICES = 1024
FIRST_LESSONS = 16
"""So many tokens of a stream may be parsed before it counts whether that served to recognise others."""
_NO_TEXT = "the engine sent an event that is not UTF-8"
_NO_CHUNK = "the engine sent an event that is not a JSON object"


class Stream(Body):
    """Whole events go on; tokens are counted and timed. Of what follows the end of a stream nothing does."""

    def __init__(self, request: Open) -> None:
        super().__init__()
        self._request = request
        self._splitter = EventSplitter()
        self._shape = TokenShape()
        self._usage: Optional[Usage] = None
        self._tokens = 0
        self._parsed = 0
        self._last_at = 0.0

    @property
    def gap_s(self) -> Optional[float]:
        if self.first_at is None or self._tokens < 2:
            return None
        return (self._last_at - self.first_at) / (self._tokens - 1)

    def feed(self, data: bytes, now: float) -> bytes:
        if self._splitter.is_between and self._is_token(data):  # one token, as nearly always
            self._count(now)
            return data
        try:
            events = self._splitter.feed(data)
        except EventTooLong:
            return self._fail("the engine sent an event that is too long")
        passed = []
        for event in events:
            if (kept := self._event(event, now)) is not None:
                passed.append(kept)
            if self.is_over:
                break
        return b"\n\n".join([*passed, b""]) if passed else b""

    def _is_token(self, data: bytes) -> bool:
        """Whether ``data`` is one event, with the blank line that ends it, that is known to be one token."""
        return self._shape.fits(data)

    def _event(self, event: bytes, now: float) -> Optional[bytes]:
        """What of one event goes on; None: nothing."""
        if self._is_token(event + b"\n\n"):
            self._count(now)
            return event
        payload = payload_of(event)
        if payload is None:
            return event if is_text(event) else self._refuse(_NO_TEXT)
        if payload == b"[DONE]":
            return self._done()
        data = object_of(payload)
        if data is None or (b"\n" in event and not is_text(event)):
            return self._refuse(_NO_CHUNK if is_text(event) else _NO_TEXT)
        if (error := error_in(data)) is not None or is_named_error(event):
            return self._refuse(error or message_of(data))
        return self._read(event, data, now)

    def _done(self) -> Optional[bytes]:
        """``[DONE]`` came: it never goes on."""
        raise NotImplementedError

    def _read(self, event: bytes, data: dict[str, Any], now: float) -> Optional[bytes]:
        """What goes on of an event whose data is ``data``, which is no error."""
        raise NotImplementedError

    def _is_worth_learning(self) -> bool:
        """Events like the one that was just parsed need not be; unless each differs from all others also in something
        else, which shows when most had to be."""
        self._parsed += 1
        return 2 * self._parsed <= self._tokens + FIRST_LESSONS

    def _refuse(self, failure: str) -> Optional[bytes]:
        self._fail(failure)
        return None

    def _count(self, now: float) -> None:
        self._tokens += 1
        self._last_at = now
        if self.first_at is None:
            self.first_at = now

    def end(self) -> Optional[str]:
        if self.failure is None:
            self._read_rest(self._splitter.rest.strip())
            self.failure = self._lacks()
            self.is_over = True
        return self.failure

    def _read_rest(self, rest: bytes) -> None:
        """What came after the last blank line."""

    def _lacks(self) -> Optional[str]:
        """What is missing for a good end; None: nothing."""
        raise NotImplementedError

    def usage(self, outcome: Outcome) -> Usage:  # noqa: ARG002 - what was delivered counts, however it ended
        if self._usage is not None:
            return self._usage
        if self._tokens == 0 and not self._has_ended_well:
            return NOTHING
        told = estimate(self._request, 0)
        return Usage(told.prompt_tokens, self._tokens, estimated=True)

    @property
    def _has_ended_well(self) -> bool:
        """Whether the engine said of any of it that it is finished."""
        raise NotImplementedError


class ChunkStream(Stream):
    """Chunks of completions: ``[DONE]`` and errors never go on, a usage chunk only to those who asked."""

    def __init__(self, request: Open) -> None:
        super().__init__(request)
        self._is_done = False
        self._seen: set[int] = set()
        self._finished: set[int] = set()

    def _done(self) -> Optional[bytes]:
        self._is_done = self.is_over = True
        return None

    def _read(self, event: bytes, data: dict[str, Any], now: float) -> Optional[bytes]:
        choices, usage = data.get("choices"), data.get("usage")
        token: Any = None
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict) or not self._see(choice):
                return self._refuse("the engine sent an event that is no chunk of an answer")
            if token := piece_of(choice):
                self._count(now)
        if isinstance(usage, dict):
            return self._pass_usage(event, data, usage)
        is_one = isinstance(choices, list) and len(choices) == 1 and not choices[0].get("finish_reason")
        if is_one and isinstance(token, str) and self._is_worth_learning():
            self._shape.learn(event, token)
        return event

    def _see(self, choice: dict[str, Any]) -> bool:
        """Take note of which choice this is and whether it is finished; False where that cannot be."""
        index = choice.get("index", 0)
        if type(index) is not int or not 0 <= index < MOST_CHOICES:
            return False
        self._seen.add(index)
        if choice.get("finish_reason"):
            self._finished.add(index)
        return True

    def _pass_usage(self, event: bytes, chunk: dict[str, Any], usage: dict[str, Any]) -> Optional[bytes]:
        self._usage = read_usage(usage, self._request) or self._usage
        if not self._request.hide_usage:
            return event
        return _without_usage(chunk) if chunk.get("choices") else None

    def _read_rest(self, rest: bytes) -> None:
        if rest in (b"data: [DONE]", b"data:[DONE]"):
            self._is_done = True

    def _lacks(self) -> Optional[str]:
        if not self._is_done:
            return "the engine ended the stream without [DONE]"
        if not self._seen or self._finished < self._seen:
            return "the engine ended the stream without a finish_reason"
        return None

    @property
    def _has_ended_well(self) -> bool:
        return bool(self._finished)


def _without_usage(chunk: dict[str, Any]) -> bytes:
    rest = {key: value for key, value in chunk.items() if key != "usage"}
    return b"data: " + json.dumps(rest, separators=(",", ":")).encode()
