"""What the adapters of engines share: how a command is wrapped, where our own program is, options as arguments."""

from __future__ import annotations

import os
from typing import Any, Optional

from firstkit.engines.engine import Launch, ReplicaSpec
from firstkit.errors import ConfigError

ALL_CAPABILITIES = frozenset({"chat", "completions", "embeddings"})
NO_METRICS: dict[str, str] = {}


def launch_of(replica: ReplicaSpec, argv: list[str], env: dict[str, str]) -> Launch:
    """The launch of ``argv`` within the engine's ``setup``; the operator's ``env`` wins over ``env``."""
    return Launch(with_setup(replica.engine.setup, argv), {**env, **replica.engine.env, "HF_HUB_OFFLINE": "1"})


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
