"""What Slurm prints, as values. Pure; whatever the text, these raise nothing but SchedulerSilent."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import NamedTuple, Optional

from firstkit.errors import SchedulerSilent
from firstkit.schedulers.hosts import Host, sum_of
from firstkit.schedulers.scheduler import JOB_ID, Capacity, JobNews
from firstkit.schedulers.slurm_commands import MIB, NODE_COLUMNS
from firstkit.states import JobState

_NUMBER = re.compile(r"[0-9]{1,18}\Z")
_SUBMITTED = re.compile(r"([0-9]{1,18})(;[^\s;]+)?\Z")
_EXIT_CODE = re.compile(r"\bExitCode=([0-9]{1,9}):([0-9]{1,9})\b")
_START = re.compile(r" to start at (\S+)")
_GPUS = re.compile(r"\bgpu(?::([^:,()\s]+))?:([0-9]{1,9})(?=[(,\s]|\Z)")
_CPUS = re.compile(r"([0-9]{1,9})/([0-9]{1,9})/([0-9]{1,9})/([0-9]{1,9})\Z")
_STATE = re.compile(r"[A-Za-z_]+")
_JOB_FIELDS = 9

STATES = {
    "PENDING": JobState.PENDING,
    "CONFIGURING": JobState.PENDING,  # it has nodes, which are being made ready: nothing of ours runs
    "REQUEUE_FED": JobState.PENDING,
    "RESV_DEL_HOLD": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "RESIZING": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "STOPPED": JobState.RUNNING,
    "SUSPENDED": JobState.RUNNING,
    "COMPLETING": JobState.ENDING,
    "STAGE_OUT": JobState.ENDING,
    "REQUEUED": JobState.ENDING,  # our jobs run once: what is started again is over
    "REQUEUE_HOLD": JobState.ENDING,
    "SPECIAL_EXIT": JobState.ENDING,
    "COMPLETED": JobState.COMPLETED,
    "FAILED": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
    "REVOKED": JobState.CANCELLED,
    "TIMEOUT": JobState.TIMEOUT,
    "DEADLINE": JobState.TIMEOUT,
    "NODE_FAIL": JobState.NODE_FAIL,
    "BOOT_FAIL": JobState.NODE_FAIL,
    "LAUNCH_FAILED": JobState.NODE_FAIL,
    "RECONFIG_FAIL": JobState.NODE_FAIL,
    "PREEMPTED": JobState.PREEMPTED,
    "OUT_OF_MEMORY": JobState.OUT_OF_MEMORY,
}
HELD_AGAIN = frozenset({"REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"})
"""Words of jobs that will come back, or wait to, though they were submitted to run once."""
_TOLD = frozenset({"PENDING", "RUNNING", *(state.value for state in JobState if state.is_final)})
"""Words that the state says as well."""
_IN_SERVICE = frozenset(
    {"idle", "mixed", "allocated", "completing", "planned", "reserved", "powered_down", "powering_up", "blocked"}
)
_NOT_ANSWERING = "*"


@dataclass(frozen=True)
class Node(Host):
    """One node of a partition; ``is_default``: of the partition for jobs that name none."""

    name: str
    is_default: bool
    is_in_service: bool


class _Line(NamedTuple):
    """One job as squeue tells it, ours or not."""

    name: str
    number: str
    word: str
    node: str
    start: Optional[float]
    end: Optional[float]
    priority: int
    partition: str
    reason: str


def parse_jobs(text: str) -> dict[str, JobNews]:
    """News of our jobs, by our id. Other jobs are ignored, except that they take their places in the queue.

    Raises SchedulerSilent when the text is cut off or a line of ours does not have all its fields: an answer that may
    have lost a job is none.
    """
    if text and not text.endswith("\n"):
        raise SchedulerSilent("the answer of squeue is cut off")
    lines = [line for line in map(_line, text.split("\n")) if line is not None]
    positions = _positions(lines)
    found: dict[str, JobNews] = {}
    for line in lines:
        if JOB_ID.match(line.name):
            news = _news(line, positions.get(line.number))
            found[line.name] = _telling(found.get(line.name), news)
    return found


def parse_held_again(text: str) -> frozenset[str]:
    """Our ids of jobs that Slurm means to start once more."""
    lines = [line for line in map(_line, text.split("\n")) if line is not None]
    return frozenset(line.name for line in lines if line.word in HELD_AGAIN and JOB_ID.match(line.name))


def parse_submitted(text: str) -> Optional[str]:
    """The number of the job that sbatch has made; sites print greetings before it. None: there is none."""
    for line in reversed(text.split("\n")):
        match = _SUBMITTED.match(line.strip())
        if match:
            return match[1]
    return None


def parse_exit_code(text: str) -> Optional[int]:
    """The exit code in the answer of scontrol, 128 + signal for a killed job as in a shell."""
    match = _EXIT_CODE.search(text)
    return None if match is None else _exit_code(match[1], match[2])


def parse_start(text: str) -> Optional[float]:
    """When a job would start, in seconds since 1970, as ``sbatch --test-only`` says."""
    match = _START.search(text)
    return None if match is None else parse_time(match[1])


def parse_accounting(text: str) -> dict[str, JobNews]:
    """Final news out of sacct. What cannot be read, or has not ended, is left out: it stays unknown."""
    found: dict[str, JobNews] = {}
    for line in text.split("\n"):
        fields = line.split("|")
        if len(fields) != 7 or not JOB_ID.match(fields[0]) or not _NUMBER.match(fields[1]):
            continue
        word = fields[2].partition(" ")[0]  # "CANCELLED by 1000"
        state = STATES.get(word)
        if state is None or not state.is_final:
            continue
        code, _, number = fields[3].partition(":")
        has_code = state is JobState.FAILED and _NUMBER.match(code) and _NUMBER.match(number)
        news = JobNews(
            job_id=fields[0],
            scheduler_id=fields[1],
            state=state,
            reason=_reason(fields[2], ""),
            exit_code=_exit_code(code, number) if has_code else 0 if state is JobState.COMPLETED else None,
            node=_first_node(fields[6]),
            started_at=parse_time(fields[4]),
            ends_at=parse_time(fields[5]),
        )
        found[news.job_id] = _telling(found.get(news.job_id), news)
    return found


def parse_nodes(text: str, gpu_type: Optional[str] = None) -> list[Node]:
    """The nodes of a partition, each once; GPUs of ``gpu_type`` only, where one is given."""
    if text and not text.endswith("\n"):
        raise SchedulerSilent("the answer of sinfo is cut off")
    nodes: dict[str, Node] = {}
    for line in text.split("\n"):
        if line:
            node = _node(line, gpu_type)
            known = nodes.get(node.name)
            if known is None or (node.is_default and not known.is_default):
                nodes[node.name] = node
    return list(nodes.values())


def capacity_of(nodes: Iterable[Node], partition: Optional[str] = None) -> Capacity:
    """The sum of what is in service in a partition."""
    return sum_of((node for node in nodes if node.is_in_service), partition)


def parse_time(text: str) -> Optional[float]:
    """Seconds since 1970: Slurm was asked for these, or for UTC where it is too old. None for ``N/A`` and the like."""
    if _NUMBER.match(text):
        return float(text) or None
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return None


def _line(text: str) -> Optional[_Line]:
    fields = text.split("|", _JOB_FIELDS - 1)
    if len(fields) < _JOB_FIELDS or not _NUMBER.match(fields[1]) or not _STATE.fullmatch(fields[2]):
        if JOB_ID.match(fields[0]):
            raise SchedulerSilent("a line of squeue about a job of ours cannot be understood")
        return None  # a header for several clusters, an array, a name with line breaks: not of our making
    name, number, word, node, start, end, priority, partition, reason = fields
    rank = int(priority) if _NUMBER.match(priority) else 0
    return _Line(name, number, word, node, parse_time(start), parse_time(end), rank, partition, reason.strip())


def _news(line: _Line, position: Optional[int]) -> JobNews:
    # A word that we do not know is alive. PENDING comes first of all states, so whatever was known before stands.
    state = STATES.get(line.word, JobState.PENDING)
    is_waiting = line.word == "PENDING"
    has_started = state is not JobState.PENDING and line.node != ""
    return JobNews(
        job_id=line.name,
        scheduler_id=line.number,
        state=state,
        reason=_reason(line.word, line.reason),
        exit_code=0 if state is JobState.COMPLETED else None,
        node=_first_node(line.node),
        started_at=line.start if has_started else None,
        ends_at=line.end if has_started or state.is_final else None,
        starts_at=line.start if is_waiting else None,
        position=position,
    )


def _reason(word: str, reason: str) -> str:
    """Slurm's own words: its state where ours does not say it, and its reason where it has one."""
    told = "" if word in _TOLD else word
    return ", ".join(part for part in (told, "" if reason in ("None", "") else reason) if part)


def _telling(known: Optional[JobNews], news: JobNews) -> JobNews:
    """Of two jobs of one name, which should not be: one that lives, else the later."""
    if known is None or known.state.is_final != news.state.is_final:
        return news if known is None or known.state.is_final else known
    return max(known, news, key=lambda job: int(job.scheduler_id))


def _positions(lines: Iterable[_Line]) -> dict[str, int]:
    """Places in the queues of partitions, by job number, among the jobs that we see.

    Where Slurm says that others are before the first of these, nobody knows the places.
    """
    queues: dict[str, list[_Line]] = {}
    for line in lines:
        if line.word == "PENDING":
            queues.setdefault(line.partition, []).append(line)
    positions: dict[str, int] = {}
    for queue in queues.values():
        queue.sort(key=lambda line: (-line.priority, int(line.number)))
        if queue[0].reason != "Priority":
            positions.update({line.number: place for place, line in enumerate(queue, 1)})
    return positions


def _node(text: str, gpu_type: Optional[str]) -> Node:
    fields, at = [], 0
    for _, width in NODE_COLUMNS:
        fields.append(text[at : at + width].strip())
        at += width
    name, partition, state, cpus, memory, used_memory, gres, used_gres = fields
    counts = _CPUS.match(cpus)
    if len(text) != at or not name or counts is None or not _NUMBER.match(memory) or not _NUMBER.match(used_memory):
        raise SchedulerSilent("a line of sinfo cannot be understood")
    words = {word for word in _STATE.findall(state.lower()) if word}
    gpus, size = _gpus(gres, gpu_type), int(memory) * MIB
    is_in_service = bool(words) and words <= _IN_SERVICE and _NOT_ANSWERING not in state and "$" not in state
    takes_jobs = is_in_service and "reserved" not in words
    return Node(
        name=name,
        is_default=partition.endswith("*"),
        is_in_service=is_in_service,
        is_free=takes_jobs and "idle" in words,
        cpus=int(counts[4]),
        free_cpus=int(counts[2]) if takes_jobs else 0,
        gpus=gpus,
        free_gpus=max(0, gpus - _gpus(used_gres, gpu_type)) if takes_jobs else 0,
        memory_bytes=size,
        free_memory_bytes=max(0, size - int(used_memory) * MIB) if takes_jobs else 0,
    )


def _gpus(gres: str, gpu_type: Optional[str]) -> int:
    """``gpu:a100:8(S:0-1),gpu:2``: how many; of one type where that is named."""
    found = _GPUS.findall(gres)
    return sum(int(count) for kind, count in found if gpu_type is None or kind == gpu_type)


def _first_node(text: str) -> Optional[str]:
    """The first of a list such as ``n[1-3,7],m2``, where the pilot runs; None where there is none."""
    match = re.match(r"([^\s,\[\]()|]+)(?:\[([^\],-]+))?", text)
    if match is None or text in ("None assigned", "(null)"):
        return None
    return match[1] + (match[2] or "")


def _exit_code(code: str, number: str) -> int:
    return 128 + int(number) if int(number) else int(code)
