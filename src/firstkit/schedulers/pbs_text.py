"""What PBS says of jobs, as values. Pure; whatever the text, these raise nothing but ParseError."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Optional

from firstkit.errors import ParseError
from firstkit.schedulers.pbs_layouts import Attributes, parse_records
from firstkit.schedulers.scheduler import JobNews
from firstkit.states import JobState

_NUMBER = re.compile(r"-?[0-9]{1,18}\Z")
_CLOCK = re.compile(r"(?:([0-9]{1,9}):)?([0-9]{1,9}):([0-9]{1,2})\Z")
_REASON_LIMIT = 300

STATES = {
    "Q": JobState.PENDING,
    "H": JobState.PENDING,
    "W": JobState.PENDING,
    "T": JobState.PENDING,
    "R": JobState.RUNNING,
    "B": JobState.RUNNING,
    "S": JobState.RUNNING,
    "U": JobState.RUNNING,
    "E": JobState.ENDING,
}
"""Of jobs that live. F (finished), X (finished, of an array) and M (moved to another server) are final."""
_FINAL = frozenset("FX")
_DELETED = 91
_RERUN = frozenset({60, 61, 62, 63})
"""Substates of a job that ends in order to be queued again (PBS, job.h: JOB_SUBSTATE_RERUN to RERUN3)."""
_GETTING_READY = frozenset({41, 71, 72})
"""Substates of a job that has nodes, but which no node has begun while it has no ``stime`` (JOB_SUBSTATE_PRERUN,
PROVISION and WAITING_JOIN_JOB): it may come back to the queue."""
_NOT_STARTED = frozenset({-3, -14, -16})
"""Exit_status of a start that came to nothing, after which PBS tries again: nothing of ours has run."""
_SIGNALLED = 256
ENDS = {
    -3: (JobState.NODE_FAIL, "the node could not run it"),
    -4: (JobState.NODE_FAIL, "PBS was started anew on its node"),
    -5: (JobState.NODE_FAIL, "PBS was started anew on its node"),
    -6: (JobState.NODE_FAIL, "PBS was started anew on its node"),
    -7: (JobState.NODE_FAIL, "it could not be started again"),
    -14: (JobState.NODE_FAIL, "one of its nodes could not start it"),
    -16: (JobState.FAILED, "a hook of the site did not let it start"),
    -17: (JobState.FAILED, "a hook of the site did not let it start"),
    -20: (JobState.NODE_FAIL, "its first node was lost"),
    -22: (JobState.FAILED, "a hook of the site failed"),
    -25: (JobState.FAILED, "it used more cores than it had"),
    -24: (JobState.FAILED, "it used more cores than it had"),
    -26: (JobState.OUT_OF_MEMORY, "it used more virtual memory than it had"),
    -27: (JobState.OUT_OF_MEMORY, "it used more memory than it had"),
    -28: (JobState.TIMEOUT, "it used more processor time than it had"),
    -29: (JobState.TIMEOUT, ""),
    -30: (JobState.NODE_FAIL, "one of its nodes did not join it"),
    -1: (JobState.FAILED, "PBS could not start it"),
    -2: (JobState.FAILED, "PBS could not start it: has its user a home directory on the node?"),
    -10: (JobState.FAILED, "its user is not known on the node"),
}
"""By a negative Exit_status, which PBS itself gives (PBS, job.h: JOB_EXEC_*)."""


@dataclass(frozen=True)
class Seen:
    """One job that PBS shows, of whatever name: ``news.job_id`` is its name.

    ``is_again``: PBS has run it and means to run it once more, or does so; jobs of ours run once.
    """

    news: JobNews
    is_again: bool


def parse_jobs(text: str) -> list[Seen]:
    """All jobs in an answer of ``qstat -f``; raises ParseError where one lacks its name or its state."""
    return [_seen(pbs_id, attributes) for pbs_id, attributes in parse_records(text).items()]


def parse_time(text: str) -> Optional[float]:
    """Seconds since 1970: PBS prints these, or times without a zone, for which it was asked in UTC."""
    if _NUMBER.match(text):
        return float(text) if int(text) > 0 else None
    try:
        return datetime.strptime(text.strip(), "%a %b %d %H:%M:%S %Y").replace(tzinfo=timezone.utc).timestamp()
    except (ValueError, OverflowError):
        return None


def parse_duration(text: str) -> Optional[float]:
    """Seconds out of ``01:00:00``, ``30:00`` or ``3600``; None for anything else."""
    if _NUMBER.match(text):
        return float(text)
    match = _CLOCK.match(text)
    return None if match is None else int(match[1] or 0) * 3600.0 + int(match[2]) * 60.0 + int(match[3])


def telling(known: Optional[JobNews], news: JobNews) -> JobNews:
    """Of two jobs of one name, which should not be: one that lives, else the later."""
    if known is None or known.state.is_final != news.state.is_final:
        return news if known is None or known.state.is_final else known
    return max(known, news, key=lambda job: (len(job.scheduler_id), job.scheduler_id))


def _seen(pbs_id: str, job: Attributes) -> Seen:
    name, letter = job.get("Job_Name"), job.get("job_state")
    if not name or not letter:
        raise ParseError("a job in the answer of qstat has no name or no state")
    status, substate = _number(job, "Exit_status"), _number(job, "substate")
    if letter in _FINAL:
        state, words, code = end_of(status, substate)
        return Seen(_news(pbs_id, name, state, _words(words, job), job, code), is_again=False)
    if letter == "M":
        return Seen(_news(pbs_id, name, JobState.PENDING, "moved to another server", job), is_again=False)
    if _is_again(job, letter, status, substate):
        return Seen(_news(pbs_id, name, JobState.ENDING, "PBS means to run it once more", job), is_again=True)
    if substate in _RERUN or (substate in _GETTING_READY and "stime" not in job):
        return Seen(_news(pbs_id, name, JobState.PENDING, _words("", job), job), is_again=False)
    # A letter that we do not know is alive. PENDING comes first of all states, so whatever was known before stands.
    state = STATES.get(letter, JobState.PENDING)
    reason = _words("", job) if state is JobState.PENDING else ""
    return Seen(_news(pbs_id, name, state, reason, job), is_again=False)


def _is_again(job: Attributes, letter: str, status: Optional[int], substate: Optional[int]) -> bool:
    """Whether PBS has run this job and means to run it once more.

    It does so with jobs that may be run again, which ours may not unless somebody has changed them. A job that may not
    comes back to the queue when it could not be started, and that counts for nothing.
    """
    if job.get("Rerunable") == "False":
        return letter != "E" and status is not None and status not in _NOT_STARTED
    has_run = status is not None or (_number(job, "run_count") or 0) > 1
    return substate in _RERUN or (letter != "E" and has_run)


def end_of(status: Optional[int], substate: Optional[int]) -> tuple[JobState, str, Optional[int]]:
    """How a finished job has ended, by its Exit_status and its substate: state, words, exit code.

    A job that somebody deleted is that, whatever its programs returned after the signal. 256 + N: signal N ended it.
    """
    if substate == _DELETED:
        return JobState.CANCELLED, "", None
    if status is None:
        return JobState.FAILED, "PBS does not say how it ended", None
    if status == 0:
        return JobState.COMPLETED, "", 0
    if status > 0:
        return JobState.FAILED, "", status - _SIGNALLED + 128 if status > _SIGNALLED else status
    state, words = ENDS.get(status, (JobState.FAILED, "PBS ended it"))
    return state, f"Exit_status {status}: {words}" if words else "", None


def _news(pbs_id: str, name: str, state: JobState, reason: str, job: Attributes, code: Optional[int] = None) -> JobNews:
    started_at = _time(job, "stime")
    walltime_s = parse_duration(job.get("Resource_List.walltime", ""))
    if state.is_final:
        ends_at = _time(job, "obittime") or _time(job, "history_timestamp") or _time(job, "mtime")
    else:
        ends_at = None if started_at is None or walltime_s is None else started_at + walltime_s
    is_waiting = state is JobState.PENDING
    return JobNews(
        job_id=name,
        scheduler_id=pbs_id,
        state=state,
        reason=reason,
        exit_code=code,
        node=None if is_waiting else _first_host(job.get("exec_host", "")),
        started_at=None if is_waiting else started_at,
        ends_at=None if is_waiting else ends_at,
        starts_at=_time(job, "estimated.start_time") if is_waiting else None,
    )


def _words(words: str, job: Attributes) -> str:
    """Ours and PBS's own, on one line."""
    said = " ".join(job.get("comment", "").split())
    return "; ".join(part for part in (words, said) if part)[:_REASON_LIMIT]


def _first_host(text: str) -> Optional[str]:
    """``n1/0*2+n2/1``: the host where the first process, our pilot, runs."""
    return text.partition("+")[0].partition("/")[0].strip() or None


def _number(job: Attributes, name: str) -> Optional[int]:
    text = job.get(name, "")
    return int(text) if _NUMBER.match(text) else None


def _time(job: Attributes, name: str) -> Optional[float]:
    return parse_time(job.get(name, ""))
