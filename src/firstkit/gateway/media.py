"""What engines are given to look at: never an address. An engine that fetches is an attack on what it can reach."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from firstkit.errors import InvalidRequest

_URL, _EMBEDS = _SIGNS = (b'url"', b'_embeds"')
_LETTERS = (b"\\u004", b"\\u005", b"\\u006", b"\\u007")
"""Without one of these in its bytes nothing names an address or a tensor, in plain letters or escaped ones. In a text
the quote would be escaped, so that texts may speak of URLs and are not read for that."""
_MEDIA = ("image", "images", "video", "videos", "audio", "audios", "file_data")
"""Further keys of what is no conversation, under which some engines take data, an address or the name of a file."""
_MEDIA_SIGNS = (*_SIGNS, *(f'{name}"'.encode() for name in _MEDIA))
_NO_BASE64 = re.compile(r"[.:]")
"""Every address and every name of a picture has one of these."""
_UNSEEN = frozenset(("annotations", "citations", "tool_calls", "function_call", "arguments", "metadata"))
"""Keys below which no engine looks for media: what was said before of sources, and to tools."""
_SCHEMAS = frozenset(
    ("tools", "functions", "response_format", "text", "output_config", "guided_json", "structured_outputs")
)
"""Fields that describe what shall be said, perhaps with examples."""
_MESSAGES = msgspec.json.Decoder(list[msgspec.Raw])
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_CONTAINERS = (b"[", b"{")
_MOST_PATH = 200
_MOST_QUOTES = 256
_MOST_WORD_BYTES = 256
_SHORT_BYTES = 2048
_WORDS = (b"url", b"_embeds")
_DATA = b'"data:'

Fields = dict[str, msgspec.Raw]


def names_none(text: bytes) -> bool:
    """Whether a glance tells that nothing in a text of JSON, of a conversation, names media or is a tensor.

    A key or a type that does ends before a quote. Where quotes are few, as in most requests however long, they are
    found at the speed of memory. Longer than _MOST_WORD_BYTES none is that any engine knows, whatever is escaped in it.
    """
    if len(text) < _SHORT_BYTES:  # in plain terms: a generator would cost more than the search
        return not (_URL in text or _EMBEDS in text or (b"\\" in text and _has_escaped_letters(text)))
    start, end = 0, text.find(b'"')
    for _ in range(_MOST_QUOTES):
        if end < 0:
            return True
        if text.endswith(_WORDS, start, end) or (
            end - start <= _MOST_WORD_BYTES and _has_escaped_letters(text[start:end])
        ):
            break
        start = end + 1
        end = text.find(b'"', start)
    return not _may_name_media(text, _SIGNS)


def check_messages(raw: msgspec.Raw, field: str, takes_text: bool) -> None:
    """Raise InvalidRequest unless ``raw``, the messages or items in ``field``, is a list of objects (or, if that may
    be, a text) in which media are data: URLs only."""
    if takes_text and _first(raw) == b'"':
        return
    try:
        messages = _MESSAGES.decode(_without_data(bytes(memoryview(raw))))
        objects = [_OBJECT.decode(message) for message in messages]
    except (msgspec.DecodeError, RecursionError):
        objects = []
    if not objects:
        what = "a text or a list of objects" if takes_text else "a list of objects"
        raise InvalidRequest(f"'{field}' must be {what}.", param=field)
    for i, (message, fields) in enumerate(zip(messages, objects, strict=True)):
        said = bytes(memoryview(message))
        if msgspec.json.encode(fields) == said:  # as most write it; then it has no key twice, and texts need no look
            looked_at = [raw for key, raw in fields.items() if _first(raw) in _CONTAINERS or _is_address(key, ())]
            if not any(_may_name_media(bytes(memoryview(raw)), _SIGNS) or _first(raw) == b'"' for raw in looked_at):
                continue
        if _may_name_media(said, _SIGNS):
            _check(_read(said, field), f"{field}[{i}]", field, ())


def _without_data(said: bytes) -> bytes:
    """``said`` with nothing but ``data:`` left of its data: URLs: pictures are long, and how one begins is all that
    counts. With a backslash in it, one stays as it is: who knows which quote is its end."""
    kept, start = [], 0
    while (at := said.find(_DATA, start)) >= 0:
        begun = at + len(_DATA)
        end = said.find(b'"', begun)
        if end < 0:
            break
        if said.find(b"\\", begun, end) >= 0:
            begun = end
        kept.append(said[start:begun])
        start = end
    return b"".join((*kept, said[start:])) if kept else said


def check_fields(fields: Fields, but: str | None, is_said: bool) -> None:
    """Raise InvalidRequest where a field, other than ``but``, names media by an address. ``is_said``: of a
    conversation; else some engines look under further keys."""
    media, signs = ((), _SIGNS) if is_said else (_MEDIA, _MEDIA_SIGNS)
    for field, raw in fields.items():
        if field == but or field == "metadata" or (is_said and field in _SCHEMAS):
            continue
        is_address, kind = _is_address(field, media), _first(raw)
        if kind in _CONTAINERS or (is_address and kind == b'"'):
            said = bytes(memoryview(raw))
            if is_address or _may_name_media(said, signs):
                _check({field: _read(said, field)}, "", field, media)


def _first(raw: msgspec.Raw) -> bytes:
    return bytes(memoryview(raw)[:1])


def _may_name_media(said: bytes, signs: tuple[bytes, ...]) -> bool:
    """Looks first for what is found or missed at the speed of memory: single bytes."""
    if b"{" not in said:
        return False
    if any(sign in said for sign in signs):
        return True
    return b"\\" in said and _has_escaped_letters(said)


def _has_escaped_letters(said: bytes) -> bool:
    return b"\\u00" in said and any(letter in said for letter in _LETTERS)


def _read(said: bytes, field: str) -> Any:
    def without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Of two equal keys engines differ in which counts, and we pass parts on as they are."""
        found = dict(pairs)
        if len(found) < len(pairs):
            raise InvalidRequest(f"'{field}' has an object with a key twice.", param=field)
        return found

    try:
        return json.loads(said.decode(), object_pairs_hook=without_twins)
    except (ValueError, RecursionError):
        raise InvalidRequest(f"'{field}' cannot be read.", param=field) from None


def _check(said: Any, where: str, field: str, media: tuple[str, ...]) -> None:
    """Without recursion: what is nested is as deep as somebody else likes."""
    found: list[tuple[Any, str, str]] = [(said, where, "")]
    while found:
        value, where, key = found.pop()
        if isinstance(value, list):
            found += [(part, where, key) for part in value]
        elif isinstance(value, dict):
            found += _entries(value, where, field)
        elif isinstance(value, str) and _is_address(key, media) and not _is_data(value, key):
            raise InvalidRequest(f"'{where}' must be a data: URL; addresses are not fetched.", param=field)


def _entries(part: dict[str, Any], where: str, field: str) -> Iterator[tuple[Any, str, str]]:
    """What a part has, with the place and the key of each."""
    if str(part.get("type", "")).endswith("_embeds"):
        raise InvalidRequest(f"'{where}' may not hold tensors.", param=field)
    unseen = _UNSEEN | {"input"} if part.get("type") == "tool_use" else _UNSEEN
    for key, value in part.items():
        if key.endswith("_embeds"):
            raise InvalidRequest(f"'{where}.{key}' may not hold tensors.", param=field)
        if key not in unseen:
            yield value, f"{where}.{key}".lstrip(".") if len(where) < _MOST_PATH else where, key


def _is_address(key: str, media: tuple[str, ...]) -> bool:
    return key == "url" or key.endswith("_url") or key in media


def _is_data(value: str, key: str) -> bool:
    return value.startswith("data:") or (key in _MEDIA and _NO_BASE64.search(value) is None)
