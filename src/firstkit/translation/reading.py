"""Parts of a request that come from a client: read with errors that say where they are and what may stand there."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import msgspec

from firstkit.errors import InvalidRequest

Object = dict[str, Any]
Body = dict[str, msgspec.Raw]


class Part:
    """One JSON object of a request, and where it stands in it (``input[2].content[0]``)."""

    __slots__ = ("value", "where")

    def __init__(self, value: Any, where: str) -> None:
        """Raises InvalidRequest where it is no object."""
        self.where = where
        if not isinstance(value, dict):
            raise self.wrong("must be an object")
        self.value: Object = value

    def get(self, key: str) -> Any:
        return self.value.get(key)

    def text(self, key: str) -> str:
        """A text that must be there."""
        value = self.value.get(key)
        if not isinstance(value, str):
            raise self.wrong("must be a string", key)
        return value

    def word(self, key: str, allowed: Collection[str]) -> str | None:
        """One of the ``allowed`` texts; None: absent or null."""
        value = self.value.get(key)
        if value is not None and value not in allowed:
            raise self.wrong(f"must be one of {', '.join(allowed)}", key)
        return value

    def told(self, key: str) -> str | None:
        """A text that may be absent or null."""
        return None if self.value.get(key) is None else self.text(key)

    def parts(self, key: str) -> list[Part]:
        """A list of objects."""
        return parts_of(self.value.get(key), f"{self.where}.{key}")

    def within(self, key: str) -> Part:
        """An object that must be there."""
        return Part(self.value.get(key), f"{self.where}.{key}")

    def kind(self, allowed: Collection[str], usual: str | None = None) -> str:
        """Its ``type``, one of ``allowed``."""
        value = self.value.get("type", usual)
        if value not in allowed:
            raise self.wrong(f"{_shown(value)} is not supported here; allowed: {', '.join(sorted(allowed))}", "type")
        return str(value)

    def wrong(self, sentence: str, key: str = "") -> InvalidRequest:
        where = f"{self.where}.{key}" if key else self.where
        return InvalidRequest(f"'{where}' {sentence}.", param=where)


def parts_of(value: Any, where: str) -> list[Part]:
    """``value`` as a list of objects; raises InvalidRequest."""
    if not isinstance(value, list):
        raise InvalidRequest(f"'{where}' must be a list of objects.", param=where)
    return [Part(each, f"{where}[{i}]") for i, each in enumerate(value)]


def _shown(value: Any) -> str:
    return repr(value[:60]) if isinstance(value, str) else "without a string it"


# -- whole requests ----------------------------------------------------------------------------------------------------


def read(body: Body, fields: Collection[str]) -> Object:
    """The values of those ``fields`` of a request that are there and not null. Raises InvalidRequest."""
    found: Object = {}
    for key in body:
        if key in fields:
            try:
                value = msgspec.json.decode(body[key])
            except (msgspec.DecodeError, RecursionError):
                raise InvalidRequest(
                    f"'{key}' cannot be read: it is nested too deeply, or a number in it is too large.", param=key
                ) from None
            if value is not None:
                found[key] = value
    return found


def chat_body(body: Body, ours: Collection[str], said: Object) -> Body:
    """The chat request that says ``said``, with all fields of ``body`` that are not ``ours``: they mean the same there,
    or are options of engines. Raises InvalidRequest."""
    if "n" in body and bytes(memoryview(body["n"])[:5]) not in (b"1", b"null"):
        raise InvalidRequest("'n': in this protocol an answer has one choice.", param="n")
    chat = {key: raw for key, raw in body.items() if key not in ours and key != "n"}
    if not said.get("tools"):
        _without_tools(chat, said)
    return chat | {key: msgspec.Raw(encoded(value)) for key, value in said.items()}


def encoded(value: Any) -> bytes:
    """``value``, which a client sent, as JSON again. Raises InvalidRequest."""
    try:
        return msgspec.json.encode(value)
    except RecursionError:
        raise InvalidRequest("The request body is nested too deeply.", code="invalid_json") from None


def _without_tools(chat: Body, said: Object) -> None:
    """Engines refuse what is said of tools where there are none, and some clients always say it."""
    for fields in (chat, said):
        fields.pop("tools", None)
        fields.pop("parallel_tool_calls", None)
    if said.pop("tool_choice", "none") not in ("auto", "none"):
        raise InvalidRequest("'tool_choice' asks for a tool, and there are no 'tools'.", param="tool_choice")


# -- what chat requests are made of ------------------------------------------------------------------------------------


def as_json(value: Any) -> str:
    """An object as the JSON text that chat completions have for arguments."""
    return encoded(value).decode()


def joined(texts: Iterable[str]) -> str:
    """Texts that chat templates take only as one."""
    return "\n".join(text for text in texts if text)


def plain(parts: list[Object]) -> Any:
    """Only text as a text: many chat templates take nothing else."""
    if all(part["type"] == "text" for part in parts):
        return joined(part["text"] for part in parts)
    return parts


def led(said: list[Object]) -> list[Object]:
    """``said`` with all that is no part of the conversation at its beginning, as one message: many chat templates take
    no other."""
    text = joined(message["content"] for message in said if message["role"] == "system")
    rest = [message for message in said if message["role"] != "system"]
    return [{"role": "system", "content": text}, *rest] if text else rest
