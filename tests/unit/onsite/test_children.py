from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from firstkit.onsite.children import Child, spawn

SLEEP = "import time; time.sleep(60)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
PARENT = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"


def start(folder: Path, script: str, **env: str) -> Child:
    cpus = sorted(os.sched_getaffinity(0))[:1]
    with (folder / "out").open("wb") as output:
        return spawn([sys.executable, "-c", script], env, str(folder), cpus, output.fileno())


async def said(folder: Path) -> str:
    async with asyncio.timeout(10):
        while not (text := (folder / "out").read_text()).endswith("\n"):
            await asyncio.sleep(0.01)
    return text.strip()


async def test_an_end_is_noticed_at_once(tmp_path: Path) -> None:
    assert await asyncio.wait_for(start(tmp_path, "raise SystemExit(3)").ended, 10) == 3
    killed = start(tmp_path, SLEEP)
    os.kill(killed.pid, signal.SIGKILL)
    assert await asyncio.wait_for(killed.ended, 10) == -signal.SIGKILL


async def test_a_child_has_its_cores_its_folder_and_no_other_environment(tmp_path: Path) -> None:
    script = "import os; print(sorted(os.environ), os.getcwd(), os.sched_getaffinity(0), os.getsid(0) == os.getpid())"
    await start(tmp_path, script, A="1").ended
    core = min(os.sched_getaffinity(0))
    assert (await said(tmp_path)).replace("'LC_CTYPE'", "").replace(", ]", "]") == f"['A'] {tmp_path} {{{core}}} True"


async def test_without_cores_a_child_runs_where_we_do(tmp_path: Path) -> None:
    script = "import os; print(sorted(os.sched_getaffinity(0)))"
    with (tmp_path / "out").open("wb") as output:
        child = spawn([sys.executable, "-c", script], {}, str(tmp_path), (), output.fileno())
    await child.ended
    assert await said(tmp_path) == str(sorted(os.sched_getaffinity(0)))


async def test_an_end_is_noticed_on_an_old_kernel_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    assert await asyncio.wait_for(start(tmp_path, "raise SystemExit(3)").ended, 10) == 3


async def test_stop_asks_then_kills(tmp_path: Path) -> None:
    polite = start(tmp_path, SLEEP)
    await polite.stop(10)
    assert polite.ended.result() == -signal.SIGTERM
    deaf = start(tmp_path, DEAF)
    await said(tmp_path)
    await deaf.stop(0.05)
    assert deaf.ended.result() == -signal.SIGKILL
    await deaf.stop(0.05)


async def test_what_a_child_left_behind_dies_with_it(tmp_path: Path) -> None:
    child = start(tmp_path, PARENT)
    left = psutil.Process(int(await said(tmp_path)))
    os.kill(child.pid, signal.SIGKILL)
    await child.ended
    async with asyncio.timeout(10):
        while left.is_running() and left.status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.01)


async def test_what_cannot_be_started_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-engine"):
        spawn(["no-such-engine"], {"PATH": "/bin"}, str(tmp_path), os.sched_getaffinity(0), 1)
