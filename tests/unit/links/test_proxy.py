"""A tunnel through an HTTP proxy: a real one where it is installed, and others that a test plays."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from firstkit.links.dial import PROXY_HEAD_BYTES, Dial, Unreachable
from firstkit.links.messages import Head, LinkSpec, Outcome, Tail
from firstkit.links.private_ca import PrivateCa
from unit.links.support import Ends, ManualExchange, RememberingSink, request
from waiting import until


@asynccontextmanager
async def answering(answer: bytes, heard: list[bytes] | None = None) -> AsyncIterator[str]:
    """A proxy that reads one head, says ``answer``, and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            if heard is not None:
                heard.append(head)
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.fixture
def ca(folder: Path) -> PrivateCa:
    return PrivateCa(folder)


def spec(ca: PrivateCa, address: str, proxy: str) -> LinkSpec:
    return LinkSpec("tunnel", addresses=(address,), ca_pem=ca.certificate_pem, proxy=proxy, resume_s=10.0)


@pytest.fixture
def tinyproxy(folder: Path) -> Iterator[str]:
    if shutil.which("tinyproxy") is None:
        pytest.skip("tinyproxy is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    lines = [f"Port {port}", "Listen 127.0.0.1", "Timeout 60", "Allow 127.0.0.1", "MaxClients 20"]
    (folder / "tinyproxy.conf").write_text("\n".join(lines) + "\n")
    process = subprocess.Popen(["tinyproxy", "-d", "-c", str(folder / "tinyproxy.conf")], stdout=subprocess.DEVNULL)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait()


async def test_a_real_proxy_lets_a_tunnel_through(ends: Ends, ca: PrivateCa, tinyproxy: str) -> None:
    def answer(exchange: ManualExchange) -> None:
        exchange.sink.on_head(Head(200))
        exchange.sink.on_data(exchange.body)
        exchange.sink.on_tail(Tail(Outcome.COMPLETE))

    address = await ends.listen_tunnel(ca.server_context())
    ends.service.answer = answer
    ends.dial(spec(ca, address, tinyproxy))
    await until(lambda: ends.owner.up, "the link")
    sink, body = RememberingSink(), bytes(range(256)) * 1000
    ends.owner.up[0].open(request(body), body, sink)
    assert (await sink.tail()).outcome is Outcome.COMPLETE
    assert sink.body == body
    transport = ends.owner.up[0]._transport
    assert transport is not None
    transport.abort()
    await until(lambda: ends.owner.news == ["up", "down", "up"], "the link, through the proxy again")


async def test_a_real_proxy_that_finds_no_gateway_is_named(ca: PrivateCa, tinyproxy: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    dial = Dial(spec(ca, nobody, tinyproxy))
    words = ""
    while "it answers 5" not in words:  # it may not listen yet
        with pytest.raises(Unreachable) as caught:
            await dial.connect(asyncio.Protocol)
        words = str(caught.value)
        assert words.startswith(f"no gateway at {nobody} through the proxy {tinyproxy[7:]}: ")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "it answers 407 Proxy Authentication Required"),
        (b"HTTP/1.0 403 Forbidden\r\ncontent-length: 2\r\n\r\nno", "it answers 403 Forbidden"),
        (b"HTTP/1.1 502\r\n\r\n", "it answers 502"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "it does not answer as an HTTP proxy"),
        (b"", "it does not answer as an HTTP proxy"),
        (b"HTTP/1.1 200 OK\r\nx: ", "its answer has no end"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * PROXY_HEAD_BYTES, "its answer has no end"),
        (b"HTTP/1.1 200 OK\r\n\r\nand more", "its answer has no end"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "no gateway at gateway.example:8443 through the proxy 127.0.0.1:"),
    ],
)
async def test_a_proxy_that_opens_no_way_is_named_with_its_answer(ca: PrivateCa, answer: bytes, words: str) -> None:
    heard: list[bytes] = []
    async with answering(answer, heard) as proxy:
        with pytest.raises(Unreachable, match="through the proxy") as caught:
            await Dial(spec(ca, "gateway.example:8443", proxy)).connect(asyncio.Protocol)
    assert words in str(caught.value)
    assert heard == [b"CONNECT gateway.example:8443 HTTP/1.1\r\nHost: gateway.example:8443\r\n\r\n"]


async def test_a_proxy_that_nobody_is(ca: PrivateCa) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(Unreachable, match=f"through the proxy {nobody}: "):
        await Dial(spec(ca, "gateway.example:8443", f"http://{nobody}")).connect(asyncio.Protocol)


async def test_the_proxy_sees_no_secret_and_cannot_be_the_gateway(
    ends: Ends, ca: PrivateCa, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A proxy that leads to somebody else gains nothing: the certificate counts, not the way."""
    (folder / "other").mkdir()
    elsewhere = await ends.listen_tunnel(PrivateCa(folder / "other").server_context())

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        host, port = elsewhere.split(":")
        there, back = await asyncio.open_connection(host, int(port))
        await asyncio.gather(_pass(reader, back), _pass(there, writer))

    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(4096):
                writer.write(data)
        writer.close()

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    ends.dial(spec(ca, "gateway.example:8443", f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"))
    await until(lambda: any("its certificate is not" in each.getMessage() for each in caplog.records), "the refusal")
    assert ends.owner.hellos == []
    proxy.close()


@pytest.mark.parametrize("proxy", ["proxy", "http://proxy", "http://proxy:0", "http://:80"])
def test_a_proxy_has_host_and_port(ca: PrivateCa, proxy: str) -> None:
    with pytest.raises(ValueError, match=r"link\.proxy"):
        Dial(spec(ca, "gateway:1", proxy))
