"""The paths of the older service: what its clients read, and that it is what our own routes say."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from firstkit.auth.authenticator import Identity
from firstkit.clock import now
from firstkit.errors import Forbidden, Unauthenticated
from firstkit.gateway import older
from firstkit.gateway.app import build_app
from firstkit.gateway.guard import Guard
from firstkit.gateway.identity import Identify
from firstkit.gateway.request import SMALL_BODY_BYTES, RequestHead
from firstkit.gateway.state import Gateway
from firstkit.links.messages import Outcome
from firstkit.schedulers.scheduler import Resources
from firstkit.states import JobState, ReplicaState
from firstkit.store.jobs import NewReplica, add_job, add_replicas, move_job, move_replica, note_job
from unit.gateway import support
from unit.gateway.support import CHAT_BODY, IDENTITY, Answer, Served, ask, request, route
from unit.gateway.upstreams import CHUNK

ROOT = "/resource_server"
CONFIG = """
clusters:
  sophia: {}
  secret: {access: {projects: [physics]}}
  metis: {kind: external}
models:
  org/chat:
    aliases: [chat]
    description: talks
    deployments:
      - {cluster: sophia, engine: {kind: command, argv: [x], capabilities: [chat]}}
      - {cluster: metis, engine: {kind: external, url: "http://x/v1", capabilities: [completions]}}
  Embedder:
    deployments:
      - {cluster: sophia, engine: {kind: command, argv: [x], capabilities: [embeddings]}}
  org/hidden:
    deployments:
      - {cluster: secret, engine: {kind: command, argv: [x], capabilities: [chat]}}
"""
PHYSICIST = replace(IDENTITY, project_name="physics")
EMPTY: dict[str, Any] = {
    "running": [],
    "queued": [],
    "stopped": [],
    "others": [],
    "private_batch_running": [],
    "private_batch_queued": [],
}


pytestmark = pytest.mark.configured(CONFIG)


async def seen(app: ASGIApp, path: str, identity: Identity | None = IDENTITY) -> Any:
    answer = await ask(app, ROOT + path, identity=identity)
    assert answer.status == 200, answer.body
    return answer.json


def older_error(answer: Answer) -> tuple[int, str]:
    """Status and code of an error, which must have all that its clients and those of OpenAI read."""
    error = answer.json["error"]
    assert answer.json.keys() == {"error"}
    assert error.keys() == {"code", "message", "info", "type", "param"}
    assert answer.headers[b"content-type"] == b"application/json"
    return answer.status, error["code"]


def close(gateway: Gateway, cluster: str) -> None:
    gateway.table.calendar.drained = {cluster: "cooling"}


# -- for everybody -----------------------------------------------------------------------------------------------------


async def nobody(head: RequestHead) -> Identity:
    raise Unauthenticated


async def test_open_to_all_and_silent_of_what_is_not_for_all(gateway: Gateway) -> None:
    app = Guard(Identify(build_app(gateway), nobody))
    assert await seen(app, "/health", None) == {"status": "ok"}
    assert await seen(app, "/status", None) == {"sophia": True, "metis": True}
    close(gateway, "sophia")
    assert await seen(app, "/status", None) == {"sophia": False, "metis": True}


@pytest.mark.parametrize("path", ["/health/", "/status/x", "/whoami", "/list-endpoints", "/sophia/jobs", "/nope"])
async def test_nothing_else_is(gateway: Gateway, path: str) -> None:
    answer = await ask(Guard(Identify(build_app(gateway), nobody)), ROOT + path, identity=None)
    assert older_error(answer) == (401, "unauthorized")


# -- errors ------------------------------------------------------------------------------------------------------------


async def test_a_key_without_the_scope(app: ASGIApp) -> None:
    poor = replace(IDENTITY, scopes=frozenset({"metrics"}))
    assert older_error(await ask(app, f"{ROOT}/whoami", identity=poor)) == (401, "unauthorized")


async def test_paths_that_are_none(app: ASGIApp) -> None:
    assert older_error(await ask(app, f"{ROOT}/nothing")) == (404, "not_found")
    answer = await ask(app, f"{ROOT}/whoami", "DELETE")
    assert older_error(answer) == (405, "method_not_allowed")
    assert answer.headers[b"allow"] == b"GET"


async def test_what_the_guard_says_itself() -> None:
    async def fails(*_: Any) -> None:
        raise ValueError

    async def refuses(*_: Any) -> None:
        raise Forbidden

    async def reads(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass

    assert older_error(await ask(Guard(fails), f"{ROOT}/whoami")) == (500, "internal_error")
    assert older_error(await ask(Guard(refuses), f"{ROOT}/whoami")) == (401, "unauthorized")
    large = await ask(Guard(reads), f"{ROOT}/data/staging", "PUT", b"x" * (SMALL_BODY_BYTES + 1))
    assert older_error(large) == (413, "request_too_large")
    assert (await ask(Guard(fails), "/v1/models")).error.keys() == {"message", "type", "param", "code"}


# -- who, and what there is --------------------------------------------------------------------------------------------


async def test_who_asks(app: ASGIApp) -> None:
    found = await seen(app, "/whoami")
    assert (found["id"], found["name"], found["username"]) == ("u", "user", "user")
    assert found["user_group_uuids"] == []
    assert found.keys() == {"id", "name", "username", "user_group_uuids", "idp_id", "idp_name", "auth_service"}


async def test_endpoints(app: ASGIApp) -> None:
    talking = ["/v1/chat/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"]
    assert await seen(app, "/list-endpoints") == {
        "clusters": {
            "sophia": {
                "base_url": "/resource_server/sophia",
                "frameworks": {"vllm": {"models": ["Embedder", "org/chat"], "endpoints": talking}},
            },
            "metis": {
                "base_url": "/resource_server/metis",
                "frameworks": {"api": {"models": ["org/chat"], "endpoints": ["/v1/completions"]}},
            },
        }
    }
    theirs = (await seen(app, "/list-endpoints", PHYSICIST))["clusters"]["secret"]
    assert theirs["frameworks"]["vllm"]["models"] == ["org/hidden"]


async def test_models_of_a_cluster(gateway: Gateway, app: ASGIApp) -> None:
    ready = route(cluster="sophia", model="org/chat")
    ready.context_length = 4096
    gateway.table.add(ready)
    embedder, chat = await seen(app, "/sophia/models")
    protocols = ["chat_completions", "responses", "messages"]
    assert chat == {
        "id": "org/chat",
        "object": "model",
        "cluster": "sophia",
        "framework": "vllm",
        "display_name": "org/chat",
        "description": "talks",
        "capabilities": {
            "schema_version": 1,
            "api_protocols": protocols,
            "streaming": True,
            "context_window_tokens": 4096,
        },
    }
    assert (embedder["id"], embedder["capabilities"]["streaming"]) == ("Embedder", False)
    assert "context_window_tokens" not in embedder["capabilities"]
    [only] = await seen(app, "/metis/models")
    assert (only["framework"], only["capabilities"]["api_protocols"]) == ("api", ["completions"])


async def test_one_model_of_a_cluster(app: ASGIApp) -> None:
    for name in ("org/chat", "chat"):
        assert [model["id"] for model in await seen(app, f"/sophia/models?model_id={name}")] == ["org/chat"]
    for path in (
        "/sophia/models?model_id=nope",
        "/metis/models?model_id=Embedder",
        "/sophia/models?model_id=org/hidden",
    ):
        assert older_error(await ask(app, ROOT + path)) == (404, "endpoint_not_found")


@pytest.mark.parametrize("path", ["/secret/jobs", "/secret/models", "/nowhere/jobs", "/nowhere/models"])
async def test_clusters_of_others_are_as_if_they_were_not_there(app: ASGIApp, path: str) -> None:
    assert older_error(await ask(app, ROOT + path)) == (404, "cluster_not_found")
    if "secret" in path:
        await seen(app, path, PHYSICIST)


# -- jobs --------------------------------------------------------------------------------------------------------------


async def add(gateway: Gateway, name: str, *models: str, nodes: int = 1, cluster: str = "sophia") -> None:
    """A job that waits, with a replica of each of the models."""
    resources = Resources(nodes=nodes, walltime_s=3600)
    found = [
        NewReplica(f"rep-{name}-{i}", f"job-{name}", model, f"{model}@{cluster}", cluster, 4, resources)
        for i, model in enumerate(models)
    ]
    async with gateway.db.begin() as conn:
        await add_job(conn, f"job-{name}", cluster, resources, f"sha-{name}", now())
        await add_replicas(conn, found, now())
        await move_job(conn, f"job-{name}", JobState.SUBMITTING)
        await move_job(conn, f"job-{name}", JobState.PENDING)


async def start(gateway: Gateway, name: str, *states: ReplicaState, ran_s: float = 0.0) -> None:
    """The job runs since ``ran_s``, its replicas in these states."""
    async with gateway.db.begin() as conn:
        await move_job(conn, f"job-{name}", JobState.RUNNING, started_at=now() - timedelta(seconds=ran_s))
        for i, state in enumerate(states):
            await move_replica(conn, f"rep-{name}-{i}", state)


async def test_a_cluster_on_which_nothing_is(app: ASGIApp) -> None:
    assert await seen(app, "/sophia/jobs") == {**EMPTY, "cluster_status": {"free_nodes": -1}}


async def test_a_job_that_waits(gateway: Gateway, app: ASGIApp) -> None:
    starts_at = (now() + timedelta(minutes=5)).replace(microsecond=0)
    await add(gateway, "a", "org/chat", nodes=2)
    async with gateway.db.begin() as conn:
        await note_job(conn, "job-a", starts_at=starts_at, reason="ReqNodeNotAvail, UnavailableNodes:nid001")
    found = await seen(app, "/sophia/jobs")
    [job] = found.pop("queued")
    estimated = job.pop("Estimated Start Time")
    assert estimated.endswith(f"{starts_at:%H:%M:%S %Y} (UTC)")
    assert job == {
        "Models": "org/chat",
        "Framework": "vllm",
        "Cluster": "sophia",
        "Model Status": "queued",
        "Job ID": "job-a",
        "Job State": "Q",
        "Host Name": "N/A",
        "Job Comments": "ReqNodeNotAvail",
        "Nodes Reserved": "2",
    }
    assert not any(found[name] for name in EMPTY if name != "queued")


async def test_a_job_that_runs(gateway: Gateway, app: ASGIApp) -> None:
    await add(gateway, "a", "org/chat")
    await start(gateway, "a", ReplicaState.READY, ran_s=3723.5)
    async with gateway.db.begin() as conn:
        await note_job(conn, "job-a", node="nid001")
    [job] = (await seen(app, "/sophia/jobs"))["running"]
    assert (job["Model Status"], job["Job State"], job["Job Comments"]) == ("running", "R", "N/A")
    assert job["Walltime"].startswith("01:02:")
    assert "Estimated Start Time" not in job
    assert "nid001" not in json.dumps(job)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "00:00:00"), (3723, "01:02:03"), (360_000, "100:00:00"), (-5, "00:00:00")]
)
def test_how_long_it_ran(seconds: int, shown: str) -> None:
    assert older._clock(seconds) == shown


async def test_models_that_share_a_job(gateway: Gateway, app: ASGIApp) -> None:
    """They stand together as far as they are equally far."""
    await add(gateway, "a", "org/chat", "Embedder", "org/chat", "Embedder")
    states = (ReplicaState.READY, ReplicaState.READY, ReplicaState.STARTING, ReplicaState.DRAINING)
    await start(gateway, "a", *states)
    found = await seen(app, "/sophia/jobs")
    assert [(job["Models"], job["Model Status"]) for job in found["running"]] == [
        ("org/chat,Embedder", "running"),
        ("org/chat", "starting"),
    ]
    assert [(job["Models"], job["Model Status"]) for job in found["others"]] == [("Embedder", "other")]
    assert {job["Job ID"] for job in (*found["running"], *found["others"])} == {"job-a"}


async def test_all_pages_of_jobs(gateway: Gateway, app: ASGIApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(older, "ROWS", 2)
    for name in "abcde":
        await add(gateway, name, "org/chat")
    await add(gateway, "elsewhere", "org/hidden", cluster="secret")
    found = await seen(app, "/sophia/jobs")
    assert [job["Job ID"] for job in found["queued"]] == [f"job-{name}" for name in "abcde"]


async def test_a_cluster_that_is_closed_has_stopped_models(gateway: Gateway, app: ASGIApp) -> None:
    await add(gateway, "a", "org/chat")
    for cluster, framework, models in (("sophia", "vllm", ["Embedder", "org/chat"]), ("metis", "api", ["org/chat"])):
        close(gateway, cluster)
        stopped = [{"Models": model, "Framework": framework, "Cluster": cluster} for model in models]
        assert await seen(app, f"/{cluster}/jobs") == {**EMPTY, "stopped": stopped, "cluster_status": {}}


async def test_models_that_others_run(gateway: Gateway, app: ASGIApp) -> None:
    about = {"Models": "org/chat", "Framework": "api", "Cluster": "metis", "Description": "talks"}
    about |= {"Model Version": "N/A"}
    stopped = await seen(app, "/metis/jobs")
    assert stopped["stopped"] == [{**about, "Model Status": "stopped"}]
    counts = {"cluster": "metis", "total_models": 1, "live_models": 0, "stopped_models": 1}
    assert stopped["cluster_status"] == counts
    gateway.table.add(route(cluster="metis", model="org/chat"))
    live = await seen(app, "/metis/jobs")
    assert live["running"] == [{**about, "Model Status": "running"}]
    assert live["cluster_status"] == {**counts, "live_models": 1, "stopped_models": 0}


# -- what is not there -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/sophia/vllm/v1/batches", 400, "batch_unavailable"),
        ("GET", "/v1/batches/b-1", 404, "batch_not_found"),
        ("GET", "/v1/batches/b-1/result", 404, "batch_not_found"),
        ("PUT", "/data/staging", 400, "unsupported_endpoint"),
        ("POST", "/sophia/sam3service/process", 404, "endpoint_not_found"),
        ("POST", "/sophia/triton/amsc-d3/process", 404, "endpoint_not_found"),
        ("GET", "/sophia/sam3service/tasks/t-1", 404, "endpoint_not_found"),
        ("POST", "/secret/sam3service/process", 404, "cluster_not_found"),
    ],
)
async def test_what_is_not_there_is_said_in_words_that_clients_know(
    app: ASGIApp, method: str, path: str, status: int, code: str
) -> None:
    assert older_error(await ask(app, ROOT + path, method, b"{}")) == (status, code)


async def test_nobody_has_batches(app: ASGIApp) -> None:
    assert await seen(app, "/v1/batches?status=running") == []


# -- the announced paths of the next version ---------------------------------------------------------------------------


async def test_models_by_the_other_name_of_ours(app: ASGIApp) -> None:
    ours, theirs = [(await ask(app, path)).json for path in ("/v1/models", "/api/federated/v1/models")]
    assert ours == theirs
    assert len(ours["data"]) == 2
    answer = await ask(app, "/api/federated/v1/models", identity=replace(IDENTITY, scopes=frozenset({"metrics"})))
    assert (answer.status, answer.error["code"]) == (403, "insufficient_scope")


# -- requests to models ------------------------------------------------------------------------------------------------

CHAT = f"{ROOT}/here/vllm/v1/chat/completions"
STREAM = {**CHAT_BODY, "stream": True}


async def told(served: Served, data: bytes) -> Answer:
    visit = served.connect()
    visit.say(data)
    return await visit.answer()


@pytest.mark.parametrize("path", [CHAT, f"{ROOT}/here/api/v1/chat/completions", "/api/federated/v1/chat/completions"])
async def test_a_plain_answer(served: Served, path: str) -> None:
    visit = served.connect()
    visit.say(request(path=path))
    (await served.replica.asked()).answer(b'{"id": "1"}')
    answer = (await visit.answer()).json
    assert answer.pop("id") == "1"
    if path.startswith(ROOT):
        assert answer.keys() == {"response_time", "throughput_tokens_per_second"}
        assert answer["response_time"] >= 0
    else:
        assert answer == {}
    assert served.replica.last.request.path == "/v1/chat/completions"


async def test_a_stream_comes_as_it_is(served: Served) -> None:
    visit = served.connect()
    visit.say(request(path=CHAT, body=STREAM))
    exchange = await served.replica.asked()
    exchange.stream(CHUNK)
    exchange.complete()
    answer = await visit.answer()
    assert answer.headers[b"content-type"].startswith(b"text/event-stream")
    assert answer.headers[b"cache-control"] == b"no-cache"
    assert b"access-control-allow-origin" not in answer.headers
    assert answer.body == CHUNK + b"data: [DONE]\n\n"


async def test_a_stream_that_breaks_says_so(served: Served) -> None:
    visit = served.connect()
    visit.say(request(path=CHAT, body=STREAM))
    exchange = await served.replica.asked()
    exchange.stream(CHUNK)
    exchange.end(Outcome.FAILED, "it fell")
    _, error, done = (await visit.answer()).events
    assert (error["object"], error["code"], error["type"]) == ("error", 502, "InternalServerError")
    assert error["error"]["code"] == "internal_endpoint_error"
    assert done == "[DONE]"


async def test_a_message_ends_as_its_clients_wait_for(served: Served) -> None:
    visit = served.connect()
    visit.say(request(path=f"{ROOT}/here/api/v1/messages", body={**STREAM, "max_tokens": 5}))
    exchange = await served.replica.asked()
    exchange.stream(CHUNK, CHUNK.replace(b'"index":0,', b'"index":0,"finish_reason":"stop",'))
    exchange.complete()
    body = (await visit.answer()).body
    assert body.endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
    assert b"[DONE]" not in body


@pytest.mark.parametrize(
    ("path", "body", "key", "status", "code"),
    [
        (CHAT, CHAT_BODY, "bad", 401, "unauthorized"),
        (CHAT, {**CHAT_BODY, "model": "nope"}, "key", 404, "endpoint_not_found"),
        (CHAT, {**CHAT_BODY, "n": 0}, "key", 422, "invalid_request"),
        (CHAT, b"{", "key", 422, "invalid_request"),
        (CHAT.replace("vllm", "sglang"), CHAT_BODY, "key", 400, "unsupported_framework"),
        (CHAT.replace("here", "nowhere"), CHAT_BODY, "key", 404, "cluster_not_found"),
        (CHAT.replace("here", "outside"), {**CHAT_BODY, "model": "org/embedder"}, "key", 404, "endpoint_not_found"),
        (CHAT, {**CHAT_BODY, "model": "org/embedder"}, "key", 400, "unsupported_endpoint"),
    ],
)
async def test_refusals(served: Served, path: str, body: Any, key: str, status: int, code: str) -> None:
    assert older_error(await told(served, request(path=path, body=body, key=key))) == (status, code)
    assert served.replica.opened == []


async def test_a_model_that_is_cold_and_may_not_wait(served: Served) -> None:
    path = CHAT.replace("here", "outside").replace("chat/completions", "completions")
    body = {"model": "m", "prompt": "hi"}
    answer = await told(served, request("x-first-on-cold: fail", path=path, body=body))
    assert older_error(answer) == (503, "internal_endpoint_error")
    assert int(answer.headers[b"retry-after"]) >= 1
    assert answer.json["error"]["info"]["code"] == "model_not_ready"


async def test_a_cluster_that_is_closed_is_not_waited_for(served: Served) -> None:
    close(served.gateway, "here")
    answer = await told(served, request(path=CHAT, body=STREAM))
    assert older_error(answer) == (503, "cluster_under_maintenance")
    assert answer.json["error"]["message"] == "No requests are taken: the cluster 'here' is drained: cooling."
    assert (answer.headers[b"retry-after"], answer.headers[b"x-should-retry"]) == (b"600", b"false")
    assert served.replica.opened == []
    assert served.body_bytes == 0


async def test_who_may_not_use_a_cluster_does_not_hear_that_it_is_closed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "CONFIG", support.CONFIG.replace("here: {}", "here: {access: {users: [others]}}"))
    served = support.serving(folder)
    close(served.gateway, "here")
    assert older_error(await told(served, request(path=CHAT))) == (404, "cluster_not_found")
