"""How many tokens a Messages request has, where no engine counts them: an estimate from sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from firstkit.accounting.estimate import MEDIA_TOKENS
from firstkit.engines.reported import BYTES_PER_TOKEN
from firstkit.errors import InvalidRequest
from firstkit.translation.reading import Body, read

_COUNTED = frozenset(("messages", "system", "tools", "tool_choice", "output_config"))
_UNREAD = frozenset(("cache_control", "citations", "signature"))
"""What no model reads."""


def estimated_tokens(body: Body) -> int:
    """The tokens of a Messages request: four bytes of what is said, names of fields among it, make one. Raises
    InvalidRequest."""
    try:
        sizes = list(_sizes(read(body, _COUNTED)))
    except RecursionError:
        raise InvalidRequest("The request body is nested too deeply.", code="invalid_json") from None
    said_bytes = sum(size for size in sizes if size is not None)
    return -(-said_bytes // BYTES_PER_TOKEN) + MEDIA_TOKENS * sizes.count(None)


def _sizes(value: Any) -> Iterator[int | None]:
    """Of all texts in ``value``, in bytes; None: media."""
    if isinstance(value, str):
        yield len(value.encode())
    elif isinstance(value, list):
        for each in value:
            yield from _sizes(each)
    elif isinstance(value, dict):
        if value.get("type") == "base64":
            yield None
            return
        for key, each in value.items():
            if key not in _UNREAD:
                yield len(key.encode())
                yield from _sizes(each)
    elif value is not None:
        yield len(str(value))
