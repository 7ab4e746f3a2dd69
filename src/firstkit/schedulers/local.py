"""A scheduler without a daemon: jobs as processes of this machine, their state in files, one lock for decisions.

A job starts at once when its share of the machine is free; else it waits, and the next verb or the keeper of an
ending job starts it, oldest first among those that fit. Each running job has a keeper (``keeper.py``), a process
of its own session that outlives whoever submitted.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Optional

from firstkit.errors import SchedulerRefused
from firstkit.schedulers.hosts import Host, sum_of
from firstkit.schedulers.machine import allocate, check_fits, free, read_machine
from firstkit.schedulers.processes import boot_id, is_alive, kill_marked, send_signal
from firstkit.schedulers.records import (
    FINAL,
    GRANT,
    JOB,
    SEEN,
    Final,
    Grant,
    JobRecord,
    Machine,
    Order,
    load,
    locked,
    write_file,
)
from firstkit.schedulers.scheduler import LOG, Capacity, Estimate, JobNews, JobSpec, Resources
from firstkit.states import JobState

LAUNCH_LIMIT_S = 15.0
LAUNCHES = 3
KILL_LIMIT_S = 5.0
KEEP_FINAL_S = 86400.0
KEEP_SEEN_S = 3600.0
ENVIRONMENT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
"""What jobs inherit; anything else in our environment may be a secret of somebody else."""


def job_environment(env: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of jobs: what is harmless in ``env``, and the cluster's own ``extra``."""
    return {**{name: env[name] for name in ENVIRONMENT if name in env}, **extra}


class LocalScheduler:
    """The scheduler of one machine, with its state below ``state_dir``.

    ``keep`` is the command that becomes the keeper of a job when its folder and a number are appended. ``env`` is the
    environment of jobs, nothing else reaches them.
    """

    def __init__(
        self, state_dir: str, machine: Machine, keep: Sequence[str], env: Mapping[str, str], grace_s: float = 10.0
    ) -> None:
        self._jobs = os.path.join(state_dir, "jobs")
        self._lock_path = os.path.join(state_dir, "local.lock")
        self._machine = machine
        self._keep = tuple(keep)
        self._env = dict(env)
        self._grace_s = grace_s
        os.makedirs(self._jobs, mode=0o700, exist_ok=True)

    def submit(self, spec: JobSpec, argv: list[str], folder: str) -> str:
        with self.lock():
            job = load(folder)
            if not job.is_known:
                check_fits(spec.resources, self._machine)
                job.write(JOB, Order(spec.job_id, spec.resources, tuple(argv), time.time(), self._grace_s))
                self.start_waiting()
        return _scheduler_id(spec.job_id)

    def poll(self) -> dict[str, JobNews]:
        with self.lock():
            self.start_waiting()
            jobs = [self._without_the_old(job) for job in self._load_all()]
        return {job.job_id: news_of(job) for job in jobs if job is not None and job.is_known}

    def cancel(self, job_id: str) -> None:
        """End a job. One that never came is marked as ended, so that a submission which is still under way is not
        let in after its cancel."""
        folder = os.path.join(self._jobs, job_id)
        with self.lock():
            os.makedirs(folder, mode=0o700, exist_ok=True)
            job = self._settle(load(folder))
            if job.final is None and job.keeper is not None:
                send_signal(job.keeper.process, signal.SIGTERM)
            elif job.final is None:
                _end(job, JobState.CANCELLED, "cancelled before it was started")
            self.start_waiting()

    def capacity(self) -> Capacity:
        with self.lock():
            taken = _taken([self._settle(job) for job in self._load_all()])
        left = free(self._machine, taken)
        whole = self._machine
        host = Host(
            is_free=not taken,
            cpus=len(whole.cpus),
            free_cpus=len(left.cpus),
            gpus=len(whole.gpus),
            free_gpus=len(left.gpus),
            memory_bytes=whole.memory_bytes,
            free_memory_bytes=left.memory_bytes,
        )
        return sum_of([host])

    def estimate(self, resources: Resources) -> Estimate:
        """Now where it fits; else when nobody knows."""
        check_fits(resources, self._machine)
        with self.lock():
            taken = _taken([self._settle(job) for job in self._load_all()])
        if allocate(resources, self._machine, taken) is None:
            return Estimate(None, "cores, memory or GPUs are in use")
        return Estimate(time.time())

    def lock(self) -> AbstractContextManager[None]:
        """Under this lock, and only there, jobs are started, taken in and declared dead."""
        return locked(self._lock_path)

    def start_waiting(self) -> None:
        """Start every waiting job that fits, oldest first. The lock must be held."""
        jobs = [self._settle(job) for job in self._load_all()]
        taken = _taken(jobs)
        waiting = [(job.order, job) for job in jobs if job.order and job.final is None and not _holds(job)]
        for order, job in sorted(waiting, key=lambda pair: (pair[0].submitted_at, pair[0].job_id)):
            part = allocate(order.resources, self._machine, taken)
            if part is not None:
                taken.append(part)
                self._launch(job, part)

    def _launch(self, job: JobRecord, part: Machine) -> None:
        """Give the job its share, on disk, then start its keeper. Killed in between, ``_settle`` notices later."""
        launch = 1 if job.grant is None else job.grant.launch + 1
        job.write(GRANT, Grant(launch, part, self._machine, self._keep, boot_id(), time.monotonic()))
        try:
            self._spawn([*self._keep, job.folder, str(launch)], os.path.join(job.folder, LOG))
        except OSError as exc:
            if launch >= LAUNCHES:
                _end(job, JobState.FAILED, f"its keeper could not be started: {exc.strerror}")

    def _spawn(self, argv: list[str], log: str) -> None:
        os.posix_spawn(
            argv[0],
            argv,
            self._env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsigmask=[],
        )

    def _settle(self, job: JobRecord) -> JobRecord:
        """The job after a look whether its keeper lives: a final state is written for one whose keeper is gone."""
        if job.final is not None or job.grant is None:
            return job
        if job.keeper is None:
            if job.grant.launch >= LAUNCHES and _is_overdue(job.grant):
                return _end(job, JobState.FAILED, f"its keeper did not start in {LAUNCHES} attempts; see {LOG}")
            return job
        if is_alive(job.keeper.process):
            return job
        job = load(job.folder)  # its last word may have come while we looked
        if job.final is not None or job.keeper is None:
            return job
        if job.keeper.process.boot != boot_id():
            return _end(job, JobState.NODE_FAIL, "the machine was restarted")
        kill_marked("FIRST_JOB_ID", job.job_id, KILL_LIMIT_S)
        return _end(job, JobState.FAILED, "keeper died: the process that kept the job was killed")

    def _load_all(self) -> list[JobRecord]:
        return [load(entry.path) for entry in os.scandir(self._jobs) if entry.name.startswith("job-")]

    def _without_the_old(self, job: JobRecord) -> Optional[JobRecord]:
        """None, and the folder removed, a day after the end when somebody saw that end at least an hour ago."""
        if not _is_old(job):
            return job
        import shutil

        shutil.rmtree(job.folder)
        return None


def local_scheduler(
    state_dir: str, settings: Mapping[str, Any], keep: Sequence[str], env: Mapping[str, str]
) -> LocalScheduler:
    """The scheduler that the section ``settings`` of the configuration describes; raises SchedulerRefused."""
    grace_s = settings.get("grace_s", 10.0)
    extra = settings.get("env", {})
    for name, kind in (("cpus", int), ("memory_gib", (int, float)), ("gpus", int), ("grace_s", (int, float))):
        value = settings.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool) or value < 0):
            raise SchedulerRefused(f"scheduler.{name}: {value!r} is not allowed: a number from 0 on is needed")
    if not isinstance(extra, dict) or not all(isinstance(value, str) for value in extra.values()):
        raise SchedulerRefused("scheduler.env: names with text are needed")
    return LocalScheduler(state_dir, read_machine(settings, env), keep, job_environment(env, extra), grace_s)


def news_of(job: JobRecord) -> JobNews:
    """What to tell of a job that is known."""
    keeper, final = job.keeper, job.final
    state, reason = _state(job)
    return JobNews(
        job_id=job.job_id,
        scheduler_id=_scheduler_id(job.job_id),
        state=state,
        reason=reason,
        exit_code=final.exit_code if final else None,
        node=os.uname().nodename if keeper else None,
        started_at=keeper.started_at if keeper else None,
        ends_at=final.ended_at if final else keeper.ends_at if keeper else None,
    )


def _state(job: JobRecord) -> tuple[JobState, str]:
    if job.final is not None:
        return job.final.state, job.final.reason
    if job.keeper is None:
        return JobState.PENDING, "waits for cores, memory or GPUs" if job.grant is None else "is being started"
    if job.keeper.ending is not None:
        return JobState.ENDING, job.keeper.ending.value
    return JobState.RUNNING, ""


def _holds(job: JobRecord) -> bool:
    """Whether the job has its share of the machine now."""
    if job.final is not None or job.grant is None:
        return False
    return job.keeper is not None or not _is_overdue(job.grant)


def _taken(jobs: Sequence[JobRecord]) -> list[Machine]:
    return [job.grant.part for job in jobs if job.grant is not None and _holds(job)]


def _is_overdue(grant: Grant) -> bool:
    """Whether the keeper should have reported by now; after a reboot it never will."""
    return grant.boot != boot_id() or time.monotonic() - grant.launched_at > LAUNCH_LIMIT_S


def _is_old(job: JobRecord) -> bool:
    now = time.time()
    if not job.is_known:
        return now - os.stat(job.folder).st_mtime > KEEP_FINAL_S
    if job.final is None:
        return False
    seen = os.path.join(job.folder, SEEN)
    try:
        seen_for_s = now - os.stat(seen).st_mtime
    except FileNotFoundError:
        write_file(seen, b"")
        return False
    return now - job.final.ended_at > KEEP_FINAL_S and seen_for_s > KEEP_SEEN_S


def _end(job: JobRecord, state: JobState, reason: str) -> JobRecord:
    job.write(FINAL, Final(state, reason, time.time()))
    return load(job.folder)


def _scheduler_id(job_id: str) -> str:
    return f"local-{job_id}"
