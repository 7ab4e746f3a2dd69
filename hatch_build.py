"""How the wheel is built. With FIRST_COMPILE=1 the modules that every request and every token pass through are compiled
to C by mypyc, beside their source: a quarter less CPU for the same code. It needs a C compiler and Python's headers."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPILED = {
    "accounting": ("estimate", "limits", "spool"),
    "engines": (
        "answer", "body", "connection", "familiar", "heads", "http", "parsing", "parsing_httptools", "reported",
        "shape", "sse", "stream",
    ),
    "gateway": (
        "acceptance", "apis", "call", "callers", "client", "dialects", "holding", "hot", "http", "lengths", "lull",
        "media", "reach", "relay", "request", "waiting",
    ),
    "links": ("bodies", "connection", "frames", "gateway_end", "kept", "pilot_session"),
    "routing": ("admission", "breaker", "choose", "fairness", "pace", "retries", "table", "wish"),
    ".": ("ids", "metrics"),
}  # fmt: skip
"""By package. Modules whose classes are made in ways of their own are not among them: messages, which ``wire`` builds
without their ``__init__``, and structs of msgspec."""


class Compile(BuildHookInterface[Any]):
    """Adds the compiled modules to a wheel."""

    def dependencies(self) -> list[str]:
        return ["mypy>=2.4", "setuptools>=80"] if _is_asked() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or not _is_asked():
            return  # a compiled module would hide the source that somebody edits
        folder = Path(self.directory) / "compiled-modules"
        for library in _compile(Path(self.root) / "src", folder):
            build_data["force_include"][str(library)] = str(library.relative_to(folder / "lib"))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def _is_asked() -> bool:
    return os.environ.get("FIRST_COMPILE") == "1"


def _compile(source: Path, folder: Path) -> list[Path]:
    """The libraries of all modules, in ``folder``/lib as they belong into a package."""
    from mypyc.build import mypycify
    from setuptools import Distribution

    modules = [f"firstkit/{package}/{name}.py" for package, names in COMPILED.items() for name in names]
    with contextlib.chdir(source):
        extensions = mypycify(
            [os.path.normpath(module) for module in modules],
            target_dir=str(folder / "c"),
            group_name="firstkit",
            opt_level="2",
            debug_level="0",
        )
        build = Distribution({"name": "firstkit", "ext_modules": extensions}).get_command_obj("build_ext")
        build.build_lib, build.build_temp = str(folder / "lib"), str(folder / "o")
        build.ensure_finalized()
        build.run()
    return sorted((folder / "lib").rglob("*.so"))
