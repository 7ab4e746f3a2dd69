"""Rows, reports and deployments with all that a test does not care about filled in."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from firstkit.config import ResolvedDeployment, Scale
from firstkit.engines.engine import EngineSpec
from firstkit.links.messages import PilotReport, ReplicaReport
from firstkit.schedulers.scheduler import Resources
from firstkit.states import JobState, ReplicaState
from firstkit.store.jobs import JobRow, ReplicaRow

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
ONE_CORE = Resources(cpus_per_node=1, memory_bytes=100)


def job(job_id: str = "job-a", state: JobState = JobState.RUNNING, **values: Any) -> JobRow:
    known: dict[str, Any] = {
        "cluster": "here",
        "reason": "",
        "scheduler_id": "1",
        "resources": ONE_CORE,
        "exit_code": None,
        "node": None,
        "created_at": NOW,
        "submitted_at": NOW,
        "started_at": NOW,
        "ends_at": None,
        "ended_at": None,
        "observed_at": NOW,
        "absent_polls": 0,
        "absent_since": None,
    }
    return JobRow(id=job_id, state=state, **{**known, **values})


def replica(replica_id: str = "rep-a", state: ReplicaState = ReplicaState.READY, **values: Any) -> ReplicaRow:
    known: dict[str, Any] = {
        "job_id": "job-a",
        "model": "m",
        "deployment": "m@here",
        "cluster": "here",
        "reason": "",
        "log_tail": "",
        "max_in_flight": 4,
        "needs": ONE_CORE,
        "load_s": None,
        "created_at": NOW,
        "started_at": NOW,
        "ready_at": None,
        "ended_at": None,
        "observed_at": None,
    }
    return ReplicaRow(id=replica_id, state=state, **{**known, **values})


def report(job_id: str = "job-a", *replicas: ReplicaReport, **values: Any) -> PilotReport:
    return PilotReport(job_id, replicas, **values)


def deployment(name: str = "m@here", **values: Any) -> ResolvedDeployment:
    model, _, cluster = name.partition("@")
    known: dict[str, Any] = {
        "engine": EngineSpec("command", argv=("x", "{socket}")),
        "weights": None,
        "revision": None,
        "args": {},
        "resources": ONE_CORE,
        "scale": Scale(max=4, max_in_flight=4),
    }
    return ResolvedDeployment(name=name, model=model, cluster=cluster, **{**known, **values})
