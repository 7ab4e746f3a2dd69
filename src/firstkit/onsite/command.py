"""``first cluster VERB``: one JSON object on stdin, one on stdout. What the controller asks of a cluster.

The request is ``{"state_dir", "scheduler", "job"?, "job_id"?}``, the answer ``{"ok": true, "result": ...}`` or
``{"ok": false, "error": "silent" | "refused" | "invalid", "code": ..., "message": ...}``. The exit status is 0 for any
answer. Nothing of the request is formatted into a script or read as anything but data.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Optional

from firstkit.errors import ClaimedBefore, FirstError, SchedulerRefused
from firstkit.schedulers.records import locked, write_file
from firstkit.schedulers.scheduler import JobSpec, Scheduler
from firstkit.wire import WireError, decode, encode, to_dict

REQUEST_LIMIT_BYTES = 1024**2
VERBS = ("submit", "poll", "cancel", "capacity")
JOB_ID = re.compile(r"job-[a-z2-7]{16}\Z")
PILOT_FILE = "pilot.json"
CLAIM_FILE = "claim"


@dataclass(frozen=True)
class Request:
    """What may be asked. ``state_dir`` is absolute; ``scheduler`` is that section of the configuration."""

    state_dir: str
    scheduler: dict[str, Any] = field(default_factory=dict)
    job: Optional[JobSpec] = None
    job_id: Optional[str] = None


def main(argv: Sequence[str], runner: Sequence[str]) -> int:
    """Answer one request. ``runner`` is the command that starts this program again, for pilots and keepers."""
    data = sys.stdin.buffer.read(REQUEST_LIMIT_BYTES + 1)
    answer = answer_to(argv[0] if len(argv) == 1 else "", data, runner)
    sys.stdout.write(json.dumps(answer, separators=(",", ":")) + "\n")
    return 0


def answer_to(verb: str, data: bytes, runner: Sequence[str]) -> dict[str, Any]:
    """The answer to any bytes; never raises. This is the boundary where errors become words."""
    try:
        return {"ok": True, "result": to_dict(_result(verb, _read(verb, data), runner))}
    except WireError as exc:
        return _no("invalid", "invalid", str(exc))
    except ClaimedBefore as exc:
        return _no("refused", "claimed", exc.message)
    except SchedulerRefused as exc:
        return _no("refused", "refused", exc.message)
    except FirstError as exc:
        return _no("silent", "silent", exc.message)
    except OSError as exc:
        return _no("silent", "silent", f"{exc.strerror or type(exc).__name__}: {exc.filename or 'no file named'}")
    except Exception as exc:  # noqa: BLE001 - the boundary: an answer must come; its words might hold the request
        return _no("silent", "silent", f"{verb} failed: {type(exc).__name__}")


def _no(error: str, code: str, message: str) -> dict[str, Any]:
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


def _result(verb: str, request: Request, runner: Sequence[str]) -> Any:
    scheduler = make_scheduler(request, runner)
    if verb == "submit":
        if request.job is None:
            raise WireError("job: missing")
        return submit(scheduler, request.state_dir, request.job, runner)
    if verb == "cancel":
        return scheduler.cancel(checked_job_id(request.job_id, "job_id"))
    return scheduler.poll() if verb == "poll" else scheduler.capacity()


def make_scheduler(request: Request, runner: Sequence[str]) -> Scheduler:
    """The backend that the request names; raises WireError for one that this version does not know."""
    kind = request.scheduler.get("kind")
    if kind != "local":
        raise WireError("scheduler.kind: one of local is needed")
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
            return scheduler.submit(spec, [*runner, "pilot", "."], folder)
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
            os.close(os.open(os.path.join(folder, CLAIM_FILE), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            yield False
        else:
            yield True


def _found(scheduler: Scheduler, job_id: str) -> str:
    news = scheduler.poll().get(job_id)
    if news is None:
        raise ClaimedBefore(f"{job_id} was claimed before and is not in the scheduler; use a new id")
    return news.scheduler_id
