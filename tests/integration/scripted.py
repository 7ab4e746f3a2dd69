"""Jobs whose pilot is a shell script, asked for through a carrier: for tests of schedulers with real processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from firstkit.clusters.carrier import ClusterClient
from firstkit.clusters.zipapp import build, sources
from firstkit.ids import new_id
from firstkit.schedulers.scheduler import JobNews, JobSpec, Resources
from firstkit.states import JobState

PILOT = b"""
import json, os

def main(args):
    script = json.load(open("pilot.json"))["script"]
    os.execv("/bin/bash", ["bash", "-c", script])
"""
FOREVER = "exec sleep 300"


def scripted_zipapp(folder: Path) -> Path:
    """Our program, whose pilots run the script that the test gives them."""
    zipapp = folder / "scripted.pyz"
    zipapp.write_bytes(build({**sources(), "firstkit/onsite/pilot.py": PILOT}))
    return zipapp


class ScriptedJobs:
    """Submits and watches jobs of one cluster, whose state is in ``state_dir``."""

    def __init__(self, client: ClusterClient, state_dir: Path, limit_s: float, pause_s: float) -> None:
        self.client = client
        self.state_dir = state_dir
        self._limit_s = limit_s
        self._pause_s = pause_s

    async def submit(self, script: str = FOREVER, job_id: str | None = None, **needs: Any) -> str:
        job_id = job_id or new_id("job")
        await self.client.submit(JobSpec(job_id, Resources(**needs), {"script": script}))
        return job_id

    async def until(self, job_id: str, wanted: Callable[[JobNews], bool], limit_s: float | None = None) -> JobNews:
        give_up_at = time.monotonic() + (limit_s or self._limit_s)
        while True:
            news = (await self.client.poll())[job_id]
            if wanted(news):
                return news
            assert time.monotonic() < give_up_at, f"{news} did not become what was waited for"
            await asyncio.sleep(self._pause_s)

    async def running(self, job_id: str) -> JobNews:
        return await self.until(job_id, lambda news: news.state is JobState.RUNNING)

    async def ended(self, job_id: str, limit_s: float | None = None) -> JobNews:
        return await self.until(job_id, lambda news: news.state.is_final, limit_s)

    async def wrote(self, job_id: str, name: str) -> str:
        """The contents of a file in the job's folder, once the job has written it."""
        path = self.state_dir / "jobs" / job_id / name
        async with asyncio.timeout(self._limit_s):
            while not path.exists() or not path.read_text().endswith("\n"):
                await asyncio.sleep(0.01)
        return path.read_text()
