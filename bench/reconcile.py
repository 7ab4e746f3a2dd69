"""What a pass of the controller costs: 20 clusters with 50 replicas each, on a real SQLite store. Wall time.

python bench/reconcile.py [--keep]  # prints a table; needs make install. --keep: dated, in results/
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import quantiles

import uvloop
import yaml

from figures import keep_reported, report
from firstkit.clock import now
from firstkit.config import Config, parse_config
from firstkit.ids import new_id
from firstkit.links.messages import PilotReport, ReplicaReport
from firstkit.reconciler import books
from firstkit.reconciler.books import Books
from firstkit.reconciler.controller import Controller
from firstkit.schedulers.scheduler import JobNews
from firstkit.states import JobState, ReplicaState
from firstkit.store import jobs as stored
from firstkit.store.database import Database
from firstkit.testing.fake_clusters import QuickCluster
from firstkit.wire import to_dict

CLUSTERS, MODELS, REPLICAS = 20, 10, 5
PASSES = 40
LIMIT_MS = 200.0
ENGINE = {"kind": "command", "argv": ["x", "{socket}"]}


def configuration(folder: Path) -> Config:
    deployment = {"engine": ENGINE, "scale": {"hot": REPLICAS, "max": 2 * REPLICAS}, "resources": {"walltime": "6h"}}
    clusters = [f"c{i:02}" for i in range(CLUSTERS)]
    content = {
        "server": {"state_dir": str(folder)},
        "clusters": {name: {} for name in clusters},
        "models": {
            f"m{i}": {"deployments": [{**deployment, "cluster": name} for name in clusters]} for i in range(MODELS)
        },
    }
    return parse_config(yaml.safe_dump(content))


async def fill(db: Database, config: Config) -> list[PilotReport]:
    """Every replica that is wanted, in a job of its own, as the books know it; what their pilots say."""
    said, at = [], now()
    for deployment in config.deployments():
        async with db.begin() as conn:
            for _ in range(deployment.scale.hot):
                job_id, replica_id = new_id("job"), new_id("rep")
                await stored.add_job(conn, job_id, deployment.cluster, deployment.resources, "digest", at)
                new = stored.NewReplica(
                    replica_id, job_id, deployment.model, deployment.name, deployment.cluster, 8, deployment.resources
                )
                await stored.add_replicas(conn, [new], at)
                await stored.move_job(conn, job_id, JobState.SUBMITTING, submitted_at=at)
                facts = {"started_at": at, "scheduler_id": f"id-{job_id}"}
                await stored.move_job(conn, job_id, JobState.RUNNING, **facts)
                await stored.move_replica(conn, replica_id, ReplicaState.READY, started_at=at, ready_at=at)
                said.append(PilotReport(job_id, (ReplicaReport(replica_id, ReplicaState.READY, 3),)))
    return said


class Federation:
    """The controller of all those clusters, pass by pass."""

    def __init__(self, config: Config, db: Database, said: list[PilotReport]) -> None:
        self.clusters = {name: QuickCluster() for name in config.clusters}
        self.controller = Controller(config, self.clusters.__getitem__)
        self.controller._make_loops(lambda name: Books(db, name))
        self.controller.world.gateway_came()
        self.said = said
        self.took_ms: list[float] = []

    async def start(self, db: Database) -> None:
        for name, cluster in self.clusters.items():
            async with db.read() as conn:
                for row in await stored.live_jobs(conn, name):
                    cluster.jobs[row.id] = JobNews(row.id, f"id-{row.id}", JobState.RUNNING)
        for loop in self.controller.loops.values():
            await loop.start()
        self.tell(3)

    def tell(self, in_flight: int) -> None:
        """The gateway's news: of every pilot, and the demand for every model."""
        reports = [
            replace(one, replicas=tuple(replace(replica, in_flight=in_flight) for replica in one.replicas))
            for one in self.said
        ]
        message = {"kind": "pilots", "pilots": {one.job_id: to_dict(one) for one in reports}}
        self.controller._on_message(message)
        entry = {"clusters": None, "waiting": in_flight, "in_flight": 300, "idle_s": 0.0}
        demand = {f"m{i}": [entry] for i in range(MODELS)}
        self.controller._on_message({"kind": "demand", "models": demand})

    async def one(self, name: str) -> None:
        started = time.perf_counter()
        await self.controller.loops[name].step()
        self.took_ms.append(1e3 * (time.perf_counter() - started))

    async def poll(self, *names: str) -> None:
        for name in names:
            loop = self.controller.loops[name]
            loop.hands.beside("poll", loop.hands.poll())
        await self.rest()

    async def rest(self) -> None:
        while tasks := [task for loop in self.controller.loops.values() for task in loop.hands.under_way.values()]:
            await asyncio.wait(tasks)
            await asyncio.sleep(0)

    def p99_ms(self) -> float:
        took, self.took_ms = self.took_ms, []
        return quantiles(took, n=100, method="inclusive")[-1]


async def measure() -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(Path(folder))
        db = await Database.open(f"sqlite:///{folder}/first.sqlite")
        there = Federation(config, db, await fill(db, config))
        await there.start(db)
        await asyncio.gather(*(there.one(name) for name in there.clusters))
        await there.rest()
        there.took_ms.clear()
        what = f"{CLUSTERS} clusters x {MODELS * REPLICAS} replicas"
        for i in range(PASSES):
            there.tell(i % 5)
            for name in there.clusters:
                await there.one(name)
        report(f"a pass, one after another, p99, {what}", there.p99_ms(), "ms", LIMIT_MS)
        for i in range(PASSES):
            there.tell(i % 5)
            await asyncio.gather(*(there.one(name) for name in there.clusters))
        report(f"a pass, all at once, p99, {what}", there.p99_ms(), "ms", LIMIT_MS)
        books.SEEN_EVERY_S = 0.0  # so that every poll is written
        names = list(there.clusters)
        for i in range(PASSES):
            there.tell(i % 5)
            await there.poll(*(names[(2 * i + j) % CLUSTERS] for j in range(2)))
            await asyncio.gather(*(there.one(name) for name in there.clusters))
            await there.rest()
        report(f"a pass, all at once, two polled, p99, {what}", there.p99_ms(), "ms", LIMIT_MS)
        assert sum(cluster.calls.count("submit") for cluster in there.clusters.values()) == 0, "all is as wanted"
        there.controller.teller.close()
        await db.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="What a pass of the controller costs.")
    parser.add_argument("--keep", action="store_true", help="keep the table, dated, in results/")
    options = parser.parse_args()
    uvloop.run(measure())
    if options.keep:
        print(f"Kept in results/{keep_reported('reconcile').name}")


if __name__ == "__main__":
    main()
