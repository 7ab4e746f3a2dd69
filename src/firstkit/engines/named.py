"""Streams whose events have names: OpenAI Responses and Anthropic Messages. Pure.

https://platform.openai.com/docs/api-reference/responses-streaming, https://docs.anthropic.com/en/api/messages-streaming
"""

from __future__ import annotations

from typing import Any, Optional

from firstkit.engines.reported import message_of, read_usage
from firstkit.engines.stream import Stream
from firstkit.links.messages import Open

_NUMBER = b'"sequence_number":'
_DIGITS = b"0123456789"
_ZERO = 48


class NamedStream(Stream):
    """Each event has a line with its name, and data with its ``type``; the last one says how the answer ended."""

    last_events: tuple[str, ...] = ()

    def __init__(self, request: Open) -> None:
        super().__init__(request)
        self._name_line = b"\n"  # nothing begins with it
        self._is_whole = False

    def _is_token(self, data: bytes) -> bool:
        """The same name, and the same data but for one text and its number in the stream."""
        start = len(self._name_line)
        return data.startswith(self._name_line) and self._shape.fits(_unnumbered(data[start:]))

    def _done(self) -> Optional[bytes]:
        return None  # some engines send it after the last event, out of habit

    def _read(self, event: bytes, data: dict[str, Any], now: float) -> Optional[bytes]:
        kind = data.get("type")
        if not isinstance(kind, str):
            return self._refuse("the engine sent an event without a type")
        if kind == "error":
            return self._refuse(message_of(data))
        token = self._token(kind, data)
        if token:
            self._count(now)
            self._learn(event, token)
        self._look(kind, data)
        if self.is_over:
            return None
        if kind in self.last_events:
            self._is_whole = self.is_over = True
            return self._last(kind, event)
        return event

    def _learn(self, event: bytes, token: str) -> None:
        name_line, newline, rest = event.partition(b"\n")
        if name_line.startswith(b"event:") and self._is_worth_learning():
            if name_line + newline != self._name_line:
                self._name_line = name_line + newline
            self._shape.learn(_unnumbered(rest), token)

    def _token(self, kind: str, data: dict[str, Any]) -> Optional[str]:
        """The piece of text that an event brings; None or empty: it brings none."""
        raise NotImplementedError

    def _look(self, kind: str, data: dict[str, Any]) -> None:
        """Take note of what an event says of the answer."""

    def _last(self, kind: str, event: bytes) -> Optional[bytes]:
        """What goes on of the last event."""
        raise NotImplementedError

    def _lacks(self) -> Optional[str]:
        return None if self._is_whole else f"the engine ended the stream without {self.last_events[0]}"

    @property
    def _has_ended_well(self) -> bool:
        return self._is_whole


class ResponseStream(NamedStream):
    """The last event holds the whole response. It goes on with its name on a line of its own, however it came, so that
    the gateway knows it at sight."""

    last_events = ("response.completed", "response.incomplete")

    def _token(self, kind: str, data: dict[str, Any]) -> Optional[str]:
        delta = data.get("delta") if kind.endswith(".delta") else None
        return delta if isinstance(delta, str) else None

    def _look(self, kind: str, data: dict[str, Any]) -> None:
        response: Any = data.get("response")
        if kind == "response.failed":
            self._refuse(message_of(response) if isinstance(response, dict) else message_of(data))
        elif kind in self.last_events and not isinstance(response, dict):
            self._refuse(f"the engine sent {kind} without the response")
        elif kind in self.last_events:
            self._usage = read_usage(response.get("usage"), self._request) or self._usage

    def _last(self, kind: str, event: bytes) -> Optional[bytes]:
        name = b"event: " + kind.encode()
        data = [line for line in event.split(b"\n") if line.startswith(b"data:")]
        return b"\n".join([name, *data])


class MessageStream(NamedStream):
    """``message_stop`` is the same in all streams; like ``[DONE]`` it does not go on, the gateway writes its own."""

    last_events = ("message_stop",)

    def __init__(self, request: Open) -> None:
        super().__init__(request)
        self._told: dict[str, Any] = {}
        self._has_reason = False

    def _token(self, kind: str, data: dict[str, Any]) -> Optional[str]:
        delta = data.get("delta") if kind == "content_block_delta" else None
        if not isinstance(delta, dict):
            return None
        found = next((delta[key] for key in ("text", "thinking", "partial_json") if delta.get(key)), None)
        return found if isinstance(found, str) else None

    def _look(self, kind: str, data: dict[str, Any]) -> None:
        """The numbers of ``message_delta`` are those of the whole answer, and count more than those of its start, which
        are of the prompt at best."""
        if kind == "message_start":
            message = data.get("message")
            self._tell(message.get("usage") if isinstance(message, dict) else None)
            self._told.pop("output_tokens", None)
        elif kind == "message_delta":
            delta = data.get("delta")
            self._has_reason = self._has_reason or (isinstance(delta, dict) and bool(delta.get("stop_reason")))
            self._tell(data.get("usage"))
            if self._has_reason and "output_tokens" in self._told:
                self._usage = read_usage(self._told, self._request)

    def _tell(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self._told.update({key: value for key, value in usage.items() if value is not None})

    def _last(self, kind: str, event: bytes) -> Optional[bytes]:  # noqa: ARG002
        return None

    def _lacks(self) -> Optional[str]:
        if self._is_whole and not self._has_reason:
            return "the engine ended the stream without a stop_reason"
        return super()._lacks()


def _unnumbered(data: bytes) -> bytes:
    """``data`` with 0 for its number in the stream, if it has one that JSON allows. In a text the quotes around that
    name are escaped."""
    start = data.find(_NUMBER) + len(_NUMBER)
    if start < len(_NUMBER):
        return data
    rest = data[start:].lstrip(_DIGITS)
    length = len(data) - start - len(rest)
    if length == 0 or (length > 1 and data[start] == _ZERO):
        return data
    return b"%b0%b" % (data[:start], rest)
