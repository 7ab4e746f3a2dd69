"""Engine processes: each leads a session of its own, dies with the pilot, and is reaped the moment it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

from firstkit.onsite.logfile import open_log
from firstkit.schedulers.processes import die_with_parent

POLL_S = 0.1
"""How often to look after a process where the kernel cannot tell us of its end."""


class Child:
    """One process and all of its session. ``ended`` gets its exit code: minus the signal where one killed it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self._process = process
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = self._loop.create_future()
        self._watch()

    async def stop(self, grace_s: float) -> None:
        """Ask it to end; kill what is still there after ``grace_s``. Returns when it has ended."""
        if not self.ended.done():
            self._signal(signal.SIGTERM)
            await asyncio.wait({self.ended}, timeout=grace_s)
        if not self.ended.done():
            self._signal(signal.SIGKILL)
            await asyncio.wait({self.ended})

    def _watch(self) -> None:
        # Not SIGCHLD: uvloop keeps that to itself.
        try:
            handle = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # a kernel before 5.3
            self._poll()
        else:
            self._loop.add_reader(handle, self._on_end, handle)

    def _on_end(self, handle: int) -> None:
        self._loop.remove_reader(handle)
        os.close(handle)
        self._reap()

    def _poll(self) -> None:
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            self._loop.call_later(POLL_S, self._poll)
        else:
            self._reap()

    def _reap(self) -> None:
        # What it left behind in its group dies too, while its zombie still holds the number of the group.
        self._signal(signal.SIGKILL)
        self.ended.set_result(self._process.wait())

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return  # nobody of the group is left whom we could tell


def spawn_logged(argv: Sequence[str], env: Mapping[str, str], folder: str, cpus: Sequence[int], log: str) -> Child:
    """The same as ``spawn``, its output at the end of the file ``log``."""
    output = open_log(log)
    try:
        return spawn(argv, env, folder, cpus, output)
    finally:
        os.close(output)


def spawn(argv: Sequence[str], env: Mapping[str, str], folder: str, cpus: Sequence[int], output: int) -> Child:
    """Run ``argv`` in ``folder`` on the cores ``cpus`` (none: on any), its output to the descriptor ``output``.

    Raises OSError, ValueError or subprocess.SubprocessError when it cannot be started.
    """
    parent = os.getpid()

    def become_engine() -> None:
        die_with_parent(parent)
        if cpus:
            os.sched_setaffinity(0, cpus)
        os.umask(0o077)

    return Child(
        subprocess.Popen(
            list(argv),
            cwd=folder,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=become_engine,  # noqa: PLW1509 - this process has one thread
        )
    )
