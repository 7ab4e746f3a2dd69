"""Dataclasses to and from JSON objects, for what crosses a process or a cluster.

Unknown keys are ignored and missing ones take their default, so that neighbouring versions understand each other.
The zipapp uses this under Python 3.9: annotations of wire classes say ``Optional[X]``, not ``X | None``.

Some messages travel once per request. What a type needs is therefore worked out once, as a small function that writes
it and a plan that reads it; what these do not know goes the way of ``json``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from enum import Enum
from json.encoder import encode_basestring_ascii
from operator import attrgetter
from typing import Any, NamedTuple, NoReturn, Optional, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
Write = Callable[[Any], str]
"""A value -> its JSON text."""
Read = Callable[[Any, str], Any]
"""A JSON value and its path -> what the field takes; raises WireError with the path."""

_ENCODER = json.JSONEncoder(separators=(",", ":"))
_DECODER = json.JSONDecoder()
_WORDS = {True: "true", False: "false", None: "null"}
_PLAIN = frozenset({str, int, float, bool, type(None)})


class WireError(ValueError):
    """A message does not have the shape that was agreed on."""


def to_dict(value: Any) -> Any:
    """``value`` as JSON types: dataclasses become objects, enums their value, tuples lists."""
    names = _names(type(value))
    if names is not None:
        return {name: to_dict(getattr(value, name)) for name in names}
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
    plan = _plan(cls)
    values: dict[str, Any] = {}
    for name, kinds, read, default in plan.fields:
        if name not in data:
            values[name] = default(where)
        elif type(value := data[name]) in kinds:
            values[name] = value
        else:
            values[name] = read(value, _below(where, name))
    built: T = plan.build(values)
    return built


def encode(value: Any) -> bytes:
    """``value`` as compact JSON bytes."""
    return _writer(type(value))(value).encode()


def decode(cls: type[T], data: bytes) -> T:
    """Dataclass ``cls`` from JSON bytes; raises WireError."""
    try:
        return from_dict(cls, _parse(data))
    except (ValueError, RecursionError) as exc:
        raise exc if isinstance(exc, WireError) else WireError(f"{cls.__name__}: not JSON") from exc


def _parse(data: bytes) -> Any:
    """What ``json.loads`` gives, sooner where the bytes look as ``encode`` writes them."""
    if data[:1] == b"{":
        try:
            text = str(data, "utf-8")
            value, end = _DECODER.raw_decode(text)
        except ValueError:
            return json.loads(data)
        if end == len(text):
            return value
    return json.loads(data)


def _below(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _names_of(kind: type[Any]) -> Optional[tuple[str, ...]]:
    """The fields of a dataclass; None for any other type."""
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None


_names: Callable[[Any], Optional[tuple[str, ...]]] = functools.cache(_names_of)


# -- writing -----------------------------------------------------------------------------------------------------------


def _writer_of(kind: type[Any]) -> Write:
    """How values of exactly this type are written."""
    if names := _names(kind):
        return _object_writer(names)
    if issubclass(kind, Enum):
        return lambda member: _writer(type(member.value))(member.value)
    return _WRITERS.get(kind, _write_any)


_writer: Callable[[Any], Write] = functools.cache(_writer_of)


def _object_writer(names: tuple[str, ...]) -> Write:
    template = "{" + ",".join(f'"{name}":%s' for name in names) + "}"
    if len(names) == 1:
        return lambda value: template % _writer(type(getattr(value, names[0])))(getattr(value, names[0]))
    get = attrgetter(*names)
    return lambda value: template % tuple([_writer(type(item))(item) for item in get(value)])


def _write_dict(value: dict[Any, Any]) -> str:
    try:
        parts = [f"{encode_basestring_ascii(key)}:{_writer(type(item))(item)}" for key, item in value.items()]
    except TypeError:  # a key that is no text, which json knows how to write or to refuse
        return _write_any(value)
    return "{" + ",".join(parts) + "}"


def _write_list(value: Any) -> str:
    return "[" + ",".join([_writer(type(item))(item) for item in value]) + "]"


def _write_float(value: float) -> str:
    text = repr(value)
    return text if text[-1].isdigit() else _write_any(value)  # else it is no finite number


def _write_any(value: Any) -> str:
    return _ENCODER.encode(to_dict(value))


_WRITERS: dict[type[Any], Write] = {
    str: encode_basestring_ascii,
    int: repr,
    float: _write_float,
    bool: _WORDS.__getitem__,
    type(None): _WORDS.__getitem__,
    dict: _write_dict,
    list: _write_list,
    tuple: _write_list,
}


# -- reading -----------------------------------------------------------------------------------------------------------


_Field = tuple[str, frozenset[Any], Read, Callable[[str], Any]]
"""Name; the types whose values are taken as they are; how others are read; what a missing one is, given the path of
its object. A plain tuple: they are unpacked for every message."""


class _Plan(NamedTuple):
    fields: tuple[_Field, ...]
    build: Callable[[dict[str, Any]], Any]


def _plan_of(cls: type[Any]) -> _Plan:
    hints = get_type_hints(cls)
    return _Plan(tuple(_field(field, hints[field.name]) for field in dataclasses.fields(cls)), _builder(cls))


_plan: Callable[[Any], _Plan] = functools.cache(_plan_of)


def _field(field: dataclasses.Field[Any], hint: Any) -> _Field:
    kinds = frozenset(get_args(hint) if get_origin(hint) is Union else (hint,))
    return field.name, kinds & _PLAIN, _reader(hint), _default(field)


def _builder(cls: type[Any]) -> Callable[[dict[str, Any]], Any]:
    """How a ``cls`` is made of all its values. The ``__init__`` of a frozen dataclass sets each by a call, which costs
    as much as all other reading; where it does no more than that, the values are put in place at once."""
    if hasattr(cls, "__post_init__") or hasattr(cls, "__slots__"):
        return lambda values: cls(**values)
    make, put = object.__new__, object.__setattr__

    def build(values: dict[str, Any]) -> Any:
        built = make(cls)
        put(built, "__dict__", values)
        return built

    return build


def _default(field: dataclasses.Field[Any]) -> Callable[[str], Any]:
    if field.default_factory is not dataclasses.MISSING:
        factory = field.default_factory
        return lambda _: factory()
    if field.default is not dataclasses.MISSING:
        return lambda _: field.default

    def missing(where: str) -> NoReturn:
        raise WireError(f"{_below(where, field.name)}: missing")

    return missing


def _reader(hint: Any) -> Read:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return lambda value, _: value
    if origin is Union:
        read = _reader(args[0])
        return lambda value, where: None if value is None else read(value, where)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return functools.partial(from_dict, hint)
    if origin is tuple:
        return functools.partial(_read_tuple, _reader(args[0]))
    if origin is dict:
        return functools.partial(_read_dict, _reader(args[1]))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum_reader(hint)
    return _read_float if hint is float else functools.partial(_typed, hint)


def _read_tuple(read: Read, value: Any, where: str) -> tuple[Any, ...]:
    return tuple([read(item, f"{where}[{i}]") for i, item in enumerate(_typed(list, value, where))])


def _read_dict(read: Read, value: Any, where: str) -> dict[str, Any]:
    return {key: read(item, f"{where}.{key}") for key, item in _typed(dict, value, where).items()}


def _enum_reader(kind: type[Enum]) -> Read:
    members = {member.value: member for member in kind}

    def read(value: Any, where: str) -> Enum:
        try:
            return members[value]
        except (KeyError, TypeError):
            raise WireError(f"{where}: one of {', '.join(map(str, members))} is needed") from None

    return read


def _read_float(value: Any, where: str) -> float:
    if not isinstance(value, int) or isinstance(value, bool):
        return _typed(float, value, where)
    try:
        return float(value)
    except OverflowError:
        raise WireError(f"{where}: the number is too large") from None


def _typed(kind: type[T], value: Any, where: str) -> T:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise WireError(f"{where}: {kind.__name__} is needed, not {type(value).__name__}")
    return value
