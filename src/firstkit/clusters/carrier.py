"""How scheduler commands reach a cluster, and each of them as a typed call."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from firstkit.config import Cluster, Config
from firstkit.engines.engine import ReplicaSpec
from firstkit.errors import ClaimedBefore, ConfigError, FirstError, SchedulerRefused, SchedulerSilent
from firstkit.onsite.check import Site
from firstkit.schedulers.scheduler import Capacity, Estimate, JobNews, JobSpec, Resources
from firstkit.wire import WireError, from_dict, to_dict

T = TypeVar("T")

LOCAL_LIMIT_S = 30.0
MARGIN_S = 10.0
WORDS_LIMIT = 300
"""Of what a command says to people, in a message of ours."""


class Carrier(Protocol):
    """A way to run ``first cluster VERB`` on a cluster."""

    async def run(self, verb: str, request: dict[str, Any]) -> Any:
        """The ``result`` of the answer. Raises SchedulerSilent when no answer came in time or the scheduler gave
        none, SchedulerRefused when the answer was no. May be called at any rate and several times at once."""

    async def close(self) -> None:
        """Let go of what is kept between calls. A later call works all the same."""


class ClusterClient:
    """One cluster, seen from the controller. Every verb raises SchedulerSilent and SchedulerRefused as Carrier.run."""

    def __init__(self, carrier: Carrier, state_dir: str, scheduler: dict[str, Any]) -> None:
        self._carrier = carrier
        self._request = {"state_dir": state_dir, "scheduler": scheduler}

    async def submit(self, spec: JobSpec) -> str:
        """Submit a job; returns the scheduler's id. Safe to repeat with the same id.

        Raises ClaimedBefore (a SchedulerRefused) when the id is burnt and a new one is needed.
        """
        scheduler_id = await self._run("submit", job=to_dict(spec))
        if not isinstance(scheduler_id, str):
            raise SchedulerSilent("the answer to submit is not an id")
        return scheduler_id

    async def poll(self) -> dict[str, JobNews]:
        """News of all jobs that the scheduler knows, by our job id."""
        answer = await self._run("poll")
        if not isinstance(answer, dict):
            raise SchedulerSilent("the answer to poll is not an object")
        return {job_id: _shaped(JobNews, news) for job_id, news in answer.items()}

    async def cancel(self, job_id: str) -> None:
        """Ask for the end of a job; no error when it has ended or never was."""
        await self._run("cancel", job_id=job_id)

    async def capacity(self) -> Capacity:
        return _shaped(Capacity, await self._run("capacity"))

    async def estimate(self, resources: Resources) -> Estimate:
        """When a job of this shape would start if it were submitted now."""
        return _shaped(Estimate, await self._run("estimate", resources=to_dict(resources)))

    async def check(self, replicas: tuple[ReplicaSpec, ...] = (), job_id: str | None = None) -> Site:
        """The cluster as it sees itself, and whether what these replicas need is there; of a trial job, its result."""
        return _shaped(Site, await self._run("check", replicas=to_dict(replicas), job_id=job_id))

    async def close(self) -> None:
        """Let go of the carrier's connection; a later call opens another."""
        await self._carrier.close()

    async def _run(self, verb: str, **more: Any) -> Any:
        return await self._carrier.run(verb, {**self._request, **more})


def result_of(answer: Any) -> Any:
    """The result in an answer of ``first cluster``; its errors are raised as ours."""
    if not isinstance(answer, dict):
        raise SchedulerSilent("the answer is not an object")
    if answer.get("ok") is True:
        return answer.get("result")
    kinds: dict[Any, type[FirstError]] = {"refused": SchedulerRefused, "invalid": SchedulerRefused}
    kind = ClaimedBefore if answer.get("code") == "claimed" else kinds.get(answer.get("error"), SchedulerSilent)
    raise kind(str(answer.get("message") or "the cluster gave no reason"))


def cluster_client(config: Config, name: str) -> ClusterClient:
    """The client of cluster ``name`` as it is configured; raises ConfigError when it has no scheduler."""
    cluster = config.clusters.get(name)
    if cluster is None or cluster.kind != "batch":
        raise ConfigError(f"clusters.{name}: there is no cluster of that name with a scheduler")
    state_dir = str(config.cluster_state_dir(name).absolute())
    return ClusterClient(_carrier(cluster, state_dir), state_dir, cluster.scheduler_settings())


def _carrier(cluster: Cluster, state_dir: str) -> Carrier:
    """Another kind of carrier is another branch here, and a section of the configuration."""
    carrier, limit_s = cluster.carrier, time_limit_s(cluster)
    if carrier.kind == "ssh":
        from firstkit.clusters.ssh import Login, SshCarrier

        files = carrier.key_file.expanduser(), carrier.known_hosts.expanduser()
        return SshCarrier(Login(carrier.host, carrier.user, *files, carrier.port, carrier.connect_timeout), limit_s)
    from firstkit.clusters.local import LocalCarrier

    return LocalCarrier(state_dir, cluster.env, limit_s)


def time_limit_s(cluster: Cluster) -> float:
    """How long one verb may take: longer than its commands have together, so that it is they who say what is silent."""
    scheduler = cluster.scheduler
    return LOCAL_LIMIT_S if scheduler.kind == "local" else scheduler.command_timeout + MARGIN_S


def _shaped(cls: type[T], data: Any) -> T:
    try:
        return from_dict(cls, data)
    except WireError as exc:
        raise SchedulerSilent(f"the answer cannot be understood: {exc}") from exc
