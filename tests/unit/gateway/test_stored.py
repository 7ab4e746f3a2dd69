"""Answers that are kept: when, for whom, for how long; and conversations that go on from them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from firstkit.clock import now
from firstkit.errors import StoreUnavailable
from firstkit.gateway import stored as stored_module
from firstkit.gateway.relay import Relay
from firstkit.gateway.stored import MOST_BYTES, StoredResponses
from firstkit.links.messages import Outcome, Usage
from firstkit.store import responses as store_module
from firstkit.store.database import Database
from firstkit.store.tables import responses
from unit.gateway.support import (
    IDENTITY,
    Answer,
    Port,
    Served,
    Visit,
    get,
    limits_of,
    request,
    route,
    without_database,
)
from unit.gateway.upstreams import ByHand, Exchanged, settle

PATH = "/v1/responses"
BOB = replace(IDENTITY, user_id="v", user_name="bob", key_prefix="bobs")
READER = replace(IDENTITY, scopes=frozenset({"metrics"}))
ASK: dict[str, Any] = {"model": "m", "input": "hi"}
MESSAGE = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object"}}
BOTH_WAYS = pytest.mark.parametrize("is_native", [True, False], ids=["passed", "translated"])
PLAIN_AND_STREAM = pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])


def text(said: str) -> dict[str, Any]:
    return {**MESSAGE, "content": [{"type": "output_text", "text": said, "annotations": []}]}


def response(
    *output: dict[str, Any], response_id: str = "resp_1", status: str = "completed", **more: Any
) -> dict[str, Any]:
    """As an engine tells it: it keeps nothing and knows of nothing that was kept."""
    facts = {"previous_response_id": None, "object": "response", "model": "inner", "usage": {"input_tokens": 3}}
    return {"id": response_id, **facts, "status": status, "output": list(output or [text("hello")]), **more}


def named(name: str, **data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, 'sequence_number': 0, **data})}\n\n".encode()


MOST_TOKENS = 10_000_000
"""So many a key may use in a minute."""


class Keeping:
    """A gateway that keeps answers in a real database; its one replica is played by hand."""

    def __init__(self, folder: Path, db: Database, keep_s: float, is_native: bool) -> None:
        gateway = without_database(folder)
        gateway.db = db
        self.stored = StoredResponses(db, keep_s)
        gateway.relay = Relay(gateway.room, gateway.forecasts, gateway.relay.spool, self.stored)
        self.replica = ByHand()
        self.is_native = is_native
        own = route(most=8, upstream=self.replica)
        own.capabilities = frozenset({"chat", "responses"} if is_native else {"chat"})
        gateway.table.add(own)
        port = Port(gateway, limits_of(concurrency_per_key=100, tokens_per_minute_per_key=MOST_TOKENS))
        self.served = Served(gateway, gateway.authenticator, self.replica, port)  # type: ignore[arg-type]
        self.served.keys.identities |= {"bob": BOB, "reader": READER}
        self.spool = folder / "spool"

    # -- the client's end --------------------------------------------------------------------------------------

    def ask(self, key: str = "key", **changes: Any) -> Visit:
        visit = self.served.connect()
        visit.say(request(path=PATH, body={**ASK, **changes}, key=key))
        return visit

    async def answered(self, stream: bool = False, key: str = "key", **changes: Any) -> dict[str, Any]:
        """The response to a request, to which the replica said hello."""
        count = len(self.replica.opened)
        visit = self.ask(key, stream=stream, **changes)
        exchange = await self.asked_again(count + 1)
        self.say(exchange, f"resp_{count + 1}")
        return self.told(await whole(visit))

    def told(self, answer: Answer) -> dict[str, Any]:
        """The response in a good answer."""
        assert answer.status == 200, answer.body
        said = answer.json if answer.headers[b"content-type"] == b"application/json" else ending(answer)["response"]
        return dict(said)

    async def asked_again(self, count: int) -> Exchanged:
        """The request that makes it ``count`` at the replica."""
        await patiently(f"{count} requests", lambda: len(self.replica.opened) >= count)
        return self.replica.opened[count - 1]

    async def get(self, path: str, key: str = "key") -> Answer:
        visit = self.served.connect()
        visit.say(get(f"{PATH}/{path}", key=key))
        return await whole(visit)

    async def delete(self, path: str, key: str = "key") -> Answer:
        visit = self.served.connect()
        visit.say(request(path=f"{PATH}/{path}", key=key, method="DELETE", body=None))
        return await whole(visit)

    # -- the replica's -----------------------------------------------------------------------------------------

    def say(self, exchange: Exchanged, response_id: str = "resp_1") -> None:
        """A whole good answer: hello."""
        self.begin(exchange)
        self.finish(exchange, response(response_id=response_id))

    def begin(self, exchange: Exchanged) -> None:
        """The first piece of a stream; of a plain answer nothing."""
        if not exchange.request.stream:
            exchange.head()
        elif self.is_native:
            exchange.stream(named("response.created", response=response(status="in_progress")))
        else:
            exchange.stream(chunk(content="hello"))

    def finish(self, exchange: Exchanged, said: dict[str, Any]) -> None:
        """The rest. A translated answer says hello, whatever is ``said``."""
        if self.is_native:
            event = named(f"response.{said['status']}", response=said)
            exchange.data(event if exchange.request.stream else json.dumps(said).encode())
        elif exchange.request.stream:
            exchange.data(chunk("stop"))
        else:
            message = {"role": "assistant", "content": "hello"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            exchange.data(json.dumps({"choices": [choice]}).encode())
        exchange.end(Outcome.COMPLETE, usage=Usage(3, 1))

    # -- looking in --------------------------------------------------------------------------------------------

    @property
    def asked(self) -> dict[str, Any]:
        """What the replica was asked last."""
        return dict(json.loads(self.replica.last.body))

    def lines(self) -> list[dict[str, Any]]:
        """The usage lines of requests that ended."""
        written = b"".join(path.read_bytes() for path in sorted(self.spool.glob("usage-*.jsonl")))
        return [entry for entry in map(json.loads, written.splitlines()) if "outcome" in entry]

    def nothing_is_held(self) -> None:
        assert self.served.body_bytes == 0
        assert self.served.under_way == 0
        assert sum(each.in_flight for each in self.served.gateway.table.routes()) == 0


async def patiently(what: str, is_so: Callable[[], bool]) -> None:
    """Until ``is_so``: a database takes its time, however often the loop turns meanwhile."""
    try:
        async with asyncio.timeout(60):
            while not is_so():
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"never: {what}") from None


async def whole(visit: Visit) -> Answer:
    """The first answer, when all of it is there."""
    await patiently("a whole answer", lambda: any(answer.is_whole for answer in visit.answers) or not visit.is_open)
    return await visit.answer()


def chunk(finish: str | None = None, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


def ending(answer: Answer) -> dict[str, Any]:
    """The last event of a stream."""
    name, data = answer.body.rstrip(b"\n").rpartition(b"\n\n")[2].split(b"\n")
    event: dict[str, Any] = json.loads(data.removeprefix(b"data: "))
    assert name == f"event: {event['type']}".encode()
    return event


async def rows(db: Database) -> list[dict[str, Any]]:
    async with db.read() as conn:
        return [dict(row) for row in (await conn.execute(select(responses))).mappings()]


@pytest.fixture
async def make(folder: Path, db: Database) -> Callable[..., Keeping]:
    count = 0

    def made(is_native: bool = True, keep_s: float = 600.0) -> Keeping:
        nonlocal count
        count += 1
        return Keeping(folder / str(count), db, keep_s, is_native)

    return made


Make = Callable[..., Keeping]


# -- not kept ----------------------------------------------------------------------------------------------------------


@BOTH_WAYS
@PLAIN_AND_STREAM
async def test_by_default_nothing_is_kept_and_answers_say_so(
    make: Make, db: Database, is_native: bool, stream: bool
) -> None:
    at = make(is_native, keep_s=0.0)
    for asked in ({}, {"store": True}, {"store": None}, {"store": False}):
        said = await at.answered(stream, **asked)
        assert said["store"] is False
        assert at.asked.get("store") is (False if is_native else None), "nor does the engine keep it"
        assert (await at.get(said["id"])).error["code"] == "response_not_found"
    assert await rows(db) == []
    at.nothing_is_held()


@PLAIN_AND_STREAM
async def test_where_nothing_is_kept_nothing_can_go_on(make: Make, stream: bool) -> None:
    at = make(keep_s=0.0)
    answer = await whole(at.ask(previous_response_id="resp_1", stream=stream))
    assert (answer.status, answer.error["param"]) == (400, "previous_response_id")
    assert answer.error["code"] == "responses_not_kept"
    assert "does not keep" in answer.error["message"]
    assert at.replica.opened == []
    at.nothing_is_held()


@BOTH_WAYS
@PLAIN_AND_STREAM
async def test_who_wants_nothing_kept(make: Make, db: Database, is_native: bool, stream: bool) -> None:
    at = make(is_native)
    said = await at.answered(stream, store=False)
    assert said["store"] is False
    assert (await at.get(said["id"])).status == 404
    assert await rows(db) == []


@pytest.mark.parametrize("field", ["store", "previous_response_id"])
async def test_what_is_wrong_is_named(make: Make, field: str) -> None:
    at = make()
    answer = await whole(at.ask(**{field: 3}))
    assert (answer.status, answer.error["param"]) == (400, field)
    at.nothing_is_held()


@BOTH_WAYS
@PLAIN_AND_STREAM
@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.LOST, Outcome.TIMEOUT, Outcome.REJECTED])
async def test_what_failed_is_not_kept(
    make: Make, db: Database, is_native: bool, stream: bool, outcome: Outcome
) -> None:
    at = make(is_native)
    visit = at.ask(stream=stream)
    at.begin(at.replica.last)
    at.replica.last.end(outcome, "boom")
    answer = await whole(visit)
    assert b'"error"' in answer.body
    assert await rows(db) == []
    at.nothing_is_held()


# -- kept --------------------------------------------------------------------------------------------------------------


@BOTH_WAYS
@PLAIN_AND_STREAM
async def test_an_answer_is_found_as_it_was_told(make: Make, is_native: bool, stream: bool) -> None:
    at = make(is_native)
    said = await at.answered(stream)
    assert (said["store"], said["previous_response_id"]) == (True, None)
    assert at.asked.get("store") is (False if is_native else None), "the engine keeps nothing"
    found = await at.get(said["id"])
    assert (found.status, found.json) == (200, said)
    assert found.headers[b"content-type"] == b"application/json"
    [line] = at.lines()
    assert (line["outcome"], line["prompt_tokens"], line["completion_tokens"]) == ("complete", 3, 1)
    at.nothing_is_held()


@BOTH_WAYS
@PLAIN_AND_STREAM
async def test_it_is_kept_before_the_end_is_told(
    make: Make, monkeypatch: pytest.MonkeyPatch, is_native: bool, stream: bool
) -> None:
    gate, add = asyncio.Event(), store_module.add_response

    async def held(conn: AsyncConnection, kept: store_module.Kept) -> None:
        await gate.wait()
        await add(conn, kept)

    monkeypatch.setattr(stored_module, "add_response", held)
    at = make(is_native)
    visit = at.ask(stream=stream)
    at.say(at.replica.last)
    await settle(200)
    assert [line["outcome"] for line in at.lines()] == ["complete"], "it is accounted before"
    assert not any(answer.is_whole for answer in visit.answers)
    assert b"response.completed" not in visit.transport.written
    gate.set()
    said = at.told(await whole(visit))
    assert (await at.get(said["id"])).json == said


async def test_an_answer_that_was_cut_short_is_kept_too(make: Make) -> None:
    at = make()
    visit = at.ask(stream=True)
    at.begin(at.replica.last)
    at.finish(at.replica.last, response(status="incomplete", incomplete_details={"reason": "max_output_tokens"}))
    said = at.told(await whole(visit))
    assert said["status"] == "incomplete"
    assert (await at.get("resp_1")).json == said


async def test_texts_that_look_like_events(make: Make) -> None:
    at = make()
    said = 'data: {"response": 3}\n\nevent: response.completed\ndata: x \u0000 "'
    visit = at.ask(stream=True)
    at.begin(at.replica.last)
    at.finish(at.replica.last, response(text(said)))
    answer = await whole(visit)
    assert at.told(answer)["output"][0]["content"][0]["text"] == said
    assert answer.body.count(b"\nevent: response.completed\n") == 1
    assert (await at.get("resp_1")).json == at.told(answer)
    second = at.ask(previous_response_id="resp_1")
    await at.asked_again(2)
    assert at.asked["input"][1]["content"][0]["text"] == said
    at.say(at.replica.last, "resp_2")
    await whole(second)


# -- whose it is -------------------------------------------------------------------------------------------------------


async def test_to_others_it_is_not_there(make: Make) -> None:
    at = make()
    await at.answered()
    for path in ("resp_1", "resp_1/input_items"):
        mine = await at.get(path)
        theirs = await at.get(path, key="bob")
        unknown = await at.get(path.replace("resp_1", "resp_9"))
        assert (mine.status, theirs.status) == (200, 404)
        assert (theirs.status, theirs.error) == (unknown.status, unknown.error)
    theirs, unknown = await at.delete("resp_1", key="bob"), await at.delete("resp_9", key="bob")
    assert (theirs.status, theirs.error) == (404, unknown.error)
    theirs = await whole(at.ask("bob", previous_response_id="resp_1"))
    unknown = await whole(at.ask(previous_response_id="resp_9"))
    assert (theirs.status, theirs.error["code"]) == (400, "previous_response_not_found")
    assert theirs.error["message"].replace("resp_1", "resp_9") == unknown.error["message"]
    assert len(at.replica.opened) == 1
    assert (await at.get("resp_1")).status == 200
    at.nothing_is_held()


async def test_the_same_id_for_two_people(make: Make) -> None:
    """Whoever can make an engine say an id learns nothing of who else has it."""
    at = make()
    mine = await at.answered()
    visit = at.ask("bob")
    at.finish(begun(at), response(text("for bob")))
    theirs = at.told(await whole(visit))
    assert (await at.get("resp_1")).json == mine
    assert (await at.get("resp_1", key="bob")).json == theirs
    assert (await at.delete("resp_1")).json == {"id": "resp_1", "object": "response", "deleted": True}
    assert (await at.get("resp_1")).status == 404
    assert (await at.get("resp_1", key="bob")).json == theirs


def begun(at: Keeping) -> Exchanged:
    at.begin(at.replica.last)
    return at.replica.last


async def test_who_may_not_ask_for_answers_may_not_look_at_them(make: Make) -> None:
    at = make()
    await at.answered()
    for answer in (await at.get("resp_1", key="reader"), await at.delete("resp_1", key="reader")):
        assert (answer.status, answer.error["code"]) == (403, "insufficient_scope")
    for answer in (await at.get("resp_1", key="wrong"), await at.delete("resp_1", key="wrong")):
        assert answer.status == 401


@pytest.mark.parametrize("name", ["%00", "resp_1%00", "x" * 300, "%ff", "resp%201", "%C3%A9"])
async def test_names_that_no_answer_has(make: Make, name: str) -> None:
    at = make()
    for answer in (await at.get(name), await at.get(f"{name}/input_items"), await at.delete(name)):
        assert answer.status == (400 if "%00" in name else 404)


@pytest.mark.parametrize("name", ["\0", "x" * 300, "resp 1", "'; --"])
async def test_names_from_which_nothing_goes_on(make: Make, name: str) -> None:
    at = make()
    answer = await whole(at.ask(previous_response_id=name))
    assert (answer.status, answer.error["param"]) == (400, "previous_response_id")
    assert at.replica.opened == []


# -- conversations -----------------------------------------------------------------------------------------------------


@BOTH_WAYS
@PLAIN_AND_STREAM
async def test_a_conversation_goes_on(make: Make, is_native: bool, stream: bool) -> None:
    at = make(is_native)
    first = await at.answered(stream)
    second = await at.answered(stream, previous_response_id=first["id"], input=[{"role": "user", "content": "more"}])
    assert second["previous_response_id"] == first["id"]
    said = at.asked["input" if is_native else "messages"]
    assert [(item["role"], words(item)) for item in said] == [("user", "hi"), ("assistant", "hello"), ("user", "more")]
    assert "previous_response_id" not in at.asked
    third = await at.answered(stream, previous_response_id=second["id"], input="and more", store=False)
    assert (third["store"], third["previous_response_id"]) == (False, second["id"])
    assert len(at.asked["input" if is_native else "messages"]) == 5
    fork = await at.answered(stream, previous_response_id=first["id"], input="else")
    assert fork["previous_response_id"] == first["id"]
    assert len(at.asked["input" if is_native else "messages"]) == 3
    items = (await at.get(f"{fork['id']}/input_items?order=asc")).json["data"]
    assert [item["role"] for item in items] == ["user", "assistant", "user"]
    at.nothing_is_held()


def words(item: dict[str, Any]) -> str:
    content = item["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


@BOTH_WAYS
async def test_with_tools(make: Make, is_native: bool) -> None:
    at = make(is_native)
    visit = at.ask(tools=[TOOL])
    exchange = begun(at)
    if is_native:
        called = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "look", "arguments": "{}"}
        at.finish(exchange, response(called))
    else:
        call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        exchange.data(json.dumps({"choices": [choice]}).encode())
        exchange.complete()
    first = at.told(await whole(visit))
    assert first["output"][0]["call_id"] == "c1"
    result = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
    await at.answered(previous_response_id=first["id"], input=[result], tools=[TOOL])
    if is_native:
        kinds = [item["type"] for item in at.asked["input"]]
        assert kinds == ["message", "function_call", "function_call_output"]
        assert at.asked["input"][2] == result
    else:
        user, assistant, tool = at.asked["messages"]
        assert (user["role"], assistant["tool_calls"][0]["id"]) == ("user", "c1")
        assert tool == {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
    assert at.asked["tools"], "tools are said anew, as at OpenAI"


async def test_between_engines_that_speak_differently(make: Make) -> None:
    passed, translated = make(True), make(False)
    first = await passed.answered()
    await translated.answered(previous_response_id=first["id"], input="more")
    assert [message["role"] for message in translated.asked["messages"]] == ["user", "assistant", "user"]


async def test_a_conversation_goes_where_its_beginning_was_read(make: Make) -> None:
    at = make()
    other = ByHand()
    at.served.gateway.table.add(route("rep-2", 8, upstream=other))
    asked: dict[str, Any] = {"input": [{"role": "user", "content": "x" * 2000}]}
    where = []
    for turn in range(1, 7):
        before = len(other.opened)
        visit = at.ask(**asked)
        await at_either(at.replica, other, turn)
        where.append(len(other.opened) > before)
        chat_answer(other.last) if where[-1] else at.say(at.replica.last, f"resp_{turn}")
        asked = {"input": "go on", "previous_response_id": at.told(await whole(visit))["id"]}
    assert len(set(where)) == 1


async def at_either(one: ByHand, other: ByHand, count: int) -> None:
    await patiently("it is asked", lambda: len(one.opened) + len(other.opened) == count)


def chat_answer(exchange: Exchanged) -> None:
    message = {"role": "assistant", "content": "hello"}
    exchange.answer(json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode())


async def test_what_it_is_estimated_by_counts_all_of_it(make: Make) -> None:
    at = make()
    first = await at.answered(input="x" * 40_000)
    visit = at.ask(previous_response_id=first["id"], input="more", stream=True)
    (await at.asked_again(2)).stream(named("response.created", response=response(status="in_progress")))
    at.replica.last.end(Outcome.LOST, usage=None)
    await whole(visit)
    assert at.lines()[-1]["estimated"]
    assert at.lines()[-1]["prompt_tokens"] > 10_000


# -- sizes -------------------------------------------------------------------------------------------------------------

LONG = "x" * (MOST_BYTES + 1)


async def test_who_relies_on_it_hears_at_once_that_it_is_too_long(make: Make, db: Database) -> None:
    at = make()
    answer = await whole(at.ask(input=LONG, store=True))
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "response_too_long", "store")
    assert at.replica.opened == []
    at.nothing_is_held()


@BOTH_WAYS
async def test_who_does_not_is_answered_and_hears_that_it_is_not_kept(
    make: Make, db: Database, is_native: bool
) -> None:
    at = make(is_native)
    for asked in ({}, {"store": False}):
        said = await at.answered(input=LONG, **asked)
        assert said["store"] is False
    assert await rows(db) == []


async def test_a_conversation_may_grow_too_long(make: Make) -> None:
    at = make()
    half = "x" * (MOST_BYTES * 2 // 3)
    first = await at.answered(input=half)
    assert first["store"] is True
    answer = await whole(at.ask(input=half, previous_response_id=first["id"]))
    assert (answer.status, answer.error["code"]) == (400, "response_too_long")
    assert len(at.replica.opened) == 1
    last = await at.answered(input=half, previous_response_id=first["id"], store=False)
    assert last["store"] is False
    at.nothing_is_held()


# -- when it cannot be kept --------------------------------------------------------------------------------------------


def away(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the database does not answer."""

    @asynccontextmanager
    async def silent(self: Database) -> AsyncIterator[AsyncConnection]:
        raise StoreUnavailable
        yield

    monkeypatch.setattr(Database, "begin", silent)
    monkeypatch.setattr(Database, "read", silent)


@BOTH_WAYS
async def test_without_a_database_a_stream_ends_by_an_error(
    make: Make, monkeypatch: pytest.MonkeyPatch, is_native: bool
) -> None:
    at = make(is_native)
    visit = at.ask(stream=True)
    away(monkeypatch)
    at.say(at.replica.last)
    answer = await whole(visit)
    assert b"event: response.completed" not in answer.body
    assert (ending(answer)["type"], ending(answer)["error"]["code"]) == ("error", "store_unavailable")
    assert [line["outcome"] for line in at.lines()] == ["complete"], "work that was done is charged"
    at.nothing_is_held()


@BOTH_WAYS
async def test_without_a_database_a_plain_answer_is_an_error(
    make: Make, monkeypatch: pytest.MonkeyPatch, is_native: bool
) -> None:
    at = make(is_native)
    visit = at.ask()
    away(monkeypatch)
    at.say(at.replica.last)
    answer = await whole(visit)
    assert (answer.status, answer.error["code"]) == (503, "store_unavailable")
    assert answer.headers[b"x-should-retry"] == b"false", "each try would be charged"
    at.nothing_is_held()
    plain = at.ask(store=False)
    at.say(at.replica.last)
    assert at.told(await whole(plain))["store"] is False


async def test_without_a_database_nothing_goes_on_and_nothing_is_found(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = make()
    first = await at.answered()
    away(monkeypatch)
    for stream in (True, False):
        answer = await whole(at.ask(previous_response_id=first["id"], stream=stream))
        assert (answer.status, answer.error["code"]) == (503, "store_unavailable")
    assert (await at.get(first["id"])).status == (await at.delete(first["id"])).status == 503
    assert len(at.replica.opened) == 1
    at.nothing_is_held()


@PLAIN_AND_STREAM
async def test_an_id_that_is_taken(make: Make, stream: bool) -> None:
    at = make()
    first = await at.answered()
    visit = at.ask(stream=stream)
    at.finish(begun(at), response(text("another"), response_id=first["id"]))
    answer = await whole(visit)
    error = ending(answer)["error"] if stream else answer.error
    assert (error["code"], "taken" in error["message"]) == ("engine_failed", True)
    assert answer.status == (200 if stream else 502)
    assert (await at.get(first["id"])).json == first
    at.nothing_is_held()


@pytest.mark.parametrize(
    "said",
    [
        {**response(), "id": ""},
        {**response(), "id": "a/b"},
        {**response(), "id": "x" * 200},
        {**response(), "id": None},
        {**response(), "output": 3},
        {"status": "completed"},
    ],
)
@PLAIN_AND_STREAM
async def test_what_an_engine_may_not_say(make: Make, db: Database, said: dict[str, Any], stream: bool) -> None:
    at = make()
    visit = at.ask(stream=stream)
    at.finish(begun(at), said)
    answer = await whole(visit)
    error = ending(answer)["error"] if stream else answer.error
    assert error["code"] == "engine_failed"
    assert await rows(db) == []
    at.nothing_is_held()


@pytest.mark.parametrize("store", [True, False])
async def test_a_last_event_whose_response_is_none(make: Make, store: bool) -> None:
    at = make()
    visit = at.ask(stream=True, store=store)
    begun(at).data(b'event: response.completed\ndata: {"response":3}\n\n')
    at.replica.last.complete()
    answer = await whole(visit)
    assert ending(answer)["error"]["code"] == "engine_failed"
    assert b"response.completed" not in answer.body
    at.nothing_is_held()


# -- clients that go ---------------------------------------------------------------------------------------------------


@PLAIN_AND_STREAM
async def test_a_client_that_goes_while_its_answer_is_kept(
    make: Make, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    gate, add = asyncio.Event(), store_module.add_response

    async def held(conn: AsyncConnection, kept: store_module.Kept) -> None:
        await gate.wait()
        await add(conn, kept)

    monkeypatch.setattr(stored_module, "add_response", held)
    at = make()
    visit = at.ask(stream=stream)
    at.say(at.replica.last)
    await settle(100)
    visit.transport.break_off()
    await settle()
    gate.set()
    await patiently("it is over", lambda: not at.served.gateway.relay.waiting)
    assert [line["outcome"] for line in at.lines()] == ["complete"]
    assert (await at.get("resp_1")).status == 200
    assert not visit.transport.late
    at.nothing_is_held()


async def test_a_client_that_goes_while_its_conversation_is_looked_up(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = make()
    await at.answered()
    gate, find = asyncio.Event(), store_module.response_of

    async def held(*arguments: Any) -> store_module.Kept | None:
        await gate.wait()
        return await find(*arguments)

    monkeypatch.setattr(stored_module, "response_of", held)
    visit = at.ask(previous_response_id="resp_1")
    await settle(100)
    visit.transport.break_off()
    await settle()
    gate.set()
    await patiently("nothing is held", lambda: at.served.body_bytes == 0)
    assert len(at.replica.opened) == 1
    at.nothing_is_held()


async def test_the_answers_of_a_connection_keep_their_order(make: Make) -> None:
    at = make()
    visit = at.served.connect()
    visit.say(request(path=PATH, body=ASK) + get(f"{PATH}/resp_1"))
    at.say(await at.asked_again(1))
    await patiently("both answers", lambda: sum(answer.is_whole for answer in visit.answers) == 2)
    asked, found = visit.answers
    assert (asked.status, found.status) == (200, 200)
    assert found.json == asked.json


# -- time --------------------------------------------------------------------------------------------------------------


async def test_it_expires(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    at = make(keep_s=60.0)
    await at.answered()
    later = now() + timedelta(seconds=61)
    monkeypatch.setattr(stored_module, "now", lambda: later)
    assert (await at.get("resp_1")).status == (await at.delete("resp_1")).status == 404
    answer = await whole(at.ask(previous_response_id="resp_1"))
    assert answer.error["code"] == "previous_response_not_found"


async def test_what_has_expired_is_swept_also_where_nothing_is_kept_any_more(
    make: Make, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_module, "SWEPT_AT_ONCE", 2)
    at = make(keep_s=60.0)
    for _ in range(5):
        await at.answered()
    later = now() + timedelta(seconds=61)
    monkeypatch.setattr(stored_module, "now", lambda: later)
    lasting = await at.answered()
    monkeypatch.setattr(stored_module, "now", lambda: later + timedelta(seconds=1))
    sweeping = asyncio.ensure_future(StoredResponses(db, 0.0).sweep())
    async with asyncio.timeout(30):
        while len(await rows(db)) > 1:
            await asyncio.sleep(0.005)
    assert [row["id"] for row in await rows(db)] == [lasting["id"]]
    sweeping.cancel()
    await asyncio.wait([sweeping])


async def test_a_sweep_outlives_a_database_that_is_away(make: Make, db: Database) -> None:
    tried = asyncio.Semaphore(0)
    with pytest.MonkeyPatch.context() as patch:
        away(patch)
        patch.setattr(stored_module, "SWEEP_EVERY_S", 0.0)
        begin = Database.begin

        def counted(self: Database) -> Any:
            tried.release()
            return begin(self)

        patch.setattr(Database, "begin", counted)
        sweeping = asyncio.ensure_future(StoredResponses(db, 0.0).sweep())
        for _ in range(3):
            await asyncio.wait_for(tried.acquire(), 30)
        assert not sweeping.done()
        sweeping.cancel()
        await asyncio.wait([sweeping])


# -- what was said before it -------------------------------------------------------------------------------------------


async def test_input_items_are_told_in_their_long_form(make: Make) -> None:
    at = make()
    call = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "look", "arguments": "{}"}
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"}
    asked = [
        {"role": "system", "content": "be brief \u0000"},
        {"role": "user", "content": [image]},
        {"role": "assistant", "content": "hm"},
        {"type": "message", "role": "user", "content": "look", "id": "msg_user"},
        call,
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
    ]
    said = await at.answered(input=asked)
    found = (await at.get(f"{said['id']}/input_items?order=asc")).json
    assert (found["object"], found["has_more"]) == ("list", False)
    brief = [{"type": "input_text", "text": "be brief \u0000"}]
    done = {"status": "completed"}
    assert found["data"] == [
        {"role": "system", "type": "message", "id": "item_0", "content": brief, **done},
        {**asked[1], "type": "message", "id": "item_1", **done},
        {
            "role": "assistant",
            "type": "message",
            "id": "item_2",
            "content": [{"type": "output_text", "text": "hm", "annotations": []}],
            **done,
        },
        {**asked[3], "content": [{"type": "input_text", "text": "look"}], **done},
        {**call, **done},
        {**asked[5], "id": "item_5", **done},
    ]
    assert (found["first_id"], found["last_id"]) == ("item_0", "item_5")


async def test_input_items_come_in_pages(make: Make) -> None:
    at = make()
    ids = [None, "a", "a", 7, "", "z", None]
    asked = [{"role": "user", "content": str(place), "id": each} for place, each in enumerate(ids)]
    said = await at.answered(input=asked)
    for order, expected in (("asc", "0123456"), ("desc", "6543210")):
        seen, after = "", ""
        for _ in range(10):
            page = (await at.get(f"{said['id']}/input_items?limit=3&order={order}{after}")).json
            seen += "".join(item["content"][0]["text"] for item in page["data"])
            if not page["has_more"]:
                break
            after = f"&after={page['last_id']}"
        assert seen == expected
    newest = (await at.get(f"{said['id']}/input_items?limit=1")).json
    assert newest["data"][0]["content"][0]["text"] == "6", "the newest come first"
    for wrong, param in (("limit=0", "limit"), ("limit=101", "limit"), ("order=up", "order"), ("after=x", "after")):
        answer = await at.get(f"{said['id']}/input_items?{wrong}")
        assert (answer.status, answer.error["param"]) == (400, param)


async def test_what_was_kept_is_not_streamed_again(make: Make) -> None:
    at = make()
    said = await at.answered(stream=True)
    answer = await at.get(f"{said['id']}?stream=true")
    assert (answer.status, answer.error["param"]) == (400, "stream")
    assert (await at.get(f"{said['id']}?stream=false")).status == 200


async def test_all_of_a_conversation_is_paid_for(make: Make) -> None:
    """And not only what is new: it is what the engine reads. Who may not pay for it holds nothing."""
    at = make(True)
    first = await at.answered(input="a word and another " * 1000, max_output_tokens=50)
    visit = at.ask(previous_response_id=first["id"], input="more", max_output_tokens=10)
    at.say(await at.asked_again(2), "resp_2")
    answer = await whole(visit)
    assert MOST_TOKENS - int(answer.headers[b"x-ratelimit-remaining-tokens"]) > 19_000 / 3
    most = MOST_TOKENS - 19_000 // 3
    refused = await whole(at.ask(previous_response_id=first["id"], input="more", max_output_tokens=most))
    assert (refused.status, refused.error["code"]) == (400, "over_token_limit")
    assert len(at.replica.opened) == 2
    at.nothing_is_held()
