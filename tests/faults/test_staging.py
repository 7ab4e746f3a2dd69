"""Weights that are copied to the node, by a whole FIRST: what is left, and what is said, when something goes wrong.

The full disks are small file systems in memory (tmpfs). Where none can be mounted, those tests are skipped; what a
limit of the size of files does is in tests/unit/onsite/test_copying.py, and runs everywhere.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.slurm import deployment, slurm_clusters, slurm_lab
from lab import Lab, fake_engine, one_model, running, wait_for

HOT = {"hot": 1, "max": 1}
READS = 'echo "reads $1"; test "$(head -c 7 "$1/model")" = weights || exit 9; shift; exec "$@"'


class Node:
    """The weights, and the scratch folder of the one node."""

    def __init__(self, folder: Path) -> None:
        self.weights = folder / "models" / "m"
        self.weights.mkdir(parents=True)
        self.scratch = folder / "scratch"
        self.scratch.mkdir()

    def write(self, name: str = "model", size_bytes: int = 0) -> None:
        (self.weights / name).write_bytes(b"weights" + os.urandom(size_bytes))

    @contextlib.contextmanager
    def small_disk(self, options: str) -> Iterator[None]:
        """Scratch is a small file system of its own."""
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "first", str(self.scratch)],
            capture_output=True,
            check=False,
        )
        if mounted.returncode:
            pytest.skip("no file system can be mounted here")
        try:
            yield
        finally:
            subprocess.run(["umount", str(self.scratch)], check=True)

    def lab(self, database_url: str) -> contextlib.AbstractContextManager[Lab]:
        engine = fake_engine()
        engine["argv"] = ["sh", "-c", READS, "engine", "{weights}", *engine["argv"]]
        weights: dict[str, Any] = {"path": str(self.weights), "stage": "node-local"}
        models = one_model(engine, scale=HOT, weights=weights)
        return running(models, database_url, clusters={"here": {"scratch": str(self.scratch)}})

    def jobs(self) -> list[str]:
        return sorted(path.name for path in self.scratch.glob("first-*/*"))

    def copies(self) -> list[Path]:
        return [path for path in self.scratch.glob("first-*/*/*") if path.name != "lock"]


@pytest.fixture
def node() -> Iterator[Node]:
    folder = Path(tempfile.mkdtemp(prefix="first-", dir="/tmp"))
    yield Node(folder)
    shutil.rmtree(folder)


def logs_of(lab: Lab) -> str:
    return "\n".join(path.read_text() for path in lab.folder.rglob("engine.log"))


def failed(lab: Lab) -> Any:
    wait_for("a replica has failed", lambda: any(row["state"] == "FAILED" for row in lab.replicas()))
    return next(row for row in lab.replicas() if row["state"] == "FAILED")


def test_an_engine_reads_the_copy_on_its_node_which_goes_with_its_job(node: Node, database_url: str) -> None:
    node.write(size_bytes=3_000_000)
    with node.lab(database_url) as lab:
        lab.wait_live()
        [copy] = node.copies()
        assert f"reads {copy}/m\n" in logs_of(lab)
        assert (copy / "m" / "model").read_bytes() == (node.weights / "model").read_bytes()
    assert node.jobs() == []


def test_what_a_killed_pilot_left_is_removed_by_the_next(node: Node, database_url: str) -> None:
    node.write()
    with node.lab(database_url) as lab:
        lab.wait_live()
        [before] = node.jobs()
        [pilot] = lab.pilots()
        pilot.kill()
        wait_for("another job has the only copy", lambda: len(node.jobs()) == 1 and node.jobs() != [before])
        lab.wait_live()
    assert node.jobs() == []


def test_a_disk_without_room_fails_the_replica_and_says_how_much_is_needed(node: Node, database_url: str) -> None:
    node.write(size_bytes=10_000_000)
    with node.small_disk("size=8m"), node.lab(database_url) as lab:
        reason = failed(lab)["reason"]
        assert "has no room for a copy under" in reason
        assert "needed are 10.0 MB, free are 8.4 MB, of which 0.2 MB stay free" in reason
        assert node.copies() == []
        assert lab.engines() == []


def test_a_disk_that_becomes_full_fails_the_replica_and_keeps_nothing(node: Node, database_url: str) -> None:
    """It has room for the bytes, and none for so many files."""
    for name in ("model", "second", "third", "fourth"):
        node.write(name)
    with node.small_disk("size=8m,nr_inodes=8"), node.lab(database_url) as lab:
        reason = failed(lab)["reason"]
        assert "became full under" in reason
        assert "needed are 0.0 MB in 4 files" in reason
        wait_for("no copy is left", lambda: node.copies() == [])


def test_weights_that_are_damaged_start_no_engine(node: Node, database_url: str) -> None:
    node.write()
    (node.weights / "SHA256SUMS").write_text(f"{'0' * 64}  model\n")
    with node.lab(database_url) as lab:
        assert f"{node.weights}/model is damaged" in failed(lab)["reason"]
        assert lab.engines() == []
        assert logs_of(lab) == ""


@pytest.mark.timeout(240)
def test_each_rank_of_a_replica_reads_a_copy_on_its_node(node: Node, folder: Path) -> None:
    """Both nodes of this Slurm are on one host, and so are their disks."""
    node.write()
    ranked = [sys.executable, "-m", "firstkit.testing.ranked_engine", "--rank", "{rank}", "--ranks", "{ranks}"]
    ranked += ["--head", "{head_address}:{head_port}", "--socket", "{socket}"]
    engine = {"kind": "command", "argv": ["sh", "-c", READS, "engine", "{weights}", *ranked]}
    resources = {"nodes": 2, "exclusive": True, "walltime": "1h"}
    weights = {"path": str(node.weights), "stage": "node-local"}
    with slurm_clusters(folder, "alpha", nodes=2) as [alpha]:
        wanted = deployment(alpha, engine, scale=HOT, resources=resources) | {"weights": weights}
        settings = {"alpha": {"interface": "lo", "scratch": str(node.scratch)}}
        with slurm_lab([alpha], [wanted], settings) as lab:
            lab.wait_live()
            first, second = node.jobs()
            assert second == f"{first}-1"
            said = logs_of(lab)
            assert [said.count(f"reads {copy}/m\n") for copy in node.copies()] == [1, 1]
        wait_for("the copies are gone", lambda: node.jobs() == [])
