"""Under systemd, stopping a service kills all that it ever started; a job moves into a scope of its own before that."""

from __future__ import annotations

import os
import time

MOVE_LIMIT_S = 2.0
ASK_LIMIT_S = 5.0


def leave_service(job_id: str, pid: int = 0) -> bool:
    """Move this process into the transient scope ``first-<job_id>.scope``, as ``systemd-run --scope`` does.

    False where there is no systemd, or where it refuses: the job then runs where it is, and the log says so.
    """
    if not os.path.isdir("/run/systemd/system"):
        return False
    import subprocess

    before = _own_group()
    environment = {"XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}", **os.environ}
    try:
        subprocess.run(
            scope_command(job_id, pid or os.getpid(), os.getuid() == 0),
            check=True,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=ASK_LIMIT_S,
        )
    except (OSError, subprocess.SubprocessError) as exc:
        os.write(2, f"no scope of its own for this job: {type(exc).__name__}; it ends with the service\n".encode())
        return False
    give_up_at = time.monotonic() + MOVE_LIMIT_S
    while _own_group() == before and time.monotonic() < give_up_at:
        time.sleep(0.005)
    return _own_group() != before


def scope_command(job_id: str, pid: int, is_root: bool) -> list[str]:
    """The call of systemd's manager that makes a scope around a process that runs already."""
    return [
        "busctl", "--system" if is_root else "--user", "call",
        "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager",
        "StartTransientUnit", "ssa(sv)a(sa(sv))", f"first-{job_id}.scope", "fail",
        "1", "PIDs", "au", "1", str(pid), "0",
    ]  # fmt: skip


def _own_group() -> str:
    with open("/proc/self/cgroup", encoding="utf-8", errors="replace") as file:
        return file.read()
