from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firstkit.engines.engine import Address
from firstkit.onsite import probe


class Server:
    """Says ``answer`` to whoever connects, and remembers what was asked."""

    def __init__(self) -> None:
        self.answer = b""
        self.asked = b""
        self.hangs = False

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked = await reader.readuntil(b"\r\n\r\n")
        writer.write(self.answer)
        if self.hangs:
            await reader.read()
        writer.close()


@pytest.fixture
async def server(folder: Path) -> AsyncIterator[Server]:
    server = Server()
    listener = await asyncio.start_unix_server(server.connected, folder / "engine.sock")
    yield server
    listener.close()


async def ask(folder: Path, key: str | None = None, timeout_s: float = 5.0) -> tuple[int, bytes]:
    return await probe.get(str(folder), Address(socket="engine.sock"), "/health", key, timeout_s)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokxx", (200, b"ok")),
        (b"HTTP/1.1 503 Loading\r\ncontent-length: 0\r\n\r\n", (503, b"")),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", (200, b"abcde")),
        (b"HTTP/1.0 200 OK\r\n\r\nto the end", (200, b"to the end")),
        (b"", (0, b"")),
        (b"SSH-2.0-OpenSSH\r\n\r\n", (0, b"")),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", (0, b"")),
    ],
)
async def test_answers(server: Server, folder: Path, answer: bytes, expected: tuple[int, bytes]) -> None:
    server.answer = answer
    assert await ask(folder) == expected


async def test_the_key_is_sent(server: Server, folder: Path) -> None:
    await ask(folder, key="k")
    assert b"Authorization: Bearer k\r\n" in server.asked
    await ask(folder)
    assert b"Authorization" not in server.asked


async def test_silence_is_no_answer(server: Server, folder: Path) -> None:
    server.hangs = True
    assert await ask(folder, timeout_s=0.05) == (0, b"")


async def test_nobody_is_there(folder: Path) -> None:
    assert await probe.get(str(folder), Address(socket="none.sock"), "/health", None, 5.0) == (0, b"")


@given(answer=st.binary(max_size=200))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_some_answer(folder: Path, answer: bytes) -> None:
    async def run() -> None:
        server = Server()
        server.answer = b"HTTP/1.1 200 OK\r\n" + answer
        path = folder / "any.sock"
        listener = await asyncio.start_unix_server(server.connected, path)
        await probe.get(str(folder), Address(socket="any.sock"), "/", None, 5.0)
        listener.close()

    asyncio.run(run())
