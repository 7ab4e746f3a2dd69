"""What decisions cost on this machine: choosing a replica, planning a cluster. CPU time, the best of several rounds.

python bench/decisions.py [--keep]  # prints a table; needs make install. --keep: dated, in results/
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from datetime import timedelta

import uvloop

from figures import keep_reported, report
from firstkit.clock import now
from firstkit.config import ResolvedDeployment, Scale
from firstkit.engines.engine import EngineSpec
from firstkit.links.messages import PilotReport, ReplicaReport
from firstkit.reconciler.plan import Desired, plan
from firstkit.reconciler.standing import Picture, places
from firstkit.reconciler.survey import ObservedJob, Survey
from firstkit.routing.affinity import Prefixes
from firstkit.routing.table import Pool, Route
from firstkit.routing.wish import ANYWHERE, Wish
from firstkit.schedulers.scheduler import Resources
from firstkit.states import JobState, ReplicaState
from firstkit.store.jobs import JobRow, ReplicaRow

ROUNDS = 7
REPLICAS = 1000
CLUSTERS = 20
DEPLOYMENTS = 100
CORES = Resources(cpus_per_node=4, memory_bytes=2**30)


def cpu_s(work: Callable[[], object], times: int) -> float:
    """CPU seconds of one ``work()``, the best of ROUNDS."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(times):
            work()
        best = min(best, (time.process_time() - started) / times)
    return best


class _Nowhere:
    def open(self, *_: object) -> None: ...


def pool() -> Pool:
    """One model with 1,000 replicas, each with some requests."""
    chance = random.Random(1)
    found = Pool()
    for i in range(REPLICAS):
        cluster = f"cluster-{i % CLUSTERS}"
        route = Route(f"rep-{i}", "m", cluster, _Nowhere(), "m", 16, ReplicaState.READY)  # type: ignore[arg-type]
        route.in_flight = chance.randrange(16)
        found.routes.append(route)
    found.refresh()
    return found


def choosing() -> None:
    """Of a model with a thousand replicas on twenty clusters: for anybody, for a prompt whose beginning is known, for
    who may use half of the clusters; and what is read anew once a second."""
    routes = pool()

    def choose(wish: Wish) -> None:
        route = routes.take(wish)
        if route is not None:
            routes.give_back(route)

    half = Wish(frozenset(f"cluster-{i}" for i in range(CLUSTERS // 2)))
    report(f"choose among {REPLICAS:,} replicas", 1e6 * cpu_s(lambda: choose(ANYWHERE), 2000), "us", 50)
    report("the same by prefix", 1e6 * cpu_s(lambda: choose(Wish(prefixes=(b"long", b"short"))), 2000), "us", 50)
    report("the same within half of them", 1e6 * cpu_s(lambda: choose(half), 500), "us", 200)
    report("their speeds and ends, once a second", 1e3 * cpu_s(routes.refresh, 20), "ms", 5)
    prompt, prefixes = b"x" * 100_000, Prefixes()
    report("names of a prompt's beginnings", 1e6 * cpu_s(lambda: prefixes.of("project", prompt), 2000), "us", 10)


def cluster(per_deployment: int) -> tuple[list[Desired], list[ObservedJob], list[ReplicaRow]]:
    """100 deployments with so many replicas each, in jobs of their own with room that is too small for another; a tenth
    has too few replicas, a tenth too many."""
    at = now()
    desired, jobs, replicas = [], [], []
    for i in range(DEPLOYMENTS):
        scale = Scale(hot=1, max=10 * per_deployment)
        deployment = ResolvedDeployment(f"m{i}@here", f"m{i}", "here", EngineSpec("vllm"), "/w", None, {}, CORES, scale)
        off = max(1, per_deployment // 10) * ((i % 10 == 0) - (i % 10 == 1))
        desired.append(Desired(deployment, per_deployment + off))
        for j in range(per_deployment):
            job_id, replica_id = f"job-{i}-{j}", f"rep-{i}-{j}"
            times = (at - timedelta(hours=1), None, at, None, None, at)
            jobs.append(
                ObservedJob(
                    JobRow(job_id, "here", JobState.RUNNING, "", "1", CORES, None, "n", *times, 0, None),
                    PilotReport(job_id, (ReplicaReport(replica_id, ReplicaState.READY, in_flight=3),), free_cpus=j % 4),
                )
            )
            replicas.append(
                ReplicaRow(
                    replica_id, job_id, f"m{i}", f"m{i}@here", "here", ReplicaState.READY, "", "", 8, CORES, 30.0,
                    at, at, at, None, at,
                )
            )  # fmt: skip
    return desired, jobs, replicas


def planning() -> None:
    for per_deployment, bar in ((10, 20), (100, 200)):
        desired, jobs, replicas = cluster(per_deployment)
        at, deployments = now(), [want.deployment for want in desired]

        def one_pass() -> int:
            survey = Survey.of(jobs, replicas, at)  # noqa: B023
            places(Picture(survey), deployments)  # noqa: B023
            return len(plan(desired, survey).actions)  # noqa: B023

        assert one_pass() == max(1, per_deployment // 10) * DEPLOYMENTS // 5, "a start or a stop for each that is off"
        what = f"plan for {DEPLOYMENTS} deployments, {len(replicas):,} replicas, and how they stand"
        report(what, 1e3 * cpu_s(one_pass, 3), "ms", bar)


def framing() -> None:
    """The figures of frames.py."""
    try:
        import frames
    except ModuleNotFoundError as error:
        if error.name != "frames":
            raise
        print("frames: not measured, there is no frames.py")
    else:
        uvloop.run(frames.main())


def main() -> None:
    parser = argparse.ArgumentParser(description="What decisions and frames cost.")
    parser.add_argument("--keep", action="store_true", help="keep the table, dated, in results/")
    options = parser.parse_args()
    choosing()
    planning()
    framing()
    if options.keep:
        print(f"Kept in results/{keep_reported('decisions').name}")


if __name__ == "__main__":
    main()
