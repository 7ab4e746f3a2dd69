"""What stands between the answer of an engine and what a client is told, where they are not the same. Pure."""

from __future__ import annotations

import re
import time

import msgspec

from firstkit.engines.sse import EVENT_LIMIT_BYTES, payload_of
from firstkit.errors import EngineFailed
from firstkit.ids import new_id
from firstkit.links.messages import Tail
from firstkit.translation.chat import Translator

Answering = Translator
"""A Translator too where nothing is translated: ``events`` as they come, ``last`` the whole end of a good stream,
``whole`` of a plain answer."""
_END = b"\n\n"
_LAST = (b"event: response.completed\n", b"event: response.incomplete\n")
_RESPONSE = re.compile(rb'"response"\s*:')
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Straight:
    """All as it comes, from ``inner`` or from the engine; what those below have in common."""

    def __init__(self, inner: Answering | None = None, end: bytes = b"") -> None:
        """``end``: that of a good stream, where no ``inner`` tells it."""
        self._inner = inner
        self._end = end

    def events(self, data: bytes) -> bytes:
        return data if self._inner is None else self._inner.events(data)

    def last(self, tail: Tail) -> bytes:
        return self._end if self._inner is None else self._inner.last(tail)

    def whole(self, body: bytes, tail: Tail) -> bytes:
        return body if self._inner is None else self._inner.whole(body, tail)


class WholeEvents(Straight):
    """Gives only whole events to ``inner``. Engines' clients tell whole ones, but a link cuts what is longer than a
    frame, or than the room that is left in its window."""

    def __init__(self, inner: Answering) -> None:
        super().__init__(inner)
        self._begun = bytearray()

    def events(self, data: bytes) -> bytes:
        if not self._begun and data.endswith(_END):  # as nearly always
            return super().events(data)
        begun = self._begun
        searched = max(0, len(begun) - 1)
        begun += data
        end = begun.rfind(_END, searched) + len(_END)
        if end < len(_END):
            if len(begun) > EVENT_LIMIT_BYTES:
                raise EngineFailed("The engine sent an event that is too long.")
            return b""
        whole = bytes(begun[:end])
        del begun[:end]
        return super().events(whole)

    def last(self, tail: Tail) -> bytes:
        if self._begun:
            raise EngineFailed("The engine ended its answer within an event.")
        return super().last(tail)


class HeldEnd(Straight):
    """Responses as the engine tells them. Their last event ends the answer for a client, so it waits until what was
    used is written down, as ``[DONE]`` does. What an engine cannot know of an answer that is kept is put right."""

    def __init__(self, kept: dict[str, bool | str | None]) -> None:
        """``kept``: fields of the response object."""
        super().__init__()
        self._kept = {key: msgspec.Raw(msgspec.json.encode(value)) for key, value in kept.items()}

    def events(self, data: bytes) -> bytes:
        if self._end:  # nothing comes after the last event, and if it did, it would not go before that
            self._end += data
            return b""
        if _RESPONSE.search(data) is None:
            return data
        told = [self._told(event) for event in data[: -len(_END)].split(_END)]
        for at, event in enumerate(told):
            if event.startswith(_LAST):
                self._end = _joined(told[at:])
                return _joined(told[:at])
        return _joined(told)

    def whole(self, body: bytes, tail: Tail) -> bytes:  # noqa: ARG002
        return msgspec.json.encode({**_object(body), **self._kept})

    def _told(self, event: bytes) -> bytes:
        if _RESPONSE.search(event) is None:
            return event
        said = _object(payload_of(event) or b"")
        if "response" not in said:
            return event
        response = {**_object(said["response"]), **self._kept}
        told = msgspec.json.encode({**said, "response": response})
        return b"%bdata: %b" % (event.partition(b"data:")[0], told)


class Timed(Straight):
    """A plain answer that says how fast it came, as the older service did: ``response_time`` in seconds, and
    ``throughput_tokens_per_second``."""

    def whole(self, body: bytes, tail: Tail) -> bytes:
        tokens = tail.usage.prompt_tokens + tail.usage.completion_tokens if tail.usage is not None else 0
        speed = tokens / tail.duration_s if tail.duration_s > 0 else 0.0
        told = b'"response_time":%.6f,"throughput_tokens_per_second":%.3f' % (tail.duration_s, speed)
        said = super().whole(body, tail)
        return _with_keys(said, told) if _is_object(said) else said


class Signed(Straight):
    """An answer that says where it comes from, under ``x_first``: an object, or the last event of a stream. What is
    neither, such as a text, stays as it is: its headers say it."""

    def __init__(self, inner: Answering, origin: dict[str, str | None]) -> None:
        super().__init__(inner)
        self._key = b'"x_first":' + msgspec.json.encode(origin)

    def last(self, tail: Tail) -> bytes:
        return _with_keys(super().last(tail), self._key)

    def whole(self, body: bytes, tail: Tail) -> bytes:
        said = super().whole(body, tail)
        return _with_keys(said, self._key) if _is_object(said) else said


class SignedChunks(Straight):
    """A stream of chunks with one more of them, without choices, that says the same. Where the client asked for usage,
    it is the chunk with that, since clients take what the last one says."""

    def __init__(self, origin: dict[str, str | None], kind: str, end: bytes) -> None:
        """``kind``: of the chunks, in their field ``object``."""
        super().__init__(None, end)
        self._key = b'"x_first":' + msgspec.json.encode(origin)
        self._model = origin["model"]
        self._kind = kind
        self._held = b""

    def events(self, data: bytes) -> bytes:
        data = self._held + data
        at = data.rfind(_END, 0, -len(_END)) + len(_END)
        at = 0 if at < len(_END) else at
        is_last = _NO_CHOICES.search(data, at) is not None
        self._held = data[at:] if is_last else b""
        return data[:at] if is_last else data

    def last(self, tail: Tail) -> bytes:  # noqa: ARG002
        return _with_keys(self._held or self._chunk(), self._key) + self._end

    def _chunk(self) -> bytes:
        chunk = {"id": new_id("chunk"), "object": self._kind, "created": int(time.time()), "model": self._model}
        return b"data: %b\n\n" % msgspec.json.encode({**chunk, "choices": []})


def _joined(events: list[bytes]) -> bytes:
    """Events as a stream has them."""
    return _END.join([*events, b""]) if events else b""


def _object(said: bytes | msgspec.Raw) -> dict[str, msgspec.Raw]:
    """Raises EngineFailed where it is none."""
    try:
        return _OBJECT.decode(said)
    except (msgspec.DecodeError, RecursionError, ValueError):
        raise EngineFailed("The engine sent a response that is no object.") from None


def _is_object(said: bytes) -> bool:
    try:
        _OBJECT.decode(said)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return False
    return True


def _with_keys(said: bytes, keys: bytes) -> bytes:
    """``said`` with more keys in its last object; as it is where there is none."""
    at = said.rfind(b"}")
    if at < 0:
        return said
    before = said[:at].rstrip()
    return b"%b%b%b%b" % (before, b"" if before.endswith(b"{") else b",", keys, said[at:])
