"""Anything may happen to two clusters, in any order, under the real controller: no orphan, no twin, never too many,
and in the end all is as it should be."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from firstkit.states import JobState, ReplicaState
from unit.reconciler.modelled import Federation, ModelledCluster, ModelledJob, on

NAMES = st.sampled_from(["a", "b"])
MODELS = st.sampled_from(["m", "n"])
ENDS = st.sampled_from([JobState.FAILED, JobState.TIMEOUT, JobState.NODE_FAIL, JobState.CANCELLED, JobState.PREEMPTED])
MOST = 3
SCALE = {"max": MOST, "max_in_flight": 2, "sustain": 1, "idle_timeout": 60}
ALONE = {"exclusive": True, "memory_gib": 0.1}
CONTENT = {
    "server": {"orphan_timeout": 600},
    "clusters": {"a": {"limits": {"nodes": 5}}, "b": {"scheduler": {"kind": "slurm"}, "handicap": 10}},
    "models": {
        "m": {
            "deployments": [
                on("a", scale={**SCALE, "hot": 1}, resources={"walltime": 300}),
                on("b", scale=SCALE, resources={"walltime": 900}),
            ]
        },
        "n": {"deployments": [on("b", scale=SCALE, resources=ALONE), on("a", scale=SCALE, resources={"walltime": 60})]},
    },
}


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        with tempfile.TemporaryDirectory() as folder:
            self.there = Federation(Path(folder), CONTENT)
        self.moved = 0
        """How often ends of jobs were moved, or clusters taken back: each may make one superfluous."""
        self.do(self.there.start())

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(work)

    # -- time ----------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.5, 2.0, 20.0, 200.0]))
    def wait(self, seconds: float) -> None:
        self.there.time.at += seconds
        for cluster in self.there.clusters.values():
            cluster.tick()

    @rule(seconds=st.sampled_from([-3600.0, -5.0, 5.0, 3600.0]))
    def set_the_clock(self, seconds: float) -> None:
        self.there.time.wall_offset_s += seconds
        self.moved += 1

    # -- the controller ------------------------------------------------------------------------------------------------

    @rule(name=NAMES)
    def reconcile(self, name: str) -> None:
        self.there.tell()
        self.do(self.there.pass_over(name))

    @rule()
    def restart(self) -> None:
        self.do(self.there.restart())

    @rule()
    def gateway_restarts(self) -> None:
        world = self.there.controller.world
        world.gateway_went()
        self.do(self.there.pass_over())
        world.gateway_came()

    @rule()
    def hear_it_twice(self) -> None:
        self.there.tell()
        self.there.tell()

    # -- people --------------------------------------------------------------------------------------------------------

    @rule(model=MODELS, requests=st.integers(0, 9), clusters=st.sampled_from([None, ["a"], ["b"]]))
    def ask(self, model: str, requests: int, clusters: list[str] | None) -> None:
        self.there.ask(model, requests, clusters)

    @rule(name=NAMES)
    def drain_or_resume(self, name: str) -> None:
        if name in self.there.paper.drained:
            del self.there.paper.drained[name]
            self.moved += 1
        else:
            self.there.paper.drain(name, "", self.there.time.now())

    # -- clusters ------------------------------------------------------------------------------------------------------

    @rule(name=NAMES, answers=st.sampled_from(["yes", "silent", "lost"]))
    def answer(self, name: str, answers: str) -> None:
        self.there.clusters[name].answers = answers

    @rule(name=NAMES, wait_s=st.sampled_from([0.0, 30.0, 3000.0]), foretells=st.booleans())
    def queue(self, name: str, wait_s: float, foretells: bool) -> None:
        self.there.clusters[name].wait_s = wait_s
        self.there.clusters[name].foretells = foretells

    @rule(name=NAMES)
    def hold_or_release_polls(self, name: str) -> None:
        cluster = self.there.clusters[name]
        if cluster.held is None:
            cluster.held = asyncio.Event()
        else:
            cluster.held.set()
            cluster.held = None
            self.do(asyncio.sleep(0))

    @rule(data=st.data(), end=ENDS)
    @precondition(lambda self: self.living())
    def job_ends(self, data: st.DataObject, end: JobState) -> None:
        cluster, job = data.draw(st.sampled_from(self.living()))
        cluster.end(job, end)

    @rule(data=st.data(), seconds=st.sampled_from([-200.0, 20.0, 2000.0]))
    @precondition(lambda self: self.running())
    def end_moves(self, data: st.DataObject, seconds: float) -> None:
        _, job = data.draw(st.sampled_from(self.running()))
        job.ends_at = (job.ends_at or self.there.time.at + 300) + seconds
        self.moved += 1

    # -- pilots --------------------------------------------------------------------------------------------------------

    @rule(data=st.data())
    @precondition(lambda self: self.running())
    def replica_fails(self, data: st.DataObject) -> None:
        _, job = data.draw(st.sampled_from(self.running()))
        for replica_id, said in job.replicas.items():
            if not said.state.is_final:
                job.replicas[replica_id] = replace(said, state=ReplicaState.FAILED, reason="died")
                return

    @rule(data=st.data())
    @precondition(lambda self: self.running())
    def link_changes(self, data: st.DataObject) -> None:
        _, job = data.draw(st.sampled_from(self.running()))
        job.is_linked = not job.is_linked

    @rule(lost=st.booleans())
    def lose_calls(self, lost: bool) -> None:
        self.there.loses_calls = lost

    # -- what must hold ------------------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_submitted_twice(self) -> None:
        for cluster in self.there.clusters.values():
            assert max(cluster.submits.values(), default=0) <= 1

    @invariant()
    def nothing_lives_that_the_books_do_not_know(self) -> None:
        for cluster, job in self.living():
            row = self.there.paper.jobs[job.spec.job_id]
            assert not row.state.is_final, f"{row} has ended by the books, and lives on {cluster.name}"

    @invariant()
    def there_are_never_more_than_are_allowed_and_those_that_they_replace(self) -> None:
        for name in ("m@a", "m@b", "n@a", "n@b"):
            alive = [
                row
                for row in self.there.paper.replicas.values()
                if row.deployment == name
                and row.state in (ReplicaState.QUEUED, ReplicaState.STARTING, ReplicaState.READY)
                and self.there.paper.jobs[row.job_id].state is not JobState.ENDING
            ]
            assert len(alive) <= 2 * MOST + self.moved

    @invariant()
    def nobody_takes_more_than_there_is(self) -> None:
        for _, job in self.living():
            assert len(job.alive) <= (4 if job.spec.resources.exclusive else 1)

    def teardown(self) -> None:
        """Left in peace, the clusters become what they should be, and nothing else runs."""
        try:
            self.left_in_peace()
        finally:
            for cluster in self.there.clusters.values():
                cluster.held = None
            self.do(self.there.close())
            self.loop.close()

    def left_in_peace(self) -> None:
        there = self.there
        there.paper.drained.clear()
        there.loses_calls = False
        for cluster in there.clusters.values():
            cluster.answers, cluster.wait_s = "yes", 0.0
            if cluster.held is not None:
                cluster.held.set()
                cluster.held = None
        there.demand = {"m": [], "n": []}
        there.ask("n", 3)
        for _ in range(8):
            for _, job in self.running():
                job.is_linked = True
            self.do(there.live(80, 8))
        there.tell()
        self.do(there.pass_over())
        assert there.serving("m", "a") >= 1, "hot"
        assert there.serving("n") >= 2
        living = {job.spec.job_id for _, job in self.living()}
        assert living == {row.id for row in there.paper.jobs.values() if not row.state.is_final}
        reported = {replica_id for _, job in self.running() for replica_id in job.alive}
        known = {row.id for row in there.paper.replicas.values() if not row.state.is_final}
        assert reported <= known, "nobody runs astray"

    # -- helpers -------------------------------------------------------------------------------------------------------

    def living(self) -> list[tuple[ModelledCluster, ModelledJob]]:
        return [(cluster, job) for cluster in self.there.clusters.values() for job in cluster.living().values()]

    def running(self) -> list[tuple[ModelledCluster, ModelledJob]]:
        return [(cluster, job) for cluster, job in self.living() if job.state is JobState.RUNNING]


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
