"""The client's end of an answer: what is sent for each ending, and that a hang-up is heard."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from firstkit.errors import EngineFailed, Overloaded
from firstkit.gateway.client import DONE, Client


class Wire:
    """The ASGI side of one client."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.hang_up = asyncio.Event()
        self.before = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive(self) -> Any:
        if self.before:
            return self.before.pop()
        await self.hang_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def has_ended(self) -> bool:
        return [message.get("more_body", False) for message in self.sent[1:]][-1:] == [False]


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
async def client(wire: Wire) -> AsyncIterator[Client]:
    async with Client(wire.receive, wire.send, "req-1") as client:
        yield client


async def test_a_plain_answer(wire: Wire, client: Client) -> None:
    await client.plain("application/json", b'{"a": 1}')
    assert wire.sent[0]["status"] == 200
    assert wire.headers == {
        b"content-type": b"application/json",
        b"content-length": b"8",
        b"x-request-id": b"req-1",
    }
    assert (wire.body, wire.has_ended) == (b'{"a": 1}', True)


async def test_a_stream_that_ends_well(wire: Wire, client: Client) -> None:
    await client.write(b"data: 1\n\n")
    assert client.is_streaming
    assert not wire.has_ended
    await client.comment("working")
    await client.done()
    assert wire.headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert wire.headers[b"cache-control"] == b"no-cache"
    assert wire.headers[b"x-accel-buffering"] == b"no"
    assert wire.headers[b"x-request-id"] == b"req-1"
    assert b"content-length" not in wire.headers
    assert wire.body == b"data: 1\n\n: working\n\n" + DONE
    assert wire.has_ended
    assert [message["type"] for message in wire.sent].count("http.response.start") == 1


async def test_an_empty_stream_is_a_stream(wire: Wire, client: Client) -> None:
    await client.done()
    assert (wire.sent[0]["status"], wire.body) == (200, DONE)


async def test_an_error_before_the_stream_has_its_status(wire: Wire, client: Client) -> None:
    await client.fail(Overloaded(retry_after_s=5))
    assert wire.sent[0]["status"] == 429
    assert wire.headers[b"retry-after"] == b"5"
    assert wire.headers[b"x-request-id"] == b"req-1"
    assert json.loads(wire.body)["error"]["code"] == "overloaded"
    assert wire.has_ended


async def test_an_error_in_a_stream_is_its_last_event(wire: Wire, client: Client) -> None:
    await client.write(b"data: 1\n\n")
    await client.fail(EngineFailed("It broke\n\ndata: [DONE]\n\n"))
    assert DONE not in wire.body
    *_, last, rest = wire.body.split(b"\n\n")
    assert rest == b""
    assert json.loads(last.removeprefix(b"data: ")) == EngineFailed("It broke\n\ndata: [DONE]\n\n").body()
    assert wire.has_ended


async def test_a_hang_up_is_heard(wire: Wire, client: Client) -> None:
    assert not client.is_gone
    wire.hang_up.set()
    await asyncio.wait_for(client.gone, 5)
    assert client.is_gone


async def test_nobody_watches_after_the_answer(wire: Wire) -> None:
    async with Client(wire.receive, wire.send, "req-1") as client:
        await client.plain("application/json", b"{}")
    with pytest.raises(asyncio.CancelledError):
        await client.gone
