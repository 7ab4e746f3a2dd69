"""The tools of a Responses request, as chat engines know them: functions with one name each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from firstkit.errors import InvalidRequest
from firstkit.translation.reading import Object, Part, joined, parts_of

TOOLS = ("function", "custom", "namespace")
"""Those that the client runs."""
_BY_ITSELF = ("function", "custom")
_INPUT = {"input": {"type": "string"}}
CUSTOM_SCHEMA = {"type": "object", "properties": _INPUT, "required": ["input"], "additionalProperties": False}
"""A custom tool takes one text; to chat engines it is a function of one argument."""
_NO_ARGUMENTS = {"type": "object", "properties": {}}
_CHOICES = ("function", "custom", "allowed_tools")
_MODES = ("none", "auto", "required")


class Called(NamedTuple):
    """What a client calls a tool."""

    name: str
    namespace: str | None = None
    is_custom: bool = False


Names = Mapping[str, Called]
"""By the name that an engine knows."""


def known_as(part: Part) -> str:
    """The name by which an engine knows the tool that ``part`` names."""
    return _flat(part.text("name"), part.told("namespace"))


def _flat(name: str, namespace: str | None) -> str:
    """One name, of the letters that engines take."""
    return name if namespace is None else f"{namespace}__{name}"


def functions_of(tools: Any) -> tuple[list[Object], Names]:
    """Tools as chat functions, and what the client calls each. Raises InvalidRequest."""
    functions: list[Object] = []
    names: dict[str, Called] = {}
    for part in parts_of(tools, "tools"):
        is_namespace = part.kind(TOOLS) == "namespace"
        namespace = part.text("name") if is_namespace else None
        for tool in part.parts("tools") if is_namespace else [part]:
            kind = tool.kind(_BY_ITSELF)
            name = _flat(tool.text("name"), namespace)
            if name in names:
                raise tool.wrong(f"is the name of two tools: {name!r}", "name")
            names[name] = Called(tool.text("name"), namespace, kind == "custom")
            functions.append(_function(tool, name, kind))
    return functions, names


def _function(tool: Part, name: str, kind: str) -> Object:
    function: Object = {"name": name}
    words = [tool.told("description") or "", *(_form(tool) if kind == "custom" else ())]
    if text := joined(words):
        function["description"] = text
    function["parameters"] = CUSTOM_SCHEMA if kind == "custom" else tool.get("parameters") or _NO_ARGUMENTS
    if tool.get("strict") is not None:
        function["strict"] = tool.get("strict")
    return {"type": "function", "function": function}


def _form(tool: Part) -> list[str]:
    """The form of a custom tool's input in words: chat engines hold no model to it."""
    if tool.get("format") is None:
        return []
    form = tool.within("format")
    if form.kind(("text", "grammar")) == "text":
        return []
    return [f"The input must match this grammar ({form.text('syntax')}):", form.text("definition")]


def choice_of(asked: Any, functions: list[Object]) -> Object:
    """What a chat request says of a ``tool_choice``. Raises InvalidRequest."""
    if isinstance(asked, str):
        if asked not in _MODES:
            raise InvalidRequest(f"'tool_choice' must be one of {', '.join(_MODES)}.", param="tool_choice")
        return {"tool_choice": asked}
    part = Part(asked, "tool_choice")
    if part.kind(_CHOICES) != "allowed_tools":
        return {"tool_choice": {"type": "function", "function": {"name": known_as(part)}}}
    allowed = _allowed({known_as(tool) for tool in part.parts("tools")}, functions)
    return {"tool_choice": part.word("mode", _MODES) or "auto", "tools": allowed}


def _allowed(names: Collection[str], functions: list[Object]) -> list[Object]:
    allowed = [tool for tool in functions if tool["function"]["name"] in names]
    if len(allowed) < len(names):
        raise InvalidRequest("'tool_choice.tools' names tools that are not among 'tools'.", param="tool_choice.tools")
    return allowed
