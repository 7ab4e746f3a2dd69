"""What bounds a request and its client: connections, time, what is kept and for how long."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from firstkit.engines.connection import JOINED_BYTES
from firstkit.engines.engine import Habits
from firstkit.links.messages import Open, Outcome, Usage
from unit.engines.support import CHAT, EVENTS, GOOD, ByteServer, Collected, Fake, chunked, framed, plain, send, take
from waiting import until

pytestmark = pytest.mark.usefixtures("clients")
WHOLE = chunked(GOOD)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every request on a connection."""
    while True:
        await take(reader)
        writer.write(WHOLE)


# -- connections -------------------------------------------------------------------------------------------------------


async def test_a_request_beyond_the_connections_is_refused_at_once(folder: Path) -> None:
    async with Fake(folder, tokens=2) as fake:
        fake.use(most_connections=3)
        fake.gate.clear()
        sinks = [fake.open() for _ in range(3)]
        for _ in range(5):
            sink = fake.open()
            assert sink.calls == []
            tail = await sink.ended()
            assert (tail.outcome, tail.error, tail.usage) == (Outcome.FAILED, "too many connections", Usage(0, 0))
        await until(lambda: fake.connections == 3, "those that are allowed")
        fake.gate.set()
        for sink in sinks:
            assert (await sink.ended()).outcome is Outcome.COMPLETE
        for _ in range(3):  # what is kept is used, and counts only once
            sinks = [fake.open() for _ in range(3)]
            for sink in sinks:
                assert (await sink.ended()).outcome is Outcome.COMPLETE
        assert fake.connections == 3


async def test_a_request_that_ended_makes_room(folder: Path) -> None:
    async with Fake(folder, "SilentEngine") as fake:
        fake.use(most_connections=1)
        for _ in range(3):
            sink = fake.open()
            sink.exchange.cancel()
            sink = fake.open()
            await until(lambda: fake.engine.stats.in_flight, "the request")
            sink.exchange.cancel()
            assert (await sink.ended()).outcome is Outcome.CANCELLED
            await until(lambda: not fake.engine.stats.in_flight, "its end")


async def test_kept_connections_are_closed_when_they_were_idle_too_long(folder: Path) -> None:
    async with ByteServer(folder, answer, habits=Habits(keep_s=0.2)) as server:
        sinks = [send(server.client) for _ in range(5)]
        for sink in sinks:
            assert (await sink.ended()).outcome is Outcome.COMPLETE
        assert server.alive == 5
        await until(lambda: server.alive == 0, "the client to close what it does not use")
        assert server.left == 5
        assert server.client._timer is None, "and then nothing ticks any more"
        assert (await send(server.client).ended()).outcome is Outcome.COMPLETE


async def test_an_answer_whose_http_never_ends_does_not_hold_its_connection(folder: Path) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await take(reader)
        writer.write(WHOLE[:-5])
        await reader.readexactly(1)

    async with ByteServer(folder, hold) as server:
        sink = send(server.client)
        assert (await sink.ended()).outcome is Outcome.COMPLETE
        assert server.alive == 1
        await until(lambda: server.alive == 0, "the client to lose patience")


async def test_an_answer_whose_http_ends_late_gives_its_connection_back(folder: Path) -> None:
    may_end = asyncio.Event()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await take(reader)
            writer.write(WHOLE[:-5])
            await may_end.wait()
            writer.write(WHOLE[-5:])

    async with ByteServer(folder, late) as server:
        assert (await send(server.client).ended()).outcome is Outcome.COMPLETE
        may_end.set()
        await until(lambda: "kept=1" in repr(server.client), "the end of the answer")
        assert (await send(server.client).ended()).outcome is Outcome.COMPLETE
        assert server.connections == 1


async def test_a_client_that_was_closed_starts_nothing(folder: Path) -> None:
    async with Fake(folder) as fake:
        fake.client.close()
        sink = await fake.ask()
        assert sink.tail is not None
        assert (sink.tail.outcome, sink.tail.error) == (Outcome.FAILED, "the engine was stopped")
        assert fake.client._timer is None


# -- time --------------------------------------------------------------------------------------------------------------


async def test_a_request_has_a_longest_life(folder: Path) -> None:
    async with Fake(folder, tokens=10_000, token_delay=0.01) as fake:
        sink = send(fake.client, timeout_s=0.3)
        tail = await sink.ended()
        assert (tail.outcome, tail.error) == (Outcome.TIMEOUT, "the request took longer than 0.3 s")
        assert tail.duration_s >= 0.3
        assert tail.usage is not None
        assert tail.usage.estimated
        assert tail.usage.completion_tokens == sink.body.count(b"word")
        await until(lambda: fake.engine.stats.aborted == 1, "the abort")


async def test_its_life_goes_on_while_it_is_paused(folder: Path) -> None:
    async with Fake(folder, tokens=10) as fake:
        sink = send(fake.client, timeout_s=0.3)
        sink.exchange.pause()
        assert (await sink.ended()).outcome is Outcome.TIMEOUT


async def test_its_life_goes_on_while_it_connects(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Fake(folder) as fake:
        never = asyncio.Event()
        monkeypatch.setattr(fake.client._way, "dial", lambda protocol: never.wait())
        sink = send(fake.client, timeout_s=0.1)
        assert (await sink.ended()).error == "the request took longer than 0.1 s"


async def test_each_request_has_its_own_time(folder: Path) -> None:
    async with Fake(folder, "SilentEngine") as fake:
        patient = send(fake.client, idle_timeout_s=30)
        for idle_s, total_s, error in ((0.1, 60, "sent nothing for 0.1 s"), (30, 0.2, "took longer than 0.2 s")):
            tail = await send(fake.client, idle_timeout_s=idle_s, timeout_s=total_s).ended()
            assert error in (tail.error or "")
        assert patient.calls == []
        patient.exchange.cancel()
        await patient.ended()
        await until(lambda: fake.client._timer is None, "the timer to rest")


async def test_no_connection_in_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firstkit.engines.http.CONNECT_TIMEOUT_S", 0.1)
    async with Fake(folder) as fake:
        never = asyncio.Event()
        monkeypatch.setattr(fake.client._way, "dial", lambda protocol: never.wait())
        assert (await send(fake.client).ended()).error == "the engine cannot be reached: no connection in time"


# -- bodies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, JOINED_BYTES, JOINED_BYTES + 1, 5_000_000])
async def test_bodies_of_every_size_arrive_whole(folder: Path, size: int) -> None:
    bodies: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            bodies.append((await take(reader)).partition(b"\r\n\r\n")[2])
            writer.write(WHOLE)

    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with ByteServer(folder, note) as server:
        for _ in range(2):
            sink = Collected()
            server.client.open(Open("r", "POST", CHAT, size, {}, True), body, sink)
            assert (await sink.ended()).outcome is Outcome.COMPLETE
        assert bodies == [body, body]
        assert server.connections == 1


@pytest.mark.parametrize("size", [10, 1_000_000])
async def test_a_body_is_let_go_when_the_answer_begins(folder: Path, size: int) -> None:
    may_end = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await take(reader)
            writer.write(EVENTS)
            await may_end.wait()
            writer.write(framed(GOOD, b""))

    async with ByteServer(folder, slow) as server:
        for _ in range(2):  # on a new connection, on one that was kept
            may_end.clear()
            body = b"x" * size
            holders = sys.getrefcount(body)
            sink = Collected()
            sink.exchange = server.client.open(Open("r", "POST", CHAT, size, {}, True), body, sink)
            await until(lambda sink=sink: sink.calls == ["head"], "the head")
            assert sys.getrefcount(body) == holders
            may_end.set()
            assert (await sink.ended()).outcome is Outcome.COMPLETE


async def test_a_refusal_in_the_midst_of_a_body_is_heard(folder: Path) -> None:
    refusal = b'{"error":{"message":"too large"}}'
    refused = b"HTTP/1.1 413 X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(refusal) + refusal

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(refused)
        await reader.read(1)
        while await reader.read(65536):
            pass

    async with ByteServer(folder, refuse) as server:
        sink = send(server.client, filler="x" * 20_000_000)
        tail = await sink.ended()
        assert (tail.outcome, sink.body) == (Outcome.REJECTED, refusal)
        await until(lambda: server.alive == 0, "a connection in an unknown state to be closed")


async def test_an_engine_that_does_not_read_is_left(folder: Path) -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        while not writer.transport.is_closing():
            await asyncio.sleep(0.01)
            if server.client.in_flight == 0:
                return

    async with ByteServer(folder, deaf) as server:
        tail = await send(server.client, idle_timeout_s=0.2, filler="x" * 20_000_000).ended()
        assert (tail.outcome, tail.error) == (Outcome.TIMEOUT, "the engine sent nothing for 0.2 s")


async def test_plain_answers_keep_their_connection(folder: Path) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await take(reader)
            writer.write(plain(b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}'))

    async with ByteServer(folder, reply) as server:
        for _ in range(20):
            tail = await send(server.client, stream=False).ended()
            assert (tail.outcome, tail.usage) == (Outcome.COMPLETE, Usage(1, 2))
        assert server.connections == 1
