"""What a chat completion says, whole or in chunks, as far as the other protocols have words for it.

Shapes: https://platform.openai.com/docs/api-reference/chat, and what engines add to them (``reasoning``).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any, Protocol

import msgspec

from firstkit.engines.sse import payload_of
from firstkit.errors import EngineFailed
from firstkit.links.messages import Tail, Usage


class FunctionPiece(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class ToolPiece(msgspec.Struct):
    """A tool call, or a piece of one: the first of a new ``index`` has the id and the name."""

    index: int | None = None
    id: str | None = None
    function: FunctionPiece | None = None

    @property
    def name(self) -> str:
        """Raises EngineFailed where it has none."""
        if self.function is None or not self.function.name:
            raise EngineFailed("The engine sent a piece of a tool call that it had not begun.")
        return self.function.name

    @property
    def arguments(self) -> str:
        return (self.function and self.function.arguments) or ""

    def goes_on(self, index: int, call_id: str) -> bool:
        """Whether this is a piece of the call with that index and id. Of some engines all calls have one index, others
        send the name, or some id, with each piece."""
        is_named = self.function is not None and bool(self.function.name)
        return (self.index or 0) == index and (not is_named or not self.id or self.id == call_id)


class Said(msgspec.Struct):
    """A message, or the delta of one."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolPiece] | None = None

    @property
    def thoughts(self) -> str | None:
        """Its reasoning, by either of the two names in use."""
        return self.reasoning or self.reasoning_content


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None

    def __post_init__(self) -> None:
        if self.bytes is None:  # which others must have
            self.bytes = list(self.token.encode())


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.top_logprobs = self.top_logprobs or []


class Logprobs(msgspec.Struct):
    """Of the tokens of ``content``."""

    content: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def tokens(self) -> bytes:
        """One after the other, as JSON. They are many: those that have what others must have are handed on as they
        are. Raises EngineFailed."""
        said = bytes(self.content)
        count = said.count(b'"token":')
        if count and said.count(b'"bytes":[') == count and b'"top_logprobs":[' in said and b"\n" not in said:
            return said[1:-1]
        try:
            return _ENCODER.encode(_LOGPROBS.decode(said) or [])[1:-1]
        except (msgspec.DecodeError, RecursionError):
            raise EngineFailed("The engine sent log probabilities that are none.") from None


class Choice(msgspec.Struct):
    index: int = 0
    delta: Said | None = None
    message: Said | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    """Of vLLM: the text, or the token, at which it stopped."""
    matched_stop: str | int | None = None
    """The same, of SGLang."""
    logprobs: Logprobs | None = None

    @property
    def stop_sequence(self) -> str | None:
        """The text at which it stopped, where the engine says it."""
        found = self.stop_reason if self.stop_reason is not None else self.matched_stop
        return found if isinstance(found, str) else None


class PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class ChatUsage(msgspec.Struct):
    """What its numbers consist of; the numbers themselves come from elsewhere, see ``counts_of``."""

    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


class Completion(msgspec.Struct):
    """A whole answer, or one chunk of it."""

    choices: list[Choice] | None = None
    usage: ChatUsage | None = None

    @property
    def choice(self) -> Choice | None:
        """The one that counts: other protocols have no more. Raises EngineFailed where it is broken off."""
        for choice in self.choices or ():
            if choice.index == 0:
                if choice.finish_reason in _BROKEN:
                    raise EngineFailed("The engine broke off its answer.")
                return choice
        return None

    @property
    def whole(self) -> tuple[Choice, Said]:
        """The same and its message. Raises EngineFailed where there is none."""
        if (choice := self.choice) is None or choice.message is None:
            raise EngineFailed("The engine sent an answer without a message.")
        return choice, choice.message


_BROKEN = ("abort", "error")
"""The finish reasons for which others have no word: such an answer is not whole."""
_COMPLETION = msgspec.json.Decoder(Completion)
_LOGPROBS = msgspec.json.Decoder(list[TokenLogprob] | None)
_ENCODER = msgspec.json.Encoder()
_DATA = b"data: "
_END = b"\n\n"


class Translator(Protocol):
    """Tells one answer of a chat engine in another protocol. What it cannot read is an EngineFailed."""

    def events(self, data: bytes) -> bytes:
        """What is told of ``data``: whole events of the engine."""

    def last(self, tail: Tail) -> bytes:
        """The whole end of a good stream, with what was used."""

    def whole(self, body: bytes, tail: Tail) -> bytes:
        """A plain answer."""


class Counts(msgspec.Struct):
    """Tokens of one answer, as accounted, with the details that its engine gave."""

    prompt: int
    completion: int
    cached: int = 0
    reasoning: int = 0


def counts_of(tail: Tail, said: ChatUsage | None) -> Counts:
    """The numbers that are accounted, so that a client never reads others than the ledger has."""
    usage = tail.usage or Usage(0, 0)
    counts = Counts(usage.prompt_tokens, usage.completion_tokens)
    if said is not None and said.prompt_tokens_details is not None:
        counts.cached = _part(said.prompt_tokens_details.cached_tokens, counts.prompt)
    if said is not None and said.completion_tokens_details is not None:
        counts.reasoning = _part(said.completion_tokens_details.reasoning_tokens, counts.completion)
    return counts


def _part(count: int | None, whole: int) -> int:
    """A part of a number, as far as it can be true."""
    return max(0, min(count or 0, whole))


def chunks_of(data: bytes) -> Iterator[Completion]:
    """The chunks in whole events; those without data (comments) say nothing. Raises EngineFailed."""
    if data.startswith(_DATA) and data.find(b"\n") == len(data) - len(_END):  # one line, as nearly always
        yield read_completion(data[len(_DATA) : -2])
        return
    for event in data.split(_END):
        payload = payload_of(event)
        if payload is not None:
            yield read_completion(payload)


def read_completion(data: bytes) -> Completion:
    """Raises EngineFailed where it is none."""
    try:
        return _COMPLETION.decode(data)
    except (msgspec.DecodeError, RecursionError):
        raise EngineFailed("The engine sent something that is no chat completion.") from None


def sse(name: str, data: Any) -> bytes:
    """One named event."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _ENCODER.encode(data))


def quoted(text: str) -> bytes:
    """``text`` as JSON."""
    return _ENCODER.encode(text)


def answer_id(prefix: str) -> str:
    """A new id of an answer or a part of one, in the form that these protocols have."""
    return f"{prefix}_{secrets.token_hex(12)}"
