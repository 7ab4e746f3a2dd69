"""How many tokens a request will need: from the sizes of what it says, before anybody has counted them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

PROMPT_BYTES_PER_TOKEN = 3
"""What a prompt will have is rather guessed too high: who waits for tokens that are not used gets them back at once."""
MEDIA_TOKENS = 1000
"""Of an image, or of a file of which only its engine knows what is in it."""
ADDED_TOKENS = 256
"""At most so many are added by the templates of engines."""
FIRST_MEAN_TOKENS = 256.0
_LEARNT = 0.02
"""How far a mean moves with each request: it is about that of the last fifty."""
_BLOCK_BYTES = 4096
"""A text has a space in each; a picture is longer than two, and has none."""

Body = Mapping[str, msgspec.Raw]
_new = tuple.__new__
"""Makes a NamedTuple in half the time."""
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_MEDIA = re.compile(
    rb'"(?:url|data|file_data|images?|videos?|audios?|(?:image|video|audio|file)_url)"\s*:\s*"'
    rb"(?=data:|[A-Za-z0-9+/_=-]{64})"
)
"""Where a picture or a file begins, in the JSON that it is in."""


class Estimate(NamedTuple):
    """What a request will need, in tokens.

    ``prompt``: probably. ``most_prompt``: at most, but for media, of which nobody knows. ``completion``: of all choices
    together, at most; ``given``: the client said so, or there is none. ``choices``: how many answers are asked for.
    """

    prompt: int
    most_prompt: int
    completion: int
    given: bool
    choices: int = 1

    @property
    def tokens(self) -> int:
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class _Kind:
    """What of a request to an endpoint is read by its model: ``said``, the first of which may hold media, or all where
    none is named; or the ``one`` with each of the ``many``. ``writes``: whether it answers in words."""

    said: tuple[str, ...] = ()
    writes: bool = False
    one: tuple[str, ...] = ()
    many: tuple[str, ...] = ()
    reads_nothing: bool = False


_ANY = _Kind()
_KINDS = {
    "chat/completions": _Kind(("messages", "tools", "functions", "documents"), writes=True),
    "completions": _Kind(("prompt", "suffix"), writes=True),
    "embeddings": _Kind(("input", "messages")),
    "responses": _Kind(("input", "instructions", "tools"), writes=True),
    "messages": _Kind(("messages", "system", "tools"), writes=True),
    "messages/count_tokens": _Kind(reads_nothing=True),
    "rerank": _Kind(one=("query",), many=("documents",)),
    "score": _Kind(one=("text_1", "queries", "data_1"), many=("text_2", "documents", "items", "data_2")),
    "audio/transcriptions": _Kind(("prompt",), writes=True),
    "audio/translations": _Kind(("prompt",), writes=True),
}


def estimate(
    endpoint: str,
    body: Body,
    size_bytes: int,
    most: int | None,
    choices: int,
    *,
    default: int,
    context: int | None = None,
    uploads: int = 0,
) -> Estimate:
    """What a checked request to ``endpoint``, of ``size_bytes`` in all, will need.

    ``most``: the tokens of a choice of its answer that it asks for, ``default`` where it does not say. ``choices``: of
    each prompt. ``context``: the tokens of the longest conversation of its model, if that is known. ``uploads``: files
    that came with it, as parts of a form.
    """
    kind = _KINDS.get(endpoint, _ANY)
    if kind.reads_nothing:
        return Estimate(0, 0, 0, given=True)
    said = 0
    for field in kind.said:
        if field in body:
            said += memoryview(body[field]).nbytes
    if not kind.said:
        said = _paired(kind, body) if kind.one else size_bytes
    of_media, media = _media_in(kind, body) if size_bytes >= 2 * _BLOCK_BYTES else (0, 0)
    media_tokens = (media + uploads) * MEDIA_TOKENS
    prompt = media_tokens - (of_media - said) // PROMPT_BYTES_PER_TOKEN  # rounded up
    most_prompt = (said if said > size_bytes else size_bytes) - of_media + media_tokens + ADDED_TOKENS
    is_given = most is not None or not kind.writes
    if endpoint == "completions":
        choices *= _prompts(body)
    if most is None:
        most = _left(default, context, prompt) if kind.writes else 0
    elif context is not None and context < most:
        most = context
    return _new(Estimate, (prompt, most_prompt, most * choices, is_given, choices))


def _left(default: int, context: int | None, prompt: int) -> int:
    """Of an answer that may be as long as its model likes."""
    return default if context is None else max(1, min(default, context - prompt - ADDED_TOKENS))


def _size(raw: msgspec.Raw) -> int:
    return memoryview(raw).nbytes


def _prompts(body: Body) -> int:
    """How many prompts a completion has: a text, or a list of tokens, is one."""
    raw = body.get("prompt")
    if raw is None or bytes(memoryview(raw)[:1]) != b"[":
        return 1
    prompts = _items(raw)
    return len(prompts) if prompts and bytes(memoryview(prompts[0])[:1]) in (b'"', b"[") else 1


def _paired(kind: _Kind, body: Body) -> int:
    """Bytes of texts that are read in pairs: one with each of many, or one by one."""
    one, many = _first(body, kind.one), _first(body, kind.many)
    if one is None or many is None:
        return sum(map(_size, body.values()))
    times = 1 if bytes(memoryview(one)[:1]) == b"[" else max(1, len(_items(many)))
    return _size(one) * times + _size(many)


def _first(body: Body, fields: tuple[str, ...]) -> msgspec.Raw | None:
    return next((body[field] for field in fields if field in body), None)


def _items(raw: msgspec.Raw) -> list[msgspec.Raw]:
    """The items of a list; none where it is no list, of which its engine will say something."""
    try:
        return _LIST.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return []


def _media_in(kind: _Kind, body: Body) -> tuple[int, int]:
    """How many bytes are pictures and files, and how many those are. Small ones pass for text."""
    size_bytes = count = 0
    for raw in [body[field] for field in kind.said[:1] or body if field in body]:
        if _size(raw) >= 2 * _BLOCK_BYTES and _may_hold_media(said := bytes(memoryview(raw))):
            for match in _MEDIA.finditer(said):
                end = said.find(b'"', match.end())
                size_bytes += (end if end > 0 else len(said)) - match.end()
                count += 1
    return size_bytes, count


def _may_hold_media(said: bytes) -> bool:
    """Looks for what is found at the speed of memory: in texts, spaces."""
    for start in range(0, len(said) - _BLOCK_BYTES, _BLOCK_BYTES):  # in plain terms: a generator costs as much again
        if said.find(b" ", start, start + _BLOCK_BYTES) < 0:
            return True
    return False


class Means:
    """How long the answers of models are, one with the other: few are as long as they may be."""

    def __init__(self, models: Iterable[str]) -> None:
        self._means = dict.fromkeys(models, FIRST_MEAN_TOKENS)

    def expected(self, model: str, estimate: Estimate) -> int:
        """The tokens that a request will probably use in all."""
        mean = int(self._means[model])
        return estimate.prompt + (mean if mean < estimate.completion else estimate.completion) or 1

    def learn(self, model: str, completion_tokens: int) -> None:
        """An answer of ``model`` had so many tokens."""
        self._means[model] += _LEARNT * (completion_tokens - self._means[model])
