import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from firstkit.schedulers.processes import (
    ProcessId,
    _stat,
    boot_id,
    descendants,
    is_alive,
    kill_marked,
    manner,
    own_identity,
    send_signal,
)

SWEEPER = """
import subprocess, sys, time
from firstkit.schedulers.processes import become_subreaper, kill_descendants
become_subreaper()
tree = "setsid sh -c 'sleep 61 & setsid sleep 62 & wait' & sleep 63"
child = subprocess.Popen(["sh", "-c", tree])
time.sleep(0.2)
child.kill()  # its children become ours
print(kill_descendants(5.0), flush=True)
"""


def wait_for(condition: Callable[[], bool], limit_s: float = 5.0) -> None:
    give_up_at = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < give_up_at, "the condition did not come true in time"
        time.sleep(0.01)


def identity(pid: int) -> ProcessId:
    return ProcessId(pid, _stat(pid)[1], boot_id())


def test_only_that_very_process_counts_as_alive() -> None:
    me = own_identity()
    assert is_alive(me)
    assert not is_alive(dataclasses.replace(me, started=me.started + 1))
    assert not is_alive(dataclasses.replace(me, boot="another"))
    assert not is_alive(dataclasses.replace(me, pid=4194305))


def test_a_zombie_is_dead_and_gets_no_signal() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        process = identity(child.pid)
        assert is_alive(process)
        assert send_signal(process, signal.SIGKILL)
        wait_for(lambda: _stat(child.pid)[0] == "Z")
        assert not is_alive(process)
        assert not send_signal(process, signal.SIGKILL)


def test_descendants_are_found_through_generations() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & wait"]) as child:
        wait_for(lambda: len(descendants(child.pid)) == 1)
        (grandchild,) = descendants(child.pid)
        assert {child.pid, grandchild} <= set(descendants(os.getpid()))
        os.kill(grandchild, signal.SIGKILL)
    wait_for(lambda: grandchild not in descendants(os.getpid()))


def test_nothing_below_a_subreaper_survives() -> None:
    result = subprocess.run([sys.executable, "-c", SWEEPER], capture_output=True, timeout=20, check=True)
    assert result.stdout == b"True\n"
    for number in ("61", "62", "63"):
        assert not _running(["sleep", number])


def test_marked_processes_are_killed_and_others_spared() -> None:
    environment = {"PATH": os.environ["PATH"], "FIRST_TEST_MARK": "one"}
    with (
        subprocess.Popen(["sleep", "60"], env=environment) as marked,
        subprocess.Popen(["sleep", "60"], env={**environment, "FIRST_TEST_MARK": "one more"}) as other,
    ):
        wait_for(lambda: _running(["sleep", "60"]))
        kill_marked("FIRST_TEST_MARK", "one", 2.0)
        assert marked.wait(5) == -signal.SIGKILL
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize("name", [b"a) R 1", b"(((", b"x y"])
def test_a_command_name_cannot_confuse(name: bytes) -> None:
    script = f"import time; open('/proc/self/comm','wb').write({name!r}); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert _stat(child.pid)[2] == os.getpid()
        child.kill()


def _running(argv: list[str]) -> bool:
    command = "\0".join(argv).encode() + b"\0"
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and Path(f"/proc/{name}/cmdline").read_bytes() == command:
                return True
        except OSError:
            continue
    return False


def test_manners() -> None:
    assert manner(0) == "exit status 0"
    assert manner(-9) == "killed by SIGKILL"
    assert manner(-63) == "killed by signal 63"


@pytest.mark.parametrize(("status", "words"), [(3, "exit status 3"), (-9, "killed by SIGKILL"), (-99, "signal 99")])
def test_manner(status: int, words: str) -> None:
    assert words in manner(status)
