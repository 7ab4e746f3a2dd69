"""What the adapters of engines share: how a command is wrapped, where our own program is, options as arguments."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any, Optional

from firstkit.engines.engine import Launch, ReplicaSpec
from firstkit.errors import ConfigError

ALL_CAPABILITIES = frozenset({"chat", "completions", "embeddings"})
NO_METRICS: dict[str, str] = {}
LONGEST_VERSION = 100
_OPTION = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\Z")


def launch_of(
    replica: ReplicaSpec, argv: list[str], env: dict[str, str], files: Optional[dict[str, str]] = None
) -> Launch:
    """The launch of ``argv`` within the engine's ``setup``; the operator's ``env`` wins over ``env``."""
    env = {**env, **replica.engine.env, "HF_HUB_OFFLINE": "1"}
    return Launch(with_setup(replica.engine.setup, argv), env, files or {})


def with_setup(setup: Optional[str], argv: list[str]) -> list[str]:
    """``argv`` after the operator's shell lines, in one bash that becomes the engine; ``argv`` is no shell text."""
    if not setup:
        return argv
    return ["bash", "-c", f'set -e\n{setup}\nexec "$@"', "engine", *argv]


def self_path() -> str:
    """Where Python finds the on-site program: the zipapp that we run from, else its package in the source tree."""
    archive: Optional[str] = getattr(globals().get("__loader__"), "archive", None)
    if archive is not None:
        return os.path.abspath(archive)
    return os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "onsite")


def weights_of(replica: ReplicaSpec) -> str:
    """The path of the weights; raises ConfigError when there is none."""
    if not replica.weights:
        raise ConfigError(f"{replica.deployment}: weights: the path of the weights is needed")
    return replica.weights


def is_hugging_face_folder(path: str) -> bool:
    return os.path.isfile(os.path.join(path, "config.json"))


def option(name: str, value: Any) -> list[str]:
    """One option of a command line: ``True`` is the bare option, ``False`` its ``no-`` form."""
    if value is True:
        return [f"--{name}"]
    if value is False:
        return [f"--no-{name}"]
    text = str(value)
    return [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]


def option_fault(name: str, taken: Mapping[str, str], example: str) -> Optional[str]:
    """What is wrong with the name of an option; None: nothing. ``taken``: option that nobody may give -> why. A program
    that takes any beginning of a name for the whole must not be given one of those by its beginning."""
    if not _OPTION.match(name):
        return f"must be the name of an option without the dashes, such as {example}"
    for option_taken, reason in taken.items():
        if option_taken.startswith(name.removeprefix("no-")):
            return f"the option '{option_taken}' is not allowed: {reason}"
    return None


def check_options(
    replica: ReplicaSpec, taken: Mapping[str, str], example: str, kindred: tuple[str, ...], why: str
) -> None:
    """Raise ConfigError for an option that nobody may give: see ``option_fault``, or one that begins as ``kindred``."""
    for name in replica.args:
        fault = option_fault(name, taken, example)
        if fault is None and name.startswith(kindred):
            fault = f"is not allowed: {why}"
        if fault is not None:
            raise ConfigError(f"{replica.deployment}: args.{name}: {fault}")


def json_at(answers: Mapping[str, bytes], path: str, *keys: Any) -> Any:
    """What the JSON answer of ``path`` has at ``keys``, one inside the other; None where it has not."""
    try:
        value = json.loads(answers[path])
        for key in keys:
            value = value[key]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    return value


def tokens_of(value: Any) -> Optional[int]:
    """A context length, if that can be one."""
    return value if type(value) is int and value > 0 else None


def version_of(engine: str, value: Any) -> Optional[str]:
    """The name of an engine with its version, if that can be one."""
    return f"{engine} {value}"[:LONGEST_VERSION] if isinstance(value, str) and value else None
