"""Hosts as batch systems count them, and what they are together. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Optional

from firstkit.schedulers.scheduler import Capacity


@dataclass(frozen=True)
class Host:
    """What a host has, or a part of one, and what of it is free. ``is_free``: it takes jobs, and has none."""

    is_free: bool
    cpus: int
    free_cpus: int
    gpus: int
    free_gpus: int
    memory_bytes: int
    free_memory_bytes: int


def joined(parts: Collection[Host]) -> Host:
    """Parts of a host, or several hosts, as one."""
    return Host(
        is_free=all(part.is_free for part in parts),
        cpus=sum(part.cpus for part in parts),
        free_cpus=sum(part.free_cpus for part in parts),
        gpus=sum(part.gpus for part in parts),
        free_gpus=sum(part.free_gpus for part in parts),
        memory_bytes=sum(part.memory_bytes for part in parts),
        free_memory_bytes=sum(part.free_memory_bytes for part in parts),
    )


def sum_of(hosts: Iterable[Host], partition: Optional[str] = None, constraint: Optional[str] = None) -> Capacity:
    """What hosts in service are together, those of a partition and a constraint, and what each has at least."""
    there = list(hosts)
    whole = joined(there)
    alike = [host for host in there if host.gpus] or there
    return Capacity(
        nodes=len(there),
        cpus=whole.cpus,
        gpus=whole.gpus,
        memory_bytes=whole.memory_bytes,
        free_nodes=sum(host.is_free for host in there),
        free_cpus=whole.free_cpus,
        free_gpus=whole.free_gpus,
        free_memory_bytes=whole.free_memory_bytes,
        least_cpus=min((host.cpus for host in alike), default=0),
        least_gpus=min((host.gpus for host in alike), default=0),
        least_memory_bytes=min((host.memory_bytes for host in alike), default=0),
        partition=partition,
        constraint=constraint,
    )
