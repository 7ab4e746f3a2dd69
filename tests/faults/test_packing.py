"""Small replicas of several models in one job of real Slurm: they share it, and leave the others alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from faults.slurm import Load, deployment, living, only_job, slurm_clusters, slurm_lab
from faults.support import ask
from firstkit.testing.slurm_lab import SlurmCluster
from lab import Lab, environment_of, wait_for

SMALL = {"cpus_per_node": 2, "gpus_per_node": 1, "memory_gib": 0.2, "exclusive": True}
HOT = {"hot": 1, "max": 1, "max_in_flight": 16}
COLD = {"hot": 0, "max": 1, "max_in_flight": 16, "idle_timeout": "2s"}
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def alpha(folder: Path) -> Iterator[SlurmCluster]:
    with slurm_clusters(folder, "alpha", gpus_per_node=4, cpus=8) as [cluster]:
        yield cluster


def small(cluster: SlurmCluster, **scale: Any) -> list[dict[str, Any]]:
    return [deployment(cluster, resources=SMALL, scale=scale)]


def of_model(lab: Lab, model: str) -> list[Any]:
    """The replicas of a model, oldest first."""
    return [row for row in lab.replicas() if row["model"] == model]


def all_ready(lab: Lab, *models: str) -> bool:
    return all(any(row["state"] == "READY" for row in of_model(lab, model)) for model in models)


def gpus_of(engine: psutil.Process) -> frozenset[str]:
    variables = dict(line.split("=", 1) for line in environment_of(engine.pid).split("\n") if "=" in line)
    return frozenset(variables["CUDA_VISIBLE_DEVICES"].split(","))


def test_models_share_a_job_with_disjoint_devices_and_one_dies_alone(alpha: SlurmCluster) -> None:
    with slurm_lab([alpha], {"m": small(alpha, **HOT), "n": small(alpha, **HOT)}) as lab:
        wait_for("both are ready", lambda: all_ready(lab, "m", "n"))
        job = only_job(lab, alpha)
        assert job["spec"]["gpus_per_node"] == 4
        engines = lab.engines()
        devices = [gpus_of(engine) for engine in engines]
        assert sorted(map(len, devices)) == [1, 1]
        assert not frozenset.intersection(*devices)
        assert not frozenset.intersection(*(frozenset(engine.cpu_affinity()) for engine in engines)) or _is_small_host()
        (neighbour,) = [row["id"] for row in of_model(lab, "n")]
        with Load(lab, model="n") as load:
            load.wait_for_more()
            _engine_of(lab, of_model(lab, "m")[0]["id"]).send_signal(signal.SIGKILL)
            wait_for("it has failed", lambda: any(row["state"] == "FAILED" for row in of_model(lab, "m")))
            wait_for("another serves in its place", lambda: all_ready(lab, "m"))
            load.wait_for_more()
        assert not load.failures
        assert [row["id"] for row in of_model(lab, "n")] == [neighbour]
        assert only_job(lab, alpha)["id"] == job["id"]
        assert ask(lab, "m").ending == "done"


def test_a_model_joins_a_running_job_and_the_job_is_given_back_when_the_last_was_idle(alpha: SlurmCluster) -> None:
    with slurm_lab([alpha], {"m": small(alpha, **COLD), "n": small(alpha, **COLD)}) as lab:
        assert ask(lab, "m").ending == "done"
        job = only_job(lab, alpha)
        with Load(lab, model="m") as load:
            load.wait_for_more()
            assert ask(lab, "n").ending == "done"
            assert [row["job_id"] for row in of_model(lab, "n")] == [job["id"]]
            wait_for("it was idle, and has gone", lambda: all(r["state"] == "STOPPED" for r in of_model(lab, "n")))
            load.wait_for_more()
            assert only_job(lab, alpha)["id"] == job["id"]
        assert not load.failures
        wait_for("the job is given back", lambda: not living(lab, alpha))
        assert len(lab.jobs()) == 1


def _engine_of(lab: Lab, replica_id: str) -> psutil.Process:
    return next(engine for engine in lab.engines() if replica_id in engine.cwd())


def _is_small_host() -> bool:
    """Whether the virtual nodes have more cores than there are, so that nothing is bound."""
    return (psutil.cpu_count() or 1) < 8
