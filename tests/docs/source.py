"""What the code has that documents must name: read from its objects, or from its text where no object tells."""

from __future__ import annotations

import ast
import asyncio
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel

from docs.markdown import ROOT
from firstkit.auth.permissions import Identity, Scope
from firstkit.config import Config, ModelName
from firstkit.errors import ApiError, Forbidden

SOURCE = ROOT / "src" / "firstkit"


@cache
def modules() -> dict[Path, ast.Module]:
    """Every source file, parsed."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


def literals() -> Iterator[str]:
    """Every text in the code that is no docstring of more than a line."""
    for tree in modules().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)):
                yield node.value if isinstance(node.value, str) else node.value.decode("latin-1")


# -- configuration -------------------------------------------------------------------------------------------------


def config_sections() -> dict[str, type[BaseModel]]:
    """Heading -> section class, each class once, at the first path that leads to it."""
    found: dict[str, type[BaseModel]] = {"top level": Config}
    _walk(Config, "", found)
    return found


def _walk(section: type[BaseModel], path: str, found: dict[str, type[BaseModel]]) -> None:
    for name, field in section.model_fields.items():
        inside = list(_sections_in(field.annotation, ""))
        for suffix, inner in inside:
            which = f" ({inner.model_fields['kind'].annotation.__args__[0]})" if len(inside) > 1 else ""
            inner_path = f"{path}.{name}{suffix}{which}".lstrip(".")
            if inner not in found.values():
                found[inner_path] = inner
                _walk(inner, inner_path, found)


def _sections_in(annotation: Any, suffix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Section classes inside an annotation, with what a path needs to reach them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield suffix, annotation
        return
    origin: Any = getattr(annotation, "__origin__", None)
    arguments: tuple[Any, ...] = getattr(annotation, "__args__", ())
    if origin is dict:
        suffix += ".MODEL" if arguments[0] == ModelName else ".NAME"
        arguments = arguments[1:]
    elif origin is tuple:
        suffix += "[]"
    for argument in arguments:
        yield from _sections_in(argument, suffix)


# -- errors --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Code:
    """A code that a client may see. Status and type are None where the code does not tell."""

    code: str
    status: int | None = None
    type: str | None = None


@cache
def error_codes() -> frozenset[Code]:
    """The codes of all ApiError classes, and those that are given where one is raised."""
    classes = _error_classes()
    found = {Code(cls.code, cls.status, cls.type) for cls in classes.values()}
    for tree in modules().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                found |= _given_codes(node, classes)
    return frozenset(found)


def _given_codes(call: ast.Call, classes: dict[str, type[ApiError]]) -> set[Code]:
    cls = classes.get(call.func.id) if isinstance(call.func, ast.Name) else None
    given = [keyword.value for keyword in call.keywords if keyword.arg == "code"]
    texts = [value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    if isinstance(call.func, ast.Name) and cls is None and call.func.id[0].isupper():
        return set()  # of some other class: no error of the API
    return {Code(text) if cls is None else Code(text, cls.status, cls.type) for text in texts}


@cache
def _error_classes() -> dict[str, type[ApiError]]:
    """Every subclass of ApiError by its name, wherever it is defined."""
    homes: dict[str, Path] = {}
    size = -1
    while len(homes) != size:
        size = len(homes)
        for path, tree in modules().items():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef) and any(_is_error(base, homes) for base in node.bases):
                    homes[node.name] = path
    found = {name: getattr(importlib.import_module(_module_name(path)), name) for name, path in homes.items()}
    return {"ApiError": ApiError, **found}


def _is_error(base: ast.expr, known: dict[str, Path]) -> bool:
    return isinstance(base, ast.Name) and (base.id == "ApiError" or base.id in known)


def _module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)


# -- routes --------------------------------------------------------------------------------------------------------


def routes() -> dict[str, str]:
    """``METHOD /path`` -> the scope that it needs, or ``open``."""
    from firstkit.gateway import app

    found = {}
    for route in _flat(app.routes().routes):
        path = re.sub(r":\w+}", "}", route.path)
        for method in (route.methods or set()) - {"HEAD", "OPTIONS"}:
            found[f"{method} {path}"] = _scope_of(route)
    return found


def _flat(found: Any) -> Iterator[APIRoute]:
    for route in found:
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "original_router"):
            yield from _flat(route.original_router.routes)


def _scope_of(route: APIRoute) -> str:
    """The only scope that the route's checks let in."""
    checks = [dependency.call for dependency in route.dependant.dependencies]
    let_in = [scope.value for scope in Scope if all(_passes(check, scope) for check in checks)]
    return "open" if len(let_in) == len(Scope) else ",".join(let_in)


def _passes(check: Any, scope: Scope) -> bool:
    identity = Identity("u", "u", "p", "k", frozenset({scope.value}))
    try:
        asyncio.run(check(SimpleNamespace(state=SimpleNamespace(identity=identity))))
    except Forbidden:
        return False
    return True


# -- commands ------------------------------------------------------------------------------------------------------


def commands() -> dict[str, Any]:
    """``first keys create`` -> the command object, for every command that is no mere group."""
    import typer

    from firstkit.cli.commands import build

    return dict(_commands("first", typer.main.get_command(build())))


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield name, command
        return
    for child_name, child in children.items():
        yield from _commands(f"{name} {child_name}", child)


def options_of(command: Any) -> set[str]:
    """Long options, and arguments in capitals."""
    found = set()
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            found.add((parameter.metavar or parameter.name).upper().strip("[]"))
        else:
            found |= {name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--")}
    return found - {"--help"}
