"""Hosts as batch systems count them, and what they are together. Pure."""

from __future__ import annotations

from collections.abc import Iterable
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


def sum_of(hosts: Iterable[Host], partition: Optional[str] = None, constraint: Optional[str] = None) -> Capacity:
    """What hosts in service are together, those of a partition and a constraint, and what each has at least."""
    there = list(hosts)
    alike = [host for host in there if host.gpus] or there
    return Capacity(
        nodes=len(there),
        cpus=sum(host.cpus for host in there),
        gpus=sum(host.gpus for host in there),
        memory_bytes=sum(host.memory_bytes for host in there),
        free_nodes=sum(host.is_free for host in there),
        free_cpus=sum(host.free_cpus for host in there),
        free_gpus=sum(host.free_gpus for host in there),
        free_memory_bytes=sum(host.free_memory_bytes for host in there),
        least_cpus=min((host.cpus for host in alike), default=0),
        least_gpus=min((host.gpus for host in alike), default=0),
        least_memory_bytes=min((host.memory_bytes for host in alike), default=0),
        partition=partition,
        constraint=constraint,
    )
