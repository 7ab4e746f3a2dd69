"""Two real Slurm clusters, and what goes wrong with them: nothing is submitted twice, nothing is lost from sight."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.slurm import (
    HOT,
    LONG,
    Load,
    deployment,
    living,
    only_job,
    ready_on,
    scheduled,
    section,
    slurm_clusters,
    slurm_lab,
)
from faults.support import Asking, ask
from firstkit.testing.slurm_lab import SlurmCluster
from lab import Lab, wait_for

OUTAGE_S = 20.0
pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def clusters(folder: Path) -> Iterator[list[SlurmCluster]]:
    with slurm_clusters(folder, "alpha", "beta") as clusters:
        yield clusters


@pytest.fixture
def alpha(folder: Path) -> Iterator[SlurmCluster]:
    with slurm_clusters(folder, "alpha") as [cluster]:
        yield cluster


def test_one_model_on_two_clusters_with_equal_job_numbers(clusters: list[SlurmCluster]) -> None:
    alpha, beta = clusters
    with slurm_lab(clusters, [deployment(alpha, scale=HOT), deployment(beta, scale=HOT)]) as lab:
        wait_for("both are ready", lambda: ready_on(lab, alpha) and ready_on(lab, beta))
        first, second = only_job(lab, alpha), only_job(lab, beta)
        assert first["scheduler_id"] == second["scheduler_id"]
        assert scheduled(alpha) == [first["id"]]
        assert scheduled(beta) == [second["id"]]
        alpha.run("scancel", first["scheduler_id"])
        wait_for("it is known to be cancelled", lambda: _state(lab, first["id"]) == "CANCELLED")
        assert _state(lab, second["id"]) == "RUNNING"
        assert ask(lab).ending == "done"
        replacement = only_job(lab, alpha)
        assert replacement["id"] != first["id"]
        assert living(lab, beta) == [row for row in lab.jobs() if row["id"] == second["id"]]


@pytest.mark.parametrize("outage_s", [OUTAGE_S, pytest.param(180.0, marks=pytest.mark.long)], ids=["short", "full"])
@pytest.mark.timeout(480)
def test_a_controller_of_slurm_that_is_down(alpha: SlurmCluster, outage_s: float) -> None:
    """Serving goes on, nothing is submitted again, and afterwards all is as before."""
    with slurm_lab([alpha], [deployment(alpha, scale=HOT)]) as lab:
        lab.wait_live()
        before = only_job(lab, alpha)
        alpha.save_state(before["scheduler_id"])
        with Load(lab) as load:
            load.wait_for_more()
            alpha.kill_controller()
            ends_at = time.monotonic() + outage_s
            while time.monotonic() < ends_at:
                load.wait_for_more(4)
            down_at = only_job(lab, alpha)["observed_at"]
            alpha.start_controller()
            wait_for("it is polled again", lambda: only_job(lab, alpha)["observed_at"] > down_at)
            load.wait_for_more()
        assert not load.failures
        assert only_job(lab, alpha)["id"] == before["id"]
        assert len(lab.jobs()) == 1
        assert scheduled(alpha) == [before["id"]]


def test_an_answer_of_sbatch_that_was_lost(alpha: SlurmCluster, folder: Path) -> None:
    """The job is found by its name and adopted; there is no second one."""
    real = shutil.which("sbatch", path=alpha.env["PATH"])
    wrapper = folder / "bin" / "sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\n{real} "$@" >/dev/null\nexec sleep 60\n')
    wrapper.chmod(0o755)
    env = {**alpha.env, "PATH": f"{wrapper.parent}:{alpha.env['PATH']}"}
    scheduler = {**section(alpha)["scheduler"], "command_timeout": "2s"}
    sections = {"alpha": {"env": env, "scheduler": scheduler}}
    with slurm_lab([alpha], [deployment(alpha, scale=HOT)], sections) as lab:
        lab.wait_live()
        job = only_job(lab, alpha)
        assert scheduled(alpha) == [job["id"]]
        assert len(lab.jobs()) == 1


def test_scancel_by_somebody_else(alpha: SlurmCluster) -> None:
    with slurm_lab([alpha], [deployment(alpha, scale=HOT)]) as lab:
        lab.wait_live()
        job = only_job(lab, alpha)
        alpha.run("scancel", f"--name={job['id']}")
        wait_for("it is known to be cancelled", lambda: _state(lab, job["id"]) == "CANCELLED")
        assert only_job(lab, alpha)["id"] != job["id"]
        lab.wait_live()
        assert len(lab.jobs()) == 2


def test_slurmd_killed_below_a_replica(alpha: SlurmCluster) -> None:
    """Slurm gives the job up while its processes live on: another takes over, and the old pilot does not come back."""
    with slurm_lab([alpha], [deployment(alpha, scale=HOT)]) as lab:
        lab.wait_live()
        job = only_job(lab, alpha)
        alpha.kill_node(job["node"])
        with Load(lab) as load:
            wait_for("Slurm has given it up", lambda: _state(lab, job["id"]) == "NODE_FAIL", 90)
            replacement = only_job(lab, alpha)
            assert replacement["node"] != job["node"]
            wait_for("the old pilot is gone", lambda: len(lab.pilots()) == 1)
            load.wait_for_more()
        assert {answer.ending for answer in load.failures} <= {"error"}  # told, and never a silent cut
        alpha.start_node(job["node"])
        lab.wait_live()
        assert [row["id"] for row in living(lab, alpha)] == [replacement["id"]]
        assert len(lab.jobs()) == 2


def test_node_that_an_administrator_takes_down(alpha: SlurmCluster) -> None:
    """The job is not requeued under the same number behind our back."""
    with slurm_lab([alpha], [deployment(alpha, scale=HOT)]) as lab:
        lab.wait_live()
        job = only_job(lab, alpha)
        alpha.set_node(job["node"], "DOWN")
        wait_for("it is over", lambda: _state(lab, job["id"]) == "NODE_FAIL")
        replacement = only_job(lab, alpha)
        assert replacement["id"] != job["id"]
        lab.wait_live()
        assert sorted(scheduled(alpha)) == sorted([job["id"], replacement["id"]])


def test_node_that_is_drained(alpha: SlurmCluster) -> None:
    """What runs goes on; what waits says for what."""
    with slurm_lab([alpha], [deployment(alpha, scale={**HOT, "max": 2})]) as lab:
        lab.wait_live()
        job = only_job(lab, alpha)
        for node in alpha.nodes:
            alpha.set_node(node, "DRAIN")
        assert ask(lab).ending == "done"
        alpha.run("scancel", f"--name={job['id']}")

        def reason() -> Any:
            return [row["reason"] for row in living(lab, alpha) if row["state"] == "PENDING" and row["reason"]]

        wait_for("it is told what the job waits for", reason)
        assert any("Node" in words for words in reason())
        for node in alpha.nodes:
            alpha.set_node(node, "RESUME")
        lab.wait_live()
        assert len(lab.jobs()) == 2


def test_gateway_and_controller_killed_while_a_job_waits(alpha: SlurmCluster) -> None:
    """It is the same job that starts in the end, and there is no other."""
    alpha.run("sbatch", "--exclusive", "--nodes=2", "--job-name=blocker", "--output=/dev/null", "--wrap=sleep 600")
    wait_for("the nodes are taken", lambda: alpha.run("squeue", "-h", "-t", "running", "-o", "%j") == "blocker")
    with slurm_lab([alpha], [deployment(alpha, scale=HOT)]) as lab:
        wait_for("a job waits", lambda: [row for row in living(lab, alpha) if row["state"] == "PENDING"])
        [job] = living(lab, alpha)
        lab.kill_gateway()
        lab.kill_controller()
        lab.start()
        lab.kill_controller()
        lab.start_controller()
        alpha.run("scancel", "--name=blocker")
        lab.wait_live()
        assert only_job(lab, alpha)["id"] == job["id"]
        assert len(lab.jobs()) == 1


def test_cluster_that_is_gone_for_good(clusters: list[SlurmCluster]) -> None:
    """In mid-load: its open streams end visibly, the other cluster takes all that comes."""
    alpha, beta = clusters
    deployments = [deployment(cluster, LONG, scale=HOT) for cluster in clusters]
    with slurm_lab(clusters, deployments) as lab:
        wait_for("both are ready", lambda: ready_on(lab, alpha) and ready_on(lab, beta))
        with Asking(lab, headers={"x-first-cluster": "beta"}) as open_there, Load(lab, max_tokens=20) as load:
            open_there.read_tokens(3)
            load.wait_for_more()
            beta.stop()
            assert open_there.rest().ending == "error"
            load.wait_for_more(20)
            load.stop()
            assert {answer.ending for answer in load.failures} <= {"error"}
        assert len(living(lab, alpha)) == 1
        assert ask(lab, max_tokens=20).ending == "done"


def test_pinned_requests(clusters: list[SlurmCluster]) -> None:
    """By path or header they go where they shall, and start it there."""
    alpha, beta = clusters
    scale = {**HOT, "hot": 0}
    with slurm_lab(clusters, [deployment(alpha, scale=scale), deployment(beta, scale=scale)]) as lab:
        assert ask(lab, headers={"x-first-cluster": "beta"}).ending == "done"
        assert (len(scheduled(alpha)), len(scheduled(beta))) == (0, 1)
        assert ask(lab).ending == "done"
        assert len(lab.jobs()) == 1
        assert ask(lab, headers={"x-first-cluster": "gamma"}).code == "cluster_not_found"


def test_pilots_that_the_gateway_dials(alpha: SlurmCluster) -> None:
    """Their address comes with a poll; a new gateway finds it in the store."""
    with slurm_lab([alpha], [deployment(alpha, scale=HOT)], {"alpha": {"link": {"kind": "direct"}}}) as lab:
        lab.wait_live()
        assert ask(lab).ending == "done"
        lab.kill_gateway()
        lab.start_gateway()
        lab.wait_live()
        assert ask(lab).ending == "done"
        assert len(lab.jobs()) == 1


def test_draining_a_cluster_moves_its_work_first(clusters: list[SlurmCluster]) -> None:
    alpha, beta = clusters
    deployments = [deployment(alpha, scale=HOT), deployment(beta, scale={**HOT, "hot": 0})]
    with slurm_lab(clusters, deployments) as lab:
        lab.wait_live()
        wait_for("alpha serves", lambda: ready_on(lab, alpha))
        with Load(lab) as load:
            load.wait_for_more()
            _first(lab, "cluster", "drain", "alpha", "--message", "new cooling")
            wait_for("alpha is left", lambda: not living(lab, alpha))
            assert ready_on(lab, beta)
            load.wait_for_more()
            _first(lab, "cluster", "resume", "alpha")
            wait_for("alpha is back", lambda: ready_on(lab, alpha))
            load.wait_for_more()
        assert not load.failures


def _state(lab: Lab, job_id: str) -> str:
    return next(row["state"] for row in lab.jobs() if row["id"] == job_id)


def _first(lab: Lab, *argv: str) -> str:
    command = [sys.executable, "-m", "firstkit.cli", *argv, "--config", str(lab.config_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
