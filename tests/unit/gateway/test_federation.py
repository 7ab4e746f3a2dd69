"""The routes about clusters and jobs: what people see of them and what not; drain, resume and explain."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select
from starlette.types import ASGIApp

from firstkit.auth.authenticator import Identity
from firstkit.clock import now
from firstkit.gateway.state import Gateway
from firstkit.gateway.views import without_nodes
from firstkit.schedulers.scheduler import Resources
from firstkit.states import JobState, ReplicaState
from firstkit.store.jobs import NewReplica, add_job, add_replicas, move_job, move_replica, note_job
from firstkit.store.tables import audit
from firstkit.store.wake import WakeClient
from unit.gateway.support import HOST, IDENTITY, Answer, ask, route
from unit.gateway.upstreams import until

PUMPS = now().replace(microsecond=0) + timedelta(hours=2)
CONFIG = f"""
clusters:
  polaris:
    maintenance: [{{start: "{PUMPS.isoformat()}", end: "{(PUMPS + timedelta(hours=8)).isoformat()}", message: pumps}}]
    limits: {{nodes: 8}}
  sophia: {{access: {{projects: [physics]}}}}
  cloud: {{kind: external}}
models:
  m:
    aliases: [alias]
    deployments:
      - {{cluster: polaris, engine: {{kind: command, argv: [x], capabilities: [chat]}}}}
      - {{cluster: sophia, engine: {{kind: command, argv: [x], capabilities: [chat]}}}}
      - {{cluster: cloud, engine: {{kind: external, url: "http://x/v1", capabilities: [chat]}}}}
  org/secret:
    deployments:
      - {{cluster: sophia, engine: {{kind: command, argv: [x], capabilities: [chat]}}}}
"""
PHYSICIST = replace(IDENTITY, project_name="physics")
CAPACITY = {"nodes": 40, "free_nodes": 3, "cpus": 9, "free_cpus": 9, "gpus": 160, "free_gpus": 12}
CAPACITY |= {"memory_bytes": 9, "free_memory_bytes": 9}


pytestmark = pytest.mark.configured(CONFIG)


@pytest.fixture
async def controller(gateway: Gateway) -> AsyncIterator[list[Any]]:
    """What a controller hears that is connected."""
    heard: list[Any] = []
    client = WakeClient(gateway.config.server.path("controller.sock"), heard.append, lambda: None)
    await gateway.wake.start()
    await client.start()
    await until("the controller is connected", lambda: gateway.wake.is_connected)
    yield heard
    await client.close()
    await gateway.wake.close()


def facts(**more: Any) -> dict[str, Any]:
    known = {"scheduler": "answering", "reason": "", "asked_at": now().isoformat(), "capacity": CAPACITY}
    known |= {"drained": False, "message": "", "maintenance": None, "spent": {"nodes": 2, "node_hours_today": 7.5}}
    known |= {"availability": {"day": 0.75}, "wait_s": 60, "late_wait_s": 90, "wait_error_s": 12, "wait_coverage": 0.9}
    return {**known, "waits": 40, **more}


def forecast(status: str, **more: Any) -> dict[str, Any]:
    known = {"eta_s": None, "reason": "", "position": None, "wanted": 1, "why": ["1 hot"], "waits_for": []}
    return {"status": status, **known, "replicas": {}, "start_in_s": None, **more}


def hear(gateway: Gateway, on_polaris: dict[str, Any], on_sophia: dict[str, Any], **clusters: Any) -> None:
    """What the controller says of ``m``, and of clusters."""
    model = {**forecast("queued"), "clusters": {"polaris": on_polaris, "sophia": on_sophia}}
    gateway.forecasts.hear({"m": model}, clusters)


async def add(gateway: Gateway, name: str, cluster: str = "polaris", model: str = "m", state: Any = None) -> None:
    """A job with one replica, both of this name, the job in ``state``."""
    new = NewReplica(f"rep-{name}", f"job-{name}", model, f"{model}@{cluster}", cluster, 4, Resources())
    async with gateway.db.begin() as conn:
        await add_job(conn, f"job-{name}", cluster, Resources(nodes=2, walltime_s=3600), f"sha-{name}", now())
        await add_replicas(conn, [new], now())
        await move_job(conn, f"job-{name}", JobState.SUBMITTING)
        await move_job(conn, f"job-{name}", state or JobState.PENDING)


# -- clusters ----------------------------------------------------------------------------------------------------------


async def seen(app: ASGIApp, path: str = "/v1/clusters", identity: Identity = IDENTITY) -> Any:
    answer = await ask(app, path, identity=identity)
    assert answer.status == 200, answer.body
    return answer.json


async def test_a_cluster_with_all_that_is_known(gateway: Gateway, app: ASGIApp, controller: list[Any]) -> None:
    queued = forecast("queued", eta_s=190.0, position=3, reason="the job waits: Resources")
    hear(gateway, queued, forecast("offline"), polaris=facts())
    await add(gateway, "a")
    await add(gateway, "b", state=JobState.RUNNING)
    found = await seen(app, "/v1/clusters/polaris")
    [model] = found.pop("models")
    assert 189 < model.pop("eta_s") <= 190
    assert model == {"id": "m", "status": "queued", "position": 3, "reason": "the job waits: Resources"}
    window = found.pop("maintenance")
    assert datetime.fromisoformat(window["start"]) == PUMPS
    assert window["message"] == "pumps"
    assert found == {
        "id": "polaris",
        "object": "cluster",
        "status": "open",
        "message": "",
        "scheduler": "local",
        "capacity": {"nodes": 40, "gpus": 160, "free_nodes": 3, "free_gpus": 12},
        "queue": {"pending": 1, "running": 1},
        "availability": {"day": 0.75, "week": None},
        "forecast": {"wait_s": 60, "late_wait_s": 90, "error_s": 12, "coverage": 0.9, "waits": 40},
    }


async def test_only_those_that_one_may_use(gateway: Gateway, app: ASGIApp) -> None:
    async def names(identity: Identity) -> list[str]:
        return [cluster["id"] for cluster in (await seen(app, identity=identity))["data"]]

    assert await names(IDENTITY) == ["polaris", "cloud"]
    assert await names(PHYSICIST) == ["polaris", "sophia", "cloud"]


@pytest.mark.parametrize("path", ["", "/models", "/models/m"])
async def test_others_are_as_if_they_were_not_there(app: ASGIApp, path: str) -> None:
    hidden, unknown = [await ask(app, f"/v1/clusters/{name}{path}") for name in ("sophia", "nowhere")]
    assert (hidden.status, hidden.error["code"]) == (404, "cluster_not_found")
    assert hidden.error["message"].replace("sophia", "nowhere") == unknown.error["message"]


async def test_what_the_controller_said_before_it_went_away_is_not_shown(gateway: Gateway, app: ASGIApp) -> None:
    hear(gateway, forecast("offline"), forecast("offline"), polaris=facts(scheduler="silent"))
    polaris = await seen(app, "/v1/clusters/polaris")
    assert (polaris["status"], polaris["capacity"]) == ("open", None)


async def test_a_scheduler_that_does_not_answer(gateway: Gateway, app: ASGIApp, controller: list[Any]) -> None:
    silent = facts(scheduler="silent", reason="ssh: login-7 refused")
    hear(gateway, forecast("offline"), forecast("offline"), polaris=silent)
    polaris = await seen(app, "/v1/clusters/polaris")
    assert polaris["status"] == "silent"
    assert "login-7" not in json.dumps(polaris)
    status = await seen(app, "/admin/status")
    assert status["clusters"][0]["reason"] == "ssh: login-7 refused"


async def test_a_maintenance_that_is_under_way(gateway: Gateway, app: ASGIApp, monkeypatch: pytest.MonkeyPatch) -> None:
    later = PUMPS + timedelta(hours=1)
    monkeypatch.setattr("firstkit.gateway.federation.now", lambda: later)
    gateway.table.clock = later.timestamp
    polaris = await seen(app, "/v1/clusters/polaris")
    assert (polaris["status"], polaris["message"]) == ("maintenance", "pumps")
    [model] = polaris["models"]
    assert model["reason"] == "the cluster 'polaris' is in maintenance: pumps"


async def test_jobs_of_models_that_one_may_not_see_do_not_count(gateway: Gateway, app: ASGIApp) -> None:
    gateway.reach.sees = lambda identity, model: model == "m"  # type: ignore[method-assign]
    await add(gateway, "a", "sophia")
    await add(gateway, "b", "sophia", "org/secret")
    sophia = await seen(app, "/v1/clusters/sophia", PHYSICIST)
    assert (sophia["queue"]["pending"], [model["id"] for model in sophia["models"]]) == (1, ["m"])


async def test_a_cluster_of_others(app: ASGIApp) -> None:
    cloud = await seen(app, "/v1/clusters/cloud")
    assert (cloud["status"], cloud["scheduler"], cloud["capacity"]) == ("open", None, None)


# -- models ------------------------------------------------------------------------------------------------------------


async def test_a_model_is_as_live_as_it_is_where_one_may_use_it(gateway: Gateway, app: ASGIApp) -> None:
    starting = forecast("starting", eta_s=60.0, reason="the engine loads")
    hear(gateway, starting, forecast("live", eta_s=0.0))
    gateway.table.add(route(cluster="sophia"))
    mine, theirs = [(await seen(app, "/v1/models/m", who))["first"] for who in (IDENTITY, PHYSICIST)]
    assert (theirs["status"], theirs["replicas_ready"]) == ("live", 1)
    assert (mine["status"], mine["replicas_ready"], mine["reason"]) == ("starting", 0, "the engine loads")
    assert [place["name"] for place in mine["clusters"]] == ["polaris", "cloud"]
    assert [place["status"] for place in theirs["clusters"]] == ["starting", "live", "offline"]


async def test_a_model_that_one_may_not_see_is_not_there(app: ASGIApp) -> None:
    assert [model["id"] for model in (await seen(app, "/v1/models"))["data"]] == ["m"]
    assert [model["id"] for model in (await seen(app, "/v1/models", PHYSICIST))["data"]] == ["m", "org/secret"]
    hidden, unknown = [await ask(app, f"/v1/models/{name}") for name in ("org/secret", "org/nobody")]
    assert (hidden.status, hidden.error["code"]) == (404, "model_not_found")
    assert hidden.error["message"].replace("secret", "nobody") == unknown.error["message"]


async def test_the_models_of_one_cluster(gateway: Gateway, app: ASGIApp) -> None:
    """As a client asks whose base URL names the cluster."""
    gateway.table.add(route(cluster="cloud"))
    [model] = (await seen(app, "/v1/clusters/polaris/models"))["data"]
    assert (model["id"], model["first"]["status"], model["first"]["replicas_ready"]) == ("m", "offline", 0)
    assert [place["name"] for place in model["first"]["clusters"]] == ["polaris"]
    assert (await seen(app, "/v1/clusters/cloud/models/alias"))["first"]["status"] == "live"
    assert len((await seen(app, "/v1/clusters/sophia/models", PHYSICIST))["data"]) == 2
    answer = await ask(app, "/v1/clusters/polaris/models/org/secret", identity=PHYSICIST)
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Resources", "Resources"),
        ("ReqNodeNotAvail, UnavailableNodes:nid[001-004]", "ReqNodeNotAvail"),
        ("it waits: ReqNodeNotAvail, UnavailableNodes:nid001; failed once", "it waits: ReqNodeNotAvail; failed once"),
        ("", ""),
    ],
)
def test_names_of_nodes_are_for_operators(said: str, shown: str) -> None:
    assert without_nodes(said) == shown


# -- jobs --------------------------------------------------------------------------------------------------------------


async def test_a_job_that_waits(gateway: Gateway, app: ASGIApp) -> None:
    starts_at = now() + timedelta(minutes=5)
    hear(gateway, forecast("queued", eta_s=420.0, position=3), forecast("offline"))
    await add(gateway, "a")
    async with gateway.db.begin() as conn:
        reason = "ReqNodeNotAvail, UnavailableNodes:nid001"
        await note_job(conn, "job-a", position=3, starts_at=starts_at, reason=reason, scheduler_id="77")
    listed = await seen(app, "/v1/jobs")
    assert (listed["object"], listed["has_more"]) == ("list", False)
    [job] = listed["data"]
    assert 419 < job.pop("eta_s") <= 420
    assert datetime.fromisoformat(job.pop("starts_at")) == starts_at
    assert datetime.fromisoformat(job.pop("ends_at")) == PUMPS, "a maintenance ends it"
    assert job.pop("left_s") == pytest.approx((PUMPS - now()).total_seconds(), abs=30)
    assert job.pop("since") is not None
    known = {"position": 3, "reason": "ReqNodeNotAvail"}
    assert job == {"id": "rep-a", "object": "job", "model": "m", "cluster": "polaris", "status": "queued", **known}


async def test_a_job_that_runs(gateway: Gateway, app: ASGIApp) -> None:
    ends_at, ready_at = now() + timedelta(minutes=30), now()
    await add(gateway, "a", state=JobState.RUNNING)
    async with gateway.db.begin() as conn:
        await note_job(conn, "job-a", node="nid001", ends_at=ends_at, position=1, reason="None")
        await move_replica(conn, "rep-a", ReplicaState.READY, ready_at=ready_at)
    [job] = (await seen(app, "/v1/jobs"))["data"]
    assert (job["status"], job["eta_s"], job["position"], job["reason"]) == ("live", 0.0, None, "")
    assert datetime.fromisoformat(job["ends_at"]) == ends_at
    assert datetime.fromisoformat(job["since"]) == ready_at
    assert "nid001" not in json.dumps(job)


@pytest.mark.parametrize(
    ("job", "replica", "status"),
    [
        (JobState.RUNNING, None, "starting"),
        (JobState.RUNNING, ReplicaState.STARTING, "starting"),
        (JobState.RUNNING, ReplicaState.DRAINING, "ending"),
        (JobState.ENDING, ReplicaState.READY, "ending"),
    ],
)
async def test_what_becomes_of_a_job(gateway: Gateway, app: ASGIApp, job: Any, replica: Any, status: str) -> None:
    await add(gateway, "a", state=job)
    if replica is not None:
        async with gateway.db.begin() as conn:
            await move_replica(conn, "rep-a", replica)
    [found] = (await seen(app, "/v1/jobs"))["data"]
    assert found["status"] == status


async def test_pages_of_jobs_that_one_may_see(gateway: Gateway, app: ASGIApp) -> None:
    for name, cluster, model in (("a", "polaris", "m"), ("b", "sophia", "org/secret"), ("c", "polaris", "m")):
        await add(gateway, name, cluster, model)
    mine = await seen(app, "/v1/jobs?limit=1")
    assert ([job["id"] for job in mine["data"]], mine["has_more"]) == (["rep-a"], True)
    mine = await seen(app, "/v1/jobs?limit=1&after=rep-a")
    assert ([job["id"] for job in mine["data"]], mine["has_more"]) == (["rep-c"], False)
    assert len((await seen(app, "/v1/jobs", PHYSICIST))["data"]) == 3
    for query, param in (("after=rep-b", "after"), ("after=rep-x", "after"), ("limit=0", "limit")):
        answer = await ask(app, f"/v1/jobs?{query}")
        assert (answer.status, answer.error["param"]) == (400, param)


# -- drain and resume --------------------------------------------------------------------------------------------------


async def change(app: ASGIApp, cluster: str, verb: str, body: Any = None, identity: Identity = IDENTITY) -> Answer:
    headers = (HOST, (b"content-type", b"application/json"))
    content = b"" if body is None else json.dumps(body).encode()
    return await ask(app, f"/admin/clusters/{cluster}/{verb}", "POST", content, headers, identity)


async def test_drain_and_resume(gateway: Gateway, app: ASGIApp, controller: list[Any]) -> None:
    heard = controller
    for message in ("cooling", "cooling until 18:00"):
        answer = await change(app, "sophia", "drain", {"message": message})
        assert (answer.status, answer.json["status"], answer.json["message"]) == (200, "drained", message)
        assert gateway.table.calendar.drained == {"sophia": message}
    sophia = await seen(app, "/v1/clusters/sophia", PHYSICIST)
    assert (sophia["status"], sophia["message"]) == ("drained", "cooling until 18:00")
    assert sophia["models"][0]["reason"] == "the cluster 'sophia' is drained: cooling until 18:00"
    for _ in range(2):
        answer = await change(app, "sophia", "resume")
        assert (answer.status, answer.json["status"]) == (200, "open")
    assert gateway.table.calendar.drained == {}
    await until("the controller was told each time", lambda: heard == [{"kind": "clusters"}] * 4)
    async with gateway.db.read() as conn:
        rows = (await conn.execute(select(audit).order_by(audit.c.at))).all()
    assert [row.action for row in rows] == ["cluster.drain", "cluster.drain", "cluster.resume"]
    assert {(row.actor, row.subject) for row in rows} == {("user", "sophia")}


async def test_clusters_of_others_can_be_drained_too(gateway: Gateway, app: ASGIApp) -> None:
    gateway.table.add(route(cluster="cloud"))
    assert (await change(app, "cloud", "drain", {"message": "they pay too much"})).status == 200
    assert (await seen(app, "/v1/models/m"))["first"]["status"] == "offline"


async def test_a_model_all_of_whose_clusters_are_closed(gateway: Gateway, app: ASGIApp) -> None:
    gateway.forecasts.hear({"org/secret": {**forecast("offline", eta_s=60.0), "clusters": {}}})
    before = (await seen(app, "/v1/models/org/secret", PHYSICIST))["first"]
    assert (before["eta_s"], before["reason"]) == (60.0, "")
    await change(app, "sophia", "drain", {"message": "cooling"})
    after = (await seen(app, "/v1/models/org/secret", PHYSICIST))["first"]
    assert (after["eta_s"], after["reason"]) == (None, "the cluster 'sophia' is drained: cooling")
    for path in ("/admin/status", "/admin/explain/org/secret"):
        found = await seen(app, path)
        known = found["models"][1] if "models" in found else found
        assert (known["eta_s"], known["reason"]) == (None, "the cluster 'sophia' is drained: cooling")


@pytest.mark.parametrize("verb", ["drain", "resume"])
async def test_a_cluster_that_is_not_there(app: ASGIApp, verb: str) -> None:
    answer = await change(app, "nowhere", verb, {"message": "x"})
    assert (answer.status, answer.error["code"]) == (404, "cluster_not_found")


@pytest.mark.parametrize("body", [None, {}, {"message": ""}, {"message": "x" * 501}, {"message": "x", "until": 3}])
async def test_a_drain_needs_a_reason_for_people(gateway: Gateway, app: ASGIApp, body: Any) -> None:
    assert (await change(app, "polaris", "drain", body)).status == 400
    assert gateway.closures.drained == {}


async def test_only_administrators_drain(app: ASGIApp) -> None:
    user = replace(IDENTITY, scopes=frozenset({"inference", "metrics"}))
    for verb in ("drain", "resume"):
        assert (await change(app, "polaris", verb, {"message": "x"}, user)).status == 403
    assert (await ask(app, "/admin/explain/m", identity=user)).status == 403


# -- explain -----------------------------------------------------------------------------------------------------------


async def test_explain(gateway: Gateway, app: ASGIApp, controller: list[Any]) -> None:
    queued = forecast("queued", eta_s=190.0, position=3, wanted=2, replicas={"QUEUED": 2}, start_in_s=720.0)
    queued |= {"why": ["1 hot", "demand: 1 request"], "waits_for": ["queue: position 3, Resources"]}
    hear(gateway, queued, forecast("offline"), polaris=facts(), sophia=facts(capacity=None))
    gateway.table.add(route(cluster="cloud", most=4))
    gateway.room.take("m")
    found = await seen(app, "/admin/explain/alias")
    assert (found["model"], found["status"], found["controller"]) == ("m", "live", "connected")
    assert (found["ready"], found["in_flight"], found["waiting"]) == (1, 1, 0)
    assert [(entry["clusters"], entry["in_flight"]) for entry in found["demand"]] == [(None, 1)]
    polaris, sophia, cloud = found["clusters"]
    assert (polaris["cluster"], polaris["position"], polaris["wanted"]) == ("polaris", 3, 2)
    assert polaris["why"] == ["1 hot", "demand: 1 request"]
    assert polaris["waits_for"] == ["queue: position 3, Resources"]
    assert (polaris["replicas"], polaris["start_in_s"]) == ({"QUEUED": 2}, 720.0)
    assert polaris["state"]["capacity"]["free_nodes"] == 3
    assert sophia["state"]["capacity"] is None
    assert (cloud["status"], cloud["ready"], cloud["in_flight"], cloud["wanted"]) == ("live", 1, 1, 0)
    assert cloud["state"]["kind"] == "external"


async def test_explain_before_a_controller_was_there(app: ASGIApp) -> None:
    found = await seen(app, "/admin/explain/org/secret")
    assert (found["status"], found["controller"]) == ("offline", "silent")
    assert found["clusters"][0]["why"] == []


async def test_explain_of_a_model_that_is_not_there(app: ASGIApp) -> None:
    answer = await ask(app, "/admin/explain/org/nobody")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


# -- the status of operators -------------------------------------------------------------------------------------------


async def test_operators_see_all_of_a_cluster(gateway: Gateway, app: ASGIApp, controller: list[Any]) -> None:
    hear(gateway, forecast("offline"), forecast("offline"), polaris=facts())
    await change(app, "polaris", "drain", {"message": "cooling"})
    await add(gateway, "a")
    polaris, sophia, cloud = (await seen(app, "/admin/status"))["clusters"]
    assert (polaris["scheduler"], polaris["carrier"], polaris["link"]) == ("local", "local", "socket")
    assert (polaris["scheduler_status"], polaris["capacity"]) == ("answering", CAPACITY)
    assert datetime.fromisoformat(polaris["asked_at"]) <= datetime.now(UTC)
    assert (polaris["drained"]["actor"], polaris["drained"]["message"]) == ("user", "cooling")
    assert polaris["queue"] == {"pending": 1, "running": 0}
    assert polaris["spent"] == {"nodes": 2, "node_hours_today": 7.5}
    assert polaris["limits"] == {"nodes": 8, "node_hours_per_day": None}
    assert (sophia["scheduler_status"], sophia["drained"]) == ("unknown", None)
    assert (cloud["kind"], cloud["scheduler"], cloud["link"]) == ("external", None, None)


async def test_operators_see_all_of_a_job(gateway: Gateway, app: ASGIApp) -> None:
    starts_at = now() + timedelta(minutes=5)
    await add(gateway, "a")
    await add(gateway, "b", state=JobState.FAILED)
    async with gateway.db.begin() as conn:
        await note_job(conn, "job-a", position=3, starts_at=starts_at)
        await note_job(conn, "job-b", position=3, exit_code=9, ended_at=now())
    status = await seen(app, "/admin/status")
    waiting, failed = status["jobs"]
    assert (waiting["position"], datetime.fromisoformat(waiting["starts_at"])) == (3, starts_at)
    assert (waiting["resources"]["nodes"], waiting["resources"]["walltime_s"]) == (2, 3600)
    assert (failed["position"], failed["starts_at"], failed["exit_code"]) == (None, None, 9)
    assert datetime.fromisoformat(status["replicas"][0]["ends_at"]) == PUMPS
    model = status["models"][0]
    assert [place["name"] for place in model["clusters"]] == ["polaris", "sophia", "cloud"]
