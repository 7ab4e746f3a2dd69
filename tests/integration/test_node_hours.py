"""A job of real Slurm, two projects that use it, and the report: the node-hours are those that Slurm knows of."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Iterator
from datetime import timedelta
from fractions import Fraction
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest

from faults.slurm import deployment, only_job, slurm_clusters, slurm_lab
from faults.support import ask
from firstkit.auth import api_keys
from firstkit.reconciler.charge import user_name
from firstkit.testing.slurm_lab import SlurmCluster
from lab import Lab, wait_for

pytestmark = pytest.mark.timeout(180)
ON_DEMAND = {"hot": 0, "max": 1, "max_in_flight": 16, "idle_timeout": "5s"}
SCHEDULER = {"kind": "slurm", "partition": "gpu", "poll_interval": "1s", "command_timeout": "10s", "account": "alloc"}
MILLIONTH = Fraction(1, 10**6)
SEEN_WITHIN_S = 5
"""The start of a job is when it was seen first, by a poll or by its pilot."""


@pytest.fixture
def alpha(folder: Path) -> Iterator[SlurmCluster]:
    with slurm_clusters(folder, "alpha") as [cluster]:
        yield cluster


def test_node_hours_of_a_real_job(alpha: SlurmCluster) -> None:
    with slurm_lab([alpha], [deployment(alpha, scale=ON_DEMAND)], {"alpha": {"scheduler": SCHEDULER}}) as lab:
        for project, times in (("climate", 3), ("fusion", 1)):
            key = _key(lab, f"of-{project}", project)
            assert [ask(lab, key=key).ending for _ in range(times)] == ["done"] * times
        job = only_job(lab, alpha)
        wait_for("all four are in the ledger", lambda: len(lab.usage()) == 4)
        running = _report(lab)
        wait_for("it was idle and has ended", lambda: lab.jobs()[0]["ended_at"] is not None)
        in_the_end = _report(lab)
        assert _report(lab) == in_the_end, "a job that has ended takes no more"
        told = _told_by_slurm(alpha, job["scheduler_id"])
        (row,) = lab.jobs()

    assert (told.account, told.user) == ("alloc", user_name())
    for report in (running, in_the_end):
        assert {(line["cluster"], line["account"], line["submit_as"]) for line in report} == {
            ("alpha", told.account, told.user)
        }
        assert {line["project"] for line in report} - {"idle"} == {"climate", "fusion"}
        tokens = {line["project"]: int(line["tokens"]) for line in report}
        assert tokens["climate"] == 3 * tokens["fusion"] > 0
    total = sum(Fraction(line["node_hours"]) for line in in_the_end)
    assert 0 < sum(Fraction(line["node_hours"]) for line in running) <= total
    held = min(row["ended_at"], row["ends_at"]) - row["started_at"]
    assert abs(total - Fraction(held // timedelta(microseconds=1), 3600 * 10**6)) < MILLIONTH
    assert abs(total - Fraction(told.seconds * told.nodes, 3600)) < Fraction(SEEN_WITHIN_S, 3600)


def _key(lab: Lab, name: str, project: str) -> str:
    async def make() -> str:
        async with lab.database() as db:
            return (await api_keys.create(db, name, user=name, project=project, scopes=("inference",)))[0]

    return asyncio.run(make())


def _report(lab: Lab) -> list[dict[str, str]]:
    status, text = lab.get("/admin/node-hours?format=csv", lab.config.server.path("admin.sock"))
    assert status == 200, text
    return [line for line in csv.DictReader(StringIO(text.decode())) if line.pop("until")]  # which is now


class Told(NamedTuple):
    """What Slurm itself says of a job."""

    seconds: int
    nodes: int
    account: str
    user: str


def _told_by_slurm(cluster: SlurmCluster, number: str) -> Told:
    asked = ("squeue", "-h", "-t", "all", "-j", number, "-o", "%S|%e|%D|%a|%u")
    began, ended, nodes, account, user = cluster.run("env", "SLURM_TIME_FORMAT=%s", *asked).split("|")
    return Told(int(ended) - int(began), int(nodes), account, user)
