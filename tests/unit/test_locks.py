"""One process of a kind at a time; the lock dies with its process, however that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstkit.errors import ConfigError
from firstkit.locks import hold

HOLDER = """
import pathlib, sys
from firstkit.locks import hold
hold(pathlib.Path(sys.argv[1]), "x")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "x.lock")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ConfigError) as caught:
        hold(tmp_path / "x.lock", "a gateway", patience_s=0)
    assert caught.value.message == f"a gateway is running already with this state directory ({tmp_path})"
    assert os.listdir("/proc/self/fd") == before, "the refused one keeps nothing open"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_dies_with_its_process(tmp_path: Path, holder: subprocess.Popen[str], number: int) -> None:
    holder.send_signal(number)
    os.close(hold(tmp_path / "x.lock", "a gateway"))  # waits for one that is just ending


def test_it_is_private_and_not_inherited(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    descriptor = hold(path, "a gateway")
    assert path.stat().st_mode & 0o777 == 0o600
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)
    os.close(hold(path, "a gateway", patience_s=0))
