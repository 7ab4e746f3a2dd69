"""Connections of clients, in memory, with real bytes: who gets which answer in which order, and when each is ended."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from firstkit.clock import monotonic
from firstkit.gateway import http
from firstkit.gateway.http import HEAD_S, IDLE_S, LINGER_S, STALLED_S, SURPLUS
from firstkit.gateway.request import MAX_BODY_BYTES, MAX_HEADER_BYTES, SMALL_BODY_BYTES
from unit.gateway.support import (
    CHAT_BODY,
    IDENTITY,
    Answer,
    Gated,
    Port,
    Served,
    Visit,
    get,
    limits_of,
    request,
    serving,
    talk,
    talk_bytewise,
)
from unit.gateway.upstreams import CHUNK, AtOnce, settle, until

JUST = 0.01
"""Seconds before or after a deadline. Tests take less than that from one step to the next, or look on the safe side."""
STREAM_BODY = {**CHAT_BODY, "stream": True}
STREAM = request(body=STREAM_BODY)
CHUNKED = "transfer-encoding: chunked"


def codes(answers: list[Answer]) -> list[object]:
    """Status of each, or the code of its error."""
    return [answer.status if answer.status < 400 else answer.error["code"] for answer in answers]


async def refused(visit: Visit, status: int, code: str) -> Answer:
    """The one answer of a connection that hears nothing more: it says that it closes, and does when it has lingered."""
    await until("an answer", lambda: bool(visit.answers) or not visit.is_open)
    answer = visit.answers[-1]
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.headers[b"connection"] == b"close"
    assert answer.headers[b"date"]
    assert visit.is_open, "a client that still sends can read why it is refused"
    said = len(visit.transport.written)
    visit.say(get(), b"\0" * 1000)
    await settle()
    assert len(visit.transport.written) == said, "what comes now is thrown away"
    visit.look(LINGER_S + JUST)
    assert visit.is_closed
    return answer


# -- one request -------------------------------------------------------------------------------------------------------


async def test_a_hot_request(served: Served) -> None:
    visit = served.connect()
    visit.say(request())
    assert served.replica.last.request.path == "/v1/chat/completions"
    served.replica.last.answer(b'{"a": 1}')
    [answer] = visit.answers
    assert (answer.status, answer.body) == (200, b'{"a": 1}')
    origin = {b"x-first-cluster", b"x-first-replica"}
    assert answer.headers.keys() == {b"date", b"content-type", b"content-length", b"x-request-id"} | origin
    assert visit.is_open


async def test_a_hot_request_whose_key_is_known_needs_no_task(served: Served) -> None:
    before = asyncio.all_tasks()
    visit = served.connect()
    visit.say(request())
    served.replica.last.answer()
    assert len(visit.answers) == 1
    assert asyncio.all_tasks() == before


async def test_a_stream(served: Served) -> None:
    visit = served.connect()
    visit.say(STREAM)
    exchange = served.replica.last
    exchange.stream(CHUNK)
    assert visit.answers[0].chunks == [CHUNK], "it is on its way before the call returns"
    exchange.data(CHUNK)
    exchange.complete()
    [answer] = visit.answers
    assert answer.is_whole
    assert answer.events[-1] == "[DONE]"
    assert answer.chunks[:2] == [CHUNK, CHUNK]


async def test_a_request_to_asgi(served: Served) -> None:
    [answer] = await talk(served.port, get())
    assert (answer.status, answer.json) == (200, {"status": "ok"})


@pytest.mark.parametrize("data", [get(), get("/nope"), request(body=b"[]"), request(key="bad"), b"\0"])
async def test_it_does_not_matter_how_bytes_are_cut(served: Served, data: bytes) -> None:
    [whole] = await talk(served.port, data)
    [bytewise] = await talk_bytewise(served.port, data)
    assert (whole.status, whole.body) == (bytewise.status, bytewise.body)


async def test_chunks_of_a_body(served: Served) -> None:
    visit = served.connect()
    visit.say(request(CHUNKED, body=None))
    for piece in (request().partition(b"\r\n\r\n")[2][:20], request().partition(b"\r\n\r\n")[2][20:], b""):
        visit.say(b"%x\r\n%b\r\n" % (len(piece), piece))
    (await served.replica.asked()).answer()
    assert (await visit.answer()).status == 200


async def test_the_connection_goes_on(served: Served) -> None:
    visit = served.connect()
    for count, data in enumerate([get(), request(key="bad"), get("/nope"), request(body=b"{"), get()], 1):
        visit.say(data)
        assert (await visit.answered(count))[-1].is_whole
    assert codes(visit.answers) == [200, "invalid_api_key", "not_found", "invalid_json", 200]


# -- what is no request ------------------------------------------------------------------------------------------------

NONSENSE = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "a space before a colon": get("/health", "x : y"),
    "a bare LF": b"GET /health HTTP/1.1\nhost: x\n\n",
    "a NUL": get("/health", "x: a\0b"),
    "a folded line": get("/health", "x: a\r\n b"),
    "no host": get(host=None),
    "two hosts": get("/health", "host: other"),
    "a target that is none": get("x:80"),
    "a target without a path": get("http://x"),
    "a length and chunks": request(CHUNKED),
    "two lengths": request("content-length: 2"),
    "a length that is none": request("content-length: +5", body=None),
    "another coding": request("transfer-encoding: gzip, chunked", body=None),
    "chunks of an old client": request(CHUNKED, body=None, version="1.0"),
    "gzip": request("content-encoding: gzip"),
}


@pytest.mark.parametrize("name", NONSENSE)
@pytest.mark.parametrize("is_bytewise", [False, True])
async def test_what_is_no_request_is_refused(served: Served, name: str, is_bytewise: bool) -> None:
    visit = served.connect()
    data = NONSENSE[name]
    visit.say(*([data[i : i + 1] for i in range(len(data))] if is_bytewise else [data]))
    await refused(visit, 400, "invalid_request")
    assert served.replica.opened == []


@pytest.mark.parametrize("version", ["", "0.9", "1.2", "2.0"])
async def test_other_versions(served: Served, version: str) -> None:
    visit = served.connect()
    visit.say(get(version=version) if version else b"GET /health\r\n\r\n")
    await until("an answer", lambda: bool(visit.answers))
    [answer] = visit.answers
    assert answer.status in (400, 505)
    await refused(visit, answer.status, answer.error["code"])


async def test_another_expectation(served: Served) -> None:
    visit = served.connect()
    visit.say(request("expect: 200-ok"))
    await refused(visit, 417, "expectation_failed")


async def test_what_the_parser_quotes_is_not_repeated(served: Served) -> None:
    visit = served.connect()
    visit.say(b"GET /canary HTTP/1.1\r\nhost: x\r\ncanary \0: x\r\n\r\n")
    assert b"canary" not in (await refused(visit, 400, "invalid_request")).body


# -- how long a head may be --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [b"GET /", b"GET /health HTTP/1.1\r\nx: ", b"GET /health HTTP/1.1\r\n"])
@pytest.mark.parametrize("size", [1, 1000, 64 * 1024])
async def test_a_head_without_end(served: Served, start: bytes, size: int) -> None:
    filler = b"a: b\r\n" if start.endswith(b"\n") else b"a"
    endless = (start + filler * MAX_HEADER_BYTES)[: MAX_HEADER_BYTES + 2000]
    visit = served.connect()
    for at in range(0, len(endless), size):
        visit.say(endless[at : at + size])
        if visit.answers:
            break
    await refused(visit, 431, "headers_too_large")


@pytest.mark.parametrize(
    "data",
    [
        get("/health", *[f"x-{i}: y" for i in range(101)]),
        get("/health", "x: " + "y" * MAX_HEADER_BYTES),
        request("x: " + "y" * MAX_HEADER_BYTES),
    ],
)
async def test_a_head_that_is_too_much(served: Served, data: bytes) -> None:
    visit = served.connect()
    visit.say(data)
    await refused(visit, 431, "headers_too_large")


@pytest.mark.parametrize("data", [get("/" + "a" * 40_000), request(path="/v1/completions?" + "a" * 40_000)])
async def test_a_target_that_is_too_long_though_it_comes_at_once(served: Served, data: bytes) -> None:
    visit = served.connect()
    visit.say(data)
    await refused(visit, 431, "headers_too_large")


async def test_a_head_up_to_the_limits(served: Served) -> None:
    assert (await talk(served.port, get("/health", *[f"x-{i}: y" for i in range(98)])))[0].status == 200
    assert (await talk(served.port, get("/health", "x: " + "y" * 32_000)))[0].status == 200


async def test_heads_are_counted_one_by_one(served: Served) -> None:
    large = get("/health", "x: " + "y" * 20_000)
    answers = await talk(served.port, large, large[:500], large[500:] + large, answers=3)
    assert codes(answers) == [200, 200, 200]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/x"])
async def test_the_end_of_a_body_is_no_part_of_the_next_head(served: Served, path: str) -> None:
    visit = served.connect()
    large = request(path=path, body=b"x" * 2 * MAX_HEADER_BYTES)
    visit.say(large[:1000], large[1000:] + b"GET /health HT", b"TP/1.1\r\nhost: x\r\n\r\n")
    assert (await visit.answered(2))[1].status == 200


# -- how large a body may be -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "most"),
    [("/v1/chat/completions", MAX_BODY_BYTES), ("/v1/models", SMALL_BODY_BYTES), ("/", SMALL_BODY_BYTES)],
)
async def test_a_body_that_says_that_it_is_too_large(served: Served, path: str, most: int) -> None:
    visit = served.connect()
    visit.say(request(f"content-length: {most + 1}", path=path, body=None))
    await refused(visit, 413, "request_too_large")


async def test_a_body_that_grows_too_large(served: Served) -> None:
    visit = served.connect()
    visit.say(request(CHUNKED, body=None))
    await settle()
    piece = b"%x\r\n%b\r\n" % (1024**2, b" " * 1024**2)
    for _ in range(MAX_BODY_BYTES // 1024**2):
        visit.say(piece)
    assert served.body_bytes == MAX_BODY_BYTES
    assert visit.answers == []
    visit.say(b"1\r\n \r\n")
    await refused(visit, 413, "request_too_large")
    assert served.body_bytes == 0


async def test_a_body_that_grows_too_large_for_other_routes(folder: Path) -> None:
    app = Gated()
    app.gate.set()
    visit = serving(folder, app=app).connect()
    visit.say(request(CHUNKED, path="/x", body=None))
    piece = b"%x\r\n%b\r\n" % (64 * 1024, b" " * 64 * 1024)
    for _ in range(SMALL_BODY_BYTES // (64 * 1024) + 1):
        visit.say(piece)
        await settle()
    [answer] = visit.answers
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    visit.say(piece)
    visit.look(LINGER_S + JUST)
    assert visit.is_closed


async def test_the_rest_of_a_body_that_nobody_wants_is_no_request(served: Served) -> None:
    visit = served.connect()
    visit.say(request("content-length: 100000", path="/v1/models", body=None))
    assert codes(await visit.answered()) == ["method_not_allowed"]
    visit.say(get() * 10, b"x" * (100_000 - len(get() * 10)))
    await settle()
    assert len(visit.answers) == 1
    visit.say(get())
    assert codes(await visit.answered(2)) == ["method_not_allowed", 200]


# -- time: heads -------------------------------------------------------------------------------------------------------


async def test_a_connection_that_says_nothing_is_closed_without_a_word(served: Served) -> None:
    visit = served.connect()
    visit.look(HEAD_S - 1)
    assert visit.is_open
    visit.look(HEAD_S + JUST)
    assert visit.is_closed
    assert visit.transport.written == b""


@pytest.mark.parametrize("data", [get(), request()])
async def test_a_head_that_takes_too_long(served: Served, data: bytes) -> None:
    head = data.partition(b"\r\n\r\n")[0]
    visit = served.connect()
    for at in range(len(head)):
        visit.say(head[at : at + 1])
    visit.look(HEAD_S - 1)
    assert visit.answers == []
    visit.look(HEAD_S + JUST)
    await refused(visit, 408, "request_timeout")


async def test_a_kept_connection_waits_longer_for_the_next_head_but_not_for_its_end(served: Served) -> None:
    visit = served.connect()
    visit.say(get())
    await visit.answer()
    visit.look(IDLE_S - 1)
    visit.say(b"G")
    visit.look(HEAD_S - 1)
    assert len(visit.answers) == 1
    visit.look(HEAD_S + JUST)
    assert codes(visit.answers) == [200, "request_timeout"]


@pytest.mark.parametrize("is_hot", [False, True])
async def test_a_connection_that_nobody_uses_is_closed_without_a_word(served: Served, is_hot: bool) -> None:
    visit = served.connect()
    visit.say(request() if is_hot else get())
    if is_hot:
        (await served.replica.asked()).answer()
    await visit.answer()
    visit.look(IDLE_S - 1)
    assert visit.is_open
    visit.look(IDLE_S + JUST)
    assert visit.is_closed
    assert len(visit.answers) == 1


async def test_an_answer_may_take_its_time(served: Served) -> None:
    visit = served.connect()
    visit.say(STREAM)
    visit.look(3600)
    served.replica.last.stream(CHUNK)
    visit.look(3600)
    assert visit.is_open


async def test_the_next_head_may_come_while_an_answer_does(served: Served) -> None:
    """And its own time counts though nobody looks at it yet."""
    visit = served.connect()
    visit.say(STREAM, b"GET /hea")
    exchange = served.replica.last
    exchange.stream(CHUNK)
    visit.look(HEAD_S + JUST)
    exchange.complete()
    assert codes(visit.answers) == [200, "request_timeout"]
    assert visit.answers[0].events[-1] == "[DONE]"


# -- time: bodies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/admin/keys"])
async def test_a_body_that_does_not_come(served: Served, path: str) -> None:
    visit = served.connect()
    visit.say(request("content-length: 9", path=path, body=None))
    await settle()
    visit.look(HEAD_S - 1)
    assert visit.answers == []
    visit.look(HEAD_S + JUST)
    await refused(visit, 408, "request_timeout")
    assert served.body_bytes == 0
    assert served.replica.opened == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/admin/keys"])
async def test_a_body_must_come_at_a_rate(served: Served, path: str) -> None:
    visit = served.connect()
    visit.say(request("content-length: 100000", path=path, body=None))
    await settle()
    for _ in range(20):
        visit.say(b"x" * 1024)
        await settle()
    visit.look(HEAD_S + 19)
    assert visit.answers == []
    visit.look(HEAD_S + 20 + JUST)
    await refused(visit, 408, "request_timeout")


async def test_time_in_which_we_do_not_read_does_not_count(served: Served) -> None:
    visit = served.connect()
    visit.say(request("content-length: 100000", key="slow", body=None), b"x" * 70_000)
    await settle()
    assert not visit.transport.is_reading()
    visit.look(1000)
    assert visit.answers == []
    served.keys.gate.set()
    await until("it is read again", visit.transport.is_reading)
    assert visit.is_open


async def test_nor_where_an_application_does_not_read(folder: Path) -> None:
    gate = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await gate.wait()
        await Gated()(scope, receive, send)

    visit = serving(folder, app=app).connect()
    visit.say(request("content-length: 200000", path="/x", body=None), b"x" * 70_000)
    await settle()
    assert not visit.transport.is_reading()
    visit.look(1000)
    gate.set()
    await until("it is read again", visit.transport.is_reading)
    visit.look(1000 + HEAD_S - 1)
    assert visit.answers == []
    visit.look(1000 + HEAD_S + JUST)
    await refused(visit, 408, "request_timeout")


async def test_a_body_that_waited_behind_another_request_may_still_come(served: Served) -> None:
    """The clock of a body stands still while nobody reads it."""
    visit = served.connect()
    visit.say(STREAM, request("content-length: 90", body=None) + b"x" * 10)
    assert not visit.transport.is_reading()
    visit.protocol._body_began -= 60  # so long the first answer took
    served.replica.last.stream(CHUNK)
    served.replica.last.complete()
    await settle()
    visit.say(b"x" * 40)
    visit.look(1)
    assert codes(visit.answers) == [200]
    visit.say(b"x" * 40)
    assert codes(await visit.answered(2)) == [200, "invalid_json"]


# -- framing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/admin/keys"])
async def test_trailers(served: Served, path: str) -> None:
    visit = served.connect()
    visit.say(request(CHUNKED, path=path, body=None))
    visit.say(b"2\r\n{}\r\n0\r\nx: y\r\n\r\n")
    await refused(visit, 400, "invalid_request")
    assert served.body_bytes == 0


BAD_ENDS = {"trailers": b"2\r\n{}\r\n0\r\nx: y\r\n\r\n", "no number": b"xyz\r\n", "a chunk too long": b"1\r\n{}\r\n"}


@pytest.mark.parametrize("name", BAD_ENDS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/admin/keys"])
async def test_a_body_that_breaks_in_the_packet_of_its_head(served: Served, path: str, name: str) -> None:
    visit = served.connect()
    visit.say(request(CHUNKED, path=path, body=None) + BAD_ENDS[name])
    await refused(visit, 400, "invalid_request")
    assert served.body_bytes == 0


async def test_a_body_that_breaks_while_its_answer_is_under_way(served: Served) -> None:
    """The answer cannot say so any more."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    visit = Port(served.gateway, app=app).connect()
    visit.say(request(CHUNKED, path="/x", body=None))
    await until("the answer is under way", lambda: bool(visit.transport.written))
    visit.say(b"xyz\r\n")
    await settle()
    assert visit.transport.is_aborted
    assert not visit.answers[0].is_whole


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/admin/keys"])
async def test_framing_without_end(served: Served, path: str) -> None:
    visit = served.connect()
    visit.say(request(CHUNKED, path=path, body=None))
    await settle()
    visit.say(b"1;x=")
    for _ in range(http.MOST_FRAMING_BYTES // 1000 + 1):
        visit.say(b"y" * 1000)
    await refused(visit, 400, "invalid_request")


async def test_framing_of_a_usual_size(served: Served) -> None:
    visit = served.connect()
    body = request().partition(b"\r\n\r\n")[2]
    visit.say(request(CHUNKED, body=None))
    for byte in body:
        visit.say(b"1;ext=%b\r\n%c\r\n" % (b"y" * 2000, byte))
    visit.say(b"0\r\n\r\n")
    (await served.replica.asked()).answer()
    assert (await visit.answer()).status == 200


# -- in order ----------------------------------------------------------------------------------------------------------


async def test_hot_behind_hot(served: Served) -> None:
    visit = served.connect()
    visit.say(STREAM + request())
    [first] = served.replica.opened
    first.stream(CHUNK)
    assert len(served.replica.opened) == 1, "the second is not begun: nobody could be told anything"
    first.complete()
    (await served.replica.asked(2)).answer(b"[]")
    assert [answer.body for answer in await visit.answered(2)] == [CHUNK + b"data: [DONE]\n\n", b"[]"]


async def test_asgi_behind_hot(folder: Path) -> None:
    app = Gated()
    app.gate.set()
    served = serving(folder, app=app)
    visit = served.connect()
    visit.say(request() + get("/a") + request(path="/b", body=b"x"))
    await settle()
    assert app.paths == []
    served.replica.last.answer()
    assert [answer.body for answer in await visit.answered(3)] == [b"{}", b"/a ", b"/b x"]


async def test_hot_behind_asgi(folder: Path) -> None:
    app = Gated()
    served = serving(folder, app=app)
    visit = served.connect()
    visit.say(request(path="/a", body=b"x") + request() + get("/c"))
    await until("the first is asked", lambda: bool(app.paths))
    assert served.replica.opened == []
    app.gate.set()
    (await served.replica.asked()).answer()
    assert [answer.body for answer in await visit.answered(3)] == [b"/a x", b"{}", b"/c "]


@pytest.mark.parametrize("bad", [b"\0\0", get(host=None), request("content-length: 1", body=None, host="a/b")])
@pytest.mark.parametrize("is_hot", [False, True])
async def test_a_refusal_behind_a_good_request(folder: Path, is_hot: bool, bad: bytes) -> None:
    app = Gated()
    served = serving(folder, app=app)
    visit = served.connect()
    visit.say((request() if is_hot else get("/a")) + bad)
    await settle()
    assert visit.answers == []
    if is_hot:
        served.replica.last.answer()
    app.gate.set()
    await visit.answered(2)
    await refused(visit, 400, "invalid_request")
    assert codes(visit.answers) == [200, "invalid_request"]


async def test_a_refusal_behind_two(served: Served) -> None:
    visit = served.connect()
    visit.say(request() + request() + b"\0")
    for count in (1, 2):
        (await served.replica.asked(count)).answer()
    assert codes(await visit.answered(3)) == [200, 200, "invalid_request"]


async def test_what_waits_its_turn_is_not_read_further(served: Served) -> None:
    visit = served.connect()
    visit.say(request() + request())
    assert not visit.transport.is_reading()
    visit.say(request())
    served.replica.last.answer()
    (await served.replica.asked(2)).answer()
    (await served.replica.asked(3)).answer()
    assert codes(await visit.answered(3)) == [200, 200, 200]
    assert visit.transport.is_reading()


async def test_many_at_once(served: Served) -> None:
    """As many as fit into one read; none of their answers may need those before it to have returned."""
    visit = served.connect()
    visit.say(request() + 1000 * request(body=b"{"))
    served.replica.last.answer()
    answers = await visit.answered(1001)
    assert codes(answers) == [200, *["invalid_json"] * 1000]


async def test_the_last_request_of_a_connection(served: Served) -> None:
    visit = served.connect()
    visit.say(request("connection: close") + request())
    served.replica.last.answer()
    await settle()
    [answer] = visit.answers
    assert answer.headers[b"connection"] == b"close"
    assert visit.is_closed
    assert len(served.replica.opened) == 1
    assert served.body_bytes == 0


GOOD = {
    "health": (get(), 200),
    "not there": (get("/nope"), "not_found"),
    "no key": (get("/v1/models", key=None), "invalid_api_key"),
    "plain": (request(), 200),
    "stream": (STREAM, 200),
    "wrong key": (request(key="bad"), "invalid_api_key"),
    "slow key": (request(key="slow"), 200),
    "no JSON": (request(body=b"{"), "invalid_json"),
    "no model": (request(body={**CHAT_BODY, "model": "nope"}), "model_not_found"),
    "chunks": (request(CHUNKED, path="/nope", body=None) + b"2\r\n{}\r\n0\r\n\r\n", "not_found"),
}
LAST = {
    "no host": (get(host=None), "invalid_request"),
    "no HTTP": (b"\0\0", "invalid_request"),
    "too large": (request(f"content-length: {MAX_BODY_BYTES + 1}", body=None), "request_too_large"),
    "the last": (request("connection: close"), 200),
    "old": (get(version="1.0"), 200),
}


def ends(answers: list[Answer]) -> bool:
    """Whether the last answer says that it is the last: also one that was given before the body was there."""
    return bool(answers) and b"connection" in answers[-1].headers


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(GOOD)), max_size=8),
    st.sampled_from(["", *sorted(LAST)]),
    st.lists(st.integers(0, 2000), max_size=8),
)
def test_any_requests_are_answered_in_order(names: list[str], last: str, cuts: list[int]) -> None:
    """However they are cut, and however many come at once; the first that ends the connection is the last answer."""
    asyncio.run(_in_order(names, last, cuts))


async def _in_order(names: list[str], last: str, cuts: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        served = serving(Path(folder), replica=AtOnce())
        served.keys.gate.set()
        chosen = [GOOD[name] for name in names] + ([LAST[last], *GOOD.values()] if last else [])
        data = b"".join(raw for raw, _ in chosen)
        expected = [said for _, said in chosen][: len(names) + bool(last)]
        visit = served.connect()
        places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
        for start, end in itertools.pairwise(places):
            visit.say(data[start:end])
            await asyncio.sleep(0)
        await until("all is answered", lambda: len(visit.answers) == len(expected) or ends(visit.answers))
        await settle()
        assert codes(visit.answers) == expected[: len(visit.answers)]
        assert len(visit.answers) == len(expected) or visit.answers[-1].error["code"] == "invalid_api_key"
        assert not visit.transport.late
        assert served.body_bytes == 0
        assert sum(route.in_flight for route in served.gateway.table.routes()) == 0
        served.gateway.relay.spool.close()


# -- too many ----------------------------------------------------------------------------------------------------------


async def test_surplus_connections_are_told_so(served: Served) -> None:
    port = Port(served.gateway, most=2)
    stream, idle = port.connect(), port.connect()
    stream.say(STREAM)
    surplus = port.connect()
    surplus.say(get())
    answer = await refused(surplus, 503, "overloaded")
    assert int(answer.headers[b"retry-after"]) >= 1
    exchange = served.replica.last
    exchange.stream(CHUNK)
    exchange.complete()
    assert stream.answers[0].events[-1] == "[DONE]", "who was there before goes on"
    idle.transport.break_off()
    await until("it is gone", lambda: len(port.server.server_state.connections) < 2)
    later = port.connect()
    later.say(get())
    assert (await later.answer()).status == 200


async def test_surplus_requests_reach_nobody(served: Served) -> None:
    port = Port(served.gateway, most=1)
    port.connect()
    surplus = port.connect()
    surplus.say(request())
    await refused(surplus, 503, "overloaded")
    assert served.replica.opened == []


async def test_more_than_that_are_just_closed(served: Served) -> None:
    port = Port(served.gateway, most=1)
    visits = [port.connect() for _ in range(1 + SURPLUS + 1)]
    assert [visit.transport.is_aborted for visit in visits] == [False] * (1 + SURPLUS) + [True]
    await until("it is forgotten", lambda: len(port.server.server_state.connections) == 1 + SURPLUS)


# -- who is refused ----------------------------------------------------------------------------------------------------


async def test_who_sends_without_end_after_a_refusal_is_cut_off(served: Served) -> None:
    visit = served.connect()
    visit.say(get(host=None))
    piece = b"x" * 1024**2
    for _ in range(http.MOST_LINGERING_BYTES // len(piece)):
        visit.say(piece)
    assert visit.is_open
    visit.say(b"x")
    assert visit.transport.is_aborted


async def test_without_a_key_no_body_is_asked_for(served: Served) -> None:
    visit = served.connect()
    visit.say(request("expect: 100-continue", "content-length: 10", key="bad", body=None))
    await refused(visit, 401, "invalid_api_key")


@pytest.mark.parametrize(
    "lines",
    [
        ["expect: 100-continue", f"content-length: {MAX_BODY_BYTES + 1}"],
        ["expect: 100-continue", "content-length: 10", "content-encoding: gzip"],
    ],
)
async def test_nor_is_one_that_would_be_refused(served: Served, lines: list[str]) -> None:
    visit = served.connect()
    visit.say(request(*lines, body=None))
    await settle()
    assert [answer.status for answer in visit.answers] in ([400], [413])


async def test_who_waits_with_the_body_is_told_to_go_on(served: Served) -> None:
    visit = served.connect()
    head, _, body = request("expect: 100-continue").partition(b"\r\n\r\n")
    visit.say(head + b"\r\n\r\n")
    await until("it may go on", lambda: bool(visit.answers))
    assert [answer.status for answer in visit.answers] == [100]
    visit.say(body)
    (await served.replica.asked()).answer()
    assert [answer.status for answer in await visit.answered(2)] == [100, 200]


async def test_nobody_is_told_to_go_on_before_it_is_known_who_it_is(served: Served) -> None:
    visit = served.connect()
    visit.say(request("expect: 100-continue", "content-length: 10", key="slow", body=None))
    await settle()
    assert visit.answers == []
    served.keys.gate.set()
    await until("it may go on", lambda: bool(visit.answers))


async def test_nor_before_it_is_their_turn(served: Served) -> None:
    visit = served.connect()
    visit.say(request() + request("expect: 100-continue", "content-length: 3", body=None))
    await settle()
    assert visit.answers == []
    served.replica.last.answer()
    await until("it may go on", lambda: len(visit.answers) == 2)
    assert [answer.status for answer in visit.answers] == [200, 100]
    visit.say(b"{} ")
    assert [answer.status for answer in await visit.answered(3)] == [200, 100, 400]


async def test_who_did_not_wait_is_not_told(served: Served) -> None:
    visit = served.connect()
    visit.say(request("expect: 100-continue"))
    served.replica.last.answer()
    assert [answer.status for answer in visit.answers] == [200]


async def test_old_clients_are_never_told_to_go_on(served: Served) -> None:
    """RFC 9110, 10.1.1: the expectation of an HTTP/1.0 request is ignored."""
    visit = served.connect()
    visit.say(request("expect: 100-continue", "content-length: 2", body=None, version="1.0"))
    await settle()
    assert visit.answers == []
    visit.say(b"{}")
    assert (await visit.answer()).status == 400


async def test_on_asgi_routes_too_who_waits_is_told_to_go_on(folder: Path) -> None:
    app = Gated()
    app.gate.set()
    visit = serving(folder, app=app).connect()
    visit.say(request("expect: 100-continue", "content-length: 1", path="/x", body=None))
    await until("it may go on", lambda: bool(visit.answers))
    visit.say(b"y")
    assert [answer.body for answer in await visit.answered(2)] == [b"", b"/x y"]


async def test_strangers_are_not_read_for_long(served: Served) -> None:
    visit = served.connect()
    visit.say(request("content-length: 1000000", key="slow", body=None))
    piece = b"x" * 10_000
    for _ in range(20):
        visit.say(piece)
    assert served.body_bytes <= 80_000
    assert not visit.transport.is_reading()
    served.keys.gate.set()
    await until("the rest is read", lambda: served.body_bytes == 200_000)


# -- Upgrade, HTTP/1.0 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "TLS/1.0"])
async def test_nobody_is_upgraded(served: Served, protocol: str) -> None:
    visit = served.connect()
    visit.say(get("/health", "connection: upgrade", f"upgrade: {protocol}") + b"\x81\x05hello")
    answer = await visit.answer()
    assert (answer.status, answer.json) == (200, {"status": "ok"})
    assert answer.headers[b"connection"] == b"close"
    assert visit.is_closed
    assert len(visit.answers) == 1


@pytest.mark.parametrize("is_cut", [False, True])
async def test_who_would_like_to_upgrade_gets_the_answer_to_what_they_sent(served: Served, is_cut: bool) -> None:
    """Clients that try HTTP/2 first send so each request, body and all (RFC 7540, 3.2; the client of Java does)."""
    visit = served.connect()
    data = request("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__")
    head, _, body = data.partition(b"\r\n\r\n")
    visit.say(*([head + b"\r\n\r\n", body] if is_cut else [data]))
    await settle()
    assert [exchange.request.path for exchange in served.replica.opened] == ["/v1/chat/completions"]
    served.replica.last.answer()
    assert (await visit.answer()).status == 200
    assert visit.is_closed


async def test_an_upgrade_that_the_connection_does_not_ask_for(served: Served) -> None:
    visit = served.connect()
    visit.say(request("upgrade: h2c"))
    served.replica.last.answer()
    assert b"connection" not in (await visit.answer()).headers
    visit.say(get())
    assert codes(await visit.answered(2)) == [200, 200]


@pytest.mark.parametrize(
    "lines", [["connection: upgrade", "upgrade: h2c"], ["connection: close, upgrade", "upgrade: x"]]
)
async def test_an_upgrade_among_other_requests(served: Served, lines: list[str]) -> None:
    """Its answer is the last."""
    visit = served.connect()
    visit.say(get() + request() + request(*lines, body=STREAM_BODY) + get())
    for count in (1, 2):
        exchange = await served.replica.asked(count)
        exchange.stream(CHUNK) if exchange.request.stream else exchange.head()
        exchange.complete()
    answers = await visit.answered(3)
    await settle()
    assert codes(visit.answers) == [200, 200, 200]
    assert answers[2].events[-1] == "[DONE]"
    assert visit.is_closed
    assert served.body_bytes == 0


async def test_an_upgrade_whose_body_is_chunked_and_expected(served: Served) -> None:
    visit = served.connect()
    body = request().partition(b"\r\n\r\n")[2]
    visit.say(request("connection: upgrade", "upgrade: h2c", CHUNKED, "expect: 100-continue", body=None))
    await until("it may go on", lambda: bool(visit.answers))
    visit.say(b"%x\r\n%b\r\n" % (len(body), body), b"0\r\n\r\n")
    (await served.replica.asked()).answer()
    assert codes(await visit.answered(2)) == [100, 200]
    assert visit.is_closed


@pytest.mark.parametrize("bad", ["host: other", "content-length: 5", "content-encoding: gzip"])
async def test_an_upgrade_is_guarded_like_any_request(served: Served, bad: str) -> None:
    visit = served.connect()
    visit.say(request("connection: upgrade", "upgrade: h2c", bad))
    await refused(visit, 400, "invalid_request")


async def test_an_old_client_that_would_like_to_upgrade_gets_no_chunks(served: Served) -> None:
    visit = served.connect()
    visit.say(request("connection: upgrade", "upgrade: h2c", body=STREAM_BODY, version="1.0"))
    exchange = await served.replica.asked()
    exchange.stream(CHUNK)
    exchange.complete()
    [answer] = visit.answers
    assert b"transfer-encoding" not in answer.headers
    assert answer.body == CHUNK + b"data: [DONE]\n\n"
    assert visit.is_closed


@pytest.mark.parametrize("target", ["/health", "/v1/chat/completions", "x:80", "x:80/health", "*", "http://x/health"])
async def test_connect_is_refused(served: Served, target: str) -> None:
    visit = served.connect()
    visit.say(f"CONNECT {target} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key\r\n\r\n".encode() + b"hello")
    await until("an answer", lambda: bool(visit.answers))
    [answer] = visit.answers
    assert answer.status in (400, 405)
    visit.look(LINGER_S + JUST)
    assert visit.is_closed


@pytest.mark.parametrize("lines", [(), ("connection: keep-alive",)])
async def test_old_clients_get_one_answer(served: Served, lines: tuple[str, ...]) -> None:
    for data in (get("/health", *lines, version="1.0"), request(*lines, version="1.0")):
        visit = served.connect()
        visit.say(data)
        if data.startswith(b"POST"):
            served.replica.last.answer()
        answer = await visit.answer()
        assert (answer.status, answer.headers[b"connection"]) == (200, b"close")
        assert visit.is_closed


async def test_old_clients_get_streams_without_chunks(served: Served) -> None:
    visit = served.connect()
    visit.say(request(body=STREAM_BODY, version="1.0"))
    exchange = served.replica.last
    exchange.stream(CHUNK)
    assert visit.is_open
    exchange.complete()
    [answer] = visit.answers
    assert b"transfer-encoding" not in answer.headers
    assert answer.body == CHUNK + b"data: [DONE]\n\n"
    assert visit.is_closed


# -- slow readers ------------------------------------------------------------------------------------------------------
LARGE = b"data: " + b"x" * 100_000 + b"\n\n"


def stuck(served: Served) -> Visit:
    """A stream that the client does not take."""
    visit = served.connect()
    visit.say(STREAM)
    visit.transport.is_taking = False
    served.replica.last.stream(LARGE)
    return visit


async def test_a_slow_reader_pauses_its_own_stream(served: Served) -> None:
    visit = stuck(served)
    exchange = served.replica.last
    assert exchange.calls == ["pause"]
    exchange.data(CHUNK)
    visit.transport.take()
    assert exchange.calls == ["pause", "resume"]
    exchange.complete()
    assert visit.answers[0].is_whole
    visit.look(IDLE_S - 1)
    assert visit.is_open


async def test_a_reader_that_takes_nothing_is_taken_for_gone(served: Served) -> None:
    visit = stuck(served)
    visit.look(STALLED_S - 1)
    assert visit.is_open
    visit.look(STALLED_S + JUST)
    assert visit.is_open, "it is not known yet whether it took anything"
    visit.look(2 * STALLED_S + 2 * JUST)
    assert visit.transport.is_aborted
    await settle()
    assert served.replica.last.calls == ["pause", "cancel"]


async def test_a_reader_that_takes_a_little_is_not(served: Served) -> None:
    visit = stuck(served)
    for count in range(1, 5):
        visit.transport.take(10)
        visit.look(count * (STALLED_S + JUST))
        assert visit.is_open


async def test_it_is_the_same_with_asgi(folder: Path) -> None:
    app = Gated()
    app.gate.set()
    visit = serving(folder, app=app).connect()
    visit.transport.is_taking = False
    visit.say(request(path="/x", body=b"x" * 100_000))
    await visit.answer()
    visit.look(STALLED_S + JUST)
    visit.look(2 * STALLED_S + 2 * JUST)
    assert visit.transport.is_aborted


async def test_who_reads_again_has_as_much_time_as_others(served: Served) -> None:
    visit = stuck(served)
    visit.transport.take()
    visit.look(10 * STALLED_S)
    served.replica.last.data(CHUNK)
    visit.look(10 * STALLED_S)
    assert visit.is_open


@pytest.mark.parametrize("behind", [b"\0", get(host=None)])
async def test_who_reads_again_though_nothing_more_is_heard_of_them(served: Served, behind: bytes) -> None:
    visit = served.connect()
    visit.say(STREAM + behind)
    visit.transport.is_taking = False
    exchange = served.replica.last
    exchange.stream(LARGE)
    visit.transport.take()
    visit.look(10 * STALLED_S)
    assert visit.is_open, "a stream may last longer than a client may stall"
    exchange.complete()
    assert codes(visit.answers) == [200, "invalid_request"]


async def test_a_head_has_no_more_time_because_an_answer_was_not_taken(served: Served) -> None:
    visit = served.connect()
    visit.say(STREAM + b"GET /hea")
    visit.transport.is_taking = False
    served.replica.last.stream(LARGE)
    visit.transport.take()
    visit.look(HEAD_S + JUST)
    served.replica.last.complete()
    assert codes(visit.answers) == [200, "request_timeout"]


@pytest.mark.parametrize("comes", ["with it", "later"])
async def test_a_slow_reader_gets_no_further_request_taken(served: Served, comes: str) -> None:
    """Else answers that nobody takes would pile up."""
    visit = served.connect()
    visit.transport.is_taking = False
    first = request()
    visit.say(first + STREAM if comes == "with it" else first)
    served.replica.last.answer(LARGE)
    if comes == "later":
        visit.say(STREAM)
    await settle()
    assert len(served.replica.opened) == 1
    visit.transport.take()
    exchange = await served.replica.asked(2)
    exchange.stream(CHUNK)
    exchange.complete()
    assert codes(await visit.answered(2)) == [200, 200]


# -- clients that go ---------------------------------------------------------------------------------------------------


async def test_a_client_that_goes_is_heard(served: Served) -> None:
    visit = served.connect()
    visit.say(STREAM)
    exchange = served.replica.last
    exchange.stream(CHUNK)
    visit.transport.break_off()
    await settle()
    assert exchange.calls == ["cancel"]
    assert served.body_bytes == 0
    assert len(served.gateway.relay.spool) == 0, "it is accounted"


WAYS_TO_GO = {
    "in a head": [b"POST /v1/chat/completions HT"],
    "in a body": [request("content-length: 1000", body=None), b"x" * 500],
    "in a body, unknown": [request("content-length: 1000", key="slow", body=None), b"x" * 500],
    "unknown": [request(key="slow")],
    "in the packet of its head": [request("content-length: 1000", body=None) + b"x" * 500],
    "with an answer under way": [STREAM],
    "with a request that waits": [STREAM, request()],
    "with many that wait": [STREAM + 50 * request()],
    "with half a request behind another": [STREAM, request("content-length: 1000", body=None) + b"x" * 500],
    "with nonsense behind": [STREAM, b"\0"],
    "with nonsense in a body behind": [STREAM, request(CHUNKED, body=None) + b"1\r\nxyz"],
}


@pytest.mark.parametrize("way", WAYS_TO_GO)
async def test_nothing_is_left_of_a_client_that_went(folder: Path, way: str) -> None:
    served = serving(folder, limits=limits_of(concurrency_per_key=100))
    visit = served.connect()
    visit.say(*WAYS_TO_GO[way])
    await settle()
    visit.transport.break_off()
    await settle()
    served.keys.gate.set()
    await settle()
    assert served.body_bytes == 0
    for _ in range(100):
        served.port.limits.enter(IDENTITY, monotonic())  # raises when one is counted still
    assert visit.protocol not in served.port.server.server_state.connections
    assert not served.port.server.server_state.tasks
    assert not visit.transport.late


@pytest.mark.parametrize("key", ["key", "slow", "bad"])
async def test_nothing_is_left_of_one_that_goes_when_its_turn_comes(folder: Path, key: str) -> None:
    served = serving(folder, limits=limits_of(concurrency_per_key=1))
    visit = served.connect()
    visit.say(request(), request(key=key) + request("content-length: 100", key=key, body=None) + b"x" * 50)
    served.replica.last.answer()
    visit.transport.break_off()
    served.keys.gate.set()
    await settle()
    assert served.body_bytes == 0
    assert [exchange.calls for exchange in served.replica.opened[1:]] in ([], [["cancel"]])
    served.port.limits.enter(IDENTITY, monotonic())
    assert not served.port.server.server_state.tasks


# -- the end of the server ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [[], [b"GET /hea"], [get()]])
async def test_idle_connections_close_at_once(served: Served, said: list[bytes]) -> None:
    visit = served.connect()
    visit.say(*said)
    await settle()
    visit.protocol.shutdown()
    assert visit.is_closed


async def test_others_after_their_answer(folder: Path) -> None:
    app = Gated()
    served = serving(folder, app=app)
    stream, plain, asgi = (served.connect() for _ in range(3))
    stream.say(STREAM)
    served.replica.last.stream(CHUNK)
    plain.say(request())
    asgi.say(get("/x"))
    await settle()
    for visit in (stream, plain, asgi):
        visit.protocol.shutdown()
        assert visit.is_open
    for exchange in served.replica.opened:
        exchange.data(b"{}") if not exchange.request.stream else None
        exchange.complete()
    app.gate.set()
    await until("all are closed", lambda: all(visit.is_closed for visit in (stream, plain, asgi)))
    assert stream.answers[0].events[-1] == "[DONE]"
    assert plain.answers[0].headers[b"connection"] == asgi.answers[0].headers[b"connection"] == b"close"


async def test_who_is_not_done_when_the_grace_is_over_is_told(served: Served) -> None:
    stream, plain, body, unknown = visits = [served.connect() for _ in range(4)]
    stream.say(STREAM)
    served.replica.last.stream(CHUNK)
    plain.say(request())
    body.say(request("content-length: 9", body=None))
    unknown.say(request(key="slow"))
    await settle()
    for visit in visits:
        visit.protocol.shutdown()
    for task in list(served.port.server.server_state.tasks):  # as uvicorn does it
        task.cancel()
    for visit in visits:
        visit.protocol.end_now()
    await settle()
    assert stream.answers[0].events[-1]["error"]["code"] == "shutting_down"
    assert stream.answers[0].is_whole
    for visit in (plain, body, unknown):
        [answer] = visit.answers
        assert (answer.status, answer.error["code"]) == (503, "shutting_down")
        assert answer.headers[b"connection"] == b"close"
    assert [exchange.calls for exchange in served.replica.opened] == [["cancel"], ["cancel"]]
    assert served.body_bytes == 0
    assert len(served.gateway.relay.spool) == 0


async def test_requests_are_counted_for_the_server(served: Served) -> None:
    await talk(served.port, get(), get(), request(key="bad"), answers=3)
    assert served.port.server.server_state.total_requests == 3


def test_header_lines_are_made_once_a_second() -> None:
    door = http.Door()
    headers = [(b"date", b"now"), (b"x", b"y")]
    lines = door.header_lines(headers)
    assert lines == b"date: now\r\nx: y\r\n"
    assert door.header_lines(headers) is lines
    assert door.header_lines([(b"date", b"later")]) == b"date: later\r\n"
