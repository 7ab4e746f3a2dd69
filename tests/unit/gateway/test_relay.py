"""The relay with replicas played by hand: every ending, told once and accounted once before it is told."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstkit.accounting.spool import Spool
from firstkit.auth.authenticator import Identity
from firstkit.errors import ApiError, StoreUnavailable
from firstkit.gateway import relay as relay_module
from firstkit.gateway.apis import CHAT
from firstkit.gateway.call import Call, Patience, check_body, parse_body
from firstkit.gateway.client import Client
from firstkit.gateway.forecast import Forecasts
from firstkit.gateway.relay import HELD_BYTES, UNBEGUN_STATUS, Relay
from firstkit.gateway.request import Account
from firstkit.gateway.stored import StoredResponses
from firstkit.gateway.waiting import WaitingRoom
from firstkit.links.messages import Outcome, Usage
from firstkit.metrics import REGISTRY
from firstkit.routing.admission import Claim
from firstkit.routing.breaker import FAILURES
from firstkit.routing.retries import MOST_SAVED
from firstkit.routing.table import Route, RoutingTable
from firstkit.store.database import Database
from unit.gateway.support import Answer, PromptSpool, route
from unit.gateway.upstreams import CHUNK, ByHand, settle, until
from unit.gateway.wires import Wire

DONE = b"data: [DONE]\n\n"
IDENTITY = Identity("u", "user", "p", "prefix", frozenset({"inference"}))
BROKEN = [Outcome.FAILED, Outcome.TIMEOUT, Outcome.LOST]


class Asked:
    """One request: its client with the wire, and the owner of its call."""

    def __init__(self, wire: Wire, request_id: str) -> None:
        self.wire = wire
        self.client = Client(wire, request_id)  # type: ignore[arg-type]
        self.releases = 0
        self.overs = 0
        self.usage: Usage | None = None

    def release_body(self) -> None:
        assert self.overs == 0
        self.releases += 1

    def over(self, usage: Usage | None = None) -> None:
        self.overs += 1
        self.usage = usage

    @property
    def answer(self) -> Answer:
        return self.wire.answer

    @property
    def said(self) -> bytes:
        """The body so far, without comments."""
        events = self.wire.answers[0].body.split(b"\n\n") if self.wire.answers else []
        return b"".join(event + b"\n\n" for event in events if event and not event.startswith(b":"))


class World:
    """A relay over replicas played by hand, with a real spool."""

    def __init__(self, folder: Path, spool: type[Spool] = PromptSpool) -> None:
        self.table = RoutingTable({"m": "m"})
        self.room = WaitingRoom(self.table, 2, lambda urgent: None)
        self.spool = spool(folder)
        self.folder = folder
        self.relay = Relay(self.room, Forecasts(self.table), self.spool, StoredResponses(cast(Database, None), 0.0))
        self.used: list[tuple[str, int]] = []
        """Requests that had a route and have ended, and the tokens of each, as the line is told."""
        used = self.room.used

        def noting(model: str, claim: Claim, tokens: int) -> None:
            used(model, claim, tokens)
            self.used.append((claim.user, tokens))

        self.room.used = noting  # type: ignore[method-assign]

    def add(self, most: int = 4, cluster: str = "here") -> ByHand:
        """One replica more."""
        replica = ByHand()
        self.table.add(route(f"rep-{len(self.routes)}", most, cluster=cluster, upstream=replica))
        return replica

    @property
    def routes(self) -> list[Route]:
        return list(self.table.routes())

    def ask(self, stream: bool = True, patience: Patience | None = None, knows_chunks: bool = True) -> Asked:
        """Send a request as a connection does."""
        raw = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream}).encode()
        body = parse_body(raw)
        check_body(body, CHAT)
        account = Account(IDENTITY, "m", CHAT.endpoint, len(raw))
        asked = Asked(Wire(knows_chunks=knows_chunks), account.request_id)
        call = Call(CHAT, "m", body, stream, False, patience or Patience(60, 60), account, 300.0, 3600.0, asked)
        call.claim = Claim("p", account.request_id, 10)
        try:
            self.relay.serve(call, asked.client)
        except ApiError as error:
            asked.client.fail(error)
            asked.over()
        return asked

    def lines(self) -> list[dict[str, Any]]:
        """The usage lines that were written, of requests that ended."""
        written = b"".join(path.read_bytes() for path in sorted(self.folder.glob("usage-*.jsonl")))
        return [entry for entry in map(json.loads, written.splitlines()) if "outcome" in entry]

    def written(self) -> int:
        """How many lines there are, of either kind."""
        return sum(path.read_bytes().count(b"\n") for path in self.folder.glob("usage-*.jsonl"))

    @property
    def in_flight(self) -> int:
        return sum(each.in_flight for each in self.routes)


@pytest.fixture
async def world(tmp_path: Path) -> World:
    return World(tmp_path)


def over(world: World, asked: Asked, outcome: str) -> dict[str, Any]:
    """The one usage line of a request that is over, in every sense."""
    assert (asked.overs, asked.wire.ends + asked.client.is_gone) == (1, 1)
    assert world.in_flight == 0
    assert len(world.spool) == 0
    [line] = world.lines()
    assert line["outcome"] == outcome
    assert line["request_id"] == asked.client.request_id
    assert asked.usage is not None
    assert (asked.usage.prompt_tokens, asked.usage.completion_tokens) == (
        line["prompt_tokens"], line["completion_tokens"],
    )  # fmt: skip
    assert world.used == [(asked.client.request_id, line["prompt_tokens"] + line["completion_tokens"])]
    return line


# -- streams -----------------------------------------------------------------------------------------------------------


async def test_good_stream_ends_by_done(world: World) -> None:
    replica = world.add()
    asked = world.ask()
    replica.last.stream(CHUNK)
    assert asked.answer.chunks == [CHUNK], "each piece is passed on as it comes"
    replica.last.data(CHUNK)
    replica.last.complete()
    assert asked.answer.is_whole
    assert asked.said == CHUNK + CHUNK + DONE
    line = over(world, asked, "complete")
    assert (line["prompt_tokens"], line["completion_tokens"], line["estimated"]) == (3, 2, False)
    assert (line["cluster"], line["replica_id"], line["endpoint"]) == ("here", "rep-0", "chat/completions")


async def test_an_old_client_gets_the_same_without_chunks(world: World) -> None:
    replica = world.add()
    asked = world.ask(knows_chunks=False)
    replica.last.stream(CHUNK)
    replica.last.complete()
    assert asked.answer.body == CHUNK + DONE


@pytest.mark.parametrize("outcome", BROKEN)
async def test_broken_stream_ends_by_one_error_event(world: World, outcome: Outcome) -> None:
    replica = world.add()
    asked = world.ask()
    replica.last.stream(CHUNK)
    replica.last.end(outcome, "boom", usage=None)
    assert asked.answer.is_whole
    events = asked.answer.events
    assert events[-1]["error"]["message"]
    assert "[DONE]" not in events
    line = over(world, asked, outcome.value)
    assert (line["completion_tokens"], line["estimated"]) == (1, True), "what was delivered is charged"


async def test_usage_is_written_before_the_terminal_bytes(world: World) -> None:
    replica = world.add()
    seen: list[int] = []
    for stream in (True, False):
        asked = world.ask(stream)
        asked.wire.transport.on_write = lambda data: seen.append(len(world.lines()))
        replica.last.stream(CHUNK) if stream else replica.last.head()
        before = len(seen)
        replica.last.complete()
        assert seen[before:] == [1 if stream else 2]


async def test_times_of_the_replica_are_told_with_the_wait_before_them(world: World) -> None:
    def seen(name: str) -> float:
        return REGISTRY.get_sample_value(f"first_{name}_seconds_count", {"model": "m"}) or 0

    before = [seen(name) for name in ("time_to_first_token", "inter_token", "queue")]
    replica = world.add()
    asked = world.ask()
    replica.last.stream(CHUNK)
    replica.last.end(Outcome.COMPLETE, ttft_s=0.5, gap_s=0.01)
    line = over(world, asked, "complete")
    assert line["ttft_s"] == line["queue_s"] + 0.5
    assert [seen(name) for name in ("time_to_first_token", "inter_token", "queue")] == [count + 1 for count in before]


async def test_a_body_is_let_go_with_the_first_byte(world: World) -> None:
    replica = world.add()
    asked = world.ask()
    replica.last.stream()
    assert asked.releases == 0
    replica.last.data(CHUNK, CHUNK)
    assert asked.releases == 1


# -- plain answers -----------------------------------------------------------------------------------------------------


async def test_a_plain_answer_is_sent_whole(world: World) -> None:
    replica = world.add()
    asked = world.ask(stream=False)
    replica.last.head(200, "application/json; x=y")
    replica.last.data(b'{"choices"', b": []}")
    assert asked.wire.answers == [], "it is held until it is known how it ends"
    replica.last.complete()
    assert (asked.answer.status, asked.answer.body) == (200, b'{"choices": []}')
    assert asked.answer.headers[b"content-type"] == b"application/json; x=y"
    assert asked.answer.headers[b"content-length"] == b"15"
    assert asked.answer.headers[b"x-request-id"].startswith(b"req-")
    over(world, asked, "complete")


@pytest.mark.parametrize("outcome", BROKEN)
async def test_a_plain_answer_that_breaks_is_an_error(world: World, outcome: Outcome) -> None:
    replica = world.add()
    asked = world.ask(stream=False)
    replica.last.head()
    replica.last.data(b"x" * HELD_BYTES)
    replica.last.end(outcome, "boom")
    assert asked.answer.status == (504 if outcome is Outcome.TIMEOUT else 502)
    assert asked.answer.error["type"] == "server_error"
    over(world, asked, outcome.value)


async def test_a_long_plain_answer_goes_on_as_it_comes(world: World) -> None:
    replica = world.add()
    asked = world.ask(stream=False)
    replica.last.head(200, "application/json")
    replica.last.data(b"x" * HELD_BYTES)
    assert asked.wire.answers == []
    replica.last.data(b"y")
    assert asked.answer.body == b"x" * HELD_BYTES + b"y"
    assert asked.releases == 1
    replica.last.data(b"z")
    assert asked.answer.body.endswith(b"yz")
    assert not asked.answer.is_whole
    replica.last.complete()
    assert asked.answer.is_whole
    assert asked.answer.headers[b"content-type"] == b"application/json"
    assert asked.answer.headers[b"transfer-encoding"] == b"chunked"
    over(world, asked, "complete")


async def test_a_long_plain_answer_in_one_piece(world: World) -> None:
    replica = world.add()
    asked = world.ask(stream=False)
    replica.last.answer(b"x" * 5 * HELD_BYTES)
    assert asked.answer.is_whole
    assert asked.answer.body == b"x" * 5 * HELD_BYTES
    over(world, asked, "complete")


@pytest.mark.parametrize("outcome", BROKEN)
async def test_a_long_plain_answer_that_breaks_is_reset(world: World, outcome: Outcome) -> None:
    """It cannot say that it is not whole in any other way."""
    replica = world.add()
    asked = world.ask(stream=False)
    replica.last.head()
    replica.last.data(b"x" * (HELD_BYTES + 1))
    replica.last.end(outcome)
    assert asked.wire.transport.is_aborted
    assert not asked.answer.is_whole
    over(world, asked, outcome.value)


async def test_a_long_refusal_is_read_to_its_beginning(world: World) -> None:
    replica = world.add()
    asked = world.ask(stream=False)
    replica.last.head(400)
    for _ in range(10):
        replica.last.data(b" " * HELD_BYTES)
    replica.last.end(Outcome.REJECTED)
    assert (asked.answer.status, asked.answer.error["code"]) == (400, "engine_refused")


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_of_the_engine_keeps_its_sentence(world: World, stream: bool) -> None:
    replica = world.add()
    asked = world.ask(stream)
    replica.last.head(400)
    replica.last.data(b'{"error": {"message": "too long", "param": "messages", "code": 400}}')
    replica.last.end(Outcome.REJECTED, usage=None)
    error = asked.answer.error
    assert (asked.answer.status, error["message"], error["param"]) == (400, "too long", "messages")
    assert (error["type"], error["code"]) == ("invalid_request_error", "engine_refused")
    over(world, asked, "rejected")


@pytest.mark.parametrize(("status", "said"), [(401, 502), (403, 502), (404, 400), (413, 413), (422, 400), (429, 429)])
async def test_a_refusal_that_is_not_the_client_s_doing(world: World, status: int, said: int) -> None:
    replica = world.add()
    asked = world.ask()
    replica.last.head(status)
    replica.last.data(b'{"error": {"message": "wrong key: canary"}}')
    replica.last.end(Outcome.REJECTED)
    assert asked.answer.status == said
    assert (b"canary" in asked.answer.body) == (said in (400, 413)), "what is said of our key stays here"


# -- another replica ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.LOST])
async def test_untouched_failure_goes_to_another_replica_once(world: World, outcome: Outcome, stream: bool) -> None:
    broken, good = world.add(), world.add()
    asked = world.ask(stream)
    broken.last.end(outcome, "refused", usage=None)
    assert asked.wire.answers == []
    assert json.loads(good.last.body) == json.loads(broken.last.body)
    assert good.last.request.replica_id == "rep-1"
    good.last.stream(CHUNK) if stream else good.last.head()
    good.last.complete()
    assert asked.answer.status == 200
    line = over(world, asked, "complete")
    assert line["replica_id"] == "rep-1"


@pytest.mark.parametrize("status", UNBEGUN_STATUS)
async def test_nor_did_what_says_that_it_did_not(world: World, status: int) -> None:
    broken, good = world.add(), world.add()
    asked = world.ask(stream=False)
    broken.last.head(status, "text/html")
    broken.last.data(b"<html>nobody is here</html>")
    broken.last.end(Outcome.FAILED, usage=None)
    good.last.answer(b"[]")
    assert (asked.answer.headers[b"content-type"], asked.answer.body) == (b"application/json", b"[]")
    over(world, asked, "complete")


async def test_it_goes_to_another_cluster_if_there_is_one(world: World) -> None:
    failing, near, far = world.add(), world.add(), world.add(cluster="there")
    asked = world.ask()
    failing.last.end(Outcome.LOST, usage=None)
    assert near.opened == []
    far.last.stream(CHUNK)
    far.last.complete()
    assert asked.answer.headers[b"x-first-cluster"] == b"there"
    assert over(world, asked, "complete")["cluster"] == "there"


async def test_a_cluster_is_lost_in_mid_load(world: World) -> None:
    """What was under way there ends by an error that is seen, or goes elsewhere if nothing of it was answered yet; who
    waits goes on waiting; what comes goes elsewhere."""
    gone, stays = world.add(3), world.add(3, "there")
    asked = [world.ask() for _ in range(6)]
    waiting = world.ask()
    for exchange in [*gone.opened[:2], *stays.opened]:
        exchange.stream(CHUNK)
    stays.opened[0].complete()
    await settle()
    begun = [gone.opened[0], gone.opened[1]]
    world.table.remove(world.routes[0])
    stays.opened[1].complete()
    for exchange in list(gone.opened):
        exchange.end(Outcome.LOST, usage=None)
    await settle()
    ended = [each for each in asked if each.overs and b'"code": "replica_lost"' in each.said]
    assert len(ended) == len(begun) == 2
    assert all(each.said.startswith(CHUNK) and DONE not in each.said for each in ended)
    assert world.ask().overs == 0
    served = 0
    while served < len(stays.opened):
        exchange = stays.opened[served]
        served += 1
        if not exchange.has_ended:
            exchange.data(CHUNK) if exchange.has_head else exchange.stream(CHUNK)
            exchange.complete()
            await settle()
    assert waiting.said == CHUNK + DONE
    assert [line["outcome"] for line in world.lines()].count("lost") == 2
    assert {line["cluster"] for line in world.lines() if line["outcome"] == "complete"} == {"there"}
    assert world.in_flight == 0


async def test_only_what_the_replica_itself_took_is_measured(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    monkeypatch.setattr(world.room, "measure", lambda route, tail: measured.append(tail.outcome.value))
    replica = world.add()
    for outcome in Outcome:
        world.ask(stream=False)
        replica.last.head()
        replica.last.end(outcome)
    assert measured == ["complete"]
    asked = world.ask()
    replica.last.stream(CHUNK)
    asked.client.pause()
    asked.client.resume()
    replica.last.complete()
    assert measured == ["complete"], "the client was slow"


async def test_what_the_first_replica_said_does_not_count_for_the_second(world: World) -> None:
    """A second that claims more tokens than it sent bytes is not believed, however many the first sent."""
    broken, good = world.add(), world.add()
    asked = world.ask(stream=False)
    broken.last.head(503)
    broken.last.data(b"x" * 10_000)
    broken.last.end(Outcome.FAILED, usage=None)
    good.last.head()
    good.last.data(b"{}")
    good.last.end(Outcome.COMPLETE, usage=Usage(3, 500))
    line = over(world, asked, "complete")
    assert line["estimated"]
    assert line["completion_tokens"] <= 2


@pytest.mark.parametrize("status", [500, 501])
async def test_what_may_have_begun_does_not(world: World, status: int) -> None:
    broken, spare = world.add(), world.add()
    asked = world.ask()
    broken.last.head(status)
    broken.last.data(b"{}")
    broken.last.end(Outcome.FAILED, usage=None)
    assert spare.opened == []
    assert asked.answer.status == 502


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, Outcome.REJECTED])
async def test_nor_does_what_another_would_not_do_better(world: World, outcome: Outcome) -> None:
    first, spare = world.add(), world.add()
    world.ask()
    first.last.end(outcome, usage=None)
    assert spare.opened == []


@pytest.mark.parametrize("stream", [True, False])
async def test_nothing_is_replayed_after_the_first_byte(world: World, stream: bool) -> None:
    broken, spare = world.add(), world.add()
    asked = world.ask(stream)
    broken.last.stream(CHUNK) if stream else broken.last.head()
    broken.last.data(CHUNK)
    broken.last.end(Outcome.FAILED, "boom")
    assert spare.opened == []
    over(world, asked, "failed")


async def test_it_is_tried_once(world: World) -> None:
    replicas = [world.add() for _ in range(3)]
    asked = world.ask()
    replicas[0].last.end(Outcome.FAILED, usage=None)
    replicas[1].last.end(Outcome.LOST, usage=None)
    assert replicas[2].opened == []
    assert asked.answer.error["code"] == "replica_lost"
    over(world, asked, "lost")


async def test_what_has_nobody_to_go_to_is_an_error(world: World) -> None:
    replica = world.add()
    asked = world.ask()
    replica.last.end(Outcome.FAILED, "boom", usage=None)
    assert (asked.answer.status, asked.answer.error["code"]) == (502, "engine_failed")
    assert len(replica.opened) == 1
    over(world, asked, "failed")


async def test_who_is_gone_is_not_sent_elsewhere(world: World) -> None:
    first, spare = world.add(), world.add()
    asked = world.ask()
    first.last.has_ended = True  # it breaks in the moment in which the client goes
    asked.client.hang_up()
    first.last.has_ended = False
    first.last.end(Outcome.LOST, usage=None)
    assert spare.opened == []
    over(world, asked, "lost")


async def test_a_client_that_goes_is_heard_by_the_second_replica(world: World) -> None:
    first, second = world.add(), world.add()
    asked = world.ask()
    first.last.end(Outcome.LOST, usage=None)
    asked.client.pause()
    asked.client.hang_up()
    assert first.last.calls == []
    assert second.last.calls == ["pause", "cancel"]
    over(world, asked, "cancelled")


async def test_retries_have_a_budget(world: World) -> None:
    first, second = world.add(100), world.add(100)
    tried = 0
    for _ in range(40):
        asked = world.ask()
        taken, other = (first, second) if first.opened and not first.last.has_ended else (second, first)
        before = len(other.opened)
        taken.last.end(Outcome.LOST, usage=None)
        tried += len(other.opened) - before
        if not asked.client.is_over:
            other.last.stream(CHUNK)
            other.last.complete()
        for each in world.routes:
            each.breaker.succeeded()
            world.table.pools["m"].refresh()
    assert MOST_SAVED <= tried <= MOST_SAVED + 40 / 10


# -- replicas that fail ------------------------------------------------------------------------------------------------


async def test_where_all_replicas_fail_it_is_said_at_once(world: World) -> None:
    replica = world.add()
    for _ in range(FAILURES):
        world.ask()
        replica.last.end(Outcome.FAILED, usage=None)
    asked = world.ask()
    assert (asked.answer.status, asked.answer.error["code"]) == (503, "replicas_failing")
    assert int(asked.answer.headers[b"retry-after"]) >= 1
    assert len(replica.opened) == FAILURES
    assert asked.overs == 1
    world.room._try_again(world.routes[0])
    world.ask()
    replica.last.stream(CHUNK)
    replica.last.complete()
    world.ask()
    world.ask()
    assert len(replica.opened) == FAILURES + 3


# -- waiting -----------------------------------------------------------------------------------------------------------


async def test_waiters_are_served_in_order(world: World) -> None:
    waiting = [world.ask() for _ in range(2)]
    assert world.room.waiting("m") == 2
    refused = world.ask()
    assert (refused.answer.status, refused.answer.error["code"]) == (429, "overloaded")
    replica = world.add(most=1)
    world.room.pump("m")
    for count, asked in enumerate(waiting, 1):
        (await replica.asked(count)).stream(CHUNK)
        replica.last.complete()
        assert asked.said == CHUNK + DONE
        assert asked.overs == 1
    await until("nobody waits", lambda: not world.relay.waiting)
    assert len(world.lines()) == 2


async def test_a_waiting_client_that_leaves_frees_its_place(world: World) -> None:
    asked = world.ask()
    await settle()
    asked.client.hang_up()
    await until("it is over", lambda: asked.overs == 1)
    assert world.room.waiting("m") == 0
    assert (world.lines(), world.used, asked.usage) == ([], [], None)
    assert asked.wire.answers == []
    await until("nobody waits", lambda: not world.relay.waiting)


async def test_a_client_that_leaves_when_its_turn_comes_passes_it_on(world: World) -> None:
    asked, other = world.ask(), world.ask()
    await settle()
    replica = world.add(most=1)
    world.room.pump("m")
    asked.client.hang_up()
    await until("the other has its turn", lambda: bool(replica.opened))
    await settle()
    assert len(replica.opened) == 1
    replica.last.stream(CHUNK)
    replica.last.complete()
    assert other.said == CHUNK + DONE
    assert asked.overs == 1


async def test_a_cold_model_fails_those_who_ask_for_that(world: World) -> None:
    asked = world.ask(patience=Patience(2, 60, fails_when_cold=True))
    assert (asked.answer.status, asked.answer.error["code"]) == (503, "model_not_ready")
    assert world.room.waiting("m") == 0
    world.add(most=1)
    world.ask()
    waits = world.ask(patience=Patience(2, 60, fails_when_cold=True))
    assert waits.wire.answers == []
    assert world.room.waiting("m") == 1, "a model that is only busy is not cold"


@pytest.mark.parametrize("stream", [True, False])
async def test_nobody_waits_longer_than_they_would(world: World, stream: bool) -> None:
    asked = world.ask(stream, Patience(60, 0.01))
    async with asyncio.timeout(10):
        while asked.overs == 0:
            await asyncio.sleep(0.001)
    assert (asked.answer.status, asked.answer.error["code"]) == (503, "model_not_ready")
    assert world.room.waiting("m") == 0
    assert world.lines() == []


async def test_a_stream_hears_comments_only_after_the_hold(world: World) -> None:
    asked = world.ask(patience=Patience(0.01, 60))
    assert asked.wire.answers == []
    async with asyncio.timeout(10):
        while not asked.wire.answers:
            await asyncio.sleep(0.001)
    assert asked.answer.body == b": position=1 status=offline eta_s=unknown\n\n"
    replica = world.add()
    world.room.pump("m")
    (await replica.asked()).stream(CHUNK)
    replica.last.complete()
    assert asked.said == CHUNK + DONE
    over(world, asked, "complete")


async def test_what_fails_after_the_hold_is_an_error_event(world: World) -> None:
    asked = world.ask(patience=Patience(0, 60))
    await until("a comment", lambda: bool(asked.wire.answers))
    replica = world.add()
    world.room.pump("m")
    (await replica.asked()).end(Outcome.FAILED, "boom", usage=None)
    assert [event["error"]["code"] for event in asked.answer.events] == ["engine_failed"]
    over(world, asked, "failed")


async def test_a_stream_that_says_nothing_is_kept_alive(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "KEEPALIVE_EVERY_S", 0.01)
    replica = world.add()
    asked = world.ask(patience=Patience(0.01, 60))
    async with asyncio.timeout(10):
        while not asked.wire.answers or asked.answer.body.count(b": working\n\n") < 3:
            await asyncio.sleep(0.001)
    replica.last.stream(CHUNK)
    replica.last.complete()
    assert asked.said == CHUNK + DONE
    ended = bytes(asked.wire.transport.data)
    await asyncio.sleep(0.03)
    assert asked.wire.transport.data == ended
    over(world, asked, "complete")


# -- clients that go, or are slow --------------------------------------------------------------------------------------


async def test_client_that_leaves_aborts_and_is_billed_for_what_it_got(world: World) -> None:
    replica = world.add()
    asked = world.ask()
    replica.last.stream(CHUNK)
    asked.client.hang_up()
    assert replica.last.calls == ["cancel"]
    line = over(world, asked, "cancelled")
    assert line["completion_tokens"] == 1


async def test_what_was_under_way_to_a_client_that_left_is_dropped(world: World) -> None:
    replica = world.add()
    asked = world.ask()
    replica.last.stream(CHUNK)
    replica.last.has_ended = True  # the replica hears of it later
    asked.client.hang_up()
    before = bytes(asked.wire.transport.data)
    replica.last.data(CHUNK)
    assert asked.wire.transport.data == before
    replica.last.has_ended = False
    replica.last.cancel()
    over(world, asked, "cancelled")


async def test_slow_reader_pauses_its_own_stream(world: World) -> None:
    replica = world.add()
    slow, other = world.ask(), world.ask()
    slow.client.pause()
    assert [exchange.calls for exchange in replica.opened] == [["pause"], []]
    slow.client.resume()
    assert [exchange.calls for exchange in replica.opened] == [["pause", "resume"], []]
    assert not other.client.is_over


# -- disks and faults --------------------------------------------------------------------------------------------------


def refuse(*_: object) -> None:
    raise StoreUnavailable


@pytest.mark.parametrize("waits", [False, True])
async def test_disk_that_refuses_lets_no_work_in(world: World, monkeypatch: pytest.MonkeyPatch, waits: bool) -> None:
    monkeypatch.setattr(world.spool, "_write", refuse)
    replica = None if waits else world.add()
    asked = world.ask()
    if replica is None:
        replica = world.add()
        world.room.pump("m")
        await until("it is over", lambda: asked.overs > 0)
    assert (asked.answer.status, asked.answer.error["code"]) == (503, "store_unavailable")
    assert replica.opened == []
    assert (world.in_flight, asked.overs, asked.usage) == (0, 1, None)
    assert world.used == [(asked.client.request_id, 0)], "it had a route, and used nothing"


async def test_a_disk_that_refuses_later_is_no_client_s_trouble(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = REGISTRY.get_sample_value("first_spool_failures_total") or 0
    replica = world.add()
    asked = world.ask()
    replica.last.stream(CHUNK)
    monkeypatch.setattr(world.spool, "_write", refuse)
    replica.last.complete()
    assert asked.said == CHUNK + DONE
    assert (asked.overs, asked.usage) == (1, Usage(3, 2)), "it is accounted as soon as it can be"
    assert [record.action for record in caplog.records] == ["spool"]  # type: ignore[attr-defined]
    assert REGISTRY.get_sample_value("first_spool_failures_total") == before + 1


async def test_a_fault_of_ours_at_a_request_that_waited_is_told_and_holds_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fault(*_: object) -> None:
        raise ValueError("canary")

    asked = world.ask()
    await settle()
    monkeypatch.setattr(world.spool, "begin", fault)
    replica = world.add()
    world.room.pump("m")
    await until("it is over", lambda: asked.overs > 0)
    assert (asked.answer.status, asked.answer.error["code"]) == (500, "internal_error")
    assert (asked.overs, world.in_flight, replica.opened) == (1, 0, [])
    assert world.used == [(asked.client.request_id, 0)]
    [record] = caplog.records
    assert record.exc_info is not None


@pytest.mark.parametrize("has_begun", [True, False])
async def test_a_fault_of_ours_at_the_end_is_told_without_its_text(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, has_begun: bool
) -> None:
    def fault(*_: object) -> None:
        raise ValueError("canary")

    replica = world.add()
    asked = world.ask()
    if has_begun:
        replica.last.stream(CHUNK)
    monkeypatch.setattr(world.spool, "end", fault)
    replica.last.complete()
    assert b"canary" not in asked.wire.transport.data
    assert asked.answer.is_whole
    error = asked.answer.events[-1]["error"] if has_begun else asked.answer.error
    assert error["code"] == "internal_error"
    assert (asked.overs, world.in_flight) == (1, 0)
    [record] = caplog.records
    assert record.exc_info is not None


# -- what is noted first -----------------------------------------------------------------------------------------------


async def test_a_replica_is_asked_and_an_answer_ends_after_the_line_that_says_so(tmp_path: Path) -> None:
    world = World(tmp_path, Spool)
    replica, asked = world.add(), world.ask()
    assert (replica.opened, world.written()) == ([], 0)
    await replica.asked()
    assert world.written() == 1
    replica.last.stream(CHUNK)
    replica.last.complete()
    assert (asked.said, asked.overs, world.written()) == (CHUNK, 0, 1), "the end waits for its line"
    await until("the end", lambda: asked.overs > 0)
    assert (asked.said, world.written()) == (CHUNK + DONE, 2)
    assert over(world, asked, "complete")["completion_tokens"] == 2


async def test_who_hangs_up_before_the_line_is_there_is_accounted_like_any_other(tmp_path: Path) -> None:
    world = World(tmp_path, Spool)
    replica, asked = world.add(), world.ask()
    asked.client.hang_up()
    await until("the end", lambda: asked.overs > 0)
    assert [exchange.calls for exchange in replica.opened] == [["cancel"]]
    over(world, asked, "cancelled")


async def test_who_hangs_up_before_the_last_line_is_there_changes_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, Spool)
    replica, asked = world.add(), world.ask()
    (await replica.asked()).stream(CHUNK)
    replica.last.complete()
    asked.client.hang_up()
    await until("the end", lambda: asked.overs > 0)
    over(world, asked, "complete")


# -- any history -------------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["ask", "ask", "ask plain", "head", "head", "bad head", "data", "data", "much", "complete", "fail", "lose",
             "time out", "reject", "hang up", "pause", "resume", "give up", "turn", "try again"]
        ),
        st.integers(0, 9),
    ),
    max_size=50,
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(STEPS)
def test_any_history_has_one_end_and_one_line_for_each_request(steps: list[tuple[str, int]]) -> None:
    asyncio.run(_history(steps))


async def _history(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        replicas = [world.add(2), world.add(2)]
        everybody: list[Asked] = []
        for step, number in steps:
            await _step(world, replicas, everybody, step, number)
            assert all(len(asked.wire.answers) <= 1 for asked in everybody)
            assert all(asked.overs <= 1 and asked.releases <= 1 for asked in everybody)
        for asked in everybody:
            asked.client.hang_up()
        await settle()
        for replica in replicas:
            for exchange in replica.opened:
                exchange.end(Outcome.CANCELLED, usage=Usage(0, 0))
        await settle()
        _nothing_is_left(world, replicas, everybody)


def _nothing_is_left(world: World, replicas: list[ByHand], everybody: list[Asked]) -> None:
    assert [asked.overs for asked in everybody] == [1] * len(everybody)
    assert world.in_flight == world.room.waiting("m") == len(world.spool) == 0
    assert not world.relay.waiting
    given_out = {exchange.request.headers["x-request-id"] for replica in replicas for exchange in replica.opened}
    lines = [line["request_id"] for line in world.lines()]
    assert sorted(lines) == sorted(given_out), "one line for each, and only for those that were given out"
    told = [user for user, _ in world.used]
    assert sorted({*told}) == sorted(told), "each is told once to have ended"
    assert given_out <= set(told)
    for asked in everybody:
        answers = asked.wire.answers
        if asked.wire.ends:
            assert answers[0].is_whole
            if answers[0].headers[b"content-type"].startswith(b"text/event-stream"):
                last = answers[0].events[-1]
                assert last == "[DONE]" or set(last) == {"error"}
                assert answers[0].body.count(DONE) == (last == "[DONE]")
        else:
            assert asked.client.is_gone
            assert not answers or not answers[0].is_whole
    world.spool.close()


async def _step(world: World, replicas: list[ByHand], everybody: list[Asked], step: str, number: int) -> None:
    running = [each for replica in replicas for each in replica.opened if not each.has_ended]
    exchange = running[number % len(running)] if running else None
    asked = everybody[number % len(everybody)] if everybody else None
    outcomes = {"fail": Outcome.FAILED, "lose": Outcome.LOST, "time out": Outcome.TIMEOUT, "reject": Outcome.REJECTED}
    if step.startswith("ask"):
        everybody.append(world.ask(stream=step == "ask"))
    elif step == "turn":
        await settle(3)
    elif step == "try again":
        world.room._try_again(world.routes[number % 2])
    elif asked is not None and step in ("hang up", "pause", "resume"):
        {"hang up": asked.client.hang_up, "pause": asked.client.pause, "resume": asked.client.resume}[step]()
    elif asked is not None and step == "give up":
        asked.client.give_up(StoreUnavailable())
    elif exchange is not None and step in ("head", "bad head"):
        if not exchange.has_head:
            exchange.head(503 if step == "bad head" else 200)
    elif exchange is not None and step in ("data", "much"):
        if exchange.has_head:
            exchange.data(CHUNK if step == "data" else b'data: "%b"\n\n' % (b"x" * HELD_BYTES))
    elif exchange is not None and step == "complete":
        if not exchange.has_head:
            exchange.head()
        exchange.complete()
    elif exchange is not None and step in outcomes:
        exchange.end(outcomes[step], "boom", usage=None)
