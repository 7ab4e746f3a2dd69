"""Requests to models before the relay: what is looked at in which order, and that nothing is held afterwards."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstkit.auth.authenticator import Identity
from firstkit.clock import monotonic
from firstkit.config import parse_config
from firstkit.errors import StoreUnavailable
from firstkit.gateway.hot import STRANGERS_BYTES
from firstkit.gateway.reach import Reach
from firstkit.gateway.request import MAX_BODY_BYTES, BodyMemory
from firstkit.gateway.source import Sources
from firstkit.links.messages import Outcome, Tail, Usage
from unit.gateway.endings import ENDINGS, one
from unit.gateway.support import (
    CHAT_BODY,
    CONFIG,
    IDENTITY,
    Answer,
    Served,
    get,
    limits_of,
    request,
    route,
    serving,
)
from unit.gateway.upstreams import CHUNK, AtOnce, ByHand, settle, until

POOR = Identity("u", "user", "p", "poor", frozenset({"metrics"}))
STREAM = {**CHAT_BODY, "stream": True}
WRONG_TYPE = b"content-type: text/plain"
RIGHT_TYPE = b"content-type: application/json"


async def answer_to(served: Served, data: bytes) -> Answer:
    visit = served.connect()
    visit.say(data)
    return await visit.answer()


# -- the order of things -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_whole", [True, False])
async def test_one_thing_after_the_other(folder: Path, is_whole: bool) -> None:
    """Key, scope, head, project, limit, body: each is only looked at when those before it are right."""
    served = serving(folder, limits=limits_of(requests_per_minute_per_key=1))
    served.keys.identities["poor"] = POOR

    async def said(key: str, kind: bytes, *lines: str) -> object:
        data = request(*lines, key=key, body=b"{").replace(RIGHT_TYPE, kind)
        answer = await answer_to(served, data if is_whole else data[:-1])
        assert (b"connection" in answer.headers) is not is_whole, "a connection cannot go on in the middle of a body"
        return answer.error["code"]

    assert await said("bad", WRONG_TYPE) == "invalid_api_key"
    assert await said("poor", WRONG_TYPE) == "insufficient_scope"
    assert await said("key", WRONG_TYPE) == "unsupported_media_type"
    if is_whole:
        assert await said("key", RIGHT_TYPE) == "invalid_json"
    else:
        served.port.limits.enter(IDENTITY, monotonic())
    assert await said("key", RIGHT_TYPE) == "rate_limit_exceeded"
    assert await said("key", RIGHT_TYPE, "x-first-cluster: nowhere") == "rate_limit_exceeded"
    assert await said("key", WRONG_TYPE, "x-first-project: mars") == "unsupported_media_type"
    assert await said("key", RIGHT_TYPE, "x-first-project: mars") == "project_not_found"
    assert await said("key", WRONG_TYPE) == "unsupported_media_type"
    assert await said("poor", RIGHT_TYPE) == "insufficient_scope"
    assert served.replica.opened == []
    assert served.body_bytes == 0


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "Application/JSON ;x=y"])
async def test_content_types_that_are_json(served: Served, kind: str) -> None:
    data = request().replace(RIGHT_TYPE, f"content-type: {kind}".encode())
    visit = served.connect()
    visit.say(data)
    served.replica.last.answer()
    assert (await visit.answer()).status == 200


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded", "application/jsonp", "x/json"])
async def test_content_types_that_are_not(served: Served, kind: str) -> None:
    """A page of another origin may make browsers send these without asking."""
    for line in (f"content-type: {kind}".encode(), b"x: y"):
        answer = await answer_to(served, request().replace(RIGHT_TYPE, line))
        assert (answer.status, answer.error["param"]) == (415, "content-type")


@pytest.mark.parametrize("line", ["authorization: Bearer key", "content-type: application/json"])
async def test_what_may_stand_once(served: Served, line: str) -> None:
    answer = await answer_to(served, request(line))
    assert (answer.status, answer.error["param"]) == (400, line.partition(":")[0])


async def test_a_store_that_is_silent_is_no_refusal(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(token: str) -> Identity:
        raise StoreUnavailable

    monkeypatch.setattr(served.keys, "identify", silent)
    answer = await answer_to(served, request(key="other"))
    assert (answer.status, answer.error["code"]) == (503, "store_unavailable")


async def test_a_key_that_has_to_be_looked_up(served: Served) -> None:
    visit = served.connect()
    visit.say(request(key="slow"))
    await settle()
    assert visit.answers == []
    served.keys.gate.set()
    (await served.replica.asked()).answer()
    assert (await visit.answer()).status == 200


async def test_what_is_hot(served: Served) -> None:
    api = served.port.hot.api
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
        found = api("POST", path)
        assert found is not None
        assert found.path == path
        assert api("GET", path) is api("HEAD", path) is api("OPTIONS", path) is None
        assert api("POST", f"{path}/") is api("POST", f"/{path}") is api("POST", path.upper()) is None


# -- clusters ----------------------------------------------------------------------------------------------------------


async def test_paths_with_a_cluster_are_hot_too(served: Served) -> None:
    api = served.port.hot.api
    assert api("POST", "/v1/clusters/here/chat/completions") is api("POST", "/v1/chat/completions")
    assert api("GET", "/v1/clusters/here/chat/completions") is api("POST", "/v1/clusters/here") is None


PINNED_PATH = "/v1/clusters/here/chat/completions"


@pytest.mark.parametrize("data", [request(path=PINNED_PATH), request("x-first-cluster: here")])
async def test_a_pinned_request_goes_there_and_nowhere_else(folder: Path, data: bytes) -> None:
    served = serving(folder)
    other = ByHand()
    served.gateway.table.add(route("rep-2", 100, cluster="elsewhere", upstream=other))
    for count in range(1, 5):
        visit = served.connect()
        visit.say(data)
        assert served.replica.last.request.path == "/v1/chat/completions"
        served.replica.last.answer()
        answer = await visit.answer()
        assert (answer.status, answer.headers[b"x-first-cluster"]) == (200, b"here")
        assert (len(served.replica.opened), other.opened) == (count, [])
    assert [entry["clusters"] for entry in served.gateway.room.demand()["m"]] == [None, ["here"]]


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (request(path="/v1/clusters/nowhere/chat/completions"), 404, "cluster_not_found"),
        (request("x-first-cluster: nowhere"), 404, "cluster_not_found"),
        (request("x-first-cluster: nowhere", body=b"{"), 404, "cluster_not_found"),
        (request("x-first-cluster:"), 404, "cluster_not_found"),
        (request("x-first-cluster: outside", path=PINNED_PATH), 400, "invalid_request"),
        (request("x-first-cluster: outside"), 400, "unsupported_endpoint"),
        (
            request(
                "x-first-cluster: outside", path="/v1/embeddings", body={"model": "org/embedder", "input": "x"}
            ),
            404, "cluster_not_found",
        ),
        (request("x-first-cluster: nowhere", key="bad"), 401, "invalid_api_key"),
    ],
)  # fmt: skip
async def test_where_there_is_no_such_cluster(served: Served, data: bytes, status: int, code: str) -> None:
    answer = await answer_to(served, data)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert served.replica.opened == []
    assert served.body_bytes == 0


async def test_clusters_and_models_that_are_not_for_one_are_not_there(served: Served) -> None:
    gateway = served.gateway
    access = parse_config(f"server: {{state_dir: /x}}\n{CONFIG}".replace("here: {}", "here: {access: {users: [ada]}}"))
    gateway.reach = Reach(access)
    embed = {"model": "org/embedder", "input": "x"}
    for data, code in (
        (request(), "unsupported_endpoint"),
        (request(path=PINNED_PATH), "cluster_not_found"),
        (request(path="/v1/embeddings", body=embed), "model_not_found"),
    ):
        assert (await answer_to(served, data)).error["code"] == code
    assert gateway.visible_models(IDENTITY) == ["m"]
    served.keys.identities["key"] = ada = replace(IDENTITY, user_name="ada")
    assert gateway.visible_models(ada) == ["m", "org/embedder"]
    visit = served.connect()
    visit.say(request(path=PINNED_PATH))
    served.replica.last.answer()
    assert (await visit.answer()).status == 200


async def test_equal_beginnings_meet_again_and_projects_do_not(folder: Path) -> None:
    served = serving(folder, replica=(first := AtOnce()))
    served.gateway.table.add(route("rep-2", 8, upstream=(second := AtOnce())))
    served.keys.identities["other"] = replace(IDENTITY, project_id="q")

    async def where(key: str, end: str) -> str:
        body = {"model": "m", "messages": [{"role": "system", "content": "x" * 5000 + end}]}
        before = len(first.opened)
        await answer_to(served, request(body=body, key=key))
        return "first" if len(first.opened) > before else "second"

    mine = [await where("key", str(number)) for number in range(6)]
    assert len(set(mine)) == 1
    theirs = await where("other", "0")
    assert theirs != mine[0], "a turn like any other: nothing of it is known"
    assert [await where("other", str(number)) for number in range(6)] == [theirs] * 6
    assert len(second.opened) > 0


async def test_of_a_model_with_one_replica_nothing_is_hashed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("there is nothing to choose")

    monkeypatch.setattr(served.port.hot.acceptance, "_prefixes", never)
    gateway = served.gateway
    gateway.reach._anywhere["/v1/chat/completions"]["m"] = None  # as if all its deployments served it
    served.connect().say(request(body={"model": "m", "messages": [{"role": "user", "content": "x" * 9000}]}))
    assert len(served.replica.opened) == 1


async def test_a_short_request_is_told_from_a_long_one_where_that_counts(served: Served) -> None:
    [dying] = served.gateway.table.routes()
    pool = served.gateway.table.pools["m"]
    pool.measure(dying, Tail(Outcome.COMPLETE, Usage(10, 5000), None, 0.1, 0.02, 100.0))
    dying.born_at, dying.ends_at = time.time() - 3600, time.time() + 60
    pool.changed(dying)
    served.connect().say(request(body={**CHAT_BODY, "max_tokens": 5000}))
    await settle()
    assert served.replica.opened == []
    served.connect().say(request(body={**CHAT_BODY, "max_tokens": 100}))
    await settle()
    assert len(served.replica.opened) == 1
    assert b'"max_tokens":100' in served.replica.last.body


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_who_has_a_limit_is_told_how_they_stand(folder: Path) -> None:
    served = serving(folder, limits=limits_of(requests_per_minute_per_key=3))
    visit = served.connect()
    for data in (request(), request(body=b"{"), request(body=STREAM), request()):
        visit.say(data)
        for exchange in served.replica.opened:
            if not exchange.has_ended:
                exchange.stream(CHUNK) if exchange.request.stream else exchange.head()
                exchange.complete()
    plain, wrong, stream, refused = await visit.answered(4)
    assert [answer.status for answer in (plain, wrong, stream, refused)] == [200, 400, 200, 429]
    for answer, left in ((plain, 2), (wrong, 1), (stream, 0), (refused, 0)):
        assert answer.headers[b"x-ratelimit-limit-requests"] == b"3"
        assert answer.headers[b"x-ratelimit-remaining-requests"] == b"%d" % left
        assert answer.headers[b"x-ratelimit-reset-requests"].endswith(b"s")
    assert 1 <= int(refused.headers[b"retry-after"]) <= 20
    assert refused.error["type"] == "rate_limit_error"
    assert visit.is_open


async def test_without_a_limit_nothing_is_said(served: Served) -> None:
    visit = served.connect()
    visit.say(request())
    served.replica.last.answer()
    assert not any(name.startswith(b"x-ratelimit") for name in visit.answers[0].headers)


async def test_so_many_at_a_time(folder: Path) -> None:
    served = serving(folder, limits=limits_of(concurrency_per_key=2))
    visits = [served.connect() for _ in range(3)]
    for visit in visits:
        visit.say(request())
    refused = await visits[2].answer()
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    assert refused.headers[b"retry-after"] == b"1"
    assert len(served.replica.opened) == 2
    served.replica.opened[0].answer()
    visits[2].say(request())
    assert len(served.replica.opened) == 3


async def test_other_routes_count_for_the_same_limit(folder: Path) -> None:
    served = serving(folder, limits=limits_of(requests_per_minute_per_key=2, concurrency_per_key=5))
    assert (await answer_to(served, get("/v1/models"))).status == 200
    assert (await answer_to(served, request(body=b"{"))).status == 400
    for data in (get("/v1/models"), request(body=b"{")):
        answer = await answer_to(served, data)
        assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
        assert answer.headers[b"x-ratelimit-remaining-requests"] == b"0"
    assert (await answer_to(served, get("/health"))).status == 200
    assert served.under_way == 0


# -- denials -----------------------------------------------------------------------------------------------------------


def denied(served: Served) -> list[tuple[str, str, str, str, int]]:
    """Who was denied what, from where, why and how often, as the audit log will have it."""
    entries = served.gateway.audit._kinds.values()
    return [(entry.actor, entry.subject, entry.source, entry.details["code"], entry.count) for entry in entries]


async def test_what_is_denied_is_written_down(served: Served) -> None:
    gateway = served.gateway
    gateway.sources = Sources(["10.0.0.0/8"])
    config = f"server: {{state_dir: /x}}\n{CONFIG}".replace(
        "    description: a model\n", "    access: {users: [ada]}\n"
    )
    gateway.reach = Reach(parse_config(config))
    served.keys.identities["poor"] = POOR
    for key, lines in (("bad", []), ("poor", []), ("key", []), ("key", ["x-forwarded-for: 198.51.100.1"])):
        visit = served.connect(("192.0.2.7", 4711))
        visit.say(request(*lines, path=PINNED_PATH, key=key))
        await visit.answer()
    visit = served.connect(("10.0.0.1", 4711))
    for count in range(1, 3):  # the second has a head that is known
        visit.say(request("x-forwarded-for: 198.51.100.1, 10.0.0.2"))
        assert (await visit.answered(count))[-1].error["code"] == "model_not_found"
    path, chat = f"POST {PINNED_PATH}", "POST /v1/chat/completions"
    assert denied(served) == [
        ("unknown", path, "192.0.2.7", "invalid_api_key", 1),
        ("user", path, "192.0.2.7", "insufficient_scope", 1),
        ("user", path, "192.0.2.7", "model_not_found", 2),
        ("user", chat, "198.51.100.1", "model_not_found", 2),
    ]
    assert served.replica.opened == []


async def test_what_only_is_wrong_is_no_denial(folder: Path) -> None:
    served = serving(folder, limits=limits_of(requests_per_minute_per_key=3))
    for data in (request(body=b"{"), request(body={**CHAT_BODY, "model": "nope"}), request("x-first-cluster: nowhere")):
        assert (await answer_to(served, data)).status in (400, 404)
    assert (await answer_to(served, request())).status == 429
    assert denied(served) == []


# -- what is held ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
async def test_nothing_is_held_when_it_is_over(folder: Path, ending: Callable[[Served], None]) -> None:
    served = serving(folder, limits=limits_of(concurrency_per_key=100))
    ending(served)
    await settle()
    assert served.body_bytes == 0
    assert served.under_way == 0
    assert len(served.gateway.relay.spool) == 0
    assert served.gateway.room.waiting("m") == 0
    assert not served.port.server.server_state.tasks
    assert not served.gateway.relay.waiting


async def test_a_body_is_held_until_the_first_byte_of_the_answer(served: Served) -> None:
    """Until then it may have to be sent to another replica."""
    one(served, STREAM)
    exchange = served.replica.last
    size = len(request(body=STREAM).partition(b"\r\n\r\n")[2])
    assert served.body_bytes == size
    exchange.stream()
    assert served.body_bytes == size
    exchange.data(CHUNK)
    assert served.body_bytes == 0
    exchange.data(CHUNK)
    exchange.complete()
    assert served.body_bytes == 0


async def test_when_no_more_can_be_held_new_requests_are_refused(served: Served) -> None:
    served.port.hot.memory = BodyMemory(200)
    first = one(served)
    visit = served.connect()
    visit.say(request(body={**CHAT_BODY, "filler": "x" * 200}))
    answer = await visit.answer()
    assert (answer.status, answer.error["code"]) == (503, "overloaded")
    assert int(answer.headers[b"retry-after"]) >= 1
    served.replica.last.answer()
    assert (await first.answer()).status == 200, "those that were there before go on"
    later = one(served)
    served.replica.last.answer()
    assert (await later.answer()).status == 200


async def test_it_is_the_same_for_heads_that_are_known(folder: Path) -> None:
    """The second request of a connection takes a shorter way; what is looked at is the same."""
    served = serving(folder, limits=limits_of(requests_per_minute_per_key=3, concurrency_per_key=1))
    served.port.hot.memory = BodyMemory(200)
    visit = served.connect()
    visit.say(request())
    served.replica.last.answer()
    visit.say(request(body={**CHAT_BODY, "filler": "x" * 200}))
    visit.say(request())
    served.replica.last.answer()
    visit.say(request())
    served.replica.last.answer()
    answers = await visit.answered(4)
    assert [answer.status for answer in answers] == [200, 503, 200, 200]
    assert answers[1].error["code"] == "overloaded"
    assert len(served.replica.opened) == 3
    visit.say(request())
    assert (await visit.answered(5))[4].error["code"] == "rate_limit_exceeded"
    assert (served.port.hot.memory._left, served.under_way) == (200, 0)


async def test_a_body_that_finds_no_room_on_its_way(served: Served) -> None:
    served.port.hot.memory = BodyMemory(1000)
    visit = served.connect()
    visit.say(request("content-length: 5000", body=None), b"x" * 900)
    await settle()
    assert visit.answers == []
    visit.say(b"x" * 101)
    answer = await visit.answer()
    assert (answer.status, answer.headers[b"connection"]) == (503, b"close")
    visit.say(b"x" * 4000)
    assert served.port.hot.memory._left == 1000


async def test_what_comes_after_that_is_not_held(served: Served) -> None:
    served.port.hot.memory = memory = BodyMemory(1000)
    visit = served.connect()
    visit.say(request("content-length: 5000", key="slow", body=None), b"x" * 900, b"x" * 101, b"x" * 50)
    assert memory._left == 100
    served.keys.gate.set()
    assert (await visit.answer()).status == 503
    assert memory._left == 1000


def test_memory_counts_what_it_is_told() -> None:
    memory = BodyMemory(MAX_BODY_BYTES + 10)
    memory.take(0, MAX_BODY_BYTES)
    with pytest.raises(Exception, match="larger than"):
        memory.take(MAX_BODY_BYTES, 1)
    memory.take(0, 10)
    with pytest.raises(Exception, match="as many request bodies as it can"):
        memory.take(10, 1)
    memory.give_back(10)
    memory.take(0, 10)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 400), max_size=12), st.sampled_from(["key", "slow"]), st.booleans())
def test_a_body_arrives_whole_however_it_is_cut(cuts: list[int], key: str, is_chunked: bool) -> None:
    asyncio.run(_cut(cuts, key, is_chunked))


async def _cut(cuts: list[int], key: str, is_chunked: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        served = serving(Path(folder))
        head, _, body = request(body={**CHAT_BODY, "user": "x" * 300}, key=key).partition(b"\r\n\r\n")
        places = sorted({0, len(body), *(cut % len(body) for cut in cuts)})
        pieces = [body[start:end] for start, end in itertools.pairwise(places)]
        if is_chunked:
            head = head.replace(b"content-length: %d" % len(body), b"transfer-encoding: chunked")
            pieces = [b"%X\r\n%b\r\n" % (len(piece), piece) for piece in pieces] + [b"0\r\n\r\n"]
        visit = served.connect()
        visit.say(head + b"\r\n\r\n")
        for piece in pieces:
            visit.say(piece)
            await asyncio.sleep(0)
        served.keys.gate.set()
        exchange = await served.replica.asked()
        assert b'"user":"%b"' % (b"x" * 300) in exchange.body
        exchange.answer()
        assert (await visit.answer()).status == 200
        assert served.body_bytes == 0
        served.gateway.relay.spool.close()


async def test_strangers_send_only_so_much(served: Served) -> None:
    visit = served.connect()
    visit.say(request("content-length: 1000000", key="slow", body=None), b"x" * STRANGERS_BYTES)
    assert visit.transport.is_reading()
    visit.say(b"x")
    assert not visit.transport.is_reading()
    served.keys.gate.set()
    await until("it is read again", visit.transport.is_reading)
    visit.say(b"x" * STRANGERS_BYTES)
    assert visit.transport.is_reading()


async def test_a_stranger_who_turns_out_to_be_nobody_may_still_read_why(served: Served) -> None:
    visit = served.connect()
    visit.say(request("content-length: 1000000", key="bad", body=None) + b"x" * 2 * STRANGERS_BYTES)
    answer = await visit.answer()
    assert (answer.status, answer.headers[b"connection"]) == (401, b"close")
    assert visit.transport.is_reading()
    assert visit.is_open
    assert served.body_bytes == 0


# -- faults of ours ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["key", "slow"])
async def test_a_fault_of_ours_is_a_500_without_its_text(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    def fault(*_: object) -> None:
        raise ValueError("canary")

    monkeypatch.setattr(served.gateway.relay, "serve", fault)
    served.keys.gate.set()
    visit = served.connect()
    with caplog.at_level(logging.ERROR):
        visit.say(request(key=key))
        answer = await visit.answer()
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert b"canary" not in answer.body
    [record] = caplog.records
    assert record.exc_info is not None
    assert served.body_bytes == 0
    monkeypatch.undo()
    visit.say(request())
    served.replica.last.answer()
    assert (await visit.answered(2))[1].status == 200


async def test_a_task_that_is_cancelled_lets_go_of_all(folder: Path) -> None:
    """The server does so when its grace is over, and tells the client then."""
    served = serving(folder, limits=limits_of(concurrency_per_key=1))
    visit = served.connect()
    visit.say(request("content-length: 1000", body=None), b"x" * 10)
    await settle()
    assert (served.body_bytes, served.under_way) == (10, 1)
    [task] = served.port.server.server_state.tasks
    task.cancel()
    await settle()
    assert (served.body_bytes, served.under_way) == (0, 0)
    visit.protocol.end_now()
    answer = await visit.answer()
    assert (answer.status, answer.error["code"]) == (503, "shutting_down")
    visit.say(b"x" * 990)
    visit.transport.break_off()
    await settle()
    assert (served.body_bytes, served.under_way) == (0, 0)


async def test_a_request_leaves_nothing_to_the_garbage_collector(folder: Path) -> None:
    """A cycle in each would cost more than the request."""
    served = serving(folder, replica=AtOnce())
    visit = served.connect()

    async def serve(count: int) -> None:
        for _ in range(count):
            visit.say(request(body=CHAT_BODY))
            await settle()
            served.replica.opened.clear()

    await serve(3)
    gc.collect()
    gc.disable()
    try:
        await serve(100)
        assert gc.collect() < 100
    finally:
        gc.enable()
