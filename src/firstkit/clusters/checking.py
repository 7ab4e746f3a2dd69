"""Proves that a cluster can be used as it is configured: what ``first cluster check`` looks at, through its carrier."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from firstkit.clock import monotonic
from firstkit.clusters.carrier import ClusterClient
from firstkit.clusters.installing import program_name
from firstkit.config import Cluster, Config, ResolvedDeployment
from firstkit.engines.engine import ReplicaSpec
from firstkit.errors import FirstError, SchedulerRefused
from firstkit.ids import new_id
from firstkit.onsite.check import FAILED, OK, WARNING, Finding, Site, Trial, TrialResult
from firstkit.onsite.command import TRIAL
from firstkit.schedulers.scheduler import JobNews, JobSpec, Resources
from firstkit.wire import to_dict

POLL_S = 1.0
TRIAL_WALLTIME_S = 120
SHOW_LIMIT_S = 90.0
"""How long a file that a job wrote may take to be seen here: network file systems look again after a minute or so."""


@dataclass(frozen=True)
class Case:
    """What is checked: a cluster of the configuration, its client, and its deployments."""

    name: str
    config: Config
    client: ClusterClient
    poll_s: float = POLL_S
    show_limit_s: float = SHOW_LIMIT_S

    @property
    def cluster(self) -> Cluster:
        return self.config.clusters[self.name]

    @property
    def deployments(self) -> list[ResolvedDeployment]:
        return [deployment for deployment in self.config.deployments() if deployment.cluster == self.name]

    @property
    def replicas(self) -> tuple[ReplicaSpec, ...]:
        """One of each deployment: what it would need."""
        return tuple(deployment.replica_spec(f"check-{i}") for i, deployment in enumerate(self.deployments))


async def check(case: Case, with_job: bool = False, wait_s: float = 300.0) -> AsyncIterator[Finding]:
    """All findings, as they are made. Without an answer of the cluster nothing more is looked at."""
    where = _where(case.cluster)
    try:
        site = await case.client.check(case.replicas)
    except FirstError as exc:
        fix = "see docs/howto/ssh-cluster.md" if case.cluster.carrier.kind == "ssh" else "see 'first doctor'"
        yield Finding("carrier", FAILED, exc.message, fix)
        return
    yield Finding("carrier", OK, f"{where}: {site.user} on {site.host} answers")
    yield _program(site, case)
    yield Finding("Python", OK, site.python)
    for finding in site.findings:
        if finding.what != "shared files" or (case.cluster.scheduler.kind != "local" and not with_job):
            yield finding
    yield await _capacity(case.client)
    async for finding in _estimates(case):
        yield finding
    if with_job:
        async for finding in _trial(case, wait_s):
            yield finding


def _where(cluster: Cluster) -> str:
    carrier = cluster.carrier
    return f"{carrier.user}@{carrier.host}:{carrier.port}" if carrier.kind == "ssh" else "this machine"


def _program(site: Site, case: Case) -> Finding:
    ours = program_name()
    if site.program == ours:
        return Finding("program", OK, f"{site.program}, version {site.version}")
    fix = f"run 'first cluster install {case.name}'; until then the older one answers"
    return Finding("program", WARNING, f"{site.program} of version {site.version}; ours is {ours}", fix)


async def _capacity(client: ClusterClient) -> Finding:
    try:
        found = await client.capacity()
    except FirstError as exc:
        return Finding("scheduler", FAILED, exc.message, "try its commands by hand on the login node, as the same user")
    words = f"{found.free_nodes} of {found.nodes} nodes and {found.free_gpus} of {found.gpus} GPUs are free"
    return Finding("scheduler", OK, words)


async def _estimates(case: Case) -> AsyncIterator[Finding]:
    """Whether the scheduler would take a job of each deployment: its partition, account and all else."""
    for deployment in case.deployments:
        what = f"{deployment.name}: job"
        try:
            estimate = await case.client.estimate(deployment.resources)
        except SchedulerRefused as exc:
            yield Finding(what, FAILED, exc.message, "correct its resources, partition, account or QOS")
        except FirstError as exc:
            yield Finding(what, WARNING, exc.message, "try again when the scheduler answers")
        else:
            yield Finding(what, OK, "the scheduler would take it" + (f": {estimate.reason}" if estimate.reason else ""))


# -- the trial job -----------------------------------------------------------------------------------------------------


async def _trial(case: Case, wait_s: float) -> AsyncIterator[Finding]:
    """Submit a short job of the smallest kind and see what it writes: it ran, on a node that shares our files."""
    job_id = new_id("job")
    try:
        await case.client.submit(JobSpec(job_id, _smallest(case), {TRIAL: to_dict(_what_to_look_at(case))}))
        try:
            result, words = await _result_of(case, job_id, wait_s)
        finally:
            await case.client.cancel(job_id)
    except FirstError as exc:
        yield Finding("trial job", FAILED, exc.message, "see the log of the job in the state directory")
        return
    if result is None:
        yield Finding("trial job", FAILED, words, f"see jobs/{job_id} in the state directory there")
        return
    yield Finding("trial job", OK, f"ran on {result.host}; what it wrote is seen on the login node")
    yield Finding("Python there", OK, result.python)
    for finding in result.findings:
        yield Finding(f"{finding.what} (node)", finding.status, finding.found, finding.fix)
    if case.cluster.link.kind == "direct":
        yield Finding(
            "link (node)", WARNING, "a gateway that dials nodes is tried by the first pilot only", "start one"
        )


def _smallest(case: Case) -> Resources:
    """One core for a short while, where the first deployment would run."""
    first = case.deployments[0].resources if case.deployments else Resources()
    return Resources(
        walltime_s=TRIAL_WALLTIME_S,
        account=first.account,
        qos=first.qos,
        partition=first.partition,
        constraint=first.constraint,
        directives=first.directives,
    )


def _what_to_look_at(case: Case) -> Trial:
    link = case.cluster.link
    return Trial(case.config.server.pilot_addresses if link.kind == "tunnel" else (), link.proxy, case.replicas)


async def _result_of(case: Case, job_id: str, wait_s: float) -> tuple[TrialResult | None, str]:
    """What the job wrote; None and why, when it did not within ``wait_s`` or its end was seen without it."""
    give_up_at, ended_at, news = monotonic() + wait_s, None, None
    while monotonic() < give_up_at:
        site = await case.client.check(job_id=job_id)
        if site.trial is not None:
            return site.trial, ""
        news = (await case.client.poll()).get(job_id)
        if news is not None and news.state.is_final:
            ended_at = ended_at or monotonic()
            if monotonic() - ended_at > case.show_limit_s or news.exit_code not in (0, None):
                return None, f"it ended as {_told(news)} and nothing that it wrote is seen on the login node"
        await asyncio.sleep(case.poll_s)
    return None, f"it did not run within {wait_s:.0f} s: {'unknown to the scheduler' if news is None else _told(news)}"


def _told(news: JobNews) -> str:
    return f"{news.state.value}{f' ({news.reason})' if news.reason else ''}"
