"""``first cluster VERB``: one JSON object on stdin, one on stdout. What the controller asks of a cluster.

The request is ``{"state_dir", "scheduler", "job"?, "job_id"?, "resources"?, "replicas"?}``, the answer ``{"ok": true,
"result": ...}`` or ``{"ok": false, "error": "silent" | "refused" | "invalid", "code": ..., "message": ...}``. The exit
status is 0 for any answer. Nothing of the request is formatted into a script or read as anything but data.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Optional

from firstkit.engines.engine import ReplicaSpec
from firstkit.errors import ClaimedBefore, FirstError, SchedulerRefused
from firstkit.onsite.allowed import Allowed, check_replica, check_resources, read_allowed
from firstkit.onsite.job import ADDRESS_FILE, PILOT_FILE
from firstkit.schedulers.records import locked, write_file
from firstkit.schedulers.scheduler import CLAIM, JOB_ID, JobNews, JobSpec, Resources, Scheduler
from firstkit.states import JobState
from firstkit.wire import WireError, decode, encode, from_dict, to_dict

REQUEST_LIMIT_BYTES = 1024**2
VERBS = ("submit", "poll", "cancel", "capacity", "estimate", "check")
TRIAL = "trial"
"""Key in a job's pilot spec: the job only looks around, for ``first cluster check``."""
ADDRESS_LIMIT = 300


@dataclass(frozen=True)
class Request:
    """What may be asked. ``state_dir`` is absolute; ``scheduler`` is that section of the configuration."""

    state_dir: str
    scheduler: dict[str, Any] = field(default_factory=dict)
    job: Optional[JobSpec] = None
    job_id: Optional[str] = None
    resources: Optional[Resources] = None
    replicas: tuple[ReplicaSpec, ...] = ()


Confine = Callable[[Request], tuple[Request, Optional[Allowed]]]
"""Makes of a request the one that may be answered, and says what is allowed; raises FirstError."""


def main(argv: Sequence[str], runner: Sequence[str]) -> int:
    """Answer one request. ``runner`` is the command that starts this program again, for pilots and keepers."""
    data = sys.stdin.buffer.read(REQUEST_LIMIT_BYTES + 1)
    answer = answer_to(argv[0] if len(argv) == 1 else "", data, runner)
    sys.stdout.write(json.dumps(answer, separators=(",", ":")) + "\n")
    return 0


def confine(request: Request) -> tuple[Request, Optional[Allowed]]:
    """The request itself, when the cluster's list, where there is one, has nothing against it; raises NotAllowed."""
    allowed = read_allowed(request.state_dir)
    if allowed is not None:
        if request.job is not None:
            _check_job(allowed, request.job)
        if request.resources is not None:
            check_resources(allowed, request.resources)
    return request, allowed


def answer_to(verb: str, data: bytes, runner: Sequence[str], confined: Confine = confine) -> dict[str, Any]:
    """The answer to any bytes; never raises. This is the boundary where errors become words."""
    try:
        request, allowed = confined(_read(verb, data))
        return {"ok": True, "result": to_dict(_result(verb, request, allowed, runner))}
    except WireError as exc:
        return no("invalid", "invalid", str(exc))
    except ClaimedBefore as exc:
        return no("refused", "claimed", exc.message)
    except SchedulerRefused as exc:
        return no("refused", "refused", exc.message)
    except FirstError as exc:
        return no("silent", "silent", exc.message)
    except OSError as exc:
        return no("silent", "silent", f"{exc.strerror or type(exc).__name__}: {exc.filename or 'no file named'}")
    except Exception as exc:  # noqa: BLE001 - the boundary: an answer must come; its words might hold the request
        return no("silent", "silent", f"{verb} failed: {type(exc).__name__}")


def no(error: str, code: str, message: str) -> dict[str, Any]:
    """An answer that is none of the things that were asked for."""
    return {"ok": False, "error": error, "code": code, "message": message}


def _read(verb: str, data: bytes) -> Request:
    if verb not in VERBS:
        raise WireError(f"the verb must be one of {', '.join(VERBS)}")
    if len(data) > REQUEST_LIMIT_BYTES:
        raise WireError(f"the request is longer than {REQUEST_LIMIT_BYTES} bytes")
    request = decode(Request, data)
    if not os.path.isabs(request.state_dir) or "\0" in request.state_dir:
        raise WireError("state_dir: an absolute path is needed")
    return request


def _check_job(allowed: Allowed, job: JobSpec) -> None:
    check_resources(allowed, job.resources)
    trial = job.pilot.get(TRIAL)
    for where, pilot in (("job.pilot", job.pilot), ("job.pilot.trial", trial if isinstance(trial, dict) else {})):
        specs = pilot.get("replicas", [])
        if not isinstance(specs, list):
            raise WireError(f"{where}.replicas: a list is needed")
        for i, spec in enumerate(specs):
            check_replica(allowed, from_dict(ReplicaSpec, spec, f"{where}.replicas[{i}]"))


def _result(verb: str, request: Request, allowed: Optional[Allowed], runner: Sequence[str]) -> Any:
    if verb == "check":
        from firstkit.onsite.check import look

        job_id = None if request.job_id is None else checked_job_id(request.job_id, "job_id")
        return look(request.state_dir, allowed, request.replicas, job_id, runner[-1])
    scheduler = make_scheduler(request, runner)
    if verb == "submit":
        if request.job is None:
            raise WireError("job: missing")
        return submit(scheduler, request.state_dir, request.job, runner)
    if verb == "cancel":
        return scheduler.cancel(checked_job_id(request.job_id, "job_id"))
    if verb == "estimate":
        if request.resources is None:
            raise WireError("resources: missing")
        return scheduler.estimate(request.resources)
    return poll(scheduler, request.state_dir) if verb == "poll" else scheduler.capacity()


def poll(scheduler: Scheduler, state_dir: str) -> dict[str, JobNews]:
    """News of all jobs, with the addresses at which their pilots can be dialled."""
    return {job_id: _with_address(news, state_dir) for job_id, news in scheduler.poll().items()}


def _with_address(news: JobNews, state_dir: str) -> JobNews:
    if news.state is not JobState.RUNNING:
        return news
    try:
        with open(os.path.join(state_dir, "jobs", news.job_id, ADDRESS_FILE), encoding="ascii") as file:
            return replace(news, address=file.read(ADDRESS_LIMIT).strip())
    except (OSError, UnicodeDecodeError):
        return news  # its pilot dials, or has not come so far


def make_scheduler(request: Request, runner: Sequence[str]) -> Scheduler:
    """The backend that the request names; raises WireError for one that this version does not know."""
    kind = request.scheduler.get("kind")
    if kind == "slurm":
        from firstkit.schedulers.slurm import slurm_scheduler

        return slurm_scheduler(request.state_dir, request.scheduler, os.environ)
    if kind == "pbs":
        from firstkit.schedulers.pbs import pbs_scheduler

        return pbs_scheduler(request.state_dir, request.scheduler, os.environ)
    if kind != "local":
        raise WireError("scheduler.kind: one of local, slurm, pbs is needed")
    from firstkit.schedulers.local import local_scheduler

    return local_scheduler(request.state_dir, request.scheduler, [*runner, "keep"], os.environ)


def submit(scheduler: Scheduler, state_dir: str, spec: JobSpec, runner: Sequence[str]) -> str:
    """Submit a job once, however often and from wherever this is called; returns the scheduler's id of it.

    Raises ClaimedBefore when an earlier call claimed the id and the scheduler does not know it: it may have died
    before it submitted, or the scheduler has yet to show it, and only a new id is sure to make no twin.
    """
    folder = os.path.join(state_dir, "jobs", checked_job_id(spec.job_id, "job.job_id"))
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with _claim(folder) as is_first:
        if not is_first:
            return _found(scheduler, spec.job_id)
        pilot_file = os.path.join(folder, PILOT_FILE)
        write_file(pilot_file, encode(spec.pilot))
        try:
            part = TRIAL if TRIAL in spec.pilot else "pilot"
            return scheduler.submit(spec, [*runner, part, folder], folder)
        except SchedulerRefused:
            os.unlink(pilot_file)
            raise


def checked_job_id(job_id: Optional[str], where: str) -> str:
    """The id, which becomes the name of a folder, when it has the form of ours; else raises WireError."""
    if job_id is None or not JOB_ID.match(job_id):
        raise WireError(f"{where}: 'job-' and 16 characters of a-z and 2-7 are needed")
    return job_id


@contextmanager
def _claim(folder: str) -> Iterator[bool]:
    """Whether the job is ours to submit, the first time ever. Others that claim it wait until we have or have died."""
    with locked(folder):
        try:
            os.close(os.open(os.path.join(folder, CLAIM), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            yield False
        else:
            yield True


def _found(scheduler: Scheduler, job_id: str) -> str:
    news = scheduler.poll().get(job_id)
    if news is None:
        raise ClaimedBefore(f"{job_id} was claimed before and is not in the scheduler; use a new id")
    return news.scheduler_id
