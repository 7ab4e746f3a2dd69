"""What is counted while a simulation runs."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

from firstkit.schedulers.scheduler import Resources
from firstkit.simulator.engines import Request

SAMPLES = 300
"""So many moments of a scenario are looked at for the plots."""


@dataclass(slots=True)
class Moment:
    """How things stood at one time. ``at_h``: hours from the start."""

    at_h: float
    waiting: int
    in_flight: int
    ready: int
    nodes: float


class Tallies:
    """Counts and times of one run. Seconds; those in arrays in the order in which they were measured."""

    def __init__(self) -> None:
        self.asked = 0
        self.done = 0
        self.retried = 0
        self.tokens = 0
        self.failures: Counter[str] = Counter()
        self.ttft_s = array("f")
        """From when a request came until its first token: what its sender sees."""
        self.waits_s = array("f")
        """In line, before a replica had room; of all requests that got one."""
        self.queue_s = array("f")
        """Of jobs in their schedulers, until they started."""
        self.queue_error_s = array("f")
        """How far these were from what had been forecast."""
        self.loads_s = array("f")
        self.jobs: Counter[str] = Counter()
        self.replicas: Counter[str] = Counter()
        self.hand_overs = 0
        self.late_ends = 0
        """Replicas that ended with their job, with no successor before."""
        self.moments: list[Moment] = []
        self.passes = 0
        self.plan_s = 0.0
        self.events = 0
        self.most_replicas = 0

    def came(self, request: Request) -> None:
        del request
        self.asked += 1

    def answered(self, request: Request, at: float) -> None:
        del at
        self.done += 1
        self.tokens += request.prompt + request.answer
        self.ttft_s.append(request.first_at - request.came_at)
        self.waits_s.append(request.got_at - request.came_at)

    def failed(self, request: Request, why: str) -> None:
        del request
        self.failures[why] += 1


@dataclass(slots=True)
class Usage:
    """What our jobs hold of one cluster over time, and what their replicas need of that."""

    cpus: int
    gpus: int
    memory_bytes: int
    """Of one node."""
    node_s: float = 0.0
    held_s: float = 0.0
    """GPU-seconds that jobs had."""
    used_s: float = 0.0
    """GPU-seconds that replicas had, from the start of their engine to its end."""
    least_s: float = 0.0
    """GPU-seconds that no packing of these replicas could go below, were they moved at every moment for nothing."""
    nodes: float = 0.0
    _held: int = 0
    _used: int = 0
    _fixed: int = 0
    """GPUs of nodes of replicas that need several."""
    _loose: int = 0
    """GPUs of replicas that need no node for themselves."""
    _parts: list[int] = field(default_factory=lambda: [0, 0, 0])
    """Cores, GPUs, bytes of replicas that share whole nodes."""
    _at: float = 0.0

    def job(self, at: float, job: Resources, sign: int) -> None:
        """A job begins (1) or ends (-1)."""
        self.look(at)
        self.nodes += sign * self._nodes(job)
        self._held += sign * (job.nodes * self.gpus if job.exclusive else job.nodes * job.gpus_per_node)

    def replica(self, at: float, needs: Resources, sign: int) -> None:
        """A replica begins or ends in a running job."""
        self.look(at)
        self._used += sign * needs.nodes * needs.gpus_per_node
        if not needs.exclusive:
            self._loose += sign * needs.nodes * needs.gpus_per_node
        elif needs.nodes > 1:
            self._fixed += sign * needs.nodes * self.gpus
        else:
            for i, amount in enumerate((needs.cpus_per_node, needs.gpus_per_node, needs.memory_bytes)):
                self._parts[i] += sign * amount

    def look(self, at: float) -> None:
        """All was as it is, up to now."""
        passed_s, self._at = at - self._at, at
        if passed_s <= 0:
            return
        self.node_s += passed_s * self.nodes
        self.held_s += passed_s * self._held
        self.used_s += passed_s * self._used
        self.least_s += passed_s * self._least()

    def begin(self, at: float) -> None:
        self._at = at

    def _least(self) -> int:
        """GPUs of as few whole nodes as could hold what is there, with the others in the gaps where there are any."""
        sizes = (self.cpus, self.gpus, self.memory_bytes)
        nodes = max(-(-amount // size) if size else 0 for amount, size in zip(self._parts, sizes, strict=True))
        return self._fixed + max(nodes * self.gpus, self._parts[1] + self._loose)

    def _nodes(self, job: Resources) -> float:
        if job.exclusive or job.nodes > 1:
            return job.nodes
        parts = [job.cpus_per_node / self.cpus, job.memory_bytes / self.memory_bytes]
        return max(*parts, job.gpus_per_node / self.gpus if self.gpus else 0.0)
