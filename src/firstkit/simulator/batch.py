"""A model scheduler: first come, first served, with backfill (EASY: nobody delays the first who waits)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from heapq import heapify, heappop, heappush
from math import inf

from firstkit.schedulers.scheduler import Capacity, Resources
from firstkit.simulator.events import Events, drawn
from firstkit.simulator.nodes import BatchJob, Nodes
from firstkit.simulator.scenario import Spread
from firstkit.states import JobState

DEPTH = 100
"""So many of those who wait are looked at for backfill."""
LONGEST_S = 7 * 86400.0
"""The walltime of a job that names none."""
Times = tuple[float, float]


class BatchSystem:
    """The scheduler of one cluster. ``on_start(job)`` and ``on_end(job, state)`` are called for our jobs."""

    def __init__(
        self,
        events: Events,
        nodes: Nodes,
        chance: random.Random,
        closed: Sequence[Times] = (),
        *,
        backfill: bool = True,
        wait: Spread | None = None,
    ) -> None:
        """``closed``: from when until when nothing may run. ``wait``: drawn for our jobs, before they stand in line."""
        self.nodes = nodes
        self.running: dict[str, BatchJob] = {}
        self.on_start: Callable[[BatchJob], None] = lambda _: None
        self.on_end: Callable[[BatchJob, JobState], None] = lambda _, __: None
        self._events = events
        self._chance = chance
        self._closed = sorted(closed)
        self._backfill = backfill
        self._wait = wait
        self._queue: dict[str, BatchJob] = {}
        self._held: dict[str, BatchJob] = {}
        self._is_due = False
        for _, until in self._closed:
            events.at(until, self._look)

    # -- verbs ---------------------------------------------------------------------------------------------------------

    def submit(self, job_id: str, needs: Resources, *, runs_s: float | None = None, is_ours: bool = True) -> None:
        """A job comes; it starts at once where there is room."""
        walltime_s = LONGEST_S if needs.walltime_s is None else float(needs.walltime_s)
        job = BatchJob(job_id, needs, walltime_s, runs_s, is_ours, self._events.now)
        if is_ours and self._wait is not None:
            self._held[job_id] = job
            self._events.after(drawn(self._chance, self._wait.usual, self._wait.late), self._release, job)
            return
        self._queue[job_id] = job
        self._look_soon()

    def cancel(self, job_id: str) -> None:
        """End a job; nothing happens to one that has ended."""
        job = self._queue.pop(job_id, None) or self._held.pop(job_id, None)
        if job is not None:
            self._over(job, JobState.CANCELLED)
        elif job_id in self.running:
            self.end(job_id, JobState.CANCELLED)

    def end(self, job_id: str, state: JobState = JobState.COMPLETED) -> None:
        """A job that runs is over."""
        job = self.running.pop(job_id, None)
        if job is None:
            return
        self.nodes.end(job)
        self._over(job, state)
        self._look_soon()

    def fail(self, host: int, repair_s: float) -> None:
        """A node fails, and its jobs with it."""
        if host in self.nodes.down:
            return
        self.nodes.fail(host, self._events.now + repair_s)
        for job in self.nodes.on(host):
            self.end(job.id, JobState.NODE_FAIL)
        self._events.after(repair_s, self._repair, host)

    def capacity(self) -> Capacity:
        nodes = self.nodes
        count = nodes.count - len(nodes.down)
        whole = (count, count * nodes.cpus, count * nodes.gpus, count * nodes.memory_bytes)
        return Capacity(*whole, *nodes.free(), nodes.cpus, nodes.gpus, nodes.memory_bytes)

    def is_waiting(self, job_id: str) -> bool:
        return job_id in self._queue or job_id in self._held

    def starts(self, more: Resources | None = None) -> tuple[dict[str, tuple[float, int]], float | None]:
        """When each job that waits would start at the latest, by walltimes, and its place; and when one ``more`` would.

        None: nobody can say.
        """
        now, (free, *_) = self._events.now, self.nodes.free()
        releases = list(self.nodes.releases())
        heapify(releases)
        at, found = now, dict[str, tuple[float, int]]()
        for place, job in enumerate(self._queue.values(), 1):
            at, free = self._after(releases, at, free, job)
            found[job.id] = (at, place)
        if more is None or self._wait is not None:
            return found, None
        walltime_s = LONGEST_S if more.walltime_s is None else float(more.walltime_s)
        job = BatchJob("", more, walltime_s, None, True, now)
        if self._may_start(job, self._reservation()):
            return found, now
        return found, self._after(releases, at, free, job)[0]

    def _after(self, releases: list[tuple[float, int]], at: float, free: int, job: BatchJob) -> tuple[float, int]:
        """When a job gets its nodes, no sooner than the one before it, and how many are left then."""
        while free < job.needs.nodes and releases:
            released_at, count = heappop(releases)
            at, free = max(at, released_at), free + count
        at = self._opens(at, job.walltime_s)
        heappush(releases, (at + job.walltime_s, job.needs.nodes))
        return at, free - job.needs.nodes

    # -- who starts ----------------------------------------------------------------------------------------------------

    def _look_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._events.at(self._events.now, self._look)

    def _look(self) -> None:
        """Start what may start."""
        self._is_due = False
        queue = self._queue
        while queue:
            head = next(iter(queue.values()))
            if not self._may_start(head, (inf, 0)):
                break
            self._start(head)
        if not queue or not self._backfill or not any(self.nodes.free()[:2]):
            return
        reserved = self._reservation()
        for job in list(queue.values())[1:DEPTH]:
            if self._may_start(job, reserved):
                if self._events.now + job.walltime_s > reserved[0]:
                    reserved = (reserved[0], reserved[1] - job.needs.nodes)
                self._start(job)

    def _may_start(self, job: BatchJob, reserved: tuple[float, int]) -> bool:
        """Whether there is room, it would be over before the cluster closes, and it delays nobody: ``reserved`` is when
        the first who waits will start, and how many nodes will be to spare then."""
        now = self._events.now
        if not self.nodes.fits(job) or self._opens(now, job.walltime_s) > now:
            return False
        return now + job.walltime_s <= reserved[0] or job.needs.nodes <= reserved[1]

    def _reservation(self) -> tuple[float, int]:
        """When the first who waits starts at the latest, and how many nodes are to spare then."""
        if not self._queue:
            return inf, 0
        head = next(iter(self._queue.values()))
        free, at = self.nodes.free()[0], self._events.now
        for released_at, count in sorted(self.nodes.releases()):
            if free >= head.needs.nodes:
                break
            free, at = free + count, max(at, released_at)
        return self._opens(at, head.walltime_s), free - head.needs.nodes

    def _opens(self, at: float, walltime_s: float) -> float:
        """When a job may start that is ready to ``at`` some time: it is over before the cluster closes."""
        for start, end in self._closed:
            if at < end and at + walltime_s > start:
                at = end
        return at

    def _start(self, job: BatchJob) -> None:
        del self._queue[job.id]
        self.nodes.start(job)
        job.started_at = self._events.now
        self.running[job.id] = job
        is_short = job.runs_s is not None and job.runs_s < job.walltime_s
        lasts_s = job.runs_s if is_short and job.runs_s is not None else job.walltime_s
        self._events.after(lasts_s, self.end, job.id, JobState.COMPLETED if is_short else JobState.TIMEOUT)
        if job.is_ours:
            self.on_start(job)

    def _release(self, job: BatchJob) -> None:
        if self._held.pop(job.id, None) is not None:
            self._queue[job.id] = job
            self._look_soon()

    def _over(self, job: BatchJob, state: JobState) -> None:
        job.is_over = True
        if job.is_ours:
            self.on_end(job, state)

    def _repair(self, host: int) -> None:
        self.nodes.repair(host)
        self._look_soon()


def whole(nodes: int, walltime_s: float) -> Resources:
    """What a job on whole nodes asks for."""
    return replace(Resources(), nodes=nodes, exclusive=True, walltime_s=int(walltime_s))
