"""What the scheduler gave to the job in which we run, and until when, as its environment says."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Optional

from firstkit.onsite.allotment import GPU_VARIABLES, Share, counted_job, visible_gpus, whole_job
from firstkit.onsite.devices import take_devices, visible_variable
from firstkit.schedulers.machine import physical_memory_bytes

logger = logging.getLogger("firstkit.job")

MIB = 1024**2
PILOT_FILE = "pilot.json"
"""In the folder of a job: what its pilot starts from."""
ADDRESS_FILE = "address"
"""There, written by a pilot that waits to be dialled: ``host:port``."""


@dataclass(frozen=True)
class Job:
    """All that this job may use; ``ends_at``: seconds since 1970, None where no end is known.

    ``env``: variables that engines need besides those of the job, because its batch system has not set them.
    """

    total: Share
    ends_at: Optional[float]
    env: Mapping[str, str] = field(default_factory=dict)


def read_job(env: Mapping[str, str]) -> Job:
    """The job whose environment is ``env``, on this host. Takes GPUs where PBS has given none: once a process."""
    cores, host_cores = os.sched_getaffinity(0), os.cpu_count() or 1
    job = job_of(env, cores, host_cores, physical_memory_bytes(), time.time())
    if "PBS_JOBID" not in env or not _number(env, "FIRST_JOB_GPUS") or any(name in env for name in GPU_VARIABLES):
        return job
    gpus = _pbs_gpus(env)
    variable = visible_variable()
    return replace(job, total=replace(job.total, gpus=gpus), env={variable: ",".join(gpus)})


def job_of(env: Mapping[str, str], cores: Collection[int], host_cores: int, memory_bytes: int, now: float) -> Job:
    """The job whose environment is ``env``, where we may run on ``cores`` of a host with so much, and it is ``now``."""
    if "SLURM_JOB_ID" in env:
        return _slurm_job(env, cores, host_cores, memory_bytes, now)
    if "PBS_JOBID" in env:
        return _pbs_job(env, cores, host_cores, memory_bytes, now)
    total = whole_job(cores, env, _number(env, "FIRST_JOB_MEMORY") or memory_bytes)
    return Job(total, _number(env, "FIRST_JOB_END"))


def _slurm_job(env: Mapping[str, str], cores: Collection[int], host_cores: int, memory_bytes: int, now: float) -> Job:
    cpus = _number(env, "SLURM_CPUS_ON_NODE") or len(cores)
    memory = (_number(env, "SLURM_MEM_PER_NODE") or (_number(env, "SLURM_MEM_PER_CPU") or 0) * cpus) * MIB
    memory = memory or memory_bytes
    total = whole_job(cores, env, memory) if _is_bound(cpus, cores, host_cores) else counted_job(cpus, env, memory)
    return Job(total, _slurm_end(env, now))


def _pbs_job(env: Mapping[str, str], cores: Collection[int], host_cores: int, memory_bytes: int, now: float) -> Job:
    """PBS tells a job little, so its submission has told it what it asked for. The end is late by what the start took,
    until the gateway tells the exact one."""
    walltime_s = _number(env, "FIRST_JOB_WALLTIME")
    ends_at = None if not walltime_s else now + walltime_s
    memory = _number(env, "FIRST_JOB_MEMORY") or memory_bytes
    if env.get("FIRST_JOB_EXCLUSIVE"):
        return Job(whole_job(cores, env, memory), ends_at)
    cpus = _number(env, "FIRST_JOB_CPUS") or _number(env, "NCPUS") or len(cores)
    total = whole_job(cores, env, memory) if _is_bound(cpus, cores, host_cores) else counted_job(cpus, env, memory)
    return Job(total, ends_at)


def _pbs_gpus(env: Mapping[str, str]) -> tuple[str, ...]:
    """The GPUs of a job that asked for some, where PBS shows it all: those that were configured, or counted from 0 on;
    of a host that others may use, too, those that are free."""
    wanted = _number(env, "FIRST_JOB_GPUS") or 0
    listed = visible_gpus({GPU_VARIABLES[0]: env.get("FIRST_JOB_DEVICES", "").replace("+", ",")})
    if env.get("FIRST_JOB_EXCLUSIVE"):
        return (listed or tuple(map(str, range(wanted))))[:wanted]
    if not listed:
        logger.error("PBS has set none of %s: 'assigns_gpus' is not true here", ", ".join(GPU_VARIABLES))
        return ()
    try:
        return take_devices(wanted, listed)
    except OSError as exc:
        logger.error("no GPU can be taken on this host: %s", exc, extra={"action": "devices_refused"})  # noqa: TRY400
        return ()


def _is_bound(cpus: int, cores: Collection[int], host_cores: int) -> bool:
    """Whether the cores on which we may run are those of this job alone.

    A batch system may be set up to bind nothing: then we may run on all of the host, among the jobs of others. It
    counts cores or their threads as it is set up to, so a bound job may well have more than it was told.
    """
    return len(cores) == cpus or cpus < len(cores) < host_cores


def _slurm_end(env: Mapping[str, str], now: float) -> Optional[float]:
    """The end that Slurm tells (since 23.02); before, our walltime from now on: late by what the start of the job
    took, until the gateway tells us the exact end."""
    end, walltime_s = _number(env, "SLURM_JOB_END_TIME"), _number(env, "FIRST_JOB_WALLTIME")
    if end:
        return float(end)
    return None if not walltime_s else now + walltime_s


def _number(env: Mapping[str, str], name: str) -> Optional[int]:
    """A whole number out of the environment; None where it is missing or something else."""
    text = env.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
