"""What a scheduler backend is: builders and parsers behind five verbs, run on the cluster by ``first cluster``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Optional, Protocol

from firstkit.states import JobState

JOB_ID = re.compile(r"job-[a-z2-7]{16}\Z")
"""Our id of a job: the name of its folder, and of the job in the scheduler."""
CLAIM = "claim"
"""In the folder of a job: its id was submitted, and never will be again."""
LOG = "pilot.log"
"""In the folder of a job: what its pilot says."""


@dataclass(frozen=True)
class Resources:
    """What one job asks for, or one replica needs. Sizes in bytes, times in seconds; None: no limit is stated."""

    nodes: int = 1
    cpus_per_node: int = 1
    gpus_per_node: int = 0
    memory_bytes: int = 0
    exclusive: bool = False
    walltime_s: Optional[int] = None
    account: Optional[str] = None
    qos: Optional[str] = None
    partition: Optional[str] = None
    constraint: Optional[str] = None
    directives: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobSpec:
    """One job to submit. ``pilot`` is the PilotSpec as a JSON object; the scheduler does not look inside."""

    job_id: str
    resources: Resources
    pilot: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class JobNews:
    """What the scheduler says of one job. Times are seconds since 1970; None: not known.

    Of a job that waits: ``starts_at`` is when the scheduler means to start it, ``position`` its place in the queue, 1
    for the next. ``address``: where its pilot can be dialled, when it says so.
    """

    job_id: str
    scheduler_id: str
    state: JobState
    reason: str = ""
    exit_code: Optional[int] = None
    node: Optional[str] = None
    started_at: Optional[float] = None
    ends_at: Optional[float] = None
    starts_at: Optional[float] = None
    position: Optional[int] = None
    address: Optional[str] = None


@dataclass(frozen=True)
class Estimate:
    """When a job of some shape would start if it were submitted now, in seconds since 1970; None: nobody can say."""

    starts_at: Optional[float] = None
    reason: str = ""


@dataclass(frozen=True)
class Capacity:
    """What a cluster has and what of it is free now, in one ``partition`` (None: the default one) and on nodes of one
    ``constraint`` (None: on any).

    ``least_*``: what each of these nodes has at least; of nodes with GPUs, where there are any. 0: nobody has said.
    """

    nodes: int
    cpus: int
    gpus: int
    memory_bytes: int
    free_nodes: int
    free_cpus: int
    free_gpus: int
    free_memory_bytes: int
    least_cpus: int = 0
    least_gpus: int = 0
    least_memory_bytes: int = 0
    partition: Optional[str] = None
    constraint: Optional[str] = None


class Scheduler(Protocol):
    """One batch system, seen from a host where its commands run.

    Every verb raises SchedulerSilent when the batch system does not answer (nothing is known then) and
    SchedulerRefused when it answered no. Verbs are called by ``first cluster``, one process a call, at any rate
    and from several processes at once.
    """

    def submit(self, spec: JobSpec, argv: list[str], folder: str) -> str:
        """Make a job that runs ``argv`` in ``folder`` (which exists, 0700); returns the scheduler's id of it.

        Called once for each ``spec.job_id``, under the claim that ``first cluster submit`` takes.
        """

    def poll(self) -> dict[str, JobNews]:
        """News of all jobs of ours that the scheduler still knows, by our job id. A job that is absent is absent
        from a good answer: that alone ends nothing."""

    def cancel(self, job_id: str) -> None:
        """Ask the scheduler to end a job; no error when it has ended or never was."""

    def capacity(self) -> Capacity:
        """What there is and what is free."""

    def estimate(self, resources: Resources) -> Estimate:
        """When a job of this shape would start. Raises SchedulerRefused when it never would."""
