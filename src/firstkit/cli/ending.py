"""The end of everything: ``first serve`` first, so that nobody starts anything new, then all jobs."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from firstkit.errors import SchedulerSilent

if TYPE_CHECKING:
    from firstkit.clusters.carrier import ClusterClient
    from firstkit.config import Config

LIMIT_S = 60.0
PAUSE_S, LONGEST_PAUSE_S, GROWTH = 0.1, 2.0, 1.3
"""Between looks: a batch system is not asked ten times a second for long."""


def end_jobs(config: Config) -> list[str]:
    """Cancel all jobs on all clusters with a scheduler and wait for their ends; returns their ids.

    Raises SchedulerSilent, naming the jobs, when some have not ended within the limit.
    """
    return asyncio.run(_end_jobs(config))


async def _end_jobs(config: Config) -> list[str]:
    from firstkit.clusters.carrier import cluster_client

    names = [name for name, cluster in config.clusters.items() if cluster.kind == "batch"]
    used = [name for name in names if _may_have_jobs(config, name)]
    ended = await asyncio.gather(*(_end_on(cluster_client(config, name)) for name in used))
    return [job_id for job_ids in ended for job_id in job_ids]


async def _end_on(client: ClusterClient) -> list[str]:
    try:
        return await _end_all(client)
    finally:
        await client.close()


async def _end_all(client: ClusterClient) -> list[str]:
    told: list[str] = []
    deadline, pause_s = time.monotonic() + LIMIT_S, PAUSE_S
    while living := [job_id for job_id, news in (await client.poll()).items() if not news.state.is_final]:
        if time.monotonic() > deadline:
            raise SchedulerSilent(f"still running after {LIMIT_S:.0f} s: {', '.join(living)}.")
        for job_id in living:
            if job_id not in told:
                await client.cancel(job_id)
                told.append(job_id)
        await asyncio.sleep(pause_s)
        pause_s = min(LONGEST_PAUSE_S, pause_s * GROWTH)
    return told


def _may_have_jobs(config: Config, name: str) -> bool:
    """Of a cluster that is elsewhere nobody knows before it is asked."""
    return config.clusters[name].carrier.kind != "local" or (config.cluster_state_dir(name) / "jobs").is_dir()
