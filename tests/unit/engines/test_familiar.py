"""Answers whose heads are known again: told as the parser tells them, and nothing else is taken for one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from firstkit.engines import connection
from firstkit.engines.engine import Address
from firstkit.engines.familiar import FamiliarHead
from firstkit.engines.http import EngineClient, Target
from firstkit.links.messages import Outcome
from unit.engines.support import alone, send

GOOD = b'{"choices": [{"message": {"content": "hi"}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}'
Say = Callable[[int], bytes]


def answer(body: bytes, *lines: bytes) -> bytes:
    head = [b"HTTP/1.1 200 OK", b"Content-Type: application/json", b"Content-Length: %d" % len(body), *lines, b"", b""]
    return b"\r\n".join(head) + body


@contextlib.asynccontextmanager
async def engine(folder: Path, say: Say) -> AsyncIterator[tuple[EngineClient, list[int]]]:
    """An engine that answers its n-th request with ``say(n)``; and by how many connections it was asked."""
    asked = 0
    connections: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        connections.append(len(connections))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
                writer.write(say(asked))
                asked += 1
        writer.close()

    server = await asyncio.start_unix_server(serve, folder / "engine.sock")
    client = EngineClient(Target(Address("engine.sock"), str(folder)))
    try:
        yield client, connections
    finally:
        client.close()
        server.close()
        await alone()


async def ask(client: EngineClient) -> tuple[Outcome, bytes]:
    sink = send(client, stream=False)
    tail = await sink.ended()
    return tail.outcome, sink.body


@pytest.fixture
def recognised(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each answer that came to a connection with a familiar head was taken for one with it."""
    seen: list[bool] = []

    class Watched(FamiliarHead[object]):
        def body_of(self, data: bytes) -> bytes | None:
            body = super().body_of(data)
            seen.append(body is not None)
            return body

    learn = connection.learn

    def watched(data: bytes, what: object) -> Watched | None:
        head = learn(data, what)
        return None if head is None else Watched(head._before, head._after, head.what)

    monkeypatch.setattr(connection, "learn", watched)
    return seen


async def test_the_same_head_with_another_length(folder: Path, recognised: list[bool]) -> None:
    bodies = [GOOD, GOOD.replace(b"hi", b"hello"), GOOD]
    async with engine(folder, lambda n: answer(bodies[n])) as (client, connections):
        for body in bodies:
            assert await ask(client) == (Outcome.COMPLETE, body)
    assert recognised == [True, True]
    assert len(connections) == 1


async def test_another_head_is_read_and_known_from_then_on(folder: Path, recognised: list[bool]) -> None:
    dates = [b"date: 1", b"date: 1", b"date: 2", b"date: 2"]
    async with engine(folder, lambda n: answer(GOOD, dates[n])) as (client, _):
        for _ in dates:
            assert await ask(client) == (Outcome.COMPLETE, GOOD)
    assert recognised == [True, False, True]


async def test_heads_that_always_differ_are_learnt_no_more(
    folder: Path, recognised: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LESSONS", 2)
    async with engine(folder, lambda n: answer(GOOD, b"x-number: %d" % n)) as (client, _):
        for _ in range(5):
            assert await ask(client) == (Outcome.COMPLETE, GOOD)
    assert True not in recognised


async def test_an_answer_in_pieces_is_read(folder: Path, recognised: list[bool]) -> None:
    """The length says more than is there, so it is not taken for the whole."""
    whole = answer(GOOD)
    async with engine(folder, lambda n: whole if n == 0 else whole[:-1]) as (client, _):
        assert (await ask(client))[0] is Outcome.COMPLETE
        sink = send(client, stream=False, idle_timeout_s=0.1)
        assert (await sink.ended()).outcome is Outcome.TIMEOUT
    assert recognised == [False]


async def test_more_than_an_answer_ends_the_connection(folder: Path, recognised: list[bool]) -> None:
    whole = answer(GOOD)
    async with engine(folder, lambda n: whole + (b"HTTP/1.1 200 OK\r\n" if n == 1 else b"")) as (client, connections):
        for _ in range(3):
            await ask(client)
    assert recognised == [False]
    assert len(connections) == 2


async def test_a_head_that_says_close_is_not_remembered(folder: Path, recognised: list[bool]) -> None:
    async with engine(folder, lambda n: answer(GOOD, b"connection: close")) as (client, connections):
        for _ in range(2):
            assert (await ask(client))[0] is Outcome.COMPLETE
    assert recognised == []
    assert len(connections) == 2


async def test_what_the_answer_says_is_judged_all_the_same(folder: Path, recognised: list[bool]) -> None:
    bodies = [GOOD, b"no JSON", b'{"error": {"message": "out of memory"}}', GOOD]
    wanted = [
        Outcome.COMPLETE, Outcome.FAILED, Outcome.FAILED, Outcome.COMPLETE,
    ]  # fmt: skip
    async with engine(folder, lambda n: answer(bodies[n])) as (client, _):
        assert [(await ask(client))[0] for _ in bodies] == wanted
    assert recognised == [True, True, True]
