"""Where a replica goes: into the room that a running job has left, else into a job of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf

from firstkit.schedulers.scheduler import Capacity, Resources


@dataclass(frozen=True, slots=True)
class Room:
    """What a job with a pilot that is heard has left for further replicas. ``left_s``: until it ends."""

    job_id: str
    cpus: int
    gpus: int
    memory_bytes: int
    job: Resources
    left_s: float = inf

    def fits(self, needs: Resources) -> bool:
        """Whether a replica may join: enough is free, for long enough, and charged to whom it should be."""
        return (
            needs.nodes <= 1
            and self.cpus >= max(1, needs.cpus_per_node)
            and self.gpus >= needs.gpus_per_node
            and self.memory_bytes >= needs.memory_bytes
            and self.left_s >= (inf if needs.walltime_s is None else needs.walltime_s / 2)
            and (self.job.exclusive or not needs.exclusive)
            and (self.job.account, self.job.qos) == (needs.account, needs.qos)
        )

    def without(self, needs: Resources) -> Room:
        """The room after a replica moved in."""
        return replace(
            self,
            cpus=self.cpus - max(1, needs.cpus_per_node),
            gpus=self.gpus - needs.gpus_per_node,
            memory_bytes=self.memory_bytes - needs.memory_bytes,
        )


def choose_room(rooms: Iterable[Room], needs: Resources) -> Room | None:
    """The tightest room that fits, so that large ones stay whole; None: a new job is needed."""
    fitting = (room for room in rooms if room.fits(needs))
    return min(fitting, key=lambda room: (room.gpus, room.cpus, room.memory_bytes, room.job_id), default=None)


def replicas_per_job(needs: Resources, cluster: Capacity | None) -> int:
    """How many replicas a new job of a deployment can hold: one, or what fits on a whole node that it has alone.

    0: it will have a node alone, and nobody has said yet how large those are.
    """
    if not needs.exclusive:
        return 1
    if cluster is None:
        return 0
    if cluster.nodes < 1:
        return 1
    limits = [
        (cluster.cpus, max(1, needs.cpus_per_node)),
        (cluster.gpus, needs.gpus_per_node),
        (cluster.memory_bytes, needs.memory_bytes),
    ]
    return max(1, min(there // cluster.nodes // needed for there, needed in limits if needed))
