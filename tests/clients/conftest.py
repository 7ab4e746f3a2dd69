"""Two FIRSTs for whoever follows the pages of docs/howto/clients: a real model, and an engine whose words are known."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clients.reader import FOLDER, Reader
from firstkit.cli.demonstration import built_in_weights
from lab import Lab, running

CALLING = Path(__file__).with_name("calling_engine.py")


def _served(engine: dict[str, Any], **more: Any) -> dict[str, Any]:
    resources = {"cpus_per_node": 1, "memory_gib": 1}
    scale = {"hot": 1, "max": 1, "max_in_flight": 4}
    deployment = {"cluster": "here", "engine": engine, "resources": resources, "scale": scale, **more}
    return {"smollm2": {"deployments": [deployment]}}


@pytest.fixture(scope="session")
def real_lab() -> Iterator[Lab]:
    """The demonstration's model in its engine."""
    _check()
    weights = built_in_weights()
    assert weights is not None, "run make install"
    args = {"ctx-size": 2048, "embeddings": True}
    with running(_served({"kind": "llamacpp"}, weights=str(weights), args=args)) as lab:
        lab.wait_live("smollm2")
        yield lab


@pytest.fixture(scope="session")
def known_lab() -> Iterator[Lab]:
    """An engine that uses tools and keeps to schemas, under the same name."""
    _check()
    argv = [sys.executable, str(CALLING), "--behaviour", "CallingEngine", "--socket", "{socket}", "--model", "smollm2"]
    capabilities = ["chat", "completions", "embeddings"]
    with running(_served({"kind": "command", "argv": argv, "capabilities": capabilities})) as lab:
        lab.wait_live("smollm2")
        yield lab


@pytest.fixture
def at_real_model(real_lab: Lab, tmp_path: Path) -> Reader:
    return Reader(real_lab, tmp_path)


@pytest.fixture
def at_known_words(known_lab: Lab, tmp_path: Path) -> Reader:
    return Reader(known_lab, tmp_path)


@pytest.fixture
def node(tmp_path: Path) -> None:
    """Node with its packages, beside what a reader writes."""
    packages = FOLDER / "node_modules"
    if not (shutil.which("node") and packages.is_dir()):
        assert not os.environ.get("CI"), "CI must have node and npm"
        pytest.skip("node and npm are not installed")
    (tmp_path / "node_modules").symlink_to(packages)


def _check() -> None:
    if not (FOLDER / "complete").exists():
        assert not os.environ.get("CI"), "CI must have the clients: run make test-clients"
        pytest.skip("the clients are not installed: run make test-clients")
