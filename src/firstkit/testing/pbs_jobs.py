"""One job of the double in ``pbs_lab``: made from what qsub sent, and changed the way a real one changes. No I/O."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from firstkit.testing import pbs_places as places
from firstkit.testing.pbs_places import Part, Refused

DEFAULT_WALLTIME_S = 3600
WALLTIME_PASSED, NODE_LOST, MOM_STARTED_ANEW = -29, -20, -4
DELETED, FINISHED, FAILED = 91, 92, 93
Job = dict[str, Any]


def new_job(number: int, asked: Mapping[str, Any], traits: Mapping[str, str], job_resources: Sequence[str]) -> Job:
    """``asked`` as ``pbs_asked.submission`` makes it; raises Refused. ``traits`` are resources of vnodes without a
    count, ``job_resources`` those that a job names beside its select statement."""
    wants = dict(asked["resources"])
    select, walltime = wants.pop("select", None), wants.pop("walltime", None)
    arrangement = wants.pop("place", "free" if select else "pack")
    if not set(arrangement.split(":")) <= places.PLACES:
        raise Refused(15014, "Illegal attribute or resource value Resource_List.place")
    for name in wants:
        if name not in (*places.COUNTED, *job_resources):
            raise Refused(15035, f"Unknown resource Resource_List.{name}")
    counts = {name: wants.pop(name) for name in places.COUNTED if name in wants}
    select = select or "1:" + ":".join(f"{name}={value}" for name, value in {"ncpus": 1, **counts}.items())
    chunks = places.chunks_of(select, traits)
    walltime_s = DEFAULT_WALLTIME_S if walltime is None else places.seconds(walltime)
    return _job(number, asked, chunks, walltime_s, _resource_list(wants, chunks, select, arrangement, walltime_s))


def _resource_list(
    wants: Mapping[str, str], chunks: Sequence[Mapping[str, Any]], select: str, arrangement: str, walltime_s: int
) -> dict[str, Any]:
    counts: dict[str, Any] = dict(places.totals(chunks))
    if "mem" in counts:
        counts["mem"] = memory_text(counts["mem"])
    return dict(
        sorted(
            {
                **wants, **counts, "nodect": len(chunks), "place": arrangement, "select": select,
                "walltime": places.clock(walltime_s),
            }.items()
        )
    )  # fmt: skip


def memory_text(size_kb: int) -> str:
    for unit, factor in (("gb", 1024**2), ("mb", 1024)):
        if size_kb % factor == 0:
            return f"{size_kb // factor}{unit}"
    return f"{size_kb}kb"


def _job(
    number: int,
    asked: Mapping[str, Any],
    chunks: list[dict[str, Any]],
    walltime_s: int,
    resources: dict[str, Any],
) -> Job:
    now = int(time.time())
    holds = "u" if asked["is_held"] else ""
    copied = ("name", "user", "queue", "account", "project", "join", "keep", "output", "umask", "variables", "env")
    return {
        "id": number, **{name: asked[name] for name in copied},
        "argv": asked["argv"], "script": asked["script"], "submit_arguments": asked["submit_arguments"],
        "is_rerunnable": asked["is_rerunnable"], "chunks": chunks, "walltime_s": walltime_s, "resources": resources,
        "state": "H" if holds else "Q", "substate": 20 if holds else 10, "holds": holds, "never_eligible": False,
        "ctime": now, "mtime": now, "stime": None, "obittime": None, "history_at": None, "estimated": None,
        "parts": None, "exec_host": None, "exec_vnode": None, "session": None, "jobdir": None, "comment": None,
        "run_count": 0, "stageout": None, "exit_status": None, "resources_used": None, "is_deleted": False,
    }  # fmt: skip


def is_over(job: Job) -> bool:
    return bool(job["state"] == "F")


def has_nodes(job: Job) -> bool:
    """Whether it has a place on vnodes: it runs, or is just ending."""
    return job["state"] in "RE" and job["parts"] is not None


def host_of(job: Job) -> str:
    """The first host, where the processes of the job are."""
    return str(job["exec_host"].split("/")[0])


def start(job: Job, placed: list[list[Part]], exec_host: str, jobdir: str) -> None:
    now = int(time.time())
    vnodes = places.shown(placed)
    at = time.strftime("%a %b %d at %H:%M", time.localtime(now))
    job.update(
        state="R", substate=41, parts=placed, exec_host=exec_host, exec_vnode=vnodes, stime=now, mtime=now,
        run_count=job["run_count"] + 1, comment=f"Job run at {at} on {vnodes}", jobdir=jobdir, estimated=None,
    )  # fmt: skip


def note_deletion(job: Job, who: str) -> None:
    """The comment says it at once, while the job still runs."""
    if not job["is_deleted"]:
        job.update(is_deleted=True, comment=f"{job['comment']} and terminated by {who}", mtime=int(time.time()))


def leave(job: Job, status: int) -> None:
    """Its processes have ended; PBS still tidies up."""
    now = int(time.time())
    job.update(state="E", substate=51, exit_status=status, mtime=now, resources_used=used(job, now))


def used(job: Job, now: int) -> dict[str, Any]:
    ran_s = max(0, now - (job["stime"] or now))
    cpus = job["resources"].get("ncpus", 1)
    return {
        "cpupercent": 0, "cput": "00:00:00", "mem": "1276kb", "ncpus": cpus, "vmem": "2500kb",
        "walltime": places.clock(ran_s),
    }  # fmt: skip


def finish(job: Job) -> None:
    """The last state of a job whose ``exit_status`` is known."""
    status = job["exit_status"]
    substate = DELETED if job["is_deleted"] else FINISHED if status == 0 else FAILED
    if status == NODE_LOST:
        job.update(comment=None, resources_used=None)
    elif status == WALLTIME_PASSED and not job["is_deleted"]:
        job["comment"] = f"{job['comment']} and exceeded resource walltime"
    elif not job["is_deleted"]:
        job["comment"] = f"{job['comment']} and {'finished' if status == 0 else 'failed'}"
    _end(job, substate)
    job.update(obittime=job["mtime"], stageout=None if status == NODE_LOST else 1)


def finish_unstarted(job: Job) -> None:
    """Deleted while it waited."""
    if job["comment"]:
        job["comment"] = f"{job['comment']} and terminated"
    _end(job, DELETED)


def _end(job: Job, substate: int) -> None:
    now = int(time.time())
    job.update(state="F", substate=substate, mtime=now, history_at=now, estimated=None, parts=None)


def requeue(job: Job, status: int) -> None:
    """It waits again under the same id, with the exit status of before."""
    now = int(time.time())
    job.update(
        state="Q", substate=10, exit_status=status, mtime=now, obittime=now, parts=None, exec_host=None,
        exec_vnode=None, stime=None, jobdir=None, comment=None, is_deleted=False, resources_used=None,
    )  # fmt: skip
