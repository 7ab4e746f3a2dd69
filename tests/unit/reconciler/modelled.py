"""A federation in virtual time: the real controller, with books, clusters and pilots that are values."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from firstkit.config import Config, parse_config
from firstkit.errors import SchedulerSilent
from firstkit.links.messages import PilotReport, PilotSpec, ReplicaReport
from firstkit.reconciler.controller import Controller
from firstkit.reconciler.loop import ClusterLoop
from firstkit.schedulers.scheduler import Capacity, Estimate, JobNews, JobSpec, Resources
from firstkit.states import JobState, ReplicaState
from firstkit.wire import from_dict, to_dict
from unit.reconciler.paper import Paper, PaperBooks

BEGAN_AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
ENGINE = {"kind": "command", "argv": ["x", "{socket}"]}
PILOT_MARGIN_S = 15.0


@dataclass
class Time:
    """Virtual time: monotonic seconds, and a wall clock that may be set."""

    at: float = 0.0
    wall_offset_s: float = 0.0

    def monotonic(self) -> float:
        return self.at

    def now(self) -> datetime:
        return BEGAN_AT + timedelta(seconds=self.at + self.wall_offset_s)


@dataclass
class ModelledJob:
    """One job in a modelled scheduler, with its pilot. Times: virtual seconds."""

    spec: JobSpec
    queued_at: float
    state: JobState = JobState.PENDING
    started_at: float | None = None
    ends_at: float | None = None
    replicas: dict[str, ReplicaReport] = field(default_factory=dict)
    begun_at: dict[str, float] = field(default_factory=dict)
    is_linked: bool = False
    pilot_ends_at: float | None = None

    @property
    def alive(self) -> list[str]:
        return [replica_id for replica_id, said in self.replicas.items() if not said.state.is_final]


class ModelledCluster:
    """A scheduler that does what it is told to do: queue for ``wait_s``, load for ``load_s``, be silent, lose answers.

    ``answers``: ``yes``, ``silent`` (nothing is done and said), ``lost`` (done, and not said).
    """

    def __init__(self, name: str, time: Time, wait_s: float = 0.0, load_s: float = 5.0) -> None:
        self.name = name
        self.time = time
        self.wait_s = wait_s
        self.load_s = load_s
        self.answers = "yes"
        self.foretells = False
        """Whether it says when jobs will start."""
        self.jobs: dict[str, ModelledJob] = {}
        self.submits: Counter[str] = Counter()
        self.polls: list[float] = []
        self.held: asyncio.Event | None = None
        """While it is there, answers to polls are under way until it is set."""
        self.killed_serving: list[str] = []
        """Jobs that were cancelled although a replica served in them and its pilot was linked."""

    # -- the scheduler -------------------------------------------------------------------------------------------------

    async def submit(self, spec: JobSpec) -> str:
        self.submits[spec.job_id] += 1
        self._check(before=True)
        self.jobs.setdefault(spec.job_id, ModelledJob(spec, self.time.at))
        self._check(before=False)
        return f"{self.name}-{spec.job_id}"

    async def poll(self) -> dict[str, JobNews]:
        self.polls.append(self.time.at)
        self._check(before=True)
        said = {job_id: self._news(job_id, job) for job_id, job in self.jobs.items()}
        if self.held is not None:
            await self.held.wait()
        self._check(before=False)
        return said

    async def cancel(self, job_id: str) -> None:
        self._check(before=True)
        job = self.jobs.get(job_id)
        if job is not None and not job.state.is_final:
            serving = any(said.state is ReplicaState.READY for said in job.replicas.values())
            if job.is_linked and serving:
                self.killed_serving.append(job_id)
            self.end(job, JobState.CANCELLED)
        self._check(before=False)

    async def capacity(self) -> Capacity:
        self._check(before=True)
        return Capacity(8, 32, 0, 2**36, 8, 32, 0, 2**36)

    async def close(self) -> None:
        return

    async def estimate(self, resources: Resources) -> Estimate:
        self._check(before=True)
        return Estimate(self.time.now().timestamp() + self.wait_s if self.foretells else None)

    def _check(self, *, before: bool) -> None:
        if self.answers == "silent" or (self.answers == "lost" and not before):
            raise SchedulerSilent("no answer in time")

    def _news(self, job_id: str, job: ModelledJob) -> JobNews:
        wall = self.time.wall_offset_s + BEGAN_AT.timestamp()
        return JobNews(
            job_id,
            f"{self.name}-{job_id}",
            job.state,
            started_at=None if job.started_at is None else job.started_at + wall,
            ends_at=None if job.ends_at is None else job.ends_at + wall,
            starts_at=job.queued_at + self.wait_s + wall if self.foretells and job.state is JobState.PENDING else None,
        )

    # -- jobs and pilots -----------------------------------------------------------------------------------------------

    def living(self) -> dict[str, ModelledJob]:
        return {job_id: job for job_id, job in self.jobs.items() if not job.state.is_final}

    def start(self, job: ModelledJob) -> None:
        walltime_s = job.spec.resources.walltime_s
        job.state, job.started_at, job.is_linked = JobState.RUNNING, self.time.at, True
        job.ends_at = None if walltime_s is None else self.time.at + walltime_s
        for replica in from_dict(PilotSpec, job.spec.pilot).replicas:
            self.begin(job, replica.replica_id)

    def begin(self, job: ModelledJob, replica_id: str) -> None:
        job.replicas.setdefault(replica_id, ReplicaReport(replica_id, ReplicaState.STARTING))
        job.begun_at.setdefault(replica_id, self.time.at)

    def end(self, job: ModelledJob, state: JobState) -> None:
        job.state, job.is_linked, job.replicas = state, False, {}

    def tick(self) -> None:
        """What comes of time alone: jobs start and end, engines load, those that drain stop."""
        for job in self.living().values():
            if job.state is JobState.PENDING and self.time.at >= job.queued_at + self.wait_s:
                self.start(job)
            if job.ends_at is not None and self.time.at >= job.ends_at - PILOT_MARGIN_S / 3:
                self.end(job, JobState.COMPLETED)
            for replica_id, said in job.replicas.items():
                if said.state is ReplicaState.STARTING and self.time.at >= job.begun_at[replica_id] + self.load_s:
                    job.replicas[replica_id] = replace(said, state=ReplicaState.READY, load_s=self.load_s)
                elif said.state is ReplicaState.DRAINING:
                    job.replicas[replica_id] = replace(said, state=ReplicaState.STOPPED)

    def report(self, job_id: str, job: ModelledJob) -> PilotReport:
        wall = self.time.wall_offset_s + BEGAN_AT.timestamp()
        free = (4 if job.spec.resources.exclusive else 1) - len(job.alive)
        ends_at = None if job.pilot_ends_at is None else job.pilot_ends_at + wall
        return PilotReport(job_id, tuple(job.replicas.values()), free, 0, 2**34 * free, ends_at)

    def call(self, job: ModelledJob, verb: str, args: Mapping[str, Any]) -> str | None:
        """What a pilot is told; its refusal."""
        if verb == "start":
            self.begin(job, args["replica"]["replica_id"])
        elif verb == "stop":
            said = job.replicas.get(args["replica_id"])
            if said is None:
                return "no such replica"
            if not said.state.is_final:
                job.replicas[said.replica_id] = replace(said, state=ReplicaState.DRAINING)
        elif verb == "end":
            job.pilot_ends_at = args["ends_at"] - self.time.wall_offset_s - BEGAN_AT.timestamp()
        return None


class Federation:
    """The controller over modelled clusters. ``restart`` it at any time: only rows remain."""

    def __init__(self, folder: Path, content: Mapping[str, Any]) -> None:
        self.time = Time()
        self.paper = Paper()
        self.config: Config = parse_config(yaml.safe_dump({"server": {"state_dir": str(folder)}, **content}))
        self.clusters = {name: ModelledCluster(name, self.time) for name in self.config.clusters}
        self.demand: dict[str, list[dict[str, Any]]] = {model: [] for model in self.config.models}
        self.loses_calls = False
        self.controller = self._make()

    def _make(self) -> Controller:
        made = Controller(self.config, self.clusters.__getitem__, clock=self.time.monotonic, now=self.time.now)
        made._calls._send = self.hear_call
        made._make_loops(lambda name: PaperBooks(self.paper, name, self.time.now))
        return made

    async def start(self) -> None:
        for loop in self.controller.loops.values():
            await loop.start()
        self.controller.world.gateway_came()
        self.tell()

    async def restart(self) -> None:
        """The controller dies, with all that it had under way, and another one starts."""
        await self.close()
        self.controller = self._make()
        await self.start()

    async def close(self) -> None:
        for loop in self.controller.loops.values():
            await loop.close()
        self.controller.teller.close()

    def tell(self) -> None:
        """What the gateway says: all that it knows."""
        pilots = {
            job_id: to_dict(cluster.report(job_id, job))
            for cluster in self.clusters.values()
            for job_id, job in cluster.living().items()
            if job.is_linked
        }
        gone = {job_id: None for job_id in self.controller.world.reports if job_id not in pilots}
        self.controller.world.hear_pilots({"pilots": {**pilots, **gone}})
        self.controller.world.hear_demand(self.demand)

    def ask(self, model: str, requests: int, clusters: list[str] | None = None) -> None:
        entry = {"clusters": clusters, "waiting": requests, "in_flight": 0, "idle_s": 0.0 if requests else None}
        others = [one for one in self.demand[model] if one["clusters"] != clusters]
        self.demand[model] = [*others, entry]

    def hear_call(self, message: dict[str, Any]) -> None:
        reply: dict[str, Any] = {"result": None}
        found = [(c, c.jobs[message["job_id"]]) for c in self.clusters.values() if message["job_id"] in c.jobs]
        if self.loses_calls or not found or not found[0][1].is_linked:
            reply = {"error": "no link", "refused": False}
        elif refusal := found[0][0].call(found[0][1], message["verb"], message["args"]):
            reply = {"error": refusal, "refused": True}
        self.controller._calls.hear({"id": message["id"], **reply})

    async def pass_over(self, *names: str) -> None:
        """A pass of some clusters, or of all, with what it begins."""
        for name in names or tuple(self.controller.loops):
            loop = self.controller.loops[name]
            await loop.step()
            await settle(loop, but="" if self.clusters[name].held is None else "poll")

    async def live(self, seconds: float, step_s: float = 5.0) -> None:
        """Let time pass, with a pass after each step."""
        until = self.time.at + seconds
        while self.time.at < until:
            for cluster in self.clusters.values():
                cluster.tick()
            self.tell()
            await self.pass_over()
            self.watch()
            self.time.at = min(until, self.time.at + step_s)

    def watch(self) -> None:
        """Called after each pass of ``live``."""

    def serving(self, model: str, *names: str) -> int:
        """Replicas that take requests, in truth."""
        return sum(
            said.state is ReplicaState.READY
            for name in names or tuple(self.clusters)
            for job in self.clusters[name].living().values()
            for said in job.replicas.values()
            if any(one.model == model for one in from_dict(PilotSpec, job.spec.pilot).replicas)
        )


async def settle(loop: ClusterLoop, *, but: str = "") -> None:
    """Until nothing is under way any more."""
    while tasks := [task for key, task in loop.hands.under_way.items() if key != but]:
        await asyncio.wait(tasks)
        await asyncio.sleep(0)


def on(cluster: str, **values: Any) -> dict[str, Any]:
    """A deployment."""
    return {"cluster": cluster, "engine": ENGINE, **values}
