"""The client's end of an answer: what is written for each ending, to whom, and that a hang-up is heard."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.errors import EngineFailed, ModelNotReady, Overloaded, Unauthenticated
from firstkit.gateway import client as client_module
from firstkit.gateway.client import Client, status_line
from firstkit.gateway.dialects import CHUNKS
from unit.gateway.support import Answer
from unit.gateway.wires import Source, Wire

DONE = CHUNKS.done


def on(wire: Wire) -> Client:
    return Client(wire, "req-1")  # type: ignore[arg-type]


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    assert len(wire.answers) <= 1, "one request has one answer"
    assert wire.ends <= 1


@pytest.fixture
def client(wire: Wire) -> Client:
    return on(wire)


# -- endings -----------------------------------------------------------------------------------------------------------


def test_a_plain_answer(wire: Wire, client: Client) -> None:
    client.plain("application/json", b'{"a": 1}')
    assert wire.answer == Answer(
        200,
        {b"date": b"now", b"content-type": b"application/json", b"content-length": b"8", b"x-request-id": b"req-1"},
        b'{"a": 1}',
    )
    assert wire.ends == 1


def test_a_stream_that_ends_well(wire: Wire, client: Client) -> None:
    client.begin()
    client.write(b"data: 1\n\n")
    assert client.has_begun
    assert not wire.answer.is_whole
    client.comment("working")
    client.done()
    assert wire.answer.is_whole
    assert wire.answer.headers == {
        b"date": b"now",
        b"content-type": b"text/event-stream; charset=utf-8",
        b"cache-control": b"no-cache",
        b"x-accel-buffering": b"no",
        b"transfer-encoding": b"chunked",
        b"x-request-id": b"req-1",
    }
    assert wire.answer.chunks == [b"data: 1\n\n", b": working\n\n", DONE]
    assert wire.ends == 1


def test_an_empty_stream_is_a_stream(wire: Wire, client: Client) -> None:
    client.done()
    assert (wire.answer.status, wire.answer.body) == (200, DONE)


def test_a_comment_begins_a_stream(wire: Wire, client: Client) -> None:
    client.comment("position=1")
    assert wire.answer.headers[b"content-type"].startswith(b"text/event-stream")
    assert wire.answer.chunks == [b": position=1\n\n"]


def test_a_long_plain_answer_goes_on_as_it_comes(wire: Wire, client: Client) -> None:
    client.begin("application/json")
    client.write(b"[1,")
    assert wire.answer.chunks == [b"[1,"]
    client.write(b"2]")
    client.finish()
    assert wire.answer.is_whole
    assert (wire.answer.headers[b"content-type"], wire.answer.body) == (b"application/json", b"[1,2]")
    assert b"cache-control" not in wire.answer.headers


def test_an_error_before_the_stream_has_its_status(wire: Wire, client: Client) -> None:
    client.fail(Overloaded(retry_after_s=5))
    assert wire.answer.status == 429
    assert wire.answer.headers[b"retry-after"] == b"5"
    assert wire.answer.headers[b"x-request-id"] == b"req-1"
    assert wire.answer.error["code"] == "overloaded"
    assert wire.ends == 1


def test_an_error_in_a_stream_is_its_last_event(wire: Wire, client: Client) -> None:
    error = EngineFailed("It broke\n\ndata: [DONE]\n\n")
    client.begin()
    client.write(b"data: 1\n\n")
    client.fail(error)
    assert wire.answer.is_whole
    assert DONE not in wire.answer.body
    *_, last, rest = wire.answer.body.split(b"\n\n")
    assert rest == b""
    assert json.loads(last.removeprefix(b"data: ")) == error.body()


def test_a_plain_body_that_broke_is_reset(wire: Wire, client: Client) -> None:
    client.begin("application/json")
    client.write(b"[1,")
    client.abort()
    assert wire.transport.is_aborted
    assert not wire.answer.is_whole
    assert (wire.ends, wire.keeps_alive) == (0, False), "and nothing comes behind it"


def test_we_may_end_before_the_answer_does(wire: Wire, client: Client) -> None:
    source = Source()
    client.listen_to(source)
    client.begin()
    client.give_up(Overloaded())
    assert source.calls == ["cancel"]
    assert wire.answer.events == [Overloaded().body()]
    assert (wire.answer.is_whole, wire.ends) == (True, 1)


@pytest.mark.parametrize("ending", ["plain", "stream", "error"])
def test_what_all_answers_to_a_client_carry(wire: Wire, client: Client, ending: str) -> None:
    client.lines = b"x-ratelimit-limit-requests: 5\r\n"
    if ending == "plain":
        client.plain("text/plain", b"")
    elif ending == "stream":
        client.done()
    else:
        client.fail(ModelNotReady())
    assert wire.answer.headers[b"x-ratelimit-limit-requests"] == b"5"
    assert wire.answer.headers[b"x-request-id"] == b"req-1"
    assert b"connection" not in wire.answer.headers


@pytest.mark.parametrize("ending", ["plain", "stream", "error"])
def test_a_connection_that_ends_with_the_answer_says_so(ending: str) -> None:
    wire = Wire(keeps_alive=False)
    client = on(wire)
    if ending == "plain":
        client.plain("text/plain", b"")
    elif ending == "stream":
        client.done()
    else:
        client.fail(Overloaded())
    assert wire.answer.headers[b"connection"] == b"close"


# -- HTTP/1.0 ----------------------------------------------------------------------------------------------------------


def test_old_clients_get_a_stream_until_the_connection_closes() -> None:
    wire = Wire(knows_chunks=False)
    client = on(wire)
    client.begin()
    client.write(b"data: 1\n\n")
    assert not wire.answer.is_whole
    assert not wire.keeps_alive
    client.done()
    assert wire.answer.headers[b"connection"] == b"close"
    assert not wire.answer.headers.keys() & {b"transfer-encoding", b"content-length"}
    assert (wire.answer.body, wire.ends) == (b"data: 1\n\n" + DONE, 1)


def test_old_clients_get_a_long_plain_answer_so_too() -> None:
    wire = Wire(knows_chunks=False)
    client = on(wire)
    client.begin("application/json")
    client.write(b"[]")
    client.finish()
    assert (wire.answer.body, wire.ends, wire.keeps_alive) == (b"[]", 1, False)


def test_old_clients_get_a_short_one_with_its_length() -> None:
    wire = Wire(knows_chunks=False)
    on(wire).plain("application/json", b"{}")
    assert wire.answer.headers[b"content-length"] == b"2"


# -- the end is the end ------------------------------------------------------------------------------------------------

OPS = ["plain", "begin", "begin plain", "write", "comment", "done", "finish", "fail", "abort", "hang up", "give up"]


def perform(client: Client, op: str) -> None:
    if op == "plain":
        client.plain("application/json", b"{}")
    elif op == "begin plain":
        client.begin("application/json")
    elif op == "write":
        if client.has_begun:
            client.write(b"data: x\n\n")
    elif op == "finish":
        if client.has_begun:
            client.finish()
    elif op in ("fail", "give up"):
        (client.fail if op == "fail" else client.give_up)(EngineFailed())
    elif op == "comment":
        client.comment("x")
    else:
        {"begin": client.begin, "done": client.done, "abort": client.abort, "hang up": client.hang_up}[op]()


@given(st.lists(st.sampled_from(OPS), max_size=12), st.booleans())
def test_after_the_end_nothing_is_written(ops: list[str], knows_chunks: bool) -> None:
    """And the connection hears of it once, or was reset, or is gone."""
    wire = Wire(knows_chunks=knows_chunks)
    client = on(wire)
    for op in ops:
        was_over, before = client.is_over, bytes(wire.transport.data)
        if op == "plain" and client.has_begun:
            continue  # nobody does that
        perform(client, op)
        if was_over:
            assert wire.transport.data == before
        assert client.is_over == (wire.ends == 1) or client.is_gone
        assert wire.ends + client.is_gone <= 1
        assert len(wire.answers) <= 1
        if wire.ends:
            assert wire.answer.is_whole


# -- the other side ----------------------------------------------------------------------------------------------------


async def test_a_hang_up_is_heard(client: Client) -> None:
    source = Source()
    client.listen_to(source)
    gone = client.gone
    assert not gone.done()
    client.hang_up()
    client.hang_up()
    assert client.is_gone
    assert gone.done()
    assert source.calls == ["cancel"]


async def test_a_hang_up_is_heard_by_those_who_ask_later(client: Client) -> None:
    client.hang_up()
    await asyncio.wait_for(client.gone, 5)
    source = Source()
    client.listen_to(source)
    assert source.calls == ["cancel"]


async def test_after_the_answer_nobody_minds_a_hang_up(client: Client) -> None:
    source = Source()
    client.listen_to(source)
    client.plain("application/json", b"{}")
    client.hang_up()
    assert not client.is_gone
    assert source.calls == []


def test_a_slow_client_pauses_what_its_answer_comes_from(client: Client) -> None:
    source = Source()
    client.listen_to(source)
    client.pause()
    client.resume()
    client.pause()
    other = Source()
    client.listen_to(other)
    assert (source.calls, other.calls) == (["pause", "resume", "pause"], ["pause"])
    client.resume()
    assert other.calls == ["pause", "resume"]


def test_a_source_that_does_not_pause_is_cut_off(wire: Wire, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    source = Source()
    client.listen_to(source)
    client.begin()
    client.pause()
    client.write(b"x")
    assert not wire.transport.is_aborted
    wire.transport.unsent_bytes = client_module.BUFFER_BYTES + 1
    client.write(b"x")
    assert wire.transport.is_aborted
    assert source.calls == ["pause", "cancel"]
    assert [record.action for record in caplog.records] == ["slow_client"]


def test_a_large_piece_to_a_client_that_keeps_up_is_fine(wire: Wire, client: Client) -> None:
    wire.transport.unsent_bytes = client_module.BUFFER_BYTES + 1
    client.begin("application/json")
    client.write(b"x" * 2 * client_module.BUFFER_BYTES)
    assert not wire.transport.is_aborted


def test_quiet_is_who_has_heard_nothing_since(client: Client) -> None:
    assert client.was_quiet
    client.begin()
    assert not client.was_quiet
    client.was_quiet = True
    client.write(b"data: x\n\n")
    assert not client.was_quiet


def test_status_lines() -> None:
    assert status_line(200) == b"HTTP/1.1 200 OK\r\n"
    assert status_line(429) == b"HTTP/1.1 429 Too Many Requests\r\n"
    assert status_line(599) == b"HTTP/1.1 599 \r\n"
    assert status_line(Unauthenticated.status).startswith(b"HTTP/1.1 401 ")
