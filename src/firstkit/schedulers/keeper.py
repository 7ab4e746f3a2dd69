"""The parent process of one local job: starts it in its share of the machine, ends it in time, leaves nothing behind.

Runs as ``keep FOLDER LAUNCH`` in a session of its own. If it is killed itself, its child dies with it and the next
poll says so.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import NoReturn, Optional

from firstkit.errors import SchedulerSilent
from firstkit.schedulers.processes import become_subreaper, die_with_parent, kill_descendants, manner, own_identity
from firstkit.schedulers.records import FINAL, KEEPER, Final, Grant, JobRecord, Keeper, Order, load, locked
from firstkit.schedulers.scheduler import LOG
from firstkit.states import JobState

LOG_LIMIT_BYTES = 50 * 1024**2
LOG_CHECK_S = 30.0
DEATH_LIMIT_S = 30.0
_SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def main(argv: list[str]) -> int:
    """``FOLDER LAUNCH``: keep the job in this folder until it ended; returns at once when that is not ours to do."""
    folder, launch = os.path.realpath(argv[0]), int(argv[1])
    os.chdir(folder)
    _detach()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    state_dir = os.path.dirname(os.path.dirname(folder))
    keeper = _claim(folder, launch, os.path.join(state_dir, "local.lock"))
    if keeper is None:
        return 0
    job = load(folder)
    if job.order is not None and job.grant is not None:
        _JobKeeper(job, job.order, job.grant, keeper).run()
        _start_others(state_dir, job.grant)
    return 0


def _detach() -> None:
    """Nothing of whoever started us stays: no session, no open files but the log, no mask for files."""
    if os.getsid(0) != os.getpid():
        os.setsid()
    os.umask(0o077)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.close(int(name))
            except OSError:
                continue  # the handle of this very listing


def _claim(folder: str, launch: int, lock_path: str) -> Optional[Keeper]:
    """Become the keeper; None when the job has ended, has one, or was given to a later launch."""
    with locked(lock_path):
        job = load(folder)
        is_ours = job.final is None and job.keeper is None and job.grant is not None and job.grant.launch == launch
        if not is_ours or job.order is None:
            return None
        walltime_s, now = job.order.resources.walltime_s, time.time()
        keeper = Keeper(own_identity(), now, None if walltime_s is None else now + walltime_s)
        job.write(KEEPER, keeper)
        return keeper


class _JobKeeper:
    """One job from its start to its last word."""

    def __init__(self, job: JobRecord, order: Order, grant: Grant, keeper: Keeper) -> None:
        self._job = job
        self._order = order
        self._grant = grant
        self._keeper = keeper
        self._ending: Optional[JobState] = None
        walltime_s = order.resources.walltime_s
        # Monotonic: a step of the wall clock must not end a job.
        self._ends_at = None if walltime_s is None else time.monotonic() + walltime_s

    def run(self) -> None:
        from firstkit.schedulers.scope import leave_service

        leave_service(self._job.job_id)
        become_subreaper()
        child = self._start()
        status = self._wait(child)
        has_died = kill_descendants(DEATH_LIMIT_S)
        self._job.write(FINAL, self._last_word(status, has_died))

    def _start(self) -> int:
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            _become_job(parent, self._order, self._grant, self._environment())
        return child

    def _environment(self) -> dict[str, str]:
        env = {
            **os.environ,
            "FIRST_JOB_ID": self._job.job_id,
            "FIRST_JOB_MEMORY": str(self._grant.part.memory_bytes),
            "CUDA_VISIBLE_DEVICES": ",".join(self._grant.part.gpus),
        }
        if self._keeper.ends_at is not None:
            env["FIRST_JOB_END"] = str(int(self._keeper.ends_at))
        return env

    def _wait(self, child: int) -> Optional[int]:
        """Wait for the main process; at walltime or cancel ask it to end, after the grace stop asking.

        Returns its wait status, or None when it had to be killed.
        """
        next_look = time.monotonic() + LOG_CHECK_S
        while True:
            status = _reap(child)
            if status is not None:
                return status
            now = time.monotonic()
            if self._ends_at is not None and now >= self._ends_at:
                if self._ending is not None:
                    return None
                self._end(child, JobState.TIMEOUT)
                continue
            if now >= next_look:
                _cut_log()
                next_look = now + LOG_CHECK_S
            until = next_look if self._ends_at is None else min(next_look, self._ends_at)
            news = signal.sigtimedwait(_SIGNALS, max(0.0, until - now))
            if news is not None and news.si_signo != signal.SIGCHLD and self._ending is None:
                self._end(child, JobState.CANCELLED)

    def _end(self, child: int, state: JobState) -> None:
        """Ask the main process to end; from here on the time left is the grace."""
        self._ending = state
        self._ends_at = time.monotonic() + self._order.grace_s
        os.kill(child, signal.SIGTERM)
        self._job.write(KEEPER, Keeper(self._keeper.process, self._keeper.started_at, self._keeper.ends_at, state))

    def _last_word(self, status: Optional[int], has_died: bool) -> Final:
        state, reason, exit_code = _verdict(status, self._ending)
        if not has_died:
            reason += "; some of its processes could not be killed"
        return Final(state, reason, time.time(), exit_code)


def _become_job(parent: int, order: Order, grant: Grant, env: dict[str, str]) -> NoReturn:
    """In the forked child: become the main process of the job."""
    try:
        die_with_parent(parent)
        os.setsid()
        _pin(grant.part.cpus)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execve(order.argv[0], list(order.argv), env)  # noqa: S606 - a list, no shell
    except OSError as exc:
        os.write(2, f"the job could not be started: {order.argv[0]}: {exc.strerror}\n".encode())
    finally:
        os._exit(127)


def _pin(cpus: tuple[int, ...]) -> None:
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as exc:
        # A core may have gone offline since; a job on other cores is better than none.
        os.write(2, f"the job could not be bound to cores {list(cpus)}: {exc.strerror}\n".encode())


def _reap(child: int) -> Optional[int]:
    """Reap all that ended; the wait status of ``child`` when it is among them."""
    found: Optional[int] = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == child:
            found = status
        if pid == 0:
            return found


def _verdict(status: Optional[int], ending: Optional[JobState]) -> tuple[JobState, str, Optional[int]]:
    """State, reason and exit code (128 + signal as in a shell) of an ended job; status None: we killed it."""
    code = None if status is None else os.waitstatus_to_exitcode(status)
    exit_code = 128 - code if code is not None and code < 0 else code
    how = "killed after the grace" if code is None else manner(code)
    if ending is JobState.TIMEOUT:
        return JobState.TIMEOUT, f"its walltime ended; {how}", exit_code
    if ending is JobState.CANCELLED:
        return JobState.CANCELLED, f"cancelled; {how}", exit_code
    return (JobState.COMPLETED if code == 0 else JobState.FAILED), how, exit_code


def _cut_log() -> None:
    """Move what is in the log aside when it is too long. Its writers append, so they go on at the new beginning."""
    if os.stat(LOG).st_size <= LOG_LIMIT_BYTES:
        return
    import shutil

    shutil.copyfile(LOG, LOG + ".1")
    os.truncate(LOG, 0)


def _start_others(state_dir: str, grant: Grant) -> None:
    """Our share is free: start who waits for it. Our own environment is that of jobs."""
    from firstkit.schedulers.local import LocalScheduler

    scheduler = LocalScheduler(state_dir, grant.machine, grant.keep, os.environ)
    try:
        with scheduler.lock():
            scheduler.start_waiting()
    except SchedulerSilent as exc:
        os.write(2, f"waiting jobs are left to the next poll: {exc.message}\n".encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
