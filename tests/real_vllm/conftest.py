"""FIRST over real vLLM: one engine that talks and one that embeds, started once for the whole suite (``make vllm``)."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from firstkit.engines.engine import Address
from firstkit.engines.load import METRICS_PATH, Load, read_load
from firstkit.engines.vllm import Vllm
from firstkit.onsite import probe
from firstkit.onsite.place import SOCKET
from lab import Lab, running, wait_for

FOLDER = Path(__file__).parents[2] / ".cache" / "vllm"
START_LIMIT_S = 600.0
"""Two engines load side by side on the few cores of a small machine."""
ENV = {
    # As in docs/howto/vllm.md.
    "LD_PRELOAD": str(FOLDER / "lib" / "libiomp5.so"),
    "KMP_BLOCKTIME": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
REPLICA = {
    "cluster": "here",
    "engine": "vllm",
    "resources": {"cpus_per_node": 1, "memory_gib": 4},
    "scale": {"hot": 1, "max": 1, "max_in_flight": 8},
}
MODELS: dict[str, Any] = {
    "smollm2": {
        "aliases": ["tiny"],
        "deployments": [
            {
                **REPLICA,
                "weights": {"path": "smollm2", "revision": "smollm2-of-the-demonstration"},
                "args": {
                    "dtype": "bfloat16",
                    "enforce-eager": True,
                    "max-model-len": 2048,
                    "enable-auto-tool-choice": True,
                    "tool-call-parser": "hermes",
                },
            }
        ],
    },
    "minilm": {
        "deployments": [
            {**REPLICA, "weights": "all-minilm-l6-v2", "args": {"runner": "pooling", "enforce-eager": True}}
        ]
    },
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test waits for the engines."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(START_LIMIT_S + 120))


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    if not (FOLDER / "complete").exists():
        assert not os.environ.get("CI"), "CI must have vLLM: run make vllm"
        pytest.skip("vLLM is not installed: run make vllm")
    engine = {"kind": "vllm", "python": str(FOLDER / "bin" / "python"), "env": ENV}
    cluster = {"models_root": str(FOLDER / "models"), "engines": {"vllm": engine}}
    with running(MODELS, clusters={"here": cluster}) as lab:
        try:
            for model in MODELS:
                lab.wait_live(model, START_LIMIT_S)
            yield lab
        finally:
            _keep_logs(lab)


def _keep_logs(lab: Lab) -> None:
    """For whoever looks for the cause of a failure: the lab's folder goes with the lab."""
    kept = FOLDER / "logs"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    for path in (*lab.folder.glob("*.log"), *lab.folder.rglob("engine.log")):
        shutil.copy(path, kept / f"{path.parent.name}-{path.name}")


@pytest.fixture
def client(lab: Lab) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=lab.base_url, api_key=lab.key, max_retries=0) as client:
        yield client


@pytest.fixture
def claude(lab: Lab) -> Iterator[anthropic.Anthropic]:
    root = lab.base_url.removesuffix("/v1")
    with anthropic.Anthropic(base_url=root, auth_token=lab.key, max_retries=0) as client:
        yield client


@pytest.fixture
def talker(lab: Lab) -> Iterator[str]:
    """The folder of the engine that talks, by a short name: that of a socket in it may have 107 bytes."""
    [replica] = [row for row in lab.replicas() if row["model"] == "smollm2"]
    [socket] = [path for path in lab.folder.rglob("engine.sock") if path.parent.name == replica["id"]]
    folder = os.open(socket.parent, os.O_PATH)
    yield f"/proc/self/fd/{folder}"
    os.close(folder)


@pytest.fixture
def load(talker: str) -> Callable[[], Load]:
    """What the engine that talks tells of its load, read as pilots read it."""

    def read() -> Load:
        status, body = asyncio.run(probe.get(talker, Address(socket=SOCKET), METRICS_PATH, None, 10.0))
        assert status == 200
        return read_load(body, Vllm().metric_names)

    return read


@pytest.fixture
def usage_line(lab: Lab) -> Callable[[str], Any]:
    """The line of the ledger of a request, by its id, once it is loaded."""

    def read(request_id: str) -> Any:
        rows = wait_for("the line is loaded", lambda: [r for r in lab.usage() if r["request_id"] == request_id])
        assert len(rows) == 1
        return rows[0]

    return read
