"""Dataclasses to and from JSON objects, for what crosses a process or a cluster.

Unknown keys are ignored and missing ones take their default, so that neighbouring versions understand each other.
The zipapp uses this under Python 3.9: annotations of wire classes say ``Optional[X]``, not ``X | None``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from enum import Enum
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class WireError(ValueError):
    """A message does not have the shape that was agreed on."""


def to_dict(value: Any) -> Any:
    """``value`` as JSON types: dataclasses become objects, enums their value, tuples lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [to_dict(item) for item in value]
    if isinstance(value, dict):
        return {key: to_dict(item) for key, item in value.items()}
    return value


def from_dict(cls: type[T], data: Any, where: str = "") -> T:
    """Build dataclass ``cls`` from a JSON object; raises WireError naming the path of the wrong value."""
    if not isinstance(data, dict):
        raise WireError(f"{where or cls.__name__}: an object is needed, not {type(data).__name__}")
    hints = _hints(cls)  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        path = f"{where}.{field.name}" if where else field.name
        if field.name in data:
            values[field.name] = _value(hints[field.name], data[field.name], path)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise WireError(f"{path}: missing")
    return cls(**values)


def encode(value: Any) -> bytes:
    """``value`` as compact JSON bytes."""
    return json.dumps(to_dict(value), separators=(",", ":")).encode()


def decode(cls: type[T], data: bytes) -> T:
    """Dataclass ``cls`` from JSON bytes; raises WireError."""
    try:
        return from_dict(cls, json.loads(data))
    except (ValueError, RecursionError) as exc:
        raise exc if isinstance(exc, WireError) else WireError(f"{cls.__name__}: not JSON") from exc


@functools.cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    """Evaluating the annotations of a class costs 50 us; some messages travel once per request."""
    return get_type_hints(cls)


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Union:
        return None if value is None else _value(args[0], value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        return tuple(_value(args[0], item, f"{where}[{i}]") for i, item in enumerate(_typed(list, value, where)))
    if origin is dict:
        return {key: _value(args[1], item, f"{where}.{key}") for key, item in _typed(dict, value, where).items()}
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError:
            raise WireError(f"{where}: one of {', '.join(str(m.value) for m in hint)} is needed") from None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise WireError(f"{where}: the number is too large") from None
    return _typed(hint, value, where)


def _typed(kind: type[T], value: Any, where: str) -> T:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise WireError(f"{where}: {kind.__name__} is needed, not {type(value).__name__}")
    return value
