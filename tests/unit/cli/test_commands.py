"""``first`` as a process: what holds for every command, and the commands that ask nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from firstkit import __version__
from firstkit.cli.checking import masked
from firstkit.cli.commands import build
from firstkit.cli.doctor import state_dir_fault
from firstkit.config import parse_config
from lab import wait_for
from unit.cli.servers import answer, on_socket


@pytest.fixture
def state_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv("FIRST_CONFIG", raising=False)
    with tempfile.TemporaryDirectory(prefix="first-", dir="/tmp") as folder:
        monkeypatch.setenv("FIRST_STATE_DIR", folder)
        yield Path(folder)


def first(*arguments: str, typed: str = "", **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "firstkit.cli", *arguments]
    return subprocess.run(command, input=typed, capture_output=True, text=True, timeout=60, check=False, **more)


def inside(*arguments: str, expect: int = 0) -> Result:
    result = CliRunner().invoke(build(), arguments)
    assert result.exit_code == expect, result.output
    return result


def write(folder: Path, deployment: dict[str, Any] | None = None, **server: Any) -> str:
    path = folder / "own.yaml"
    engine = {"kind": "command", "argv": [sys.executable, "{socket}"]}
    deployments = [{"cluster": "here", "engine": engine, **(deployment or {})}]
    content = {"server": server, "clusters": {"here": {}}, "models": {"m": {"deployments": deployments}}}
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_version_and_help() -> None:
    assert first("--version").stdout == f"first {__version__}\n"
    assert "status" in first("--help").stdout
    assert first("nonsense").returncode == 2


def test_commands_that_need_a_configuration_say_so(state_dir: Path) -> None:
    for command in ("status", "models", "chat x", "keys list", "usage", "config show", "serve", "logs x"):
        result = first(*command.split())
        assert result.returncode == 1, command
        assert "'first up'" in result.stderr
        assert "Traceback" not in result.stderr


def test_nothing_to_end_is_no_error(state_dir: Path) -> None:
    for _ in range(2):
        result = first("down")
        assert (result.returncode, result.stdout) == (0, "Nothing was running.\n")


def test_the_connection_of_a_demonstration_that_does_not_run(state_dir: Path) -> None:
    result = first("connection", "--json")
    assert (result.returncode, result.stdout) == (1, "")
    assert "'first up'" in result.stderr


def test_a_reader_that_has_enough(state_dir: Path) -> None:
    command = [sys.executable, "-m", "firstkit.cli", "config", "show", "--config", write(state_dir)]
    read, written = os.pipe()
    os.close(read)
    result = subprocess.run(command, stdout=written, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(written)
    assert result.stderr == b""
    assert result.returncode != 0


NEW_KEY = {"name": "k", "user": "u", "project": "p", "scopes": [], "expires_at": None, "key": "text"}
STATUS = {"version": "1", "started_at": "2026-11-01T12:00:00+00:00", "controller": "connected"}
EXPLANATION = {"model": "m", "status": "live", "reason": "", "controller": "connected", "in_flight": 0, "waiting": 0}
EXPLANATION |= {"clusters": []}
LIGHT: dict[str, tuple[str, dict[str, Any]]] = {
    "status": ("/admin/status", {**STATUS, "clusters": [], "models": [], "jobs": [], "replicas": []}),
    "explain m": ("/admin/explain/m", EXPLANATION),
    "cluster drain here --message x": ("/admin/clusters/here/drain", {"message": "x"}),
    "keys create k": ("/admin/keys", NEW_KEY),
    "keys list": ("/admin/keys?include_dead=False", {"data": []}),
    "keys revoke k": ("/admin/keys/revoke", {"name": "k", "prefix": "first-x", "user": "u"}),
    "usage": ("/admin/usage?by=project&by=model", {"data": []}),
}


@pytest.mark.parametrize("command", LIGHT)
def test_light_commands_import_nothing_heavy(state_dir: Path, command: str) -> None:
    code = (
        "import os, sys; sys.argv = ['first', *sys.argv[1:]]; os._exit = sys.exit\n"
        "from firstkit.cli.main import run\n"
        "try: run()\n"
        "except SystemExit as end: print(end.code)\n"
        "print(*{'pydantic', 'sqlalchemy', 'asyncio', 'rich', 'fastapi'} & set(sys.modules))"
    )
    path, content = LIGHT[command]
    arguments = [*command.split(), "--config", write(state_dir, state_dir=str(state_dir))]
    with on_socket(state_dir / "admin.sock", {path: answer("200 OK", json.dumps(content).encode())}):
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=True
        )
    assert result.stdout.splitlines()[-2:] == ["0", ""], result.stderr


# -- up, before anything is started ------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, b"PK"])
def test_up_with_a_model_that_cannot_be_served_starts_nothing(state_dir: Path, content: bytes | None) -> None:
    path = state_dir / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    result = first("up", "--model", str(path))
    assert result.returncode == 1
    assert "GGUF" in result.stderr
    assert {found.name for found in state_dir.iterdir()} <= {"up.lock", "model.gguf"}


def test_up_where_no_socket_could_be(state_dir: Path) -> None:
    result = first("up", env={**os.environ, "FIRST_STATE_DIR": f"{state_dir}/{'x' * 100}"})
    assert result.returncode == 1
    assert "UNIX sockets" in result.stderr


# -- configuration -----------------------------------------------------------------------------------------------------


def test_a_valid_configuration(state_dir: Path) -> None:
    result = inside("config", "check", "--config", write(state_dir))
    assert "is valid: 1 cluster, 1 model." in result.stdout
    assert result.stderr == ""


def test_every_fault_is_named(state_dir: Path) -> None:
    path = write(state_dir, {"scale": {"hot": 9}, "colour": "red"}, hold="soon")
    result = inside("config", "check", "--config", path, expect=1)
    for words in ("server.hold", "hot", "colour"):
        assert words in result.stderr


def test_what_an_engine_has_against_its_options_is_a_fault(state_dir: Path) -> None:
    engine = {"engine": {"kind": "llamacpp", "binary": sys.executable}, "weights": "/w", "args": {"colour": 1}}
    assert "args.colour" in inside("config", "check", "--config", write(state_dir, engine), expect=1).stderr


def test_what_is_not_here_is_a_warning(state_dir: Path) -> None:
    engine = {"engine": {"kind": "llamacpp", "binary": "/nowhere/llama"}, "weights": "/nowhere/w"}
    path = write(state_dir, engine | {"resources": {"cpus_per_node": 100_000}})
    result = inside("config", "check", "--config", path)
    for words in ("/nowhere/llama", "/nowhere/w", "100000 cores"):
        assert words in result.stderr


def test_what_is_shown_is_a_configuration_and_holds_no_password(state_dir: Path) -> None:
    shown = inside("config", "show", "--config", write(state_dir, database="postgresql://u:hunter2@h/d")).stdout
    assert "hunter2" not in shown
    assert parse_config(shown).server.database == "postgresql://u:***@h/d"
    assert "max_waiting: 256" in shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("postgresql://u:p%40:/x@h/d", "postgresql://u:***@h/d"),
        ("postgresql://h/d?user=u&password=p&x=y", "postgresql://h/d?user=u&password=***&x=y"),
        (["https://u:p@h/v1"], ["https://u:***@h/v1"]),
        ("postgresql://u@h:5432/d", "postgresql://u@h:5432/d"),
        ({"n": 1, "listen": "[::1]:80"}, {"n": 1, "listen": "[::1]:80"}),
    ],
)
def test_masked(value: Any, shown: Any) -> None:
    assert masked(value) == shown


# -- doctor ------------------------------------------------------------------------------------------------------------


def test_doctor_looks_at_everything(state_dir: Path) -> None:
    path = write(state_dir, state_dir=str(state_dir), listen="127.0.0.1:0", database="postgresql://h/d")
    findings = json.loads(CliRunner().invoke(build(), ["doctor", "--json", "--config", path]).stdout)
    by_name = {finding["what"]: finding for finding in findings}
    assert {"Python", "xllamacpp", "weights", "asyncpg", "cores", "memory", "disk", "port"} <= set(by_name)
    assert by_name["state directory"]["status"] == "ok"
    assert by_name["gateway"]["status"] == "off"
    assert all(finding["fix"] for finding in findings if finding["status"] != "ok")


def test_doctor_without_any_configuration(state_dir: Path) -> None:
    assert "configuration" in CliRunner().invoke(build(), ["doctor"]).stdout


def test_where_no_state_can_be_kept(tmp_path: Path) -> None:
    assert state_dir_fault(tmp_path / "new") == ""
    assert "UNIX sockets" in state_dir_fault(tmp_path / ("x" * 100))
    assert "chmod" in state_dir_fault(_made(tmp_path / "open", 0o755))
    (tmp_path / "file").touch()
    assert "cannot be written" in state_dir_fault(tmp_path / "file" / "below")


def _made(path: Path, mode: int) -> Path:
    path.mkdir()
    path.chmod(mode)
    return path


# -- cluster -----------------------------------------------------------------------------------------------------------


def ask(verb: str, state_dir: Path, **more: Any) -> Any:
    request = {"state_dir": str(state_dir), "scheduler": {"kind": "local"}, **more}
    result = first("cluster", verb, typed=json.dumps(request))
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["ok"], answer
    return answer["result"]


def test_a_job_by_hand(state_dir: Path) -> None:
    job_id = "job-aaaaaaaaaaaaaaaa"
    assert ask("capacity", state_dir)["cpus"] >= 1
    assert ask("poll", state_dir) == {}
    link = {"kind": "socket", "path": str(state_dir / "pilots.sock")}
    pilot = {"job_id": job_id, "cluster": "here", "link": link, "enrolment_token": "t", "replicas": []}
    ask("submit", state_dir, job={"job_id": job_id, "resources": {}, "pilot": pilot})
    try:
        wait_for("it runs", lambda: ask("poll", state_dir)[job_id]["state"] == "RUNNING")
    finally:
        ask("cancel", state_dir, job_id=job_id)
        wait_for("it has ended", lambda: ask("poll", state_dir)[job_id]["state"] == "CANCELLED")


def test_a_request_that_nobody_understands_gets_an_answer() -> None:
    assert json.loads(first("cluster", "poll", typed="x").stdout)["error"] == "invalid"
