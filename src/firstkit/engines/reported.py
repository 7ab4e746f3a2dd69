"""What engines report in JSON: tokens that were used, errors, texts. Pure; nothing of it is believed that cannot be."""

from __future__ import annotations

import json
import re
from math import ceil
from typing import Any, Optional, Union

from firstkit.links.messages import Open, Usage

try:
    import msgspec  # a third of the cost; not there on clusters
except ImportError:
    msgspec = None  # type: ignore[assignment]

MOST_COMPLETION_TOKENS = 10_000_000
TEMPLATE_TOKENS = 100_000
"""A prompt has at most a token for each byte of the request and this many that templates and tools add."""
BYTES_PER_TOKEN = 4
ERROR_CHARS = 500
NOTHING = Usage(0, 0)

_PROMPT = ("prompt_tokens", "input_tokens")
_COMPLETION = ("completion_tokens", "output_tokens")
_REMEMBERED = ("cache_read_input_tokens", "cache_creation_input_tokens")
"""Of Anthropic Messages, where they are no part of ``input_tokens``."""
_PIECES = ("content", "text", "reasoning", "reasoning_content", "tool_calls", "function_call", "refusal", "audio")
_QUICK = None if msgspec is None else msgspec.json.Decoder()
_GLANCE: Any = None
if msgspec is not None:
    _GLANCE = msgspec.json.Decoder(
        msgspec.defstruct("Said", [(name, Any, None) for name in ("error", "object", "usage")])
    )
_DECODER = json.JSONDecoder()
_USAGE_OBJECT = re.compile(rb'"usage"\s*:\s*(?=\{)')


def object_of(data: Union[bytes, bytearray]) -> Optional[dict[str, Any]]:
    """A JSON object; None where it is none."""
    if _QUICK is not None:
        try:
            value = _QUICK.decode(data)
        except (msgspec.DecodeError, ValueError, RecursionError):
            pass  # json reads some that are not quite JSON, as with NaN, and has the last word
        else:
            return value if isinstance(value, dict) else None
    try:
        text = data.decode().strip(" \t\r\n")
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value if end == len(text) and isinstance(value, dict) else None


def is_json(data: Union[bytes, bytearray]) -> bool:
    """Whether it is JSON of any kind."""
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def told_usage(answer: Union[bytes, bytearray], request: Open) -> Optional[Usage]:
    """What a whole plain answer that is no error says of its usage; None: read all of it. Texts are passed over, which
    is a third of the work, and not looked at: so it is only for those in plain ASCII."""
    if _GLANCE is None or not answer.isascii():
        return None
    try:
        said = _GLANCE.decode(answer)
    except (msgspec.DecodeError, RecursionError):
        return None
    return None if said.error or said.object == "error" else read_usage(said.usage, request)


# -- errors --------------------------------------------------------------------------------------------------------


def error_in(data: dict[str, Any]) -> Optional[str]:
    """The message of an error that came with a good status, in any of the shapes in use; None: no error."""
    return message_of(data) if data.get("error") or data.get("object") == "error" else None


def message_of(data: dict[str, Any]) -> str:
    error = data.get("error") or data
    message = error.get("message") if isinstance(error, dict) else error
    return message[:ERROR_CHARS] if isinstance(message, str) and message else "the engine reported an error"


# -- usage ---------------------------------------------------------------------------------------------------------


def read_usage(data: Any, request: Open) -> Optional[Usage]:
    """An engine's usage object, of any of the protocols; None when it is none or cannot be true."""
    if not isinstance(data, dict):
        return None
    prompt, completion = data.get("prompt_tokens"), data.get("completion_tokens")
    if type(prompt) is int and type(completion) is int:  # as of most
        return _possible(prompt, completion, request)
    prompt, completion = _first(data, _PROMPT), _first(data, _COMPLETION)
    if prompt is None and completion is None:
        prompt = data.get("total_tokens")  # all that some say of what has no answer in tokens, such as a ranking
        if prompt is None:
            return None
    prompt, completion = (0 if count is None else count for count in (prompt, completion))
    remembered = [data.get(key) or 0 for key in _REMEMBERED]
    if any(type(count) is not int for count in (prompt, completion, *remembered)):
        return None
    return _possible(prompt + sum(remembered), completion, request)


def _possible(prompt: int, completion: int, request: Open) -> Optional[Usage]:
    if not 0 <= prompt <= request.body_bytes + TEMPLATE_TOKENS or not 0 <= completion <= MOST_COMPLETION_TOKENS:
        return None
    return Usage(prompt, completion)


def _first(data: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((data[key] for key in keys if data.get(key) is not None), None)


def estimate(request: Open, said_bytes: int) -> Usage:
    """What was used where nobody says, from sizes. Of an upload the size says nothing."""
    prompt = 0 if "content-type" in request.headers else ceil(request.body_bytes / BYTES_PER_TOKEN)
    return Usage(prompt, ceil(said_bytes / BYTES_PER_TOKEN), estimated=True)


def last_usage(body: Union[bytes, bytearray]) -> Any:
    """The last usage object in the text of a large answer, or None."""
    found = None
    for found in _USAGE_OBJECT.finditer(body):  # noqa: B007 - the last one is wanted
        pass
    if found is None:
        return None
    try:
        return _DECODER.raw_decode(body[found.end() : found.end() + 4096].decode("utf-8", "replace"))[0]
    except (ValueError, RecursionError):
        return None


# -- texts ---------------------------------------------------------------------------------------------------------


def piece_of(choice: dict[str, Any]) -> Any:
    """What a choice of a chunk brings: text, reasoning, a part of a tool call; None for nothing."""
    delta = choice.get("delta", choice)
    if isinstance(delta, dict):
        for key in _PIECES:
            if piece := delta.get(key):
                return piece
    return None


def said_bytes(data: dict[str, Any]) -> int:
    """Bytes of text in a plain answer: its choices, its items of output, its blocks of content, or its own text."""
    choices = data.get("choices")
    said = [c.get("message", c) for c in choices if isinstance(c, dict)] if isinstance(choices, list) else [data]
    for item in data.get("output") or () if isinstance(data.get("output"), list) else ():
        said += item["content"] if isinstance(item, dict) and isinstance(item.get("content"), list) else [item]
    pieces = [s[key] for s in said if isinstance(s, dict) for key in _PIECES if s.get(key)]
    return sum(len(p.encode("utf-8", "replace") if isinstance(p, str) else json.dumps(p)) for p in pieces)
