"""Engines that send what nobody should: the answer fails, memory is bounded, the connection goes."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstkit.engines.body import BODY_LIMIT_BYTES, REFUSAL_LIMIT_BYTES
from firstkit.engines.engine import Habits
from firstkit.engines.sse import EVENT_LIMIT_BYTES
from firstkit.links.messages import Outcome
from unit.engines.support import (
    DONE,
    EVENTS,
    GOOD,
    JSON,
    ByteServer,
    Talk,
    chunk,
    chunked,
    data,
    framed,
    plain,
    send,
    take,
)
from waiting import until

pytestmark = pytest.mark.usefixtures("clients")
MIB = 1024**2
GIB = 1024**3
PIECE = b"x" * 65536
IN_BUFFERS = 8 * MIB
"""What may lie between an engine and its client, in this process and in the kernel."""
WHOLE = chunked(GOOD)
OBJECT = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}'


def says(*answers: bytes, closes: bool = False) -> Talk:
    """Gives these answers, one to each request on a connection, and is then silent or gone."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await take(reader)
            writer.write(answer)
        if not closes:
            await reader.readexactly(1)

    return talk


# -- what never ends ---------------------------------------------------------------------------------------------------


class Endless:
    """Writes ``start`` and then a gigabyte of ``piece``, as fast as it is read; counts what it wrote."""

    def __init__(self, start: bytes, piece: bytes) -> None:
        self.start = start
        self.piece = piece
        self.written = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await take(reader)
        writer.write(self.start)
        while self.written < GIB:
            if writer.is_closing():
                raise ConnectionResetError
            writer.write(self.piece)
            self.written += len(self.piece)
            await writer.drain()


UNTIL_EOF = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n\r\n"
ENDLESS: dict[str, tuple[bytes, bytes, bool, int, str]] = {
    "a line": (EVENTS, framed(PIECE), True, EVENT_LIMIT_BYTES, "an event that is too long"),
    "a line until the end": (UNTIL_EOF % b"text/event-stream", PIECE, True, EVENT_LIMIT_BYTES, "too long"),
    "lines of one event": (EVENTS, framed(b"data: x\r\n" * 4000), True, EVENT_LIMIT_BYTES, "too long"),
    "a head": (b"HTTP/1.1 200 OK\r\n", b"x-more: " + b"x" * 1000 + b"\r\n", True, MIB, "does not speak HTTP"),
    "a header": (b"HTTP/1.1 200 OK\r\nx: ", PIECE, True, MIB, "does not speak HTTP"),
    "heads": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 400, True, MIB, "does not speak HTTP"),
    "an extension": (EVENTS + b"5;", PIECE, True, MIB, "does not speak HTTP"),
    "trailers": (EVENTS + b"0\r\n", b"x: y\r\n" * 1000, True, MIB, "does not speak HTTP"),
    "an object": (
        JSON + b"transfer-encoding: chunked\r\n\r\n" + framed(b'{"a":"'),
        framed(PIECE),
        False,
        BODY_LIMIT_BYTES,
        "than 64 MiB",
    ),
    "no object": (UNTIL_EOF % b"application/json", PIECE, False, MIB, "not a JSON object"),
    "a refusal": (b"HTTP/1.1 500 X\r\n\r\n", PIECE, True, REFUSAL_LIMIT_BYTES, "than 1 MiB"),
}


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start(1)
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("name", ENDLESS)
async def test_what_never_ends_is_left(folder: Path, name: str, traced: None) -> None:
    start, piece, stream, limit, error = ENDLESS[name]
    endless = Endless(start, piece)
    async with ByteServer(folder, endless.talk) as server:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        sink = send(server.client, stream=stream)
        sink.keeps_body = False
        tail = await sink.ended()
        assert tail.outcome is Outcome.FAILED
        assert error in (tail.error or "")
        await until(lambda: server.alive == 0, "the engine to be left")
        assert server.left == 1
        assert endless.written <= limit + IN_BUFFERS
        assert tracemalloc.get_traced_memory()[1] - before <= 3 * EVENT_LIMIT_BYTES + IN_BUFFERS


async def test_a_large_answer_passes_and_is_not_kept(folder: Path, traced: None) -> None:
    async def large(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await take(reader)
        size = 500 * len(PIECE) + len(OBJECT) + 7
        writer.write(JSON + b'content-length: %d\r\n\r\n{"a":"' % size)
        for _ in range(500):
            writer.write(PIECE)
            await writer.drain()
        writer.write(b'",' + OBJECT[1:])
        await reader.readexactly(1)

    async with ByteServer(folder, large) as server:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        sink = send(server.client, stream=False)
        sink.keeps_body = False
        tail = await sink.ended()
        assert (tail.outcome, tail.error) == (Outcome.COMPLETE, None)
        assert tail.usage is not None
        assert (tail.usage.completion_tokens, tail.usage.estimated) == (2, False)
        assert tracemalloc.get_traced_memory()[1] - before <= IN_BUFFERS


# -- what is wrong -----------------------------------------------------------------------------------------------------

HTML = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 13\r\n\r\n<html></html>"
WRONG: list[tuple[str, bytes, bool, str]] = [
    ("HTML for a stream", HTML, True, "answered with text/html where a stream"),
    ("HTML for JSON", HTML, False, "answered with text/html where JSON"),
    ("HTML that says JSON", plain(b"<html></html>"), False, "not a JSON object"),
    ("HTML that says events", chunked(b"<html>\n\n</html>\n\n"), True, "without [DONE]"),
    ("JSON for a stream", plain(OBJECT), True, "answered with application/json where a stream"),
    ("a stream for JSON", WHOLE, False, "answered with text/event-stream where JSON"),
    ("half a character", chunked(chunk("x").replace(b"x", b"\xe2\x82"), GOOD), True, "not UTF-8"),
    ("a character that is none", chunked(b"data: \xff\n\n", GOOD), True, "not UTF-8"),
    ("half a character in JSON", plain(b'{"a":"\xe2\x82"}'), False, "not a JSON object"),
    ("no JSON in an event", chunked(chunk("a"), data("{nope"), GOOD), True, "not a JSON object"),
    ("an error in an event", chunked(chunk("a"), data({"error": {"message": "full"}}), DONE), True, "full"),
    ("a shorter body", plain(OBJECT).replace(b"length: 64", b"length: 99"), False, "broke off"),
    ("a longer body", plain(OBJECT).replace(b"length: 64", b"length: 60"), False, "not a JSON object"),
    ("no length at all", UNTIL_EOF % b"application/json" + OBJECT[:-9], False, "not a JSON object"),
    ("a stream that is cut", EVENTS + framed(chunk("a"))[:-9], True, "broke off"),
    (
        "a length and chunks",
        EVENTS.replace(b"x-y: z", b"content-length: 9") + framed(GOOD, b""),
        True,
        "not speak HTTP",
    ),
    ("an answer of HTTP/2", b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n", True, "not speak HTTP"),
    ("a redirect", b"HTTP/1.1 307 X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", True, "status 307"),
    ("gzip", EVENTS.replace(b"x-y: z", b"content-encoding: gzip") + framed(GOOD, b""), True, "compressed"),
    ("nothing", b"", True, "broke off"),
]


@pytest.mark.parametrize(("answer", "stream", "error"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
async def test_what_is_wrong_fails(folder: Path, answer: bytes, stream: bool, error: str) -> None:
    async with ByteServer(folder, says(answer, closes=True)) as server:
        sink = send(server.client, stream=stream)
        tail = await sink.ended()
        assert tail.outcome is Outcome.FAILED
        assert error in (tail.error or "")
        assert b"[DONE]" not in sink.body
        assert not stream or sink.body == b"" or sink.body.endswith(b"\n\n")


@pytest.mark.parametrize(
    "more",
    [b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"H", b"\r\n", b"\0", PIECE],
    ids=["an answer", "a byte of it", "a line end", "NUL", "much"],
)
@pytest.mark.parametrize("first", [WHOLE, plain(OBJECT)], ids=["stream", "plain"])
async def test_what_comes_after_an_answer_reaches_nobody(folder: Path, first: bytes, more: bytes) -> None:
    async with ByteServer(folder, says(first + more)) as server:
        for _ in range(3):
            tail = await send(server.client, stream=first is WHOLE).ended()
            assert (tail.outcome, tail.error) == (Outcome.COMPLETE, None)
        assert server.connections == 3


async def test_what_comes_for_nobody_ends_the_connection(folder: Path) -> None:
    may_speak = asyncio.Event()

    async def interrupt(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await take(reader)
        writer.write(WHOLE)
        await may_speak.wait()
        writer.write(WHOLE)
        await reader.readexactly(1)

    async with ByteServer(folder, interrupt, habits=Habits(keep_s=60)) as server:
        assert (await send(server.client).ended()).outcome is Outcome.COMPLETE
        assert server.alive == 1
        may_speak.set()
        await until(lambda: server.alive == 0, "the connection to be closed")
        assert "kept=0" in repr(server.client)


@pytest.mark.parametrize("answer", [WHOLE, b""], ids=["an answer", "an end"])
async def test_an_engine_that_speaks_first(folder: Path, answer: bytes) -> None:
    async def blurt(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    async with ByteServer(folder, blurt) as server:
        for _ in range(5):
            tail = await send(server.client).ended()
            assert tail.outcome is (Outcome.COMPLETE if tail.error is None else Outcome.FAILED)


# -- endings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("habits", [Habits(), Habits(closes_after_stream=True), Habits(keeps_alive=False)])
async def test_an_engine_that_closes_after_each_stream(folder: Path, habits: Habits) -> None:
    async with ByteServer(folder, says(WHOLE, closes=True), habits=habits) as server:
        for _ in range(10):
            assert (await send(server.client).ended()).outcome is Outcome.COMPLETE
        assert server.connections == 10


async def test_fifty_aborts_leave_nothing_behind(folder: Path) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await take(reader)
        writer.write(EVENTS)
        while True:
            if writer.is_closing():
                raise ConnectionResetError
            writer.write(framed(chunk("a")))
            await writer.drain()
            await asyncio.sleep(0.002)

    async with ByteServer(folder, drip) as server:
        sinks = [send(server.client) for _ in range(50)]
        await until(lambda: all("data" in sink.calls for sink in sinks), "a token of each")
        for sink in sinks:
            sink.exchange.cancel()
        for sink in sinks:
            assert (await sink.ended()).outcome is Outcome.CANCELLED
        await until(lambda: server.alive == 0, "the engine to be left fifty times")
        assert server.left == 50
        assert server.client.in_flight == 0
        sink = send(server.client)
        await until(lambda: "data" in sink.calls, "a token after all that")
        sink.exchange.cancel()
        await sink.ended()


async def test_fifty_aborts_at_any_moment(folder: Path) -> None:
    async with ByteServer(folder, says(WHOLE, WHOLE, WHOLE)) as server:
        for i in range(50):
            sink = send(server.client)
            for _ in range(i % 10):
                await asyncio.sleep(0)
            sink.exchange.cancel()
            assert (await sink.ended()).outcome in (Outcome.CANCELLED, Outcome.COMPLETE)
        assert server.client.in_flight == 0
        assert (await send(server.client).ended()).outcome is Outcome.COMPLETE
