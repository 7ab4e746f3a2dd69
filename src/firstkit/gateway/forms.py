"""Requests that bring a file: multipart/form-data (RFC 7578), of which only the name of the model is ever replaced.

Parts are found by their delimiter alone, so that a file of 25 MiB takes milliseconds. What other parsers could read in
another way is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from firstkit.errors import InvalidRequest

MOST_PARTS = 100
MOST_HEAD_BYTES = 4096
"""Of the head of one part."""
MOST_TEXT_BYTES = 64 * 1024
"""Of the text in a field that is no file."""
_BOUNDARY = re.compile(
    r"multipart/form-data[ \t]*;[ \t]*boundary="
    r"""(?:"([0-9A-Za-z'()+_,./:=?-]{1,70})"|([0-9A-Za-z'+_.-]{1,70}))[ \t]*""",
    re.IGNORECASE,
)
"""RFC 2046, 5.1.1, without spaces."""
_NAMED = re.compile(
    rb'content-disposition:[ \t]*form-data;[ \t]*name="([^"\\\r\n]{1,200})"'
    rb'((?:;[ \t]*filename="(?:[^"\\\r\n]|\\[^"\r\n])*")?(?:;[ \t]*filename\*=[^";\s]*)?)[ \t]*',
    re.IGNORECASE,
)
"""A backslash before a quote is read by some as a part of the name, by others as its end."""
_TYPED = re.compile(rb"content-type:[ \t]*([^\r\n]*)", re.IGNORECASE)
_LONG = re.compile(rb"content-length:[ \t]*([0-9]{1,9})[ \t]*", re.IGNORECASE)
_CODED = re.compile(rb"content-transfer-encoding:[ \t]*(?:binary|8bit|7bit)[ \t]*", re.IGNORECASE)
_HEADERS = {"named": _NAMED, "typed": _TYPED, "long": _LONG, "coded": _CODED}
_TEXT = re.compile(rb'(?:text/plain|application/json)[ \t]*(?:;[ \t]*charset="?utf-8"?)?[ \t]*', re.IGNORECASE)
_ONCE = frozenset(("model", "stream", "x_first"))
_WORD = re.compile(rb"true|false|0|[1-9][0-9]{0,18}")
_WORDS = frozenset(("stream", "x_first", "n", "max_tokens", "max_completion_tokens", "max_output_tokens"))
"""Fields that are read as what they would be in JSON: not as texts."""


@dataclass(slots=True)
class Form:
    """A form as it came, but for what was meant for us alone. ``model_at``: where the name of the model stands."""

    content_type: str
    body: bytes
    model_at: tuple[int, int]

    def naming(self, model: str) -> bytes:
        """The form with another name of the model."""
        (start, end), body = self.model_at, memoryview(self.body)
        return b"".join((body[:start], model.encode(), body[end:]))


def is_form(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def read_form(content_type: str, body: bytes) -> tuple[Form, dict[str, msgspec.Raw]]:
    """The form, and its fields as the values that they would be in a JSON body: texts, null for a file.

    Raises InvalidRequest for one that is not whole or not plain.
    """
    match = _BOUNDARY.fullmatch(content_type)
    if match is None:
        raise InvalidRequest("A form needs 'multipart/form-data; boundary=...' as its content-type.", param="body")
    parts = _parts(body, (match[1] or match[2]).encode())
    model_at, ours, fields = (0, 0), (0, 0), {}
    for i, (start, end) in enumerate(parts):
        name, is_file, start = _head(body, start, end)
        if name in fields and name in _ONCE:
            raise InvalidRequest(f"'{name}' is in the form twice.", param=name)
        if name == "model":
            model_at = start, end
        elif name == "x_first":  # from delimiter to delimiter; before the first of a form there is none
            ours = (parts[i - 1][1], end) if i > 0 else (parts[0][0], parts[1][0] if len(parts) > 1 else end)
        fields[name] = msgspec.Raw(b"null") if is_file else _value(name, body[start:end])
    return _without(Form(content_type, body, model_at), *ours), fields


def _without(form: Form, start: int, end: int) -> Form:
    """``form`` without what stands from ``start`` to ``end``."""
    if start == end:
        return form
    gone = end - start if form.model_at[0] >= end else 0
    model_at = form.model_at[0] - gone, form.model_at[1] - gone
    return Form(form.content_type, form.body[:start] + form.body[end:], model_at)


def _parts(body: bytes, boundary: bytes) -> list[tuple[int, int]]:
    """Where each part begins and ends. The boundary may stand nowhere else: some programs take it for a delimiter also
    behind other line ends."""
    dashed = b"--" + boundary
    if not body.startswith(dashed + b"\r\n"):
        raise _broken("it does not begin with its boundary")
    parts, start = [], len(dashed) + 2
    while (at := body.find(dashed, start)) >= 0:
        if at < start + 2 or body[at - 2 : at] != b"\r\n":
            raise _broken("its boundary stands also within a part")
        parts.append((start, at - 2))
        start = at + len(dashed) + 2
        if body[start - 2 : start] == b"--" and body[start:] in (b"", b"\r\n"):
            return parts
        if body[start - 2 : start] != b"\r\n" or len(parts) == MOST_PARTS:
            break
    raise _broken(f"it has no end, or more than {MOST_PARTS} parts")


def _head(body: bytes, start: int, end: int) -> tuple[str, bool, int]:
    """The name of a part, whether it is a file, and where its content begins."""
    at = body.find(b"\r\n\r\n", start, min(end, start + MOST_HEAD_BYTES))
    if at < 0:
        raise _broken("a part has no head")
    found: dict[str, re.Match[bytes]] = {}
    lines = body[start:at].split(b"\r\n")
    for line in lines:
        for kind, pattern in _HEADERS.items():
            if match := pattern.fullmatch(line):
                found[kind] = match
    if "named" not in found or len(found) != len(lines):
        raise _broken("a part has no plain name, or headers that parts do not need")
    named, typed, long = found["named"], found.get("typed"), found.get("long")
    is_file = bool(named[2])
    if typed is not None and (typed[1].lower().startswith(b"multipart/") if is_file else not _TEXT.fullmatch(typed[1])):
        raise _broken("a part is encoded in a way of its own")
    if long is not None and int(long[1]) != end - at - 4:
        raise _broken("a part has another length than it says")
    return named[1].decode("utf-8", "replace"), is_file, at + 4


def _value(name: str, text: bytes) -> msgspec.Raw:
    shown = name[:100]
    if name == "_charset_":
        raise _broken("it names an encoding; it must be UTF-8")
    if len(text) > MOST_TEXT_BYTES:
        raise InvalidRequest(f"'{shown}' is longer than {MOST_TEXT_BYTES // 1024} KiB.", param=shown)
    try:
        said = text.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"'{shown}' is not UTF-8.", param=shown) from None
    if name in _WORDS and _WORD.fullmatch(text):
        return msgspec.Raw(text)
    return msgspec.Raw(msgspec.json.encode(said))


def _broken(reason: str) -> InvalidRequest:
    return InvalidRequest(f"The form cannot be read: {reason}.", param="body")
