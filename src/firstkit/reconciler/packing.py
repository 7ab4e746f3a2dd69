"""Which replicas share a job: those that are wanted move into the room that jobs have left, and the others into as few
new jobs as hold them. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import inf

from firstkit.schedulers.scheduler import Capacity, Resources

Charged = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Room:
    """What a job has left for further replicas. ``left_s``: until it ends; ``is_waiting``: it has not begun;
    ``usual_s``: how long a job lives that says nothing of that, where this is one."""

    job_id: str
    cpus: int
    gpus: int
    memory_bytes: int
    job: Resources
    left_s: float = inf
    is_waiting: bool = False
    usual_s: float = inf

    def fits(self, needs: Resources) -> bool:
        """Whether a replica may join: enough is free, for long enough, and charged to whom it should be."""
        return (
            needs.nodes == self.job.nodes == 1
            and self.cpus >= max(1, needs.cpus_per_node)
            and self.gpus >= needs.gpus_per_node
            and self.memory_bytes >= needs.memory_bytes
            and self.left_s >= (self.usual_s if needs.walltime_s is None else needs.walltime_s) / 2
            and (self.job.exclusive or not needs.exclusive)
            and charged(self.job) == charged(needs)
        )

    def without(self, needs: Resources) -> Room:
        """The room after a replica moved in."""
        return replace(
            self,
            cpus=self.cpus - max(1, needs.cpus_per_node),
            gpus=self.gpus - needs.gpus_per_node,
            memory_bytes=self.memory_bytes - needs.memory_bytes,
        )


def charged(resources: Resources) -> Charged:
    """To whom a job is charged, and on which kind of node it runs."""
    return (resources.account, resources.qos, resources.partition, resources.constraint)


_Size = tuple[int, int, int, str]


class Rooms:
    """The rooms of a cluster by size, so that the tightest that fits is found without a look at each of thousands."""

    def __init__(self, rooms: Iterable[Room] = ()) -> None:
        self._rooms = {room.job_id: room for room in rooms}
        self._sizes: dict[tuple[Charged, bool], list[_Size]] = {}
        for room in self._rooms.values():
            self._sizes_like(room).append(_size(room))
        for sizes in self._sizes.values():
            sizes.sort()

    def copy(self) -> Rooms:
        """The same rooms, into which others may move."""
        made = Rooms()
        made._rooms = self._rooms.copy()
        made._sizes = {kind: sizes.copy() for kind, sizes in self._sizes.items()}
        return made

    def get(self, job_id: str) -> Room | None:
        return self._rooms.get(job_id)

    def add(self, room: Room) -> None:
        """A room of a job that has none here so far."""
        self._rooms[room.job_id] = room
        insort(self._sizes_like(room), _size(room))

    def choose(self, needs: Resources, longer_than_s: float = 0.0) -> Room | None:
        """The tightest room that fits and lasts, so that large ones stay whole: in a job that runs, else in one that
        waits. None: a new job is needed."""
        return next((room for room in self._fitting(needs) if room.left_s > longer_than_s), None)

    def take(self, needs: Resources, longer_than_s: float = 0.0) -> Room | None:
        """The same, and a replica moves in."""
        room = self.choose(needs, longer_than_s)
        if room is not None:
            sizes = self._sizes_like(room)
            del sizes[bisect_left(sizes, _size(room))]
            self.add(room.without(needs))
        return room

    def _sizes_like(self, room: Room) -> list[_Size]:
        return self._sizes.setdefault((charged(room.job), room.is_waiting), [])

    def _fitting(self, needs: Resources) -> Iterator[Room]:
        least = (needs.gpus_per_node, max(1, needs.cpus_per_node), needs.memory_bytes, "")
        for is_waiting in (False, True):
            sizes = self._sizes.get((charged(needs), is_waiting), [])
            for at in range(bisect_left(sizes, least), len(sizes)):
                room = self._rooms[sizes[at][-1]]
                if room.fits(needs):
                    yield room


def _size(room: Room) -> _Size:
    return (room.gpus, room.cpus, room.memory_bytes, room.job_id)


@dataclass(frozen=True, slots=True)
class Node:
    """What each node has at least on which a job may come to run."""

    cpus: int
    gpus: int
    memory_bytes: int

    @classmethod
    def of(cls, cluster: Capacity | None, needs: Resources) -> Node | None:
        """For a job like ``needs``; None where nobody knows, or the nodes that are known are of another kind."""
        if cluster is None or (cluster.partition, cluster.constraint) != (needs.partition, needs.constraint):
            return None
        return cls(cluster.least_cpus, cluster.least_gpus, cluster.least_memory_bytes)


def new_job(job_id: str, needs: Resources, cluster: Capacity | None) -> Room:
    """The job for a replica that fits nowhere, with all its room. One that has its node alone asks for what every such
    node has, so that others may join, and for all memory of its node (0), unless some have too little; any other asks
    for what its replica needs."""
    node = Node.of(cluster, needs) if needs.exclusive and needs.nodes == 1 else None
    if node is not None:
        needs = replace(
            needs,
            cpus_per_node=max(needs.cpus_per_node, node.cpus),
            gpus_per_node=max(needs.gpus_per_node, node.gpus) if needs.gpus_per_node else 0,
            memory_bytes=0 if needs.memory_bytes <= node.memory_bytes else needs.memory_bytes,
        )
    return waiting_room(job_id, needs, cluster, ())


def waiting_room(job_id: str, job: Resources, cluster: Capacity | None, inside: Iterable[Resources]) -> Room:
    """What a job that has not begun will have left, with the replicas ``inside`` that it was given."""
    node, memory_bytes = Node.of(cluster, job), job.memory_bytes
    if not memory_bytes and node is not None:
        memory_bytes = node.memory_bytes
    left_s = inf if job.walltime_s is None else job.walltime_s
    room = Room(job_id, max(1, job.cpus_per_node), job.gpus_per_node, memory_bytes, job, left_s, is_waiting=True)
    for needs in inside:
        room = room.without(needs)
    return room


def largest_first(needs: Resources) -> tuple[int, int, int]:
    """The order in which replicas are packed: what is large finds a place while there is one."""
    return (-needs.gpus_per_node, -needs.memory_bytes, -needs.cpus_per_node)
