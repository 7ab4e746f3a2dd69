"""Clusters for tests of whoever reconciles them: schedulers in memory, named by how they behave."""

from __future__ import annotations

import time

from firstkit.errors import SchedulerRefused, SchedulerSilent
from firstkit.schedulers.scheduler import Capacity, Estimate, JobNews, JobSpec, Resources
from firstkit.states import JobState


class QuickCluster:
    """Takes every job and runs it at once. ``jobs``: what it would say at a poll, ``calls``: what it was asked."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobNews] = {}
        self.specs: list[JobSpec] = []
        self.calls: list[str] = []

    async def submit(self, spec: JobSpec) -> str:
        self.calls.append("submit")
        self.specs.append(spec)
        self.jobs[spec.job_id] = JobNews(spec.job_id, f"id-{spec.job_id}", JobState.RUNNING)
        return f"id-{spec.job_id}"

    async def poll(self) -> dict[str, JobNews]:
        self.calls.append("poll")
        return dict(self.jobs)

    async def cancel(self, job_id: str) -> None:
        self.calls.append("cancel")
        self.jobs[job_id] = JobNews(job_id, f"id-{job_id}", JobState.CANCELLED)

    async def capacity(self) -> Capacity:
        self.calls.append("capacity")
        return Capacity(1, 8, 0, 2**34, 1, 8, 0, 2**34)

    async def estimate(self, resources: Resources) -> Estimate:  # noqa: ARG002 - whatever it is
        self.calls.append("estimate")
        return Estimate(time.time())

    async def close(self) -> None:
        return


class LostAnswerCluster(QuickCluster):
    """Takes every job, but nobody hears that it did."""

    async def submit(self, spec: JobSpec) -> str:
        await super().submit(spec)
        raise SchedulerSilent("no answer in time")


class ForgetfulCluster(QuickCluster):
    """Loses every job on the way, and says nothing."""

    async def submit(self, spec: JobSpec) -> str:
        self.calls.append("submit")
        self.specs.append(spec)
        raise SchedulerSilent("no answer in time")


class RefusingCluster(QuickCluster):
    """Says no to every job."""

    async def submit(self, spec: JobSpec) -> str:
        self.calls.append("submit")
        raise SchedulerRefused(f"{spec.job_id} asks for more than there is")


class SilentCluster(QuickCluster):
    """Answers nothing at all."""

    async def submit(self, spec: JobSpec) -> str:
        self.calls.append("submit")
        self.specs.append(spec)
        raise SchedulerSilent("no answer in time")

    async def poll(self) -> dict[str, JobNews]:
        self.calls.append("poll")
        raise SchedulerSilent("no answer in time")

    async def cancel(self, job_id: str) -> None:
        self.calls.append("cancel")
        raise SchedulerSilent(f"no answer in time about {job_id}")

    async def capacity(self) -> Capacity:
        self.calls.append("capacity")
        raise SchedulerSilent("no answer in time")

    async def estimate(self, resources: Resources) -> Estimate:
        self.calls.append("estimate")
        raise SchedulerSilent(f"no answer in time about {resources.nodes} nodes")
