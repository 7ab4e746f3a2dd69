"""The fault proxy does what it is told, and no more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from firstkit.testing.fault_proxy import FaultProxy, main, obey
from waiting import until


class Line:
    """One connection through the proxy, and whoever answers at its end."""

    def __init__(self, proxy: FaultProxy, arrived: list[bytes]) -> None:
        self.proxy = proxy
        self.arrived = arrived
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def connect(self) -> None:
        """Another connection; the one before is forgotten."""
        if hasattr(self, "writer"):
            self.writer.transport.abort()
        host, port = self.proxy.address.split(":")
        self.reader, self.writer = await asyncio.open_connection(host, int(port))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def echo(self, size: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(size), 10)

    async def ended(self) -> None:
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(self.reader.read(), 10) == b""


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    arrived: list[bytes] = []
    echoing = 0

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal echoing
        echoing += 1
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                arrived.append(data)
                writer.write(data)
        writer.transport.abort()
        echoing -= 1

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with FaultProxy(target).listening() as proxy:
        line = Line(proxy, arrived)
        await line.connect()
        yield line
        line.writer.transport.abort()
    await until(lambda: not echoing, "the end of all connections")
    server.close()


async def test_without_faults_all_passes(line: Line) -> None:
    await line.send(b"there and back")
    assert await line.echo(14) == b"there and back"
    assert (line.proxy.up.passed, line.proxy.down.passed, line.proxy.accepted) == (14, 14, 1)
    line.writer.write_eof()
    await line.ended()


async def test_a_cut_resets_both_ends_and_the_next_connection_is_fine(line: Line) -> None:
    await line.send(b"x")
    await line.echo(1)
    line.proxy.cut()
    await line.ended()
    await line.connect()
    await line.send(b"y")
    assert await line.echo(1) == b"y"


async def test_it_cuts_after_so_many_bytes_and_once(line: Line) -> None:
    line.proxy.cut_after = 3
    await line.send(b"abcd")
    await line.ended()
    await line.connect()
    await line.send(b"abcdefgh")
    assert await line.echo(8) == b"abcdefgh"


async def test_who_is_refused_hears_nothing(line: Line) -> None:
    line.proxy.refuses = True
    await line.connect()
    await line.ended()


async def test_a_target_that_is_not_there(line: Line) -> None:
    line.proxy.target = "127.0.0.1:9"
    await line.connect()
    await line.ended()


@pytest.mark.parametrize(("up", "down"), [(True, False), (False, True), (True, True)])
async def test_what_is_held_arrives_later(line: Line, up: bool, down: bool) -> None:
    line.proxy.hold(up, down)
    await line.send(b"abc")
    if not up:
        await until(lambda: line.arrived == [b"abc"])
    await asyncio.sleep(0.05)
    assert line.proxy.down.passed == 0
    assert line.arrived == ([] if up else [b"abc"])
    line.proxy.hold(False, False)
    assert await line.echo(3) == b"abc"


@pytest.mark.parametrize(("up", "down"), [(True, False), (False, True)])
async def test_what_is_swallowed_is_missed_when_it_would_be(line: Line, up: bool, down: bool) -> None:
    line.proxy.swallow(up, down)
    await line.send(b"abc")
    await asyncio.sleep(0.05)
    assert line.proxy.down.passed == 0
    line.proxy.swallow(False, False)
    await line.ended()
    await line.connect()
    await line.send(b"abc")
    assert await line.echo(3) == b"abc"


async def test_who_lost_nothing_is_not_cut(line: Line) -> None:
    line.proxy.swallow(True, True)
    line.proxy.swallow(False, False)
    await line.send(b"abc")
    assert await line.echo(3) == b"abc"


async def test_a_delay_and_a_rate_take_their_time(line: Line) -> None:
    line.proxy.delay_s, line.proxy.rate = 0.05, 10_000.0
    started = asyncio.get_running_loop().time()
    await line.send(bytes(500))
    await line.echo(500)
    await line.send(bytes(500))
    await line.echo(500)
    assert asyncio.get_running_loop().time() - started >= 0.2


def test_it_obeys_words() -> None:
    proxy = FaultProxy("127.0.0.1:1")
    for line in ("refuse on", "hold up", "swallow down", "delay 0.5", "rate 100", "cut-after 7", "cut"):
        obey(proxy, line)
    assert (proxy.refuses, proxy.delay_s, proxy.rate, proxy.cut_after) == (True, 0.5, 100.0, 7.0)
    assert (proxy.up.swallows, proxy.down.swallows, proxy.up.passes.is_set()) == (False, True, False)
    for line in ("refuse maybe", "hold sideways", "explode", ""):
        with pytest.raises(ValueError, match="no command"):
            obey(proxy, line)


def test_it_says_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err
