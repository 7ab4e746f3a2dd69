"""Work moves to a successor before a walltime ends, at the shortest time limit that Slurm has, under steady load."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from faults.slurm import Load, deployment, only_job, slurm_clusters, slurm_lab
from firstkit.states import JobState
from lab import Lab, fake_engine, wait_for

ENGINE = fake_engine("QuickEngine", tokens=100, token_delay=0.03, load_delay=2)
"""Answers take three seconds."""


@pytest.mark.timeout(480)
@pytest.mark.parametrize("hand_overs", [1, pytest.param(3, marks=pytest.mark.long)])
def test_hand_overs(folder: Path, hand_overs: int) -> None:
    """No request fails; every successor is warm before its predecessor takes no more; one job at a time is left."""
    with slurm_clusters(folder, "alpha") as [alpha]:
        resources = {"walltime": "60s"}
        deployments = [deployment(alpha, ENGINE, resources=resources, scale={"hot": 1, "max": 1, "max_in_flight": 16})]
        with slurm_lab([alpha], deployments) as lab:
            lab.wait_live()
            with Load(lab, 3) as load:
                for _ in range(hand_overs):
                    job = only_job(lab, alpha)
                    wait_for("its job is over", lambda job=job: _row(lab, job["id"])["ended_at"], 120)
                    load.wait_for_more()
            assert not load.failures
            ended = sorted((row for row in lab.jobs() if row["ended_at"]), key=lambda row: row["ended_at"])
            assert len(ended) == hand_overs
            assert {row["state"] for row in ended} <= {JobState.COMPLETED, JobState.CANCELLED}
            replicas = sorted(lab.replicas(), key=lambda row: row["created_at"])
            assert len(replicas) == hand_overs + 1
            for old, new in itertools.pairwise(replicas):
                assert new["ready_at"] < old["ended_at"]


def _row(lab: Lab, job_id: str) -> Any:
    return next(row for row in lab.jobs() if row["id"] == job_id)
