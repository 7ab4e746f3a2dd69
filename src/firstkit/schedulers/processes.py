"""Facts about processes, out of /proc (Linux): who lives, who descends from whom, who dies with its parent."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class ProcessId:
    """One process for all time: the number, its start in clock ticks since boot, and which boot."""

    pid: int
    started: int
    boot: str


def boot_id() -> str:
    """Changes with every start of the machine."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def own_identity() -> ProcessId:
    return process_id(os.getpid())


def process_id(pid: int) -> ProcessId:
    """The process that has this number now; raises OSError when there is none."""
    return ProcessId(pid, _stat(pid)[1], boot_id())


def is_alive(process: ProcessId) -> bool:
    """Whether that very process runs. A zombie is dead, and so is everything of an earlier boot."""
    if process.boot != boot_id():
        return False
    try:
        state, started, _ = _stat(process.pid)
    except OSError:
        return False
    return started == process.started and state not in "ZX"


def send_signal(process: ProcessId, number: int) -> bool:
    """Signal that very process; False when it is gone."""
    if not is_alive(process):
        return False
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def descendants(root: int) -> list[int]:
    """Pids of all that descends from ``root``, children before their own children; zombies are left out."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        try:
            state, _, parent = _stat(pid)
        except OSError:
            continue  # it ended while we looked
        if state not in "ZX" or parent == root:
            children.setdefault(parent, []).append(pid)
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(0), [])
        found.extend(below)
        queue.extend(below)
    return found


def kill_descendants(limit_s: float) -> bool:
    """Kill all that descends from this process and reap it; False when some would not die within the limit.

    Complete only in a subreaper: whatever loses its parent becomes our child, so no child left means nothing left.
    """
    give_up_at = time.monotonic() + limit_s
    while True:
        for pid in descendants(os.getpid()):
            _kill(pid)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.005)


def kill_marked(variable: str, value: str, limit_s: float) -> None:
    """Kill processes of this user that were started with ``variable=value`` in their environment.

    For what a keeper left behind when it was killed itself. Spares this process.
    """
    marker = f"\0{variable}={value}\0".encode()
    give_up_at = time.monotonic() + limit_s
    while time.monotonic() < give_up_at:
        marked = [pid for pid in _pids() if pid != os.getpid() and marker in _environment(pid)]
        if not marked:
            return
        for pid in marked:
            _kill(pid)
        time.sleep(0.005)


def become_subreaper() -> None:
    """From now on orphans below this process become its children instead of init's."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Get the signal when ``parent`` ends, and end if that was before this call. Survives exec; call it after fork."""
    _prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _stat(pid: int) -> tuple[str, int, int]:
    """State letter, start time and parent; raises OSError when there is no such process."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        text = file.read()
    # The command name is in parentheses and may hold spaces and parentheses itself: count from its end.
    fields = text[text.rindex(b")") + 2 :].split()
    return fields[0].decode(), int(fields[19]), int(fields[1])


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _environment(pid: int) -> bytes:
    """The environment that a process was started with, framed by NULs; empty where it cannot be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return b"\0" + file.read()
    except OSError:
        return b""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return  # gone by itself, or another user's: neither is ours to end


def manner(code: int) -> str:
    """An exit code in words; negative: the signal that ended the process."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
