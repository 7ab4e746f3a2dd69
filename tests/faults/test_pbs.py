"""A whole FIRST over a double of PBS, and what goes wrong with it: nothing is submitted twice, nothing is lost from
sight, nothing is left running."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.slurm import ENGINE, HOT, Load
from faults.support import Asking, ask, started
from firstkit.states import LIVE_JOB_STATES
from firstkit.testing.pbs_lab import PbsLab
from lab import Lab, environment_of, free_port, wait_for

OUTAGE_S = 10.0
SHAPE = {"cpus_per_node": 2, "gpus_per_node": 1, "memory_gib": 0.2, "walltime": "30m"}
DEVICES = ["0", "1", "2", "3"]
pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def pbs(folder: Path) -> Iterator[PbsLab]:
    with pbs_of(folder) as made:
        yield made


@contextlib.contextmanager
def pbs_of(folder: Path, **options: Any) -> Iterator[PbsLab]:
    """Two nodes; nothing of its jobs is left in the end."""
    made = PbsLab(folder / "pbs", **{"kill_delay_s": 20.0, "node_fail_requeue_s": 3.0} | options)
    made.start()
    try:
        yield made
        assert made.left_behind() == []
    finally:
        made.stop()


@contextlib.contextmanager
def first_on(pbs: PbsLab, engine: dict[str, Any] = ENGINE, **options: Any) -> Iterator[Lab]:
    """A started FIRST with the model ``m`` on ``pbs``, polled more often than any centre would like."""
    scale, shape = options.pop("scale", HOT), SHAPE | options.pop("shape", {})
    scheduler = {"kind": "pbs", "poll_interval": "1s", "command_timeout": "10s", "devices": DEVICES}
    section = {"scheduler": scheduler | options.pop("scheduler", {}), "env": pbs.env, "link": {"kind": "tunnel"}}
    deployment = {"cluster": "polaris", "engine": engine, "resources": shape, "scale": scale}
    server = {"pilot_listen": f"127.0.0.1:{free_port()}", "max_wait": "60s", **options}
    lab = Lab.make({"m": {"deployments": [deployment]}}, None, {"polaris": section}, **server)
    with started(lab):
        yield lab


def living(lab: Lab) -> list[Any]:
    return [row for row in lab.jobs() if row["state"] in {state.value for state in LIVE_JOB_STATES}]


def only_job(lab: Lab) -> Any:
    """The one living job, once it runs by its pilot's word and by a poll."""

    def found() -> Any:
        rows = living(lab)
        return rows[0] if len(rows) == 1 and rows[0]["state"] == "RUNNING" and rows[0]["node"] else None

    return wait_for("one job runs", found)


def state(lab: Lab, job_id: str) -> str:
    return next(str(row["state"]) for row in lab.jobs() if row["id"] == job_id)


def submitted(pbs: PbsLab) -> list[str]:
    """Names of all jobs that PBS was ever given."""
    return [job["name"] for job in pbs.jobs(history=True)]


def devices_of(lab: Lab) -> set[str]:
    """The GPUs that the engines see, one each."""
    environments = [
        dict(line.split("=", 1) for line in environment_of(e.pid).split("\n") if line) for e in lab.engines()
    ]
    found = {environment.get("CUDA_VISIBLE_DEVICES", "all") for environment in environments}
    assert found <= set(DEVICES)
    return found


# -- as it should be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clients", ["master", "v23"])
def test_requests_are_answered_by_a_job_of_pbs(folder: Path, clients: str) -> None:
    with pbs_of(folder, clients=clients) as pbs:
        with first_on(pbs) as lab:
            lab.wait_live()
            assert ask(lab).ending == "done"
            job = only_job(lab)
            assert submitted(pbs) == [job["id"]]
            assert pbs.ids(job["id"]) == [job["scheduler_id"]]
            assert len(devices_of(lab)) == 1
        wait_for("PBS has no job", lambda: not pbs.jobs())


def test_a_trial_job_finds_the_cluster_in_order(pbs: PbsLab) -> None:
    with first_on(pbs, scale={**HOT, "hot": 0}) as lab:
        argv = [sys.executable, "-m", "firstkit.cli", "cluster", "check", "polaris", "--job", "--wait", "60"]
        done = subprocess.run([*argv, "--config", str(lab.config_path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "trial job" in done.stdout
        wait_for("it has ended", lambda: not pbs.jobs())


@pytest.mark.long
def test_an_idle_model_gives_its_job_back(pbs: PbsLab) -> None:
    with first_on(pbs, scale={**HOT, "hot": 0, "idle_timeout": "1s"}) as lab:
        assert ask(lab).ending == "done"
        wait_for("its job has ended", lambda: not living(lab))
        [row] = lab.jobs()
        assert row["state"] in ("COMPLETED", "CANCELLED")
        wait_for("PBS has no job", lambda: not pbs.jobs())
        assert ask(lab).ending == "done"
        assert len(submitted(pbs)) == 2


def test_jobs_that_share_a_host_share_no_gpu(folder: Path) -> None:
    with pbs_of(folder, nodes=1) as pbs, first_on(pbs, scale={**HOT, "hot": 2, "max": 2}) as lab:
        wait_for("both are ready", lambda: [row["state"] for row in lab.replicas()].count("READY") == 2)
        assert len(devices_of(lab)) == 2


# -- the server of PBS -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["is down", pytest.param("hangs", marks=pytest.mark.long)])
def test_serving_goes_on_while_the_server(pbs: PbsLab, trouble: str) -> None:
    """Nothing is submitted again, and afterwards all is as before, also with ids that have jumped."""
    with first_on(pbs) as lab:
        lab.wait_live()
        before = only_job(lab)
        with Load(lab) as load:
            load.wait_for_more()
            if trouble == "hangs":
                pbs.stop_answering()
            else:
                pbs.kill_server()
            ends_at = time.monotonic() + OUTAGE_S
            while time.monotonic() < ends_at:
                load.wait_for_more(4)
            down_at = only_job(lab)["observed_at"]
            if trouble == "hangs":
                pbs.answer_again()
            else:
                pbs.start_server()
            wait_for("it is polled again", lambda: only_job(lab)["observed_at"] > down_at)
            load.wait_for_more()
        assert not load.failures
        assert only_job(lab)["id"] == before["id"]
        assert submitted(pbs) == [before["id"]]


def test_a_job_that_was_to_be_submitted_while_the_server_hung(pbs: PbsLab) -> None:
    """There is one in the end, and only one."""
    pbs.stop_answering()
    with first_on(pbs, scheduler={"command_timeout": "2s"}) as lab:
        wait_for("a submission was tried", lab.jobs)
        time_tried = time.monotonic()
        wait_for("it was given up", lambda: time.monotonic() > time_tried + 3)
        pbs.answer_again()
        lab.wait_live(limit_s=120)
        job = only_job(lab)
        assert submitted(pbs) == [job["id"]]
        assert pbs.ids(job["id"]) == [job["scheduler_id"]]


def test_an_answer_of_qsub_that_was_lost(pbs: PbsLab) -> None:
    """The job is found by its name and adopted; there is no second one."""
    pbs.lose_answers()
    with first_on(pbs, scheduler={"command_timeout": "2s"}) as lab:
        lab.wait_live()
        job = only_job(lab)
        assert submitted(pbs) == [job["id"]]
        assert pbs.ids(job["id"]) == [job["scheduler_id"]]
        assert len(lab.jobs()) == 1


@pytest.mark.long
def test_an_answer_that_was_lost_where_no_history_is_kept(pbs: PbsLab) -> None:
    pbs.set_history(False)
    pbs.lose_answers()
    with first_on(pbs, scheduler={"command_timeout": "2s"}) as lab:
        lab.wait_live()
        assert submitted(pbs) == [only_job(lab)["id"]]
        assert len(lab.jobs()) == 1


def test_a_crash_of_the_server_while_a_job_waits(pbs: PbsLab) -> None:
    """It is the same job that starts in the end; a job of later has an id of the next thousand."""
    blocker = pbs.run("qsub", "-l", "select=2:ncpus=16", "-l", "place=scatter:exclhost", "--", "/bin/sleep", "600")
    with first_on(pbs, scale={**HOT, "max": 2}) as lab:
        wait_for("a job waits", lambda: [row for row in living(lab) if row["state"] == "PENDING"])
        pbs.kill_server()
        pbs.start_server()
        wait_for("nodes are back", lambda: all("down" not in words for words in pbs.node_states().values()))
        pbs.run("qdel", blocker)
        lab.wait_live()
        assert only_job(lab)["scheduler_id"] == "2.hpc-head"
        pbs.run("qdel", "2.hpc-head")
        wait_for("another one has taken over", lambda: pbs.ids(only_job(lab)["id"]) == ["1000.hpc-head"])
        assert len(lab.jobs()) == 2


@pytest.mark.long
def test_gateway_and_controller_killed_while_a_job_waits(pbs: PbsLab) -> None:
    blocker = pbs.run("qsub", "-l", "select=2:ncpus=16", "-l", "place=scatter:exclhost", "--", "/bin/sleep", "600")
    with first_on(pbs) as lab:
        wait_for("a job waits", lambda: [row for row in living(lab) if row["state"] == "PENDING"])
        [job] = living(lab)
        lab.kill_gateway()
        lab.kill_controller()
        lab.start()
        pbs.run("qdel", blocker)
        lab.wait_live()
        assert only_job(lab)["id"] == job["id"]
        assert len(lab.jobs()) == 1


# -- ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_qdel_by_somebody_else(pbs: PbsLab) -> None:
    with first_on(pbs) as lab:
        lab.wait_live()
        job = only_job(lab)
        pbs.run("qdel", job["scheduler_id"])
        wait_for("it is known to be cancelled", lambda: state(lab, job["id"]) == "CANCELLED")
        assert only_job(lab)["id"] != job["id"]
        lab.wait_live()
        assert len(submitted(pbs)) == 2


def test_a_node_that_is_lost_below_a_replica(pbs: PbsLab) -> None:
    """PBS gives the job up while its processes live on: another takes over, and the old pilot does not come back."""
    with first_on(pbs) as lab:
        lab.wait_live()
        job = only_job(lab)
        pbs.kill_node(job["node"])
        with Load(lab) as load:
            wait_for("PBS has given it up", lambda: state(lab, job["id"]) == "NODE_FAIL", 90)
            replacement = only_job(lab)
            assert replacement["node"] != job["node"]
            wait_for("the old pilot is gone", lambda: len(lab.pilots()) == 1)
            load.wait_for_more()
        assert {answer.ending for answer in load.failures} <= {"error"}
        pbs.start_node(job["node"])
        assert [row["id"] for row in living(lab)] == [replacement["id"]]
        assert submitted(pbs) == [job["id"], replacement["id"]]


@pytest.mark.long
def test_a_node_whose_mom_hangs(pbs: PbsLab) -> None:
    """Nobody notices, and nothing is done about it: its replica serves."""
    with first_on(pbs) as lab:
        lab.wait_live()
        job = only_job(lab)
        pbs.hang_node(job["node"])
        with Load(lab) as load:
            load.wait_for_more(20)
        assert not load.failures
        pbs.wake_node(job["node"])
        assert submitted(pbs) == [job["id"]]


@pytest.mark.long
def test_nodes_that_are_taken_offline(pbs: PbsLab) -> None:
    """What runs goes on; what waits says for what."""
    with first_on(pbs, scale={**HOT, "max": 2}) as lab:
        lab.wait_live()
        job = only_job(lab)
        for node in pbs.nodes:
            pbs.set_node(node, is_offline=True, comment="new cooling")
        assert ask(lab).ending == "done"
        pbs.run("qdel", job["scheduler_id"])

        def reasons() -> list[Any]:
            return [row["reason"] for row in living(lab) if row["state"] == "PENDING" and row["reason"]]

        wait_for("it is told what the job waits for", reasons)
        assert "Not Running" in reasons()[0]
        for node in pbs.nodes:
            pbs.set_node(node, is_offline=False)
        pbs.run_scheduler()
        lab.wait_live()
        assert len(lab.jobs()) == 2


def test_a_queue_that_refuses(pbs: PbsLab) -> None:
    """The job is refused in PBS's words, and there is none."""
    pbs.set_queue("prod", enabled=False)
    with first_on(pbs, scheduler={"queue": "prod"}) as lab:
        row = wait_for("it was refused", lambda: [row for row in lab.jobs() if row["state"] == "REJECTED"])[0]
        assert "Queue is not enabled" in row["reason"]
        assert submitted(pbs) == []
        pbs.set_queue("prod", enabled=True)
        lab.wait_live(limit_s=120)
        assert len(submitted(pbs)) == 1


@pytest.mark.long
def test_a_job_that_ends_where_no_history_is_kept(pbs: PbsLab) -> None:
    """Nobody says how it ended; its successor comes all the same, and there are never two."""
    pbs.set_history(False)
    with first_on(pbs) as lab:
        lab.wait_live()
        job = only_job(lab)
        with Asking(lab) as stream:
            stream.read_tokens(3)
            pbs.run("qdel", "-W", "force", job["scheduler_id"])
            assert stream.rest().ending == "error"
        wait_for("another has taken over", lambda: job["id"] not in [row["id"] for row in living(lab)], 120)
        assert only_job(lab)["id"] != job["id"]
        lab.wait_live()
        assert len(pbs.jobs()) == 1
