"""What this machine has, and what of it one job gets: ``read_machine`` looks, ``allocate`` decides."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Optional

from firstkit.errors import SchedulerRefused
from firstkit.schedulers.records import Machine
from firstkit.schedulers.scheduler import Resources

GIB = 1024**3


def read_machine(settings: Mapping[str, Any], env: Mapping[str, str]) -> Machine:
    """The machine as the scheduler section ``settings`` limits it; raises SchedulerRefused where it says too much."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    cpus = settings.get("cpus") or len(cores)
    if cpus > len(cores):
        raise SchedulerRefused(f"scheduler.cpus: {cpus} are configured, but this machine lends {len(cores)} cores")
    memory_gib = settings.get("memory_gib")
    memory = physical_memory_bytes() if memory_gib is None else int(memory_gib * GIB)
    return Machine(cores[:cpus], _gpus(settings.get("gpus") or 0, env), memory)


def check_fits(needs: Resources, machine: Machine) -> None:
    """Raise SchedulerRefused, naming what is asked and what there is, when a job could never start here."""
    for what, asked, there in (
        ("nodes", needs.nodes, 1),
        ("cores", needs.cpus_per_node, len(machine.cpus)),
        ("GPUs", needs.gpus_per_node, len(machine.gpus)),
        ("bytes of memory", needs.memory_bytes, machine.memory_bytes),
    ):
        if asked > there:
            raise SchedulerRefused(f"the job asks for {asked} {what}; this machine has {there}")


def allocate(needs: Resources, machine: Machine, taken: Iterable[Machine]) -> Optional[Machine]:
    """The cores, GPUs and memory for one job next to those that are ``taken``; None: not now.

    An exclusive job gets the whole machine, and only while nothing else runs.
    """
    taken = list(taken)
    left = free(machine, taken)
    lacks = (
        needs.cpus_per_node > len(left.cpus)
        or needs.gpus_per_node > len(left.gpus)
        or needs.memory_bytes > left.memory_bytes
    )
    if lacks or (needs.exclusive and taken):
        return None
    if needs.exclusive:
        return machine
    return Machine(left.cpus[: needs.cpus_per_node], left.gpus[: needs.gpus_per_node], needs.memory_bytes)


def free(machine: Machine, taken: Iterable[Machine]) -> Machine:
    """What is left of the machine; never less than nothing, also when it was made smaller under running jobs."""
    taken = list(taken)
    cpus = {cpu for part in taken for cpu in part.cpus}
    gpus = {gpu for part in taken for gpu in part.gpus}
    return Machine(
        cpus=tuple(cpu for cpu in machine.cpus if cpu not in cpus),
        gpus=tuple(gpu for gpu in machine.gpus if gpu not in gpus),
        memory_bytes=max(0, machine.memory_bytes - sum(part.memory_bytes for part in taken)),
    )


def physical_memory_bytes() -> int:
    """Memory of the machine, or of the container that we are in, whichever is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *_cgroup_limits()])


def _cgroup_limits() -> list[int]:
    limits = []
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path, encoding="ascii") as file:
                limits.append(int(file.read()))
        except (OSError, ValueError):
            continue  # no such controller, or "max": no limit
    return limits


def _gpus(count: int, env: Mapping[str, str]) -> tuple[str, ...]:
    """Device ids: the first ``count`` of CUDA_VISIBLE_DEVICES where that is set, else 0, 1, ..."""
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(str(number) for number in range(count))
    ids = tuple(part.strip() for part in visible.split(",") if part.strip())
    if count > len(ids):
        raise SchedulerRefused(f"scheduler.gpus: {count} are configured, but CUDA_VISIBLE_DEVICES names {len(ids)}")
    return ids[:count]
