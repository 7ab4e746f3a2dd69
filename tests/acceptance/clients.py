"""The official packages, set to accept only what has the types that they declare; and what they are pointed at."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import anthropic
import openai

from firstkit.testing.quick_engine import QuickEngine
from lab import Lab, wait_for

STRICT: dict[str, Any] = {"max_retries": 0, "_strict_response_validation": True}


@dataclass
class Fakes:
    """A gateway in front of fake engines; ``engines`` by the name of their model: what they did."""

    lab: Lab
    engines: dict[str, QuickEngine]

    @contextlib.contextmanager
    def closing(self, model: str) -> Iterator[QuickEngine]:
        """Within, a request to ``model`` is begun and closed; after that its engine must hear of it within 2 s."""
        engine = self.engines[model]
        before = engine.stats.aborted
        yield engine
        closed_at = time.monotonic()
        wait_for("the engine is told", lambda: engine.stats.aborted > before)
        assert engine.stats.aborted_at[-1] - closed_at < 2.0

    def outcome(self, request_id: str | None) -> str:
        """How a request ended, as soon as that is in the ledger."""
        assert request_id
        rows = wait_for("the line is loaded", lambda: [r for r in self.lab.usage() if r["request_id"] == request_id])
        [row] = rows
        return str(row["outcome"])


def openai_client(lab: Lab, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=lab.base_url, **{"api_key": lab.key, **STRICT, **options})


def async_openai_client(lab: Lab, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=lab.base_url, **{"api_key": lab.key, **STRICT, **options})


def anthropic_client(lab: Lab, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=_root(lab), **{"api_key": lab.key, **STRICT, **options})


def async_anthropic_client(lab: Lab, **options: Any) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=_root(lab), **{"api_key": lab.key, **STRICT, **options})


def _root(lab: Lab) -> str:
    return lab.base_url.removesuffix("/v1")


def order(names: Iterable[str]) -> list[str]:
    """The names of events in their order, of several equal ones in a row the first."""
    return [name for name, _ in itertools.groupby(names)]
