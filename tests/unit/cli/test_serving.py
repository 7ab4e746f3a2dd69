from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from firstkit.cli import serving, starting
from lab import wait_for

HOLD = """
import sys, time
from pathlib import Path
from firstkit.cli.common import Server
from firstkit.cli.serving import take_lock
take_lock(Server(Path("/etc/x.yaml"), Path(sys.argv[1])))
while True: time.sleep(60)
"""


@contextmanager
def holding(state_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(state_dir)])
    try:
        wait_for("it serves", lambda: serving.serving(state_dir))
        yield process
    finally:
        process.kill()
        process.wait()


def test_nobody_serves(tmp_path: Path) -> None:
    assert serving.serving(tmp_path / "nowhere") is None
    (tmp_path / serving.LOCK).write_text("1\n/x\n")  # left by one that was killed
    assert serving.serving(tmp_path) is None
    assert not serving.stop(tmp_path)


def test_whoever_serves_is_found_and_ended(tmp_path: Path) -> None:
    with holding(tmp_path) as process:
        assert serving.serving(tmp_path) == serving.Serving(process.pid, Path("/etc/x.yaml"))
        assert serving.stop(tmp_path)
        assert process.wait(10) == -signal.SIGTERM
        assert not serving.stop(tmp_path)


def test_looking_keeps_nobody_from_serving(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / serving.LOCK, os.O_RDWR | os.O_CREAT)
    try:
        assert serving.serving(tmp_path) is None
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def serve(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "firstkit.cli", "serve", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_configuration_with_a_fault_ends_serve_with_status_2(tmp_path: Path) -> None:
    path = tmp_path / "first.yaml"
    path.write_text(yaml.safe_dump({"server": {"state_dir": str(tmp_path / "s"), "hold": "soon"}}))
    result = serve(path)
    assert result.returncode == 2
    assert "server.hold" in result.stderr
    assert "'first config check'" in result.stderr
    assert serving.serving(tmp_path / "s") is None


def test_a_second_serve_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "first.yaml"
    path.write_text(yaml.safe_dump({"server": {"state_dir": str(tmp_path)}}))
    with holding(tmp_path):
        result = serve(path)
    assert result.returncode == 1
    assert "running already" in result.stderr
    assert "'first down'" in result.stderr


def test_the_log_in_words(tmp_path: Path) -> None:
    lines = ['{"level": "info", "message": "up"}', '{"level": "error", "message": "a", "exception": "T\\nE: b"}', "raw"]
    (tmp_path / starting.LOG).write_text("\n".join(lines))
    assert starting.log_tail(tmp_path).splitlines() == ["info: up", "error: a: E: b", "raw"]
    assert starting.log_tail(tmp_path / "nowhere") == ""


def test_a_port_that_is_taken_is_not_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        (tmp_path / "first.yaml").write_text(yaml.safe_dump({"server": {"listen": f"127.0.0.1:{taken}"}}))
        chosen = starting._choose_port(tmp_path)
    assert chosen != taken
    assert str(chosen) in capsys.readouterr().out
    assert starting._choose_port(tmp_path) == taken
    assert capsys.readouterr().out == ""
