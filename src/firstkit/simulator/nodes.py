"""The nodes of a model cluster: which are free, and which have room beside others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from firstkit.schedulers.scheduler import Resources


@dataclass(slots=True, eq=False)
class BatchJob:
    """A job in a model scheduler. ``runs_s``: until it ends by itself; None: it does not. Times are seconds since
    1970."""

    id: str
    needs: Resources
    walltime_s: float
    runs_s: float | None
    is_ours: bool
    submitted_at: float
    started_at: float | None = None
    hosts: tuple[int, ...] = ()
    is_over: bool = False

    @property
    def ends_at(self) -> float:
        """When its walltime is over; of a job that runs."""
        return (self.started_at or 0.0) + self.walltime_s

    @property
    def is_whole(self) -> bool:
        """Whether it takes nodes for itself."""
        return self.needs.exclusive or self.needs.nodes > 1


@dataclass(slots=True)
class _Shared:
    """A node that several jobs have parts of; what is left."""

    cpus: int
    gpus: int
    memory_bytes: int
    jobs: dict[str, BatchJob] = field(default_factory=dict)

    def fits(self, needs: Resources) -> bool:
        return (
            self.cpus >= needs.cpus_per_node
            and self.gpus >= needs.gpus_per_node
            and self.memory_bytes >= needs.memory_bytes
        )

    def take(self, needs: Resources, sign: int) -> None:
        self.cpus -= sign * needs.cpus_per_node
        self.gpus -= sign * needs.gpus_per_node
        self.memory_bytes -= sign * needs.memory_bytes


class Nodes:
    """Equal nodes. A job has nodes for itself, or a part of one."""

    def __init__(self, count: int, cpus: int, gpus: int, memory_bytes: int) -> None:
        self.count = count
        self.cpus, self.gpus, self.memory_bytes = cpus, gpus, memory_bytes
        self.idle: dict[int, None] = dict.fromkeys(reversed(range(count)))
        self.down: dict[int, float] = {}
        """Nodes that are away, and until when."""
        self._shared: dict[int, _Shared] = {}
        self._whole: dict[int, BatchJob] = {}

    def fits(self, job: BatchJob) -> bool:
        """Whether there is room for it now."""
        if job.is_whole:
            return len(self.idle) >= job.needs.nodes
        return bool(self.idle) or self._tightest(job.needs) is not None

    def start(self, job: BatchJob) -> None:
        """Give it its nodes; there has to be room."""
        if job.is_whole:
            hosts = tuple(self.idle.popitem()[0] for _ in range(job.needs.nodes))
            self._whole.update(dict.fromkeys(hosts, job))
        else:
            host = self._tightest(job.needs)
            if host is None:
                host = self.idle.popitem()[0]
                self._shared[host] = _Shared(self.cpus, self.gpus, self.memory_bytes)
            self._shared[host].take(job.needs, 1)
            self._shared[host].jobs[job.id] = job
            hosts = (host,)
        job.hosts = hosts

    def end(self, job: BatchJob) -> None:
        """Take back what it has."""
        for host in job.hosts:
            if job.is_whole:
                del self._whole[host]
            else:
                shared = self._shared[host]
                shared.take(job.needs, -1)
                del shared.jobs[job.id]
                if shared.jobs:
                    continue
                del self._shared[host]
            if host not in self.down:
                self.idle[host] = None

    def on(self, host: int) -> list[BatchJob]:
        """The jobs that are on a node."""
        if host in self._whole:
            return [self._whole[host]]
        return list(self._shared[host].jobs.values()) if host in self._shared else []

    def fail(self, host: int, until: float) -> None:
        """A node is away; its jobs have to be ended by whoever says so."""
        self.down[host] = until
        self.idle.pop(host, None)

    def repair(self, host: int) -> None:
        if self.down.pop(host, None) is not None and not self.on(host):
            self.idle[host] = None

    def releases(self) -> Iterable[tuple[float, int]]:
        """When how many nodes become free at the latest, by the walltimes of what runs there, in no order."""
        seen: set[str] = set()
        for job in self._whole.values():
            if job.id not in seen:
                seen.add(job.id)
                yield job.ends_at, len(job.hosts)
        for shared in self._shared.values():
            yield max(job.ends_at for job in shared.jobs.values()), 1
        for host, until in self.down.items():
            if host not in self._whole and host not in self._shared:
                yield until, 1

    def free(self) -> tuple[int, int, int, int]:
        """Idle nodes, and the cores, GPUs and bytes that are free in all."""
        nodes, parts = len(self.idle), self._shared.values()
        return (
            nodes,
            nodes * self.cpus + sum(part.cpus for part in parts),
            nodes * self.gpus + sum(part.gpus for part in parts),
            nodes * self.memory_bytes + sum(part.memory_bytes for part in parts),
        )

    def _tightest(self, needs: Resources) -> int | None:
        fitting = [(part.gpus, part.cpus, host) for host, part in self._shared.items() if part.fits(needs)]
        return min(fitting)[-1] if fitting else None
