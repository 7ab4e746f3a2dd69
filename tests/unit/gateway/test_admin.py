"""The routes for operators: what is shown of models, jobs and replicas, also where parts are away."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp

from firstkit.clock import now
from firstkit.errors import CallFailed, LinkLost, StoreUnavailable
from firstkit.gateway.state import Gateway
from firstkit.schedulers.scheduler import Resources
from firstkit.states import JobState, ReplicaState
from firstkit.store.jobs import NewReplica, add_job, add_replicas, move_job, move_replica
from unit.gateway.support import ask, route


@pytest.fixture
async def stored(gateway: Gateway) -> None:
    """A job that runs with a replica that failed, and a job that ended long ago."""
    needs = Resources()
    async with gateway.db.begin() as conn:
        for job_id in ("job-1", "job-old"):
            await add_job(conn, job_id, "here", needs, f"sha-{job_id}", now())
            await move_job(conn, job_id, JobState.SUBMITTING)
        await move_job(conn, "job-1", JobState.RUNNING, node="node-7", scheduler_id="42", started_at=now())
        await move_job(conn, "job-old", JobState.FAILED, ended_at=now() - timedelta(hours=2))
        await add_replicas(conn, [NewReplica("rep-1", "job-1", "m", "m@here", "here", 4, needs)], now())
        failed: dict[str, Any] = {"reason": "exit status 3", "log_tail": "out of memory\n", "ended_at": now()}
        await move_replica(conn, "rep-1", ReplicaState.FAILED, **failed)


async def test_alive_and_ready(app: ASGIApp) -> None:
    assert (await ask(app, "/health")).json == {"status": "ok"}
    assert (await ask(app, "/ready")).json == {"status": "ready"}


async def test_without_its_database_it_is_alive_but_not_ready(
    gateway: Gateway, app: ASGIApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> Any:
        raise StoreUnavailable

    monkeypatch.setattr(gateway.db, "begin", away)
    monkeypatch.setattr(gateway.db, "read", away)
    answer = await ask(app, "/ready")
    assert (answer.status, answer.json["status"]) == (503, "not ready")
    assert (await ask(app, "/health")).status == 200
    assert (await ask(app, "/admin/status")).error["code"] == "store_unavailable"


async def test_metrics_are_what_prometheus_reads(app: ASGIApp) -> None:
    answer = await ask(app, "/metrics")
    assert answer.headers[b"content-type"].startswith(b"text/plain; version=0.0.4")
    assert len(list(text_string_to_metric_families(answer.body.decode()))) >= 10


async def test_status_of_a_gateway_that_has_nothing(app: ASGIApp) -> None:
    status = (await ask(app, "/admin/status")).json
    assert status["controller"] == "silent"
    assert (status["jobs"], status["replicas"]) == ([], [])
    model = {"aliases": ["alias"], "eta_s": None, "in_flight": 0, "reason": "", "ready": 0, "waiting": 0}
    model |= {"capabilities": ["chat", "completions", "count_tokens", "messages", "responses"], "context_length": None}
    place = {"status": "offline", "eta_s": None, "position": None, "reason": "", "ready": 0, "in_flight": 0, "room": 0}
    model |= {"clusters": [{"name": "here", **place}, {"name": "outside", **place}]}
    assert status["models"][0] == {"id": "m", "status": "offline", **model}


async def test_status_of_what_lives_and_what_ended_lately(gateway: Gateway, app: ASGIApp, stored: None) -> None:
    gateway.table.add(route(most=4))
    gateway.room.take("m")
    status = (await ask(app, "/admin/status")).json
    [job] = status["jobs"]
    assert (job["id"], job["state"], job["node"], job["scheduler_id"]) == ("job-1", "RUNNING", "node-7", "42")
    assert job["link"] == "down"
    [replica] = status["replicas"]
    assert (replica["id"], replica["state"], replica["reason"]) == ("rep-1", "FAILED", "exit status 3")
    assert replica["max_in_flight"] == 4
    model = status["models"][0]
    assert (model["status"], model["ready"], model["in_flight"]) == ("live", 1, 1)


async def test_a_log_comes_from_the_pilot(gateway: Gateway, app: ASGIApp, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    async def log(replica_id: str, lines: int) -> str:
        asked.append((replica_id, lines))
        return "loading\nready\n"

    monkeypatch.setattr(gateway.pilots, "log", log)
    answer = await ask(app, "/admin/replicas/rep-9/log?lines=7")
    assert (answer.status, answer.body, asked) == (200, b"loading\nready\n", [("rep-9", 7)])


@pytest.mark.parametrize("error", [LinkLost(), CallFailed()])
async def test_or_it_is_what_was_kept(
    gateway: Gateway, app: ASGIApp, stored: None, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def log(replica_id: str, lines: int) -> str:
        raise error

    monkeypatch.setattr(gateway.pilots, "log", log)
    assert (await ask(app, "/admin/replicas/rep-1/log")).body == b"out of memory\n"
    answer = await ask(app, "/admin/replicas/rep-2/log")
    assert (answer.status, answer.error["code"]) == (404, "not_found")
