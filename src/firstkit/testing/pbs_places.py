"""Select statements, vnodes, and where the chunks of a job go: the scheduler of the double in ``pbs_lab``. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

COUNTED = ("ncpus", "ngpus", "mem")
SIZE = re.compile(r"(\d+)(b|kb|mb|gb|tb)?\Z", re.IGNORECASE)
_KB = {"b": 1 / 1024, "kb": 1, "mb": 1024, "gb": 1024**2, "tb": 1024**3}
NO_NODES = "Not Running: Not enough free nodes available"
PLACES = frozenset(("free", "pack", "scatter", "vscatter", "excl", "exclhost", "shared"))


class Refused(Exception):
    """PBS says no: its number of the error, and the words of the command."""

    def __init__(self, number: int, words: str) -> None:
        super().__init__(words)
        self.number = number
        self.words = words

    @property
    def status(self) -> int:
        """The exit status that commands make of it."""
        return self.number % 256


class Part(NamedTuple):
    """What one job has of one vnode."""

    vnode: str
    counts: dict[str, int]


@dataclass
class Vnode:
    """A part of a host (most hosts are one), and who has what of it. Memory in KiB."""

    name: str
    host: str
    counts: dict[str, int]
    traits: dict[str, str] = field(default_factory=dict)
    is_up: bool = False
    was_up: bool = False
    is_offline: bool = False
    comment: str = ""
    changed_at: int = 0
    used_at: int = 0
    taken: dict[int, dict[str, int]] = field(default_factory=dict)
    held_by: set[int] = field(default_factory=set)
    """Jobs that have it for themselves alone."""

    def free(self) -> dict[str, int]:
        return {name: total - self.assigned(name) for name, total in self.counts.items()}

    def assigned(self, name: str) -> int:
        return sum(counts.get(name, 0) for counts in self.taken.values())

    @property
    def is_in_service(self) -> bool:
        return self.is_up and not self.is_offline

    @property
    def state(self) -> str:
        """A list with commas, the worst first."""
        words = [] if self.is_up else ["down"] if self.was_up else ["state-unknown", "down"]
        if self.is_offline:
            words.append("offline")
        if self.held_by:
            words.append("job-exclusive")
        elif self.taken and self.counts["ncpus"] > 0 and self.assigned("ncpus") >= self.counts["ncpus"]:
            words.append("job-busy")
        return ",".join(words) or "free"


# -- what is asked for -------------------------------------------------------------------------------------------------


def size_kb(text: str) -> int:
    match = SIZE.match(text)
    if match is None:
        raise Refused(15014, "Illegal attribute or resource value Resource_List.mem")
    return -(-int(match[1]) * int(1024 * _KB[(match[2] or "b").lower()]) // 1024)


def seconds(text: str) -> int:
    """``HH:MM:SS`` or a number of seconds."""
    if not re.match(r"(\d+:){0,2}\d+\Z", text):
        raise Refused(15014, "Illegal attribute or resource value Resource_List.walltime")
    total = 0
    for number in text.split(":"):
        total = total * 60 + int(number)
    return total


def clock(duration_s: int) -> str:
    return f"{duration_s // 3600:02}:{duration_s // 60 % 60:02}:{duration_s % 60:02}"


def chunks_of(select: str, traits: Iterable[str]) -> list[dict[str, Any]]:
    """The chunks, one by one: what is counted as numbers, the rest as text. Raises Refused as qsub is."""
    known = {*COUNTED, "mpiprocs", "ompthreads", "vnode", "host", "arch", *traits}
    chunks: list[dict[str, Any]] = []
    for text in select.split("+"):
        first, *rest = text.split(":")
        count, wants = (int(first), rest) if first.isdigit() else (1, [first, *rest])
        if count < 1:
            raise Refused(15014, "Illegal attribute or resource value")
        chunk: dict[str, Any] = {"ncpus": 1}
        for want in wants:
            name, _, value = want.partition("=")
            if not name or not value:
                raise Refused(15014, "Illegal attribute or resource value Resource_List.select")
            if name not in known:
                raise Refused(15035, f"Unknown resource: {name}")
            chunk[name] = _value(name, value)
        chunks += [dict(chunk) for _ in range(count)]
    return chunks


def _value(name: str, value: str) -> Any:
    if name == "mem":
        return size_kb(value)
    if name not in COUNTED:
        return value
    if not value.isdigit():
        raise Refused(15014, "Illegal attribute or resource value Resource_List.select")
    return int(value)


# -- where it goes -----------------------------------------------------------------------------------------------------


def place(chunks: Sequence[Mapping[str, Any]], arrangement: str, vnodes: Sequence[Vnode]) -> list[list[Part]] | str:
    """The parts of each chunk, or the comment of a job that cannot start now.

    A chunk lies on one host, on as many of its vnodes as it takes; with ``scatter`` each chunk has a host of its own.
    """
    words = arrangement.split(":")
    is_alone, has_host = "excl" in words or "exclhost" in words, "exclhost" in words
    free = {vnode.name: vnode.free() for vnode in vnodes}
    open_to = [v for v in vnodes if v.is_in_service and not v.held_by and not (is_alone and v.taken)]
    if has_host:
        busy = {vnode.host for vnode in vnodes if vnode.taken or vnode.held_by}
        open_to = [vnode for vnode in open_to if vnode.host not in busy]
    used: set[str] = set()
    found: list[list[Part]] = []
    short = ""
    for chunk in chunks:
        parts: list[Part] | str = NO_NODES
        for host in dict.fromkeys(vnode.host for vnode in open_to):
            if ("scatter" in words and host in used) or ("pack" in words and used and host not in used):
                continue
            parts = _on_host(chunk, [vnode for vnode in open_to if vnode.host == host], free)
            if not isinstance(parts, str):
                used.add(host)
                break
            short = short or parts
        if isinstance(parts, str):
            return short or parts
        found.append(parts)
    return found


def _on_host(chunk: Mapping[str, Any], vnodes: Sequence[Vnode], free: Mapping[str, dict[str, int]]) -> list[Part] | str:
    """The parts of a chunk on these vnodes of one host, taken from ``free``; or why it has no place there."""
    fitting = [vnode for vnode in vnodes if _has_traits(vnode, chunk)]
    if not fitting:
        return NO_NODES
    wanted = {name: chunk[name] for name in COUNTED if name in chunk}
    for name in ("ngpus", "mem", "ncpus"):
        if sum(free[vnode.name].get(name, 0) for vnode in fitting) < wanted.get(name, 0):
            return f"Not Running: Insufficient amount of resource: {name} "
    whole = [v for v in fitting if all(free[v.name].get(name, 0) >= count for name, count in wanted.items())]
    parts: list[Part] = []
    for vnode in whole[:1] or fitting:
        counts = {name: min(left, free[vnode.name].get(name, 0)) for name, left in wanted.items()}
        for name, count in counts.items():
            free[vnode.name][name] = free[vnode.name].get(name, 0) - count
            wanted[name] -= count
        if any(counts.values()) or whole:
            parts.append(Part(vnode.name, counts))
    return parts


def _has_traits(vnode: Vnode, chunk: Mapping[str, Any]) -> bool:
    """A vnode without a value for what is asked for is none for this chunk."""
    known = {**vnode.traits, "vnode": vnode.name, "host": vnode.host, "arch": "linux"}
    wanted = {name: value for name, value in chunk.items() if name not in (*COUNTED, "mpiprocs", "ompthreads")}
    return all(value in known.get(name, "").split(",") for name, value in wanted.items())


def shown(placed: Sequence[Sequence[Part]]) -> str:
    """``exec_vnode`` of a job."""
    return "+".join("(" + "+".join(_shown(part) for part in parts) + ")" for parts in placed)


def _shown(part: Part) -> str:
    counts = [f"{name}={count}{'kb' * (name == 'mem')}" for name, count in part.counts.items()]
    return ":".join([part.vnode, *counts])


def totals(chunks: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {name: sum(chunk.get(name, 0) for chunk in chunks) for name in COUNTED if any(name in c for c in chunks)}


class Stay(NamedTuple):
    """What a job holds, and until when."""

    job: int
    ends_at: float
    parts: Sequence[Sequence[Any]]
    arrangement: str


class Start(NamedTuple):
    starts_at: float
    parts: list[list[Part]]


def expected_starts(
    waiting: Sequence[tuple[int, Sequence[Mapping[str, Any]], str, int]],
    running: Sequence[Stay],
    vnodes: Sequence[Vnode],
    now: float,
) -> dict[int, Start]:
    """When each job starts if all take their whole walltime and none passes another. ``waiting``: id, chunks,
    arrangement and walltime in seconds. A job that would never start is absent."""
    model = [Vnode(v.name, v.host, v.counts, v.traits, v.is_up, v.was_up, v.is_offline) for v in vnodes]
    stays = sorted(running, key=lambda stay: stay.ends_at)
    for stay in stays:
        occupy(model, stay.job, stay.parts, stay.arrangement)
    found: dict[int, Start] = {}
    for job, chunks, arrangement, walltime_s in waiting:
        placed = place(chunks, arrangement, model)
        while isinstance(placed, str) and stays:
            first = stays.pop(0)
            now = max(now, first.ends_at)
            release(model, first.job)
            placed = place(chunks, arrangement, model)
        if isinstance(placed, str):
            break
        found[job] = Start(now, placed)
        stays = sorted([*stays, Stay(job, now + walltime_s, placed, arrangement)], key=lambda stay: stay.ends_at)
        occupy(model, job, placed, arrangement)
    return found


def occupy(vnodes: Sequence[Vnode], job: int, placed: Sequence[Sequence[Any]], arrangement: str) -> None:
    by_name = {vnode.name: vnode for vnode in vnodes}
    for name, counts in (part for parts in placed for part in parts):
        taken = by_name[name].taken.setdefault(job, {})
        for resource, count in counts.items():
            taken[resource] = taken.get(resource, 0) + count
    hosts = {by_name[part[0]].host for parts in placed for part in parts}
    for vnode in vnodes:
        is_whole_host = "exclhost" in arrangement and vnode.host in hosts
        if is_whole_host or ("excl" in arrangement.split(":") and job in vnode.taken):
            vnode.held_by.add(job)


def release(vnodes: Sequence[Vnode], job: int) -> None:
    for vnode in vnodes:
        vnode.taken.pop(job, None)
        vnode.held_by.discard(job)
