"""Open WebUI in front of FIRST, used by a real browser: docs/howto/clients/open-webui.md, done (``make webui``)."""

from __future__ import annotations

import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstkit.cli.demonstration import built_in_weights
from lab import Lab, free_port, running, wait_for

FOLDER = Path(__file__).parents[2] / ".cache" / "webui"
BIN = FOLDER / "bin"
BROWSER = Path(__file__).with_name("browser.py")
CREDENTIALS = "somebody@example.org", "a password of a test"
START_LIMIT_S = 300.0

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    weights = built_in_weights()
    lacking = [
        what
        for what, is_there in {
            "the demonstration's weights (make install)": weights is not None,
            "Open WebUI (make webui)": (FOLDER / "complete").exists(),
            "Chromium": shutil.which("chromium") is not None,
        }.items()
        if not is_there
    ]
    if lacking:
        pytest.skip(f"not installed: {', '.join(lacking)}")
    deployment = {
        "cluster": "here",
        "engine": {"kind": "llamacpp"},
        "weights": str(weights),
        "args": {"ctx-size": 2048},
        "resources": {"cpus_per_node": 1, "memory_gib": 1},
        "scale": {"hot": 1, "max": 1, "max_in_flight": 4},
    }
    with running({"smollm2": {"deployments": [deployment]}}) as lab:
        lab.wait_live("smollm2")
        yield lab


@pytest.fixture(scope="module")
def webui(lab: Lab) -> Iterator[str]:
    """The address of an Open WebUI whose one service is FIRST, and whose one user is there."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    data = lab.folder / "webui"
    data.mkdir()
    env = {
        **{name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")},
        "OPENAI_API_BASE_URL": lab.base_url,
        "OPENAI_API_KEY": lab.key,
        "ENABLE_OLLAMA_API": "false",
        "DATA_DIR": str(data),
        "WEBUI_SECRET_KEY": "of this test alone",
        "WEBUI_ADMIN_EMAIL": CREDENTIALS[0],
        "WEBUI_ADMIN_PASSWORD": CREDENTIALS[1],
        "OFFLINE_MODE": "true",
        "HF_HUB_OFFLINE": "1",
        "ENABLE_VERSION_UPDATE_CHECK": "false",
        "DO_NOT_TRACK": "true",
        "SCARF_NO_ANALYTICS": "true",
        "ANONYMIZED_TELEMETRY": "false",
    }
    with (FOLDER / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [BIN / "open-webui", "serve", "--host", "127.0.0.1", "--port", str(port)],
            env=env, cwd=data, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_for("Open WebUI answers", lambda: _answers(url, process), START_LIMIT_S)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, (FOLDER / "serve.log").read_text()[-4000:]
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_a_chat_through_the_page(lab: Lab, webui: str) -> None:
    picture = FOLDER / "chat.png"
    visit = subprocess.run(
        [BIN / "python", BROWSER, webui, "smollm2", "Name three fruits.", picture],
        input="\n".join(CREDENTIALS), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert visit.returncode == 0, f"{visit.stderr}\n(the page is in {picture})"
    assert visit.stdout.strip()
    lines = wait_for("the line of the chat is loaded", lambda: [line for line in lab.usage() if line["ttft_s"]])
    assert {(line["model"], line["outcome"]) for line in lines} == {("smollm2", "complete")}
    assert all(line["completion_tokens"] > 0 and not line["estimated"] for line in lines)
