"""The state of a local job on disk: small JSON files, each with one writer, replaced as a whole.

In the folder of a job: ``job.json`` (what was ordered; it exists: the scheduler has the job), ``grant.json`` (what it
was given when it was started), ``keeper.json`` (the process that keeps it), ``final.json`` (how it ended, last word).
The first two are written under the scheduler's lock, ``keeper.json`` by the keeper alone, ``final.json`` by the
keeper, or under the lock for a job without one. None of them holds a secret.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Optional, TypeVar

from firstkit.errors import SchedulerSilent
from firstkit.schedulers.processes import ProcessId
from firstkit.schedulers.scheduler import Resources
from firstkit.states import JobState
from firstkit.wire import WireError, decode, encode

JOB, GRANT, KEEPER, FINAL, SEEN = "job.json", "grant.json", "keeper.json", "final.json", "seen"
LOCK_LIMIT_S = 20.0

T = TypeVar("T")


@dataclass(frozen=True)
class Machine:
    """What this machine lends to jobs: core numbers, GPU ids, bytes of memory."""

    cpus: tuple[int, ...]
    gpus: tuple[str, ...]
    memory_bytes: int


@dataclass(frozen=True)
class Order:
    """What was submitted. ``submitted_at`` in seconds since 1970 orders the queue."""

    job_id: str
    resources: Resources
    argv: tuple[str, ...]
    submitted_at: float
    grace_s: float = 10.0


@dataclass(frozen=True)
class Grant:
    """``part`` of ``machine``, given to one job, and ``keep``, the command that starts keepers (for the next job too).

    ``launch`` counts the attempts to start the keeper: a late one of an earlier attempt must not run.
    ``launched_at`` is monotonic time of boot ``boot``.
    """

    launch: int
    part: Machine
    machine: Machine
    keep: tuple[str, ...]
    boot: str
    launched_at: float


@dataclass(frozen=True)
class Keeper:
    """The process that keeps the job. ``ending``: it is about to end the job in this state."""

    process: ProcessId
    started_at: float
    ends_at: Optional[float] = None
    ending: Optional[JobState] = None


@dataclass(frozen=True)
class Final:
    """How a job ended; never replaced. ``ended_at`` in seconds since 1970."""

    state: JobState
    reason: str
    ended_at: float
    exit_code: Optional[int] = None


@dataclass(frozen=True)
class JobRecord:
    """All that is on disk about one job. Without ``order`` and ``final`` it was claimed but never reached us."""

    job_id: str
    folder: str
    order: Optional[Order] = None
    grant: Optional[Grant] = None
    keeper: Optional[Keeper] = None
    final: Optional[Final] = None

    @property
    def is_known(self) -> bool:
        return self.order is not None or self.final is not None

    def write(self, name: str, value: Any) -> None:
        write_file(os.path.join(self.folder, name), encode(value))


def load(folder: str) -> JobRecord:
    """The record of the job in ``folder``; files that are missing are None."""
    return JobRecord(
        job_id=os.path.basename(folder),
        folder=folder,
        order=_read(Order, folder, JOB),
        grant=_read(Grant, folder, GRANT),
        keeper=_read(Keeper, folder, KEEPER),
        final=_read(Final, folder, FINAL),
    )


def write_file(path: str, data: bytes) -> None:
    """Replace a file as a whole, 0600, on disk before it is seen: a reader finds the old bytes or the new ones."""
    temporary = f"{path}.{os.getpid()}.tmp"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


@contextmanager
def locked(path: str, limit_s: float = LOCK_LIMIT_S) -> Iterator[None]:
    """Hold the lock of file or folder ``path``; raises SchedulerSilent when somebody else holds it for too long.

    The kernel lets go of it when the holder dies, however it dies.
    """
    is_folder = os.path.isdir(path)
    handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _acquire(handle, path, time.monotonic() + limit_s)
        yield
    finally:
        os.close(handle)


def _acquire(handle: int, path: str, give_up_at: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > give_up_at:
                raise SchedulerSilent(f"the lock {path} is held by another process") from None
        time.sleep(0.002)


def _read(cls: type[T], folder: str, name: str) -> Optional[T]:
    try:
        with open(os.path.join(folder, name), "rb") as file:
            return decode(cls, file.read())
    except FileNotFoundError:
        return None
    except WireError as exc:
        # Our writes are atomic, so this is foreign: to guess would be to start a twin or to end a job that lives.
        raise SchedulerSilent(f"{os.path.join(folder, name)} cannot be understood: {exc}") from exc
