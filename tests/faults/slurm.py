"""Labs over real Slurm: clusters of the project's testing package, a FIRST over them, load that counts what failed."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.support import Answer, ask, started
from firstkit.states import LIVE_JOB_STATES
from firstkit.testing.slurm_lab import SlurmCluster, is_available
from lab import Lab, fake_engine, free_port, wait_for

HOT = {"hot": 1, "max": 1, "max_in_flight": 16}
RESOURCES = {"cpus_per_node": 2, "gpus_per_node": 1, "memory_gib": 0.2}
ENGINE = fake_engine("QuickEngine", tokens=20, token_delay=0.02)
LONG = fake_engine("QuickEngine", tokens=1500, token_delay=0.02)
"""Its answers take half a minute."""


def needs_slurm() -> None:
    """Skip where Slurm is not installed; in CI that is a failure."""
    is_there, why = is_available()
    if not is_there and not os.environ.get("CI"):
        pytest.skip(f"Slurm is {why}")


@contextlib.contextmanager
def slurm_clusters(folder: Path, *names: str, **options: Any) -> Iterator[list[SlurmCluster]]:
    """Clusters of two nodes with two GPUs each, whose jobs have the same numbers."""
    needs_slurm()
    clusters = [SlurmCluster(name, folder / name, **{"nodes": 2, "gpus_per_node": 2} | options) for name in names]
    with contextlib.ExitStack() as stack:
        for cluster in clusters:
            stack.callback(cluster.stop)
            cluster.start()
        yield clusters


def section(cluster: SlurmCluster, **more: Any) -> dict[str, Any]:
    """The section of a cluster in the configuration; polled more often than any centre would like."""
    scheduler = {"kind": "slurm", "partition": "gpu", "poll_interval": "1s", "command_timeout": "10s"}
    return {"scheduler": scheduler, "env": dict(cluster.env), "link": {"kind": "tunnel"}, **more}


def deployment(cluster: SlurmCluster, engine: dict[str, Any] = ENGINE, **more: Any) -> dict[str, Any]:
    resources = RESOURCES | more.pop("resources", {})
    return {"cluster": cluster.name, "engine": engine, "resources": resources, **more}


@contextlib.contextmanager
def slurm_lab(
    clusters: list[SlurmCluster],
    deployments: list[dict[str, Any]] | dict[str, list[dict[str, Any]]],
    sections: dict[str, Any] | None = None,
    **server: Any,
) -> Iterator[Lab]:
    """A started FIRST with the model ``m``, or with several by name. Nothing is left in the schedulers afterwards."""
    models = deployments if isinstance(deployments, dict) else {"m": deployments}
    found = {cluster.name: section(cluster, **(sections or {}).get(cluster.name, {})) for cluster in clusters}
    server = {"pilot_listen": f"127.0.0.1:{free_port()}", "max_wait": "60s", **server}
    lab = Lab.make({name: {"deployments": ours} for name, ours in models.items()}, None, found, **server)
    with started(lab):
        yield lab


def scheduled(cluster: SlurmCluster) -> list[str]:
    """Names of all jobs that Slurm knows, in any state: nothing that was ever submitted hides from it."""
    return cluster.run("squeue", "-h", "-t", "all", "-o", "%j").split()


def living(lab: Lab, cluster: SlurmCluster) -> list[Any]:
    """Rows of the jobs of a cluster that have not ended."""
    alive = {state.value for state in LIVE_JOB_STATES}
    return [row for row in lab.jobs() if row["cluster"] == cluster.name and row["state"] in alive]


def only_job(lab: Lab, cluster: SlurmCluster) -> Any:
    """The one living job of a cluster, once it runs by its pilot's word and by a poll of Slurm."""

    def found() -> Any:
        rows = living(lab, cluster)
        return rows[0] if len(rows) == 1 and rows[0]["state"] == "RUNNING" and rows[0]["node"] else None

    return wait_for(f"one job runs on {cluster.name}", found)


def ready_on(lab: Lab, cluster: SlurmCluster) -> int:
    return sum(row["state"] == "READY" and row["cluster"] == cluster.name for row in lab.replicas())


class Load:
    """Threads that ask one after the other, until they are stopped; every answer is counted by its ending."""

    def __init__(self, lab: Lab, size: int = 4, **options: Any) -> None:
        self.lab = lab
        self.endings: Counter[str] = Counter()
        self.failures: list[Answer] = []
        self._options = options
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(size)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def answered(self) -> int:
        return self.endings["done"]

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(90)

    def wait_for_more(self, count: int = 8, limit_s: float = 60.0) -> None:
        """Until so many answers more have ended well."""
        enough = self.answered + count
        wait_for(f"{count} answers more", lambda: self.answered >= enough, limit_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                answer = ask(self.lab, **self._options)
            except OSError:  # no gateway just now
                answer = Answer(ending="refused")
            self.endings[answer.ending] += 1
            if answer.ending != "done":
                self.failures.append(answer)
                self._stopping.wait(0.1)
