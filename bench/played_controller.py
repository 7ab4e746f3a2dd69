"""The controller on a played cluster: its own loop, plan, store and socket, but jobs and pilots that cost nothing.

python bench/played_controller.py --config FILE

A submitted job runs at once. Its pilot is a real link to the gateway with nothing behind it, which reports its replicas
as READY. For every plan that was made, ``plans.jsonl`` in the state directory gets a line.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from firstkit.clock import monotonic
from firstkit.config import Config
from firstkit.errors import CallFailed
from firstkit.links.messages import Call, Exchange, Open, PilotReport, PilotSpec, ReplicaReport, Sink
from firstkit.links.pilot_end import PilotLink
from firstkit.process import main
from firstkit.reconciler import loop as reconciler_loop
from firstkit.reconciler import plan as planning
from firstkit.reconciler.controller import Controller
from firstkit.reconciler.survey import Survey
from firstkit.schedulers.scheduler import JobSpec
from firstkit.states import ReplicaState
from firstkit.testing.fake_clusters import QuickCluster
from firstkit.wire import from_dict

PLANS = "plans.jsonl"


class PlayedPilot:
    """The service behind a link: all its replicas are ready, and nobody asks them anything."""

    def __init__(self, spec: PilotSpec) -> None:
        self._spec = spec

    def over(self) -> None:
        raise RuntimeError("a job was over")

    def report(self) -> PilotReport:
        replicas = (
            ReplicaReport(replica.replica_id, ReplicaState.READY, load_s=1.0, capabilities=("chat",))
            for replica in self._spec.replicas
        )
        return PilotReport(self._spec.job_id, tuple(replicas))

    def open(self, request: Open, body: bytes, sink: Sink) -> Exchange:
        raise NotImplementedError

    async def call(self, call: Call) -> Any:
        raise CallFailed(f"a played pilot does not know '{call.verb}'")


class PlayedCluster(QuickCluster):
    """Runs every job at once, as a link in this process."""

    def __init__(self) -> None:
        super().__init__()
        self._links: set[asyncio.Task[None]] = set()

    async def submit(self, spec: JobSpec) -> str:
        pilot = from_dict(PilotSpec, spec.pilot)
        self._links.add(asyncio.ensure_future(PilotLink(pilot, PlayedPilot(pilot)).run()))
        return await super().submit(spec)


def note_plans(path: Path) -> None:
    """Have a line written for every plan that is made from now on."""
    made, log = planning.plan, path.open("a", buffering=1)

    def plan(desired: Sequence[planning.Desired], survey: Survey, **options: Any) -> planning.Plan:
        started = time.perf_counter()
        found = made(desired, survey, **options)
        took_s = time.perf_counter() - started
        ready = sum(row.state is ReplicaState.READY for row in survey.replicas)
        line = {"at": monotonic(), "took_s": took_s, "ready": ready, "actions": len(found.actions)}
        log.write(json.dumps(line) + "\n")
        return found

    reconciler_loop.plan = plan  # type: ignore[attr-defined]


async def _run(config: Config) -> None:
    note_plans(config.server.path(PLANS))
    cluster = PlayedCluster()
    await Controller(config, lambda _: cluster).run()


if __name__ == "__main__":
    sys.exit(main("bench/played_controller.py", _run))
