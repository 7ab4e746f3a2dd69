"""Reading a configuration: one YAML file, cast once; every error names the path, the value and what is allowed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from firstkit.config.kinds import Section
from firstkit.config.whole import Config
from firstkit.errors import ConfigError
from firstkit.paths import default_state_dir

if TYPE_CHECKING:
    from yaml import SafeLoader
else:
    SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # that of libyaml reads a hundred models in no time

SOCKET_PATH_LIMIT = 107
"""Longest path of a UNIX socket on Linux, in bytes."""
LONGEST_SOCKET = "/controller.sock"


def load_config(path: Path) -> Config:
    """Read and check a configuration file; raises ConfigError with every fault in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}") from exc
    return parse_config(text, str(path))


def parse_config(text: str, source: str = "configuration") -> Config:
    """Check the YAML text of a configuration; raises ConfigError with every fault in it."""
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader, see below
    except (yaml.YAMLError, RecursionError) as exc:
        raise ConfigError(f"{source}: not valid YAML: {exc}") from exc
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: must be a mapping with the keys {', '.join(Config.model_fields)}")
    try:
        config = Config.model_validate(data)
    except ValidationError as exc:
        faults = "\n".join(f"  {_sentence(error)}" for error in exc.errors(include_url=False))
        raise ConfigError(f"{source} is not valid:\n{faults}") from exc
    return _with_state_dir(config, source)


class _Loader(SafeLoader):
    """YAML that refuses a key given twice in one mapping, where the second would silently win, and names the place of
    a value that is none: PyYAML itself raises whatever it stumbles over.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as exc:
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(problem=f"not a valid {kind}", problem_mark=node.start_mark) from exc

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else id(key_node)
            if key in seen and key != "<<":
                raise yaml.MarkedYAMLError(problem=f"the key '{key}' is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _with_state_dir(config: Config, source: str) -> Config:
    state_dir = config.server.state_dir
    if state_dir == Path():
        state_dir = default_state_dir()
    try:
        state_dir = state_dir.expanduser().absolute()
    except RuntimeError as exc:
        raise ConfigError(f"{source}: server.state_dir: '{state_dir}' is not allowed: there is no such user") from exc
    longest = len(os.fsencode(str(state_dir) + LONGEST_SOCKET))
    if longest > SOCKET_PATH_LIMIT:
        room = SOCKET_PATH_LIMIT - len(LONGEST_SOCKET)
        raise ConfigError(
            f"{source}: server.state_dir: '{state_dir}' is too long for UNIX sockets; at most {room} bytes are allowed"
        )
    server = config.server.model_copy(update={"state_dir": state_dir})
    return config.model_copy(update={"server": server})


def _sentence(error: Any) -> str:
    """One validation error as ``path: value: what is allowed``."""
    location = _path(error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        allowed = _allowed_keys(error["loc"][:-1])
        return f"{location}: unknown key" + (f"; allowed: {', '.join(allowed)}" if allowed else "")
    if error["type"] == "missing":
        return f"{location}: missing"
    if error["type"] == "union_tag_invalid":
        return f"{location}.kind: {error['ctx']['tag']!r} is not allowed: {error['ctx']['expected_tags']} is needed"
    if error["type"] == "value_error" and isinstance(error["input"], dict):
        return f"{location}: {message}" if location else message
    return f"{location}: {error['input']!r} is not allowed: {message}"


def _path(loc: tuple[str | int, ...]) -> str:
    text = ""
    for i, part in enumerate(loc):
        if isinstance(part, int):
            text += f"[{part}]"
        elif part != "[key]" and not _is_type(loc, i):
            text += f".{part}" if text else part
    return text


def _is_type(loc: tuple[str | int, ...], i: int) -> bool:
    """Whether a part of a location is no key but the type that was tried, of a field that takes one of several."""
    if i == 3 and loc[0] == "clusters":
        return loc[i - 1] in ("scheduler", "carrier")
    return i > 1 and isinstance(loc[i - 2], int) and loc[i - 1] in ("engine", "weights")


def _allowed_keys(loc: tuple[str | int, ...]) -> list[str]:
    """The keys of the section at ``loc``, found by walking the model classes along the path."""
    sections: list[type[Section]] = [Config]
    for part in loc:
        fields = sections[0].model_fields if sections else {}
        if part in fields:
            sections = list(_sections_in(fields[part].annotation))
        elif len(sections) > 1:
            sections = [section for section in sections if part in _kinds(section)]
    return list(sections[0].model_fields) if sections else []


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    """The section classes inside an annotation such as ``dict[str, Cluster]`` or ``Name | Engine``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _sections_in(argument)


def _kinds(section: type[Section]) -> tuple[Any, ...]:
    """What may stand under ``kind`` in one of several sections."""
    kind = section.model_fields.get("kind")
    return () if kind is None else getattr(kind.annotation, "__args__", ())
