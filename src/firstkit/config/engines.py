"""Sections ``engines``: programs that serve models, and services of others."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from firstkit.config.kinds import Capability, Section
from firstkit.engines.engine import EngineSpec


class Engine(Section):
    """An engine: how the program of some kind is started here, or where a service is."""

    kind: Literal["llamacpp", "vllm", "sglang", "command", "external"]
    python: str | None = None
    binary: str | None = None
    argv: tuple[str, ...] = ()
    env: dict[str, str] = {}
    setup: str | None = None
    health: str = "/health"
    capabilities: tuple[Capability, ...] = ()
    url: str | None = None
    model: str | None = None
    api_key_env: str | None = None

    @model_validator(mode="after")
    def _fits_kind(self) -> Engine:
        if self.kind == "command" and not self.argv:
            raise ValueError("argv: an engine of kind 'command' needs the program and its arguments")
        if self.kind == "external" and not (self.url or "").startswith(("http://", "https://")):
            raise ValueError("url: an engine of kind 'external' needs an http:// or https:// address")
        if self.kind != "external" and (self.url or self.api_key_env):
            raise ValueError("url and api_key_env are for engines of kind 'external'")
        if self.kind != "command" and self.argv:
            raise ValueError("argv is for engines of kind 'command'; give options of the engine under 'args'")
        return self

    def spec(self, name: str) -> EngineSpec:
        return EngineSpec(name=name, **self.model_dump())
