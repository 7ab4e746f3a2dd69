"""Which adapter belongs to which kind of engine."""

from __future__ import annotations

from typing import Union

from firstkit.engines.command import Command
from firstkit.engines.engine import Engine, EngineSpec
from firstkit.engines.external import External, external_target
from firstkit.engines.llamacpp import LlamaCpp
from firstkit.engines.sglang import Sglang
from firstkit.engines.vllm import Vllm
from firstkit.errors import ConfigError

__all__ = ["KINDS", "OF_FILES", "engine_of", "external_target"]

KINDS = ("llamacpp", "vllm", "sglang", "command", "external")
OF_FILES = ("llamacpp", "vllm", "sglang")
"""Kinds of engines that need the path of their weights."""


def engine_of(engine: Union[str, EngineSpec]) -> Engine:
    """The adapter of an engine; raises ConfigError for a kind that this version does not know.

    Its kind alone is enough for all but ``takes_socket`` of a ``command``, which hangs on the placeholders in its argv.
    """
    spec = EngineSpec(engine) if isinstance(engine, str) else engine
    if spec.kind == "llamacpp":
        return LlamaCpp()
    if spec.kind == "vllm":
        return Vllm()
    if spec.kind == "sglang":
        return Sglang()
    if spec.kind == "command":
        return Command(spec)
    if spec.kind == "external":
        return External()
    raise ConfigError(f"engine.kind: '{spec.kind[:100]}' is not known; allowed: {', '.join(KINDS)}")
