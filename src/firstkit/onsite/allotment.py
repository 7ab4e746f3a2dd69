"""Which replica has which cores, GPUs and how much memory of the job. Pure accounting: shares never overlap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Optional

from firstkit.errors import FirstError
from firstkit.schedulers.scheduler import Resources

GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
_NO_DEVICE = frozenset({"", "-1", "NoDevFiles"})
"""What schedulers write where a job has no GPU."""


class DoesNotFit(FirstError):
    """The replica needs more than is free in this job."""


@dataclass(frozen=True)
class Share:
    """Cores by number, GPUs by the id that the scheduler gave, memory in bytes.

    Not ``is_bound``: the scheduler has told how many cores there are, but not which; their numbers only count.
    """

    cpus: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()
    memory_bytes: int = 0
    is_bound: bool = True

    @property
    def bound_cpus(self) -> tuple[int, ...]:
        """The cores on which to run; none: wherever the kernel likes."""
        return self.cpus if self.is_bound else ()


class Allotment:
    """What a job has on its first node, and who has what of it. A replica of several of its ``nodes`` has the job for
    itself."""

    def __init__(self, total: Share, nodes: int = 1) -> None:
        self.total = total
        self.nodes = nodes
        self._shares: dict[str, Share] = {}
        self._sole_owner: Optional[str] = None

    @property
    def free(self) -> Share:
        """What nobody has."""
        if self._sole_owner is not None:
            return Share(is_bound=self.total.is_bound)
        cpus = {cpu for share in self._shares.values() for cpu in share.cpus}
        gpus = {gpu for share in self._shares.values() for gpu in share.gpus}
        return Share(
            tuple(cpu for cpu in self.total.cpus if cpu not in cpus),
            tuple(gpu for gpu in self.total.gpus if gpu not in gpus),
            self.total.memory_bytes - sum(share.memory_bytes for share in self._shares.values()),
            self.total.is_bound,
        )

    def take(self, owner: str, needs: Resources) -> Share:
        """Give ``owner``, who has nothing yet, its share: neighbouring cores first, at least one core.

        Raises DoesNotFit naming what is needed and what is free; then nothing was given.
        """
        free = self.free
        cpus = max(1, needs.cpus_per_node)
        _check("nodes", needs.nodes, 0 if self._sole_owner or (needs.nodes > 1 and self._shares) else self.nodes)
        _check("cores", cpus, len(free.cpus))
        _check("GPUs", needs.gpus_per_node, len(free.gpus))
        _check("bytes of memory", needs.memory_bytes, free.memory_bytes)
        share = Share(free.cpus[:cpus], free.gpus[: needs.gpus_per_node], needs.memory_bytes, free.is_bound)
        self._shares[owner] = share
        if needs.nodes > 1:
            self._sole_owner = owner
        return share

    def give_back(self, owner: str) -> None:
        """Nothing of the share is in use any more. Twice is as good as once."""
        self._shares.pop(owner, None)
        if self._sole_owner == owner:
            self._sole_owner = None


def whole_job(cpus: Iterable[int], env: Mapping[str, str], memory_bytes: int) -> Share:
    """All that this job may use: the cores it is bound to, the GPUs that its environment ``env`` names."""
    return Share(tuple(sorted(set(cpus))), visible_gpus(env), memory_bytes)


def counted_job(cpus: int, env: Mapping[str, str], memory_bytes: int) -> Share:
    """The same where only the number of cores is known."""
    return Share(tuple(range(cpus)), visible_gpus(env), memory_bytes, is_bound=False)


def visible_gpus(env: Mapping[str, str]) -> tuple[str, ...]:
    """Device ids (numbers, UUIDs, tiles) of the first of GPU_VARIABLES that is set, each once."""
    for name in GPU_VARIABLES:
        if name in env:
            ids = (part.strip() for part in env[name].split(","))
            return tuple(dict.fromkeys(part for part in ids if part not in _NO_DEVICE))
    return ()


def gpu_environment(env: Mapping[str, str], gpus: tuple[str, ...]) -> dict[str, str]:
    """The variables that show an engine its GPUs and no others: those that the scheduler uses itself.

    Where several are set, as some schedulers do, the others get what they have at the same positions.
    """
    found = [name for name in GPU_VARIABLES if name in env]
    if not found:
        return {}
    ours = visible_gpus(env)
    positions = [ours.index(gpu) for gpu in gpus]
    chosen = {}
    for name in found:
        ids = visible_gpus({name: env[name]})
        chosen[name] = ",".join(ids[position] for position in positions if position < len(ids))
    return chosen


def _check(what: str, needed: int, there: int) -> None:
    if needed > there:
        raise DoesNotFit(f"The replica needs {needed} {what}; {there} are free in this job.")
