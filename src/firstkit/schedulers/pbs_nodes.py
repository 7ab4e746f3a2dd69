"""The vnodes of PBS, as the hosts that they are parts of: what there is, what is free, what would fit. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Optional

from firstkit.schedulers.hosts import Host, joined, sum_of
from firstkit.schedulers.pbs_layouts import Attributes, parse_records
from firstkit.schedulers.scheduler import Capacity, Resources

_IN_SERVICE = frozenset({"free", "job-busy", "job-exclusive", "job-sharing", "resv-exclusive", "busy", "sleep"})
_FREE = frozenset({"free", "job-sharing", "sleep"})
_SIZE = re.compile(r"([0-9]{1,18})([kmgtp]?)([bw]?)\Z")
_SHIFTS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_WORD_BYTES = 8


@dataclass(frozen=True)
class Vnode(Host):
    """What PBS hands out: a host, or a part of one; what is free counts only where it takes jobs."""

    name: str
    host: str
    queue: Optional[str]
    is_in_service: bool
    takes_jobs: bool
    has: Mapping[str, str]
    """All that is said of it under ``resources_available``."""


def parse_vnodes(text: str, gpu_resource: str = "ngpus") -> list[Vnode]:
    """Out of ``pbsnodes -av -F json``; raises ParseError. What has no state, such as an unknown name, is left out."""
    records = parse_records(text, "nodes")
    return [_vnode(name, values, gpu_resource) for name, values in records.items() if "state" in values]


def for_jobs(vnodes: Iterable[Vnode], queue: Optional[str], constraint: Optional[str]) -> list[Vnode]:
    """Those that jobs of this queue with this constraint may use."""
    wanted = [part.partition("=") for part in (constraint or "").split(":") if part]
    return [
        vnode
        for vnode in vnodes
        if (queue is None or vnode.queue in (None, queue))
        and all(_has(vnode, name, value) for name, _, value in wanted)
    ]


def hosts_of(vnodes: Iterable[Vnode]) -> list[Host]:
    """The hosts that have at least a core."""
    by_host: dict[str, list[Vnode]] = {}
    for vnode in vnodes:
        by_host.setdefault(vnode.host, []).append(vnode)
    hosts = [joined(parts) for parts in by_host.values()]
    return [host for host in hosts if host.cpus]


def capacity_of(vnodes: Iterable[Vnode], queue: Optional[str] = None, constraint: Optional[str] = None) -> Capacity:
    """The sum of what is in service, of vnodes for a queue and a constraint."""
    return sum_of(hosts_of(vnode for vnode in vnodes if vnode.is_in_service), queue, constraint)


def can_hold(host: Host, needs: Resources) -> bool:
    """Whether one node's part of such a job fits when nothing else is there."""
    return (
        host.cpus >= max(1, needs.cpus_per_node)
        and host.gpus >= needs.gpus_per_node
        and host.memory_bytes >= needs.memory_bytes
    )


def can_hold_now(host: Host, needs: Resources) -> bool:
    if needs.exclusive and not host.is_free:
        return False
    return (
        host.free_cpus >= max(1, needs.cpus_per_node)
        and host.free_gpus >= needs.gpus_per_node
        and host.free_memory_bytes >= needs.memory_bytes
    )


def parse_size(text: str) -> int:
    """Bytes out of ``64gb``, ``131072kb``, ``512`` or ``4kw`` (words of 8); 0 for anything else."""
    match = _SIZE.match(text.lower())
    if match is None:
        return 0
    return (int(match[1]) << _SHIFTS[match[2]]) * (_WORD_BYTES if match[3] == "w" else 1)


def _vnode(name: str, values: Attributes, gpu_resource: str) -> Vnode:
    has = {key[len("resources_available.") :]: value for key, value in values.items() if "resources_available." in key}
    used = {key[len("resources_assigned.") :]: value for key, value in values.items() if "resources_assigned." in key}
    words = {word.strip() for word in values["state"].split(",")}
    is_in_service = words <= _IN_SERVICE
    takes_jobs = words <= _FREE
    cpus, gpus, memory = parse_size(has.get("ncpus", "")), parse_size(has.get(gpu_resource, "")), _memory(has)
    return Vnode(
        name=name,
        host=has.get("host", name),
        queue=values.get("queue"),
        is_in_service=is_in_service,
        takes_jobs=takes_jobs,
        is_free=takes_jobs and not values.get("jobs"),
        cpus=cpus,
        free_cpus=_left(takes_jobs, cpus, parse_size(used.get("ncpus", ""))),
        gpus=gpus,
        free_gpus=_left(takes_jobs, gpus, parse_size(used.get(gpu_resource, ""))),
        memory_bytes=memory,
        free_memory_bytes=_left(takes_jobs, memory, _memory(used)),
        has=has,
    )


def _memory(values: Mapping[str, str]) -> int:
    return parse_size(values.get("mem", ""))


def _left(takes_jobs: bool, there: int, used: int) -> int:
    return max(0, there - used) if takes_jobs else 0


def _has(vnode: Vnode, name: str, value: str) -> bool:
    """``ncpus=4`` is had by whoever has as many; of texts one of a list has to be the same."""
    if name == "vnode":
        return vnode.name == value
    there = vnode.has.get(name, "")
    if there.isascii() and there.isdigit() and value.isascii() and value.isdigit():
        return len(there) < 19 and len(value) < 19 and int(there) >= int(value)
    return value.lower() in (part.strip().lower() for part in there.split(","))
