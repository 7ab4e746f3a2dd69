"""The figures of two Slurm clusters: how soon a cold request is with Slurm, how often it is asked, how replicas add up.

    python bench/federation.py            # prints a table; needs make install, and Slurm as `make lab` installs it

Real Slurm, gateway, controller and pilots; engines are fakes whose answers take a known time.
"""

from __future__ import annotations

import itertools
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from figures import report

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from faults.slurm import deployment, ready_on, section, slurm_clusters, slurm_lab
from faults.support import Asking, ask
from firstkit.testing.slurm_lab import SlurmCluster
from lab import Lab, fake_engine, wait_for

ROUNDS = 5
WATCHED_S = 65.0
ANSWER_S = 0.5
AT_A_TIME = 8
MEASURED_S = 12.0


def noted(cluster: SlurmCluster, folder: Path, *commands: str) -> dict[str, Any]:
    """The section of a cluster whose ``commands`` note when they were begun and when they were done."""
    place = folder / f"{cluster.name}-bin"
    place.mkdir()
    for name in commands:
        real = shutil.which(name, path=cluster.env["PATH"])
        log = folder / f"{cluster.name}-{name}"
        lines = ["#!/bin/sh", "begun=$(date +%s.%N)", f'{real} "$@"', "status=$?"]
        lines += [f'echo "$begun $(date +%s.%N) $*" >>{log}', "exit $status", ""]
        (place / name).write_text("\n".join(lines))
        (place / name).chmod(0o755)
    scheduler = {**section(cluster)["scheduler"], "poll_interval": "10s"}
    return {"env": {**cluster.env, "PATH": f"{place}:{cluster.env['PATH']}"}, "scheduler": scheduler}


def times(cluster: SlurmCluster, folder: Path, command: str, without: str = "-") -> list[tuple[float, float]]:
    """(begun, done) of all runs of a command so far, in seconds since 1970; those with the option do not count."""
    log = folder / f"{cluster.name}-{command}"
    lines = log.read_text().splitlines() if log.exists() else []
    runs = [line.split() for line in lines]
    return [(float(begun), float(done)) for begun, done, *options in runs if without not in options]


def age_s(pid: int) -> float:
    """Seconds since a process was started, to a hundredth."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def cold_requests(folder: Path, cluster: SlurmCluster) -> None:
    """From a request to an accepted sbatch; from a ready engine to the first byte at the client."""
    engine = fake_engine("QuickEngine", tokens=5, token_delay=0.001, load_delay=1)
    to_sbatch, to_byte = [], []
    sections = {cluster.name: noted(cluster, folder, "sbatch", "squeue")}
    with slurm_lab(
        [cluster], [deployment(cluster, engine, scale={"hot": 0, "max": 1, "idle_timeout": 1})], sections
    ) as lab:
        wait_for("the controller knows its cluster", lambda: _capacity(lab, cluster))
        for number in range(ROUNDS):
            wait_for("the model is cold", lambda: lab.model_status() == "offline" and not lab.processes())
            asked_at = time.time()
            with Asking(lab, headers={"x-first-hold": "60"}) as asking:
                asking.read_tokens(1)
                [running] = lab.engines()
                replica = max(lab.replicas(), key=lambda row: row["created_at"])
                to_byte.append(age_s(running.pid) - replica["load_s"])
            to_sbatch.append(times(cluster, folder, "sbatch", "--test-only")[number][1] - asked_at)
    print("  to sbatch:", " ".join(f"{seconds:.2f}" for seconds in to_sbatch))
    report("cold request to accepted sbatch, median", statistics.median(to_sbatch), "s", 0.5)
    report("cold request to accepted sbatch, longest", max(to_sbatch), "s", 0.5)
    report("engine ready to first relayed byte, median", statistics.median(to_byte), "s", 0.2)


def _capacity(lab: Lab, cluster: SlurmCluster) -> Any:
    return next(row["capacity"] for row in lab.status()["clusters"] if row["id"] == cluster.name)


def polls(folder: Path, cluster: SlurmCluster) -> None:
    """How often squeue runs: while replicas come and go, then at rest."""
    engine = fake_engine("QuickEngine", tokens=50, token_delay=0.02)
    scale = {"hot": 0, "max": 4, "max_in_flight": 1, "idle_timeout": 5, "sustain": 1}
    with slurm_lab(
        [cluster], [deployment(cluster, engine, scale=scale)], {cluster.name: noted(cluster, folder, "squeue")}
    ) as lab:
        threads = [threading.Thread(target=ask, args=(lab,)) for _ in range(12)]
        for thread in threads:
            thread.start()
        time.sleep(WATCHED_S)
        for thread in threads:
            thread.join()
        begun = [begin for begin, _ in times(cluster, folder, "squeue")]
        assert len(lab.jobs()) >= 2, "it did not scale"
    report("squeue, shortest pause", min(b - a for a, b in itertools.pairwise(begun)), "s", 10.0, at_least=True)


def throughput(clusters: list[SlurmCluster], count: int) -> float:
    """Answers a second of ``count`` equal replicas, half of them on each cluster."""
    engine = fake_engine("QuickEngine", tokens=10, token_delay=ANSWER_S / 10)
    shares = [count] if count == 1 else [count // 2, count // 2]
    deployments = [
        deployment(cluster, engine, scale={"hot": hot, "max": hot, "max_in_flight": AT_A_TIME})
        for cluster, hot in zip(clusters, shares, strict=False)
    ]
    with slurm_lab(clusters, deployments) as lab:
        wait_for("all are ready", lambda: sum(ready_on(lab, cluster) for cluster in clusters) == count)
        return _answers_a_second(lab, 2 * AT_A_TIME * count)


def _answers_a_second(lab: Lab, size: int) -> float:
    counts, ends_at = [0] * size, time.monotonic() + MEASURED_S

    def run(number: int) -> None:
        while time.monotonic() < ends_at:
            counts[number] += ask(lab, stream=False).status == 200

    threads = [threading.Thread(target=run, args=(number,)) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / MEASURED_S


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="first-", dir="/tmp"))
    try:
        with slurm_clusters(folder, "alpha", "beta") as clusters:
            cold_requests(folder, clusters[0])
            polls(folder, clusters[1])
            one, four = throughput(clusters, 1), throughput(clusters, 4)
            print(f"  one replica {one:.1f} answers/s, four on two clusters {four:.1f}")
            report("4 replicas on 2 clusters, times one", four / one, "x", 3.9, at_least=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
