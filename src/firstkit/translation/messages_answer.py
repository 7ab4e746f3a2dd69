"""Answers of chat engines as Anthropic Messages. Events: https://docs.anthropic.com/en/api/messages-streaming."""

from __future__ import annotations

from typing import Any

import msgspec

from firstkit.links.messages import Tail
from firstkit.translation.chat import (
    ChatUsage,
    Choice,
    Counts,
    Said,
    ToolPiece,
    answer_id,
    chunks_of,
    counts_of,
    quoted,
    read_completion,
    sse,
)

STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
SIGNATURE = "unsigned"
"""Of thoughts: nobody vouches for them. Clients drop those without any."""
_DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":%b}}\n\n'
)
_REASONS = {"length": "max_tokens", "content_filter": "refusal"}
_EMPTY = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}}
_ENCODER = msgspec.json.Encoder()


class MessageAnswer:
    """A Translator. Blocks come one after the other: thinking, text, calls of tools, as the engine says them."""

    def __init__(self, model: str) -> None:
        self._id = answer_id("msg")
        self._model = model
        self._has_begun = False
        self._blocks = 0
        self._kind = ""
        """Of the block under way; empty: there is none."""
        self._call: tuple[int, str] = (0, "")
        """Index and id of the last tool call."""
        self._stop: Choice | None = None
        self._has_calls = False
        self._usage: ChatUsage | None = None

    # -- a stream ----------------------------------------------------------------------------------------------

    def events(self, data: bytes) -> bytes:
        told = []
        for chunk in chunks_of(data):
            self._usage = chunk.usage or self._usage
            if (choice := chunk.choice) is not None:
                told.append(self._tell(choice))
        return b"".join(told)

    def _tell(self, choice: Choice) -> bytes:
        told = b"" if self._has_begun else self._begin()
        if (delta := choice.delta) is not None:
            if delta.thoughts:
                told += self._piece("thinking", b"thinking_delta", b"thinking", delta.thoughts)
            if text := delta.content or delta.refusal:
                told += self._piece("text", b"text_delta", b"text", text)
            for piece in delta.tool_calls or ():
                told += self._tool_piece(piece)
        if choice.finish_reason:
            self._stop = choice
        return told

    def _begin(self) -> bytes:
        self._has_begun = True
        return sse("message_start", {"type": "message_start", "message": self._message([], None, None, Counts(0, 0))})

    def _piece(self, kind: str, delta: bytes, key: bytes, text: str) -> bytes:
        told = b"" if self._kind == kind else self._open({"type": kind, **_EMPTY[kind]})
        return told + _DELTA % (self._blocks - 1, delta, key, quoted(text))

    def _tool_piece(self, piece: ToolPiece) -> bytes:
        told = b""
        if self._kind != "tool_use" or not piece.goes_on(*self._call):
            name = piece.name
            self._has_calls = True
            self._call = piece.index or 0, piece.id or answer_id("call")
            told = self._open({"type": "tool_use", "id": self._call[1], "name": name, "input": {}})
        if arguments := piece.arguments:
            told += _DELTA % (self._blocks - 1, b"input_json_delta", b"partial_json", quoted(arguments))
        return told

    def _open(self, block: dict[str, Any]) -> bytes:
        """The end of the block under way, and the start of the next."""
        told = self._close()
        self._kind = block["type"]
        self._blocks += 1
        start = {"type": "content_block_start", "index": self._blocks - 1, "content_block": block}
        return told + sse("content_block_start", start)

    def _close(self) -> bytes:
        kind, self._kind = self._kind, ""
        if not kind:
            return b""
        index, told = self._blocks - 1, b""
        if kind == "thinking":
            told = _DELTA % (index, b"signature_delta", b"signature", quoted(SIGNATURE))
        return told + sse("content_block_stop", {"type": "content_block_stop", "index": index})

    def last(self, tail: Tail) -> bytes:
        told = b"" if self._has_begun else self._begin()
        if not self._blocks:
            told += self._open({"type": "text", **_EMPTY["text"]})
        reason, sequence = _stop_of(self._stop, self._has_calls)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        usage = _usage(counts_of(tail, self._usage))
        end = sse("message_delta", {"type": "message_delta", "delta": delta, "usage": usage})
        return told + self._close() + end + STOP

    # -- a plain answer ----------------------------------------------------------------------------------------

    def whole(self, body: bytes, tail: Tail) -> bytes:
        completion = read_completion(body)
        choice, said = completion.whole
        reason, sequence = _stop_of(choice, bool(said.tool_calls))
        counts = counts_of(tail, completion.usage)
        return _ENCODER.encode(self._message(_content(said), reason, sequence, counts))

    def _message(self, content: list[Any], reason: str | None, sequence: str | None, counts: Counts) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": _usage(counts),
        }


def _usage(counts: Counts) -> dict[str, int]:
    """In this protocol what was remembered of a prompt is not part of its input."""
    return {
        "input_tokens": counts.prompt - counts.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counts.cached,
        "output_tokens": counts.completion,
    }


def _stop_of(choice: Choice | None, has_calls: bool) -> tuple[str, str | None]:
    """Why it stopped, and at which sequence."""
    if choice is None:
        return "end_turn", None
    if (reason := _REASONS.get(choice.finish_reason or "")) is not None:
        return reason, None
    if has_calls:  # some engines end a call that was asked for by name as they end a text
        return "tool_use", None
    if (sequence := choice.stop_sequence) is not None:
        return "stop_sequence", sequence
    return "end_turn", None


def _content(said: Said) -> list[Any]:
    content: list[Any] = []
    if said.thoughts:
        content.append({"type": "thinking", "thinking": said.thoughts, "signature": SIGNATURE})
    if text := said.content or said.refusal:
        content.append({"type": "text", "text": text})
    content += [_call_of(call) for call in said.tool_calls or ()]
    return content or [{"type": "text", "text": ""}]


def _call_of(call: ToolPiece) -> dict[str, Any]:
    """Arguments that are no JSON object, as weak models write them, are handed on as what they are."""
    text = call.arguments or "{}"
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        value = text
    arguments = msgspec.Raw(text.encode()) if isinstance(value, dict) else {"arguments": value}
    return {"type": "tool_use", "id": call.id or answer_id("call"), "name": call.name, "input": arguments}
