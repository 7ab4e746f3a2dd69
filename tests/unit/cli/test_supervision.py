from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.cli.supervision import LONGEST_PAUSE_S, STEADY_S, deaths_in_a_row, pause_s
from lab import pid_is_alive, wait_for

SERVE = """
import sys
from pathlib import Path
from firstkit.cli.supervision import Child, Supervisor
folder = Path(sys.argv[1])
children = [Child(name, [sys.executable, "-c", sys.argv[2], str(folder / name)]) for name in ("a", "b")]
sys.exit(Supervisor(children, grace_s=30).run())
"""
STAYS = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with open(sys.argv[1], "a") as file: file.write(f"{os.getpid()}\\n")
while True: time.sleep(60)
"""
DEAF = STAYS.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN")
BAD = STAYS.replace("while True", "if sys.argv[1].endswith('b'): sys.exit(2)\nwhile True")


def pids(folder: Path, name: str) -> list[int]:
    """Of all that this child ever was, in order."""
    path = folder / name
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def supervising(folder: Path, child: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(folder), child], stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pid in (*pids(folder, "a"), *pids(folder, "b")):
            if pid_is_alive(pid):
                os.kill(pid, signal.SIGKILL)


def wait_for_both(folder: Path) -> tuple[int, int]:
    wait_for("both children run", lambda: pids(folder, "a") and pids(folder, "b"))
    return pids(folder, "a")[-1], pids(folder, "b")[-1]


@given(st.integers(1, 10_000))
def test_pauses_grow_and_stay_within_what_a_restart_may_take(deaths: int) -> None:
    assert 0 < pause_s(deaths) <= pause_s(deaths + 1) <= LONGEST_PAUSE_S


@given(st.integers(0, 100), st.floats(0, 1e6))
def test_a_child_that_lived_long_begins_anew(before: int, lived_s: float) -> None:
    assert deaths_in_a_row(before, lived_s) == (1 if lived_s >= STEADY_S else before + 1)


def test_a_dead_child_is_started_again_and_the_other_left_alone(tmp_path: Path) -> None:
    with supervising(tmp_path, STAYS) as process:
        a, b = wait_for_both(tmp_path)
        for count in (2, 3):
            os.kill(pids(tmp_path, "a")[-1], signal.SIGKILL)
            wait_for("it runs again", lambda count=count: len(pids(tmp_path, "a")) == count)
        assert not pid_is_alive(a)
        assert pids(tmp_path, "b") == [b]
        assert process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all(tmp_path: Path, number: signal.Signals) -> None:
    with supervising(tmp_path, STAYS) as process:
        children = wait_for_both(tmp_path)
        process.send_signal(number)
        assert process.wait(30) == 0
        assert not any(map(pid_is_alive, children))


def test_a_second_signal_does_not_wait_for_those_that_will_not_end(tmp_path: Path) -> None:
    with supervising(tmp_path, DEAF) as process:
        children = wait_for_both(tmp_path)
        wait_for("it has ended", lambda: process.send_signal(signal.SIGTERM) or process.poll() is not None, 20)
        assert process.returncode in (0, -signal.SIGTERM)  # the last signal may have come when all was done
        assert not any(map(pid_is_alive, children))


def test_children_die_with_it(tmp_path: Path) -> None:
    with supervising(tmp_path, STAYS) as process:
        children = wait_for_both(tmp_path)
        process.kill()
        process.wait()
        wait_for("they are gone", lambda: not any(map(pid_is_alive, children)))


def test_a_bad_configuration_ends_it_with_that_status(tmp_path: Path) -> None:
    with supervising(tmp_path, BAD) as process:
        assert process.wait(30) == 2
        assert not any(map(pid_is_alive, pids(tmp_path, "a")))
        assert len(pids(tmp_path, "b")) == 1
