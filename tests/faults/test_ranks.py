"""One replica on two nodes of a real Slurm: what takes one of its ranks takes them all, and another replica comes."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from faults.slurm import HOT, deployment, living, only_job, slurm_clusters, slurm_lab
from faults.support import ask
from firstkit.testing.slurm_lab import SlurmCluster
from lab import Lab, wait_for

pytestmark = pytest.mark.timeout(240)
ENGINE = {
    "kind": "command",
    "argv": [
        sys.executable, "-m", "firstkit.testing.ranked_engine", "--rank", "{rank}", "--ranks", "{ranks}",
        "--head", "{head_address}:{head_port}", "--socket", "{socket}",
    ],
}  # fmt: skip
RESOURCES = {"nodes": 2, "exclusive": True, "walltime": "1h"}


@contextmanager
def spread(folder: Path, nodes: int) -> Iterator[tuple[SlurmCluster, Lab]]:
    """A FIRST whose model needs two of so many nodes. They are all on this host: their ranks speak over loopback."""
    with slurm_clusters(folder, "alpha", nodes=nodes) as [alpha]:
        deployments = [deployment(alpha, ENGINE, scale=HOT, resources=RESOURCES)]
        with slurm_lab([alpha], deployments, {"alpha": {"interface": "lo"}}) as lab:
            lab.wait_live()
            yield alpha, lab
            jobs = [row["id"] for row in lab.jobs()]
        wait_for("nothing is left", lambda: not any(map(processes, jobs)))


def processes(job_id: str) -> dict[psutil.Process, list[str]]:
    """Those of a job that Slurm did not start for itself, with their arguments: pilot, launcher, ranks, engines."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            is_ours = "slurmstepd" not in process.name() and process.environ().get("FIRST_JOB_ID") == job_id
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                found[process] = process.cmdline()
    return found


def engines(job_id: str) -> list[psutil.Process]:
    """Those of its ranks, rank 0 first."""
    found = {argv[argv.index("--rank") + 1]: process for process, argv in processes(job_id).items() if "--rank" in argv}
    return [found[rank] for rank in sorted(found)]


def replica_of(lab: Lab, job_id: str) -> Any:
    [row] = [row for row in lab.replicas() if row["job_id"] == job_id]
    return row


def failure(lab: Lab, job_id: str) -> str:
    """Why the replica of a job has failed, once it has and nothing of it runs any more."""
    wait_for("its replica has failed", lambda: replica_of(lab, job_id)["state"] == "FAILED", 30)
    wait_for("nothing of it runs any more", lambda: not engines(job_id), 15)
    return str(replica_of(lab, job_id)["reason"])


def replaced(lab: Lab, cluster: SlurmCluster, job_id: str) -> Any:
    """The job whose replica serves in place of another."""

    def found() -> Any:
        rows = living(lab, cluster)
        return rows[0] if len(rows) == 1 and rows[0]["id"] != job_id else None

    job = wait_for("another job has taken over", found, 90)
    wait_for("its replica serves", lambda: replica_of(lab, job["id"])["state"] == "READY", 60)
    assert ask(lab).ending == "done"
    return job


def test_two_nodes_serve_as_one_and_are_given_back_together(folder: Path) -> None:
    with spread(folder, 2) as (alpha, lab):
        assert ask(lab).ending == "done"
        job = only_job(lab, alpha)
        assert alpha.run("squeue", "-h", "-o", "%D %i", f"--name={job['id']}") == f"2 {job['scheduler_id']}"
        first, second = engines(job["id"])
        assert second.environ()["NCCL_SOCKET_IFNAME"] == "=lo"
        assert first.environ()["CUDA_VISIBLE_DEVICES"] == second.environ()["CUDA_VISIBLE_DEVICES"] == "0"
        assert not [name for name in second.environ() if name.startswith("SLURM_")]
        alpha.run("scancel", f"--name={job['id']}")
        wait_for("nothing of it runs any more", lambda: not processes(job["id"]))


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_rank_that_is_killed_takes_the_replica_with_it_and_another_comes(folder: Path, rank: int) -> None:
    with spread(folder, 2) as (alpha, lab):
        job = only_job(lab, alpha)
        engines(job["id"])[rank].kill()
        assert f"rank {rank} on alpha-n{rank + 1}: killed by SIGKILL" in failure(lab, job["id"])
        replaced(lab, alpha, job["id"])


@pytest.mark.long
def test_a_rank_whose_keeper_is_killed(folder: Path) -> None:
    """Its engine dies with it, and so it is known which it was though it left no word."""
    with spread(folder, 2) as (alpha, lab):
        job = only_job(lab, alpha)
        keeper = engines(job["id"])[1].parent()
        assert keeper is not None
        keeper.kill()
        assert "rank 1 on alpha-n2: ended without a word" in failure(lab, job["id"])
        replaced(lab, alpha, job["id"])


def test_a_node_that_is_lost_below_the_second_rank(folder: Path) -> None:
    """Its slurmd and all that ran there are gone at once."""
    with spread(folder, 3) as (alpha, lab):
        job = only_job(lab, alpha)
        _lose_node(alpha, "alpha-n2", engines(job["id"])[1])
        assert "rank 1 on alpha-n2: " in failure(lab, job["id"])
        job = replaced(lab, alpha, job["id"])
        assert alpha.run("squeue", "-h", "-o", "%N", f"--name={job['id']}") == "alpha-n[1,3]"


@pytest.mark.long
def test_a_node_that_is_lost_below_the_pilot(folder: Path) -> None:
    """The rank that is left ends: its engine has lost the first."""
    with spread(folder, 3) as (alpha, lab):
        job = only_job(lab, alpha)
        pilot = engines(job["id"])[0].parent()
        assert pilot is not None
        _lose_node(alpha, "alpha-n1", pilot)
        wait_for("nothing of it runs any more", lambda: not engines(job["id"]), 15)
        replaced(lab, alpha, job["id"])


def _lose_node(cluster: SlurmCluster, node: str, process: psutil.Process) -> None:
    """What hangs on ``process`` there, with the part of Slurm that watches it and the daemon of the node."""
    above = [parent for parent in process.parents() if "slurmstepd" in parent.name()]
    cluster.kill_node(node)
    for one in (*above, process):
        one.send_signal(signal.SIGKILL)
