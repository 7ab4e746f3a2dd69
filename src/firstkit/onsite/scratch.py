"""The folder of one job on the scratch disk of its node: ``SCRATCH/first-UID/JOB``, this user's alone, and locked while
its process lives. What others left behind there has no lock any more, and is removed."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from firstkit.errors import FirstError
from firstkit.onsite.own_folder import make_own

LOCK = "lock"
"""In the folder of a job: locked while the job lives; holds the name of its host."""
ATTEMPTS = 5
_JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


class ScratchUnfit(FirstError):
    """The scratch folder of this node cannot be used."""


@dataclass(frozen=True)
class Scratch:
    """A folder that is ours; ``lock`` is the descriptor that says so."""

    folder: str
    lock: int

    def remove(self) -> None:
        """Remove the folder and all copies in it; what cannot be removed is left for whoever comes next."""
        _remove_locked(self.folder, self.lock)


def claim(scratch: str, job_id: str) -> Scratch:
    """Make and lock the folder of a job. Raises ScratchUnfit, or OSError."""
    if not _JOB.match(job_id):
        raise ScratchUnfit("The id of this job is no name for a folder.")
    folder = os.path.join(_root(scratch), job_id)
    for _ in range(ATTEMPTS):
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            lock = os.open(os.path.join(folder, LOCK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # somebody who took it for a leftover has just removed it
        if _take(folder, lock):
            return Scratch(folder, lock)
        os.close(lock)
    raise ScratchUnfit(f"{folder} is in use: by another process, or by another node if this disk is shared.")


def remove_leftovers(root: str) -> None:
    """Remove the folders below ``root`` that no living process of this host holds."""
    for name in os.listdir(root):
        folder = os.path.join(root, name)
        try:
            lock = os.open(os.path.join(folder, LOCK), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # just made, or just removed, or nothing of ours
        if _lock(lock) and _is_of_this_host(lock):
            _remove_locked(folder, lock)
        else:
            os.close(lock)


def filled_in(scratch: str, env: Mapping[str, str]) -> str:
    """``scratch`` with the variables of a job's environment in it; raises ScratchUnfit for one that is not set."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not env.get(name):
            raise ScratchUnfit(f"The scratch folder is {scratch}, and jobs here have no {name}.")
        return env[name]

    path = _VARIABLE.sub(value, scratch)
    if not os.path.isabs(path):
        raise ScratchUnfit(f"The scratch folder is {path}; an absolute path is needed.")
    return path


def _root(scratch: str) -> str:
    """The folder of this user in ``scratch``, which others may neither write nor have put there."""
    try:
        status = os.stat(scratch)
    except OSError as exc:
        raise ScratchUnfit(f"The scratch folder {scratch} of {os.uname().nodename}: {exc.strerror}.") from exc
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise ScratchUnfit(f"Everybody may rename what is in {scratch}: it needs the sticky bit (chmod +t).")
    root = os.path.join(scratch, f"first-{os.geteuid()}")
    try:
        is_ours = make_own(root)
    except OSError as exc:
        raise ScratchUnfit(f"{root} cannot be made: {exc.strerror}.") from exc
    if not is_ours:
        raise ScratchUnfit(f"{root} is not a folder of this user alone.")
    return root


def _take(folder: str, lock: int) -> bool:
    """Lock it and write our name; False where somebody else has it, or has removed it meanwhile."""
    if not _lock(lock) or not _is_of_this_host(lock) or _inode(os.path.join(folder, LOCK)) != os.fstat(lock).st_ino:
        return False
    os.pwrite(lock, os.uname().nodename.encode(), 0)
    return True


def _lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_of_this_host(lock: int) -> bool:
    """Locks may not be seen from other nodes, so what another node wrote is never ours, whatever its lock says."""
    return os.pread(lock, 1024, 0).decode(errors="replace") in ("", os.uname().nodename)


def _inode(path: str) -> Optional[int]:
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def _remove_locked(folder: str, lock: int) -> None:
    """The lock goes last: what is left when this is cut short is still known as a leftover."""
    for name in os.listdir(folder):
        if name != LOCK:
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
    try:
        if os.listdir(folder) == [LOCK]:
            os.unlink(os.path.join(folder, LOCK))
            os.rmdir(folder)
    except OSError:
        return  # somebody has made it anew, or the disk does not let us
    finally:
        os.close(lock)
