"""Reads arguments without pydantic, by which typer turns a text into a text: importing it takes 0.1 s each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


class LightReader:
    """Stands in for typer's own reader of one parameter, and asks that one for all that is not simple."""

    def __init__(self, annotation: Any, typers_own: Callable[[], Any]) -> None:
        self._type = annotation
        self._typers_own = typers_own

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value as the command gets it; raises typer's BadParameter."""
        if value is None:
            return () if param.multiple or param.nargs == -1 else None
        if self._type in (str, int) and isinstance(value, self._type):
            return value
        if self._type is Path and isinstance(value, (str, Path)):
            return Path(value)
        return self._typers_own().coerce(value, param=param, ctx=ctx)


def lighten() -> None:
    """Let typer's parameters have light readers in this process. Where typer is built otherwise, nothing changes."""
    from typer import core

    for kind in (core.TyperOption, core.TyperArgument):
        own = getattr(kind, "get_runtime_param", None)
        if own is not None:
            kind.get_runtime_param = _light(own)  # type: ignore[method-assign, assignment]


def _light(own: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def get_runtime_param(parameter: Any) -> LightReader:
        return LightReader(parameter.type_descriptor.annotation, lambda: own(parameter))

    return get_runtime_param
