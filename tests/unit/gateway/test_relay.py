"""The relay with upstreams that do one thing each: every ending, each accounted once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from firstkit.accounting.spool import Spool
from firstkit.auth.authenticator import Identity
from firstkit.gateway.call import CHAT, Call, Patience, check_body, parse_body
from firstkit.gateway.client import Client
from firstkit.gateway.forecast import Forecasts
from firstkit.gateway.relay import Relay
from firstkit.gateway.request import Account
from firstkit.gateway.waiting import WaitingRoom
from firstkit.links.messages import Head, Open, Outcome, Sink, Tail, Usage
from firstkit.routing.table import Route, RoutingTable
from firstkit.states import ReplicaState

CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
SSE = Head(200, "text/event-stream")
USAGE = Usage(3, 2)
Step = Callable[[Sink], None]


class Scripted:
    """An upstream that plays steps to each sink, one a turn of the loop; cancel ends a request as a pilot would."""

    def __init__(self, *steps: Step) -> None:
        self.steps = steps
        self.opened: list[bytes] = []
        self.cancels = 0
        self.pauses = 0
        self.resumes = 0

    def open(self, request: Open, body: bytes, sink: Sink) -> Played:
        self.opened.append(body)
        return Played(self, sink)


class Played:
    """One request at a Scripted. After its tail all calls do nothing."""

    def __init__(self, upstream: Scripted, sink: Sink) -> None:
        self.upstream = upstream
        self.sink = sink
        self.has_ended = False
        asyncio.ensure_future(self._play())

    async def _play(self) -> None:
        for step in self.upstream.steps:
            await asyncio.sleep(0)
            if self.has_ended:
                return
            step(self.sink)
            self.has_ended = getattr(self.sink, "tail", None) is not None

    def cancel(self) -> None:
        if not self.has_ended:
            self.has_ended = True
            self.upstream.cancels += 1
            self.sink.on_tail(Tail(Outcome.CANCELLED, Usage(3, 1, True)))

    def pause(self) -> None:
        self.upstream.pauses += 1

    def resume(self) -> None:
        self.upstream.resumes += 1


class Wire:
    """The ASGI side: keeps what was sent; ``hang_up`` is the client going away."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.hang_up = asyncio.Event()

    async def receive(self) -> Any:
        await self.hang_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def has_ended(self) -> bool:
        return bool(self.messages) and self.messages[-1].get("more_body") is not True


class World:
    """A relay over scripted upstreams, with a real spool."""

    def __init__(self, folder: Path) -> None:
        self.table = RoutingTable({"m": "m"})
        self.room = WaitingRoom(self.table, 2, lambda urgent: None)
        self.spool = Spool(folder)
        self.folder = folder
        self.relay = Relay(self.room, Forecasts(self.table), self.spool)

    def add(self, upstream: Scripted, max_in_flight: int = 4) -> Route:
        number = len(list(self.table.routes()))
        route = Route(f"rep-{number}", "m", "here", upstream, "m", max_in_flight, ReplicaState.READY)
        self.table.add(route)
        return route

    def call(self, stream: bool, patience: Patience | None = None) -> Call:
        raw = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream}).encode()
        body = parse_body(raw)
        check_body(body, CHAT)
        identity = Identity("u", "user", "p", "prefix", frozenset({"inference"}))
        account = Account(identity, "m", CHAT.endpoint, len(raw))
        return Call(CHAT, "m", body, stream, False, patience or Patience(2, 60), account, 300.0)

    async def ask(self, stream: bool = True, patience: Patience | None = None, wire: Wire | None = None) -> Wire:
        wire = wire or Wire()
        call = self.call(stream, patience)
        async with Client(wire.receive, wire.send, call.account.request_id) as client:
            await self.relay.serve(call, client)
        return wire

    def ended_lines(self) -> list[dict[str, Any]]:
        lines = [line for path in self.folder.glob("usage-*.jsonl") for line in path.read_text().splitlines() if line]
        return [entry for entry in map(json.loads, lines) if "outcome" in json.dumps(entry)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def head(sink: Sink) -> None:
    sink.on_head(SSE)


def data(sink: Sink) -> None:
    sink.on_data(CHUNK)


def tail(outcome: Outcome, error: str | None = None, usage: Usage | None = USAGE) -> Step:
    return lambda sink: sink.on_tail(Tail(outcome, usage, error))


async def test_good_stream_ends_by_done(world: World) -> None:
    world.add(Scripted(head, data, data, tail(Outcome.COMPLETE)))
    wire = await world.ask()
    assert wire.status == 200
    assert wire.body == CHUNK + CHUNK + b"data: [DONE]\n\n"
    assert wire.has_ended
    assert len(world.ended_lines()) == 1


async def test_usage_is_written_before_the_terminal_bytes(world: World) -> None:
    world.add(Scripted(head, data, tail(Outcome.COMPLETE)))
    wire = Wire()
    seen: list[int] = []
    send = wire.send

    async def noting_send(message: Any) -> None:
        if b"[DONE]" in message.get("body", b""):
            seen.append(len(world.ended_lines()))
        await send(message)

    wire.send = noting_send  # type: ignore[method-assign]
    await world.ask(wire=wire)
    assert seen == [1]


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.TIMEOUT, Outcome.LOST])
async def test_broken_stream_ends_by_one_error_event(world: World, outcome: Outcome) -> None:
    world.add(Scripted(head, data, tail(outcome, "boom")))
    wire = await world.ask()
    events = [event for event in wire.body.split(b"\n\n") if event]
    assert json.loads(events[-1].removeprefix(b"data: "))["error"]["message"]
    assert b"[DONE]" not in wire.body
    assert wire.has_ended
    assert len(world.ended_lines()) == 1


async def test_failure_before_the_first_byte_is_an_http_error(world: World) -> None:
    world.add(Scripted(tail(Outcome.TIMEOUT)))
    wire = await world.ask()
    assert wire.status == 504
    assert json.loads(wire.body)["error"]["code"] == "engine_timeout"


async def test_untouched_failure_goes_to_another_replica_once(world: World) -> None:
    broken = Scripted(tail(Outcome.FAILED, "refused", None))
    good = Scripted(head, data, tail(Outcome.COMPLETE))
    world.add(broken)
    world.add(good)
    wire = await world.ask()
    assert wire.body.endswith(b"[DONE]\n\n")
    assert len(broken.opened) == len(good.opened) == 1
    assert len(world.ended_lines()) == 1
    assert sum(route.in_flight for route in world.table.routes()) == 0


async def test_nothing_is_replayed_after_the_first_byte(world: World) -> None:
    world.add(Scripted(head, data, tail(Outcome.FAILED, "boom")))
    spare = Scripted(head, data, tail(Outcome.COMPLETE))
    world.add(spare)
    assert b"error" in (await world.ask()).body
    assert spare.opened == []


async def test_refusal_of_the_engine_keeps_its_sentence(world: World) -> None:
    def refusal(sink: Sink) -> None:
        sink.on_head(Head(400, "application/json"))
        sink.on_data(b'{"error": {"message": "too long", "param": "messages", "code": 400}}')

    world.add(Scripted(refusal, tail(Outcome.REJECTED)))
    wire = await world.ask()
    assert wire.status == 400
    error = json.loads(wire.body)["error"]
    assert (error["message"], error["param"], error["type"]) == ("too long", "messages", "invalid_request_error")


@pytest.mark.parametrize(("status", "said"), [(401, 502), (403, 502), (404, 400), (413, 413), (429, 429)])
async def test_refusal_that_is_not_the_client_s_doing(world: World, status: int, said: int) -> None:
    def refusal(sink: Sink) -> None:
        sink.on_head(Head(status, "application/json"))
        sink.on_data(b'{"error": {"message": "wrong key: canary"}}')

    world.add(Scripted(refusal, tail(Outcome.REJECTED)))
    wire = await world.ask()
    assert wire.status == said
    assert (b"canary" in wire.body) == (said in (400, 413)), "what is said of our key stays here"


async def test_plain_answer_is_sent_whole(world: World) -> None:
    answer = b'{"choices": []}'

    def plain(sink: Sink) -> None:
        sink.on_head(Head(200))
        sink.on_data(answer[:5])
        sink.on_data(answer[5:])

    world.add(Scripted(plain, tail(Outcome.COMPLETE)))
    wire = await world.ask(stream=False)
    assert (wire.status, wire.body) == (200, answer)
    assert dict(wire.messages[0]["headers"])[b"x-request-id"].startswith(b"req-")


async def test_client_that_leaves_aborts_and_is_billed_for_what_it_got(world: World) -> None:
    upstream = Scripted(head, data)
    route = world.add(upstream)
    wire = Wire()
    asking = asyncio.ensure_future(world.ask(wire=wire))
    while CHUNK not in wire.body:
        await asyncio.sleep(0)
    wire.hang_up.set()
    await asyncio.wait_for(asking, 5)
    assert upstream.cancels == 1
    assert route.in_flight == 0
    [line] = world.ended_lines()
    assert "cancelled" in json.dumps(line)


async def test_waiting_client_that_leaves_frees_its_place(world: World) -> None:
    wire = Wire()
    asking = asyncio.ensure_future(world.ask(wire=wire))
    while not world.room.waiting("m"):
        await asyncio.sleep(0)
    wire.hang_up.set()
    await asyncio.wait_for(asking, 5)
    assert world.room.waiting("m") == 0
    assert world.ended_lines() == []


async def test_waiters_are_served_in_order(world: World) -> None:
    asking = [asyncio.ensure_future(world.ask()) for _ in range(2)]
    while world.room.waiting("m") < 2:
        await asyncio.sleep(0)
    overloaded = await world.ask()
    assert overloaded.status == 429
    upstream = Scripted(head, data, tail(Outcome.COMPLETE))
    world.add(upstream, max_in_flight=1)
    world.room.pump("m")
    for wire in await asyncio.gather(*asking):
        assert wire.body.endswith(b"[DONE]\n\n")
    assert len(upstream.opened) == 2


async def test_a_stream_hears_comments_only_after_the_hold(world: World) -> None:
    wire = Wire()
    asking = asyncio.ensure_future(world.ask(patience=Patience(0.01, 60), wire=wire))
    while not wire.messages:
        await asyncio.sleep(0.005)
    assert wire.status == 200
    world.add(Scripted(head, data, tail(Outcome.COMPLETE)))
    world.room.pump("m")
    await asyncio.wait_for(asking, 5)
    assert wire.body.startswith(b": position=1 status=offline eta_s=unknown\n\n")
    assert wire.body.endswith(b"[DONE]\n\n")


async def test_slow_reader_pauses_its_own_stream(world: World) -> None:
    big = CHUNK * 30_000

    def much(sink: Sink) -> None:
        sink.on_data(big)

    upstream = Scripted(head, much, tail(Outcome.COMPLETE))
    world.add(upstream)
    wire = await world.ask()
    assert upstream.pauses == upstream.resumes == 1
    assert len(wire.body) > len(big)


async def test_disk_that_refuses_lets_no_work_in(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from firstkit.errors import StoreUnavailable

    def refuse(entry: Any) -> None:
        raise StoreUnavailable

    monkeypatch.setattr(world.spool, "opened", refuse)
    upstream = Scripted(head, data, tail(Outcome.COMPLETE))
    route = world.add(upstream)
    wire = await world.ask()
    assert wire.status == 503
    assert upstream.opened == []
    assert route.in_flight == 0
