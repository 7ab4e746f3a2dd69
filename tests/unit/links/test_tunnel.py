"""The link through TLS: real handshakes on the loopback interface, good ones and others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from firstkit.links import dial, private_ca
from firstkit.links.dial import Dial
from firstkit.links.frames import MAX_PAYLOAD, FrameType
from firstkit.links.messages import PROTOCOL, Head, Hello, LinkSpec, Outcome, Tail
from firstkit.links.private_ca import PrivateCa
from unit.links.support import JOB, Ends, ManualExchange, Peer, RememberingSink, request
from waiting import until


@pytest.fixture
def ca(folder: Path) -> PrivateCa:
    return PrivateCa(folder)


@pytest.fixture(autouse=True)
async def _nothing_leaks(ends: Ends) -> AsyncIterator[None]:
    """After each test no more sockets are open than before. (The loop has some of its own, which it replaces.)"""
    before = _open_sockets()
    yield
    await ends.close()
    await until(lambda: _open_sockets() <= before, "the end of all connections")


def _open_sockets() -> int:
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return count


def tunnel(ca: PrivateCa, *addresses: str) -> LinkSpec:
    return LinkSpec("tunnel", addresses=addresses, ca_pem=ca.certificate_pem)


def echo(exchange: ManualExchange) -> None:
    exchange.sink.on_head(Head(200, "text/plain"))
    for start in range(0, len(exchange.body), MAX_PAYLOAD):
        exchange.sink.on_data(exchange.body[start : start + MAX_PAYLOAD])
    exchange.sink.on_tail(Tail(Outcome.COMPLETE))


async def refused_for(caplog: pytest.LogCaptureFixture, words: str) -> None:
    """A pilot has logged why it has no link."""
    await until(lambda: any(words in record.getMessage() for record in caplog.records), f"'{words}' in the log")


async def test_a_tunnel_carries_streams(ends: Ends, ca: PrivateCa) -> None:
    address = await ends.listen_tunnel(ca.server_context())
    ends.service.answer = echo
    ends.dial(tunnel(ca, address))
    await until(lambda: ends.owner.up, "the link")
    link = ends.owner.up[0]
    body = bytes(range(256)) * (5 * 1024 * 1024 // 256)
    large, small = RememberingSink(), RememberingSink()
    link.open(request(body), body, large)
    link.open(request(b"question"), b"question", small)
    assert (await small.tail()).outcome is Outcome.COMPLETE
    assert (await large.tail()).outcome is Outcome.COMPLETE
    assert large.body == body
    assert await link.call("status") == {"verb": "status"}
    assert link._transport is not None
    assert link._transport.get_extra_info("ssl_object").version() == "TLSv1.3"


async def test_the_addresses_are_dialled_in_turn_and_the_one_that_works_is_kept(
    ends: Ends, ca: PrivateCa, caplog: pytest.LogCaptureFixture
) -> None:
    closed = socket.create_server(("127.0.0.1", 0))
    nobody = f"127.0.0.1:{closed.getsockname()[1]}"
    closed.close()
    address = await ends.listen_tunnel(ca.server_context())
    ends.dial(tunnel(ca, nobody, address))
    await until(lambda: ends.owner.up, "the link")
    await refused_for(caplog, f"no gateway at {nobody}")
    caplog.clear()
    for count in (2, 3, 4):
        ends.owner.up[-1].close()
        await until(lambda count=count: len(ends.owner.up) == count, "another link")
    assert not any("no gateway at" in record.getMessage() for record in caplog.records)


async def test_what_keeps_a_link_down_is_logged_once(
    ends: Ends, ca: PrivateCa, caplog: pytest.LogCaptureFixture
) -> None:
    addresses = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as closed:
            addresses.append(f"127.0.0.1:{closed.getsockname()[1]}")
    pilot = ends.dial(tunnel(ca, *addresses))
    for address in addresses:
        await refused_for(caplog, address)
    await asyncio.sleep(0.1)
    assert len([record for record in caplog.records if "no gateway at" in record.getMessage()]) == 2
    assert not pilot.is_up


async def test_a_server_of_another_ca_is_not_trusted(
    ends: Ends, ca: PrivateCa, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "other").mkdir()
    address = await ends.listen_tunnel(PrivateCa(folder / "other").server_context())
    pilot = ends.dial(tunnel(ca, address))
    await refused_for(caplog, "its certificate is not the gateway's")
    assert not pilot.is_up
    assert ends.owner.hellos == []


async def test_a_server_of_another_name_is_not_trusted(
    ends: Ends, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(private_ca, "SERVER_NAME", "other.first.internal")
    other = PrivateCa(folder)
    address = await ends.listen_tunnel(other.server_context())
    ends.dial(tunnel(other, address))
    await refused_for(caplog, "Hostname mismatch")
    assert ends.owner.hellos == []


async def test_a_server_without_tls_is_left(
    ends: Ends, ca: PrivateCa, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    ends.server = await asyncio.start_server(greet, "127.0.0.1", 0)
    ends.dial(tunnel(ca, f"127.0.0.1:{ends.server.sockets[0].getsockname()[1]}"))
    await refused_for(caplog, "TLS failed")


@pytest.mark.parametrize("limit", ["HANDSHAKE_S", "DIAL_S"])
async def test_a_server_that_says_nothing_is_left(
    ends: Ends, ca: PrivateCa, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, limit: str
) -> None:
    monkeypatch.setattr(dial, limit, 0.05)
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ends.dial(tunnel(ca, f"127.0.0.1:{silent.getsockname()[1]}"))
        await refused_for(caplog, "no gateway at")
        await ends.close()
        silent.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                taken.append(silent.accept()[0])
    for each in taken:
        each.close()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x00\x00\x00\x00\x01\x00\x00\x02{}",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(505),
        bytes([255]) * 100_000,
    ],
)
async def test_whoever_does_not_speak_tls_is_refused(ends: Ends, ca: PrivateCa, data: bytes) -> None:
    host, port = (await ends.listen_tunnel(ca.server_context(), handshake_s=0.5)).split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    with contextlib.suppress(ConnectionError):
        while await reader.read(1000):
            pass
    writer.close()
    assert ends.owner.hellos == []


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02"])
async def test_whoever_does_not_finish_the_handshake_is_refused(ends: Ends, ca: PrivateCa, sent: bytes) -> None:
    host, port = (await ends.listen_tunnel(ca.server_context(), handshake_s=0.05)).split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()


async def tls_peer(ends: Ends, ca: PrivateCa, address: str) -> Peer:
    """Somebody who gets through the handshake and says what the test wants."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca.certificate_pem)
    host, port = address.split(":")
    loop = asyncio.get_running_loop()
    _, peer = await loop.create_connection(Peer, host, int(port), ssl=context, server_hostname="pilots.first.internal")
    ends._peers.append(peer)
    return peer


async def test_whoever_says_no_hello_is_refused(ends: Ends, ca: PrivateCa) -> None:
    peer = await tls_peer(ends, ca, await ends.listen_tunnel(ca.server_context(), hello_s=0.05))
    await until(lambda: peer.is_gone, "the end of the link")
    assert ends.owner.hellos == []


async def test_garbage_inside_tls_is_refused(ends: Ends, ca: PrivateCa) -> None:
    peer = await tls_peer(ends, ca, await ends.listen_tunnel(ca.server_context()))
    peer.transport.write(b"GET / HTTP/1.1\r\n\r\n")
    await until(lambda: peer.is_gone, "the end of the link")
    assert peer.got(FrameType.RESET)


async def test_a_wrong_secret_is_refused_as_on_a_socket(ends: Ends, ca: PrivateCa) -> None:
    ends.owner.reason = "not this job"
    peer = await tls_peer(ends, ca, await ends.listen_tunnel(ca.server_context()))
    peer.send(FrameType.HELLO, 0, Hello(PROTOCOL, "1.0", JOB, "wrong"))
    await until(lambda: peer.is_gone, "the end of the link")
    assert b"not this job" in peer.got(FrameType.RESET)[0]


async def test_a_peer_that_vanishes_in_mid_stream(ends: Ends, ca: PrivateCa) -> None:
    peer = await tls_peer(ends, ca, await ends.listen_tunnel(ca.server_context()))
    peer.send(FrameType.HELLO, 0, Hello(PROTOCOL, "1.0", JOB, "secret"))
    await until(lambda: peer.got(FrameType.HELLO))
    sink = RememberingSink()
    ends.made[0].open(request(), b"", sink)
    peer.transport.abort()
    assert (await sink.tail()).outcome is Outcome.LOST


@pytest.mark.parametrize(
    "spec",
    [
        LinkSpec("socket"),
        LinkSpec("tunnel"),
        LinkSpec("tunnel", addresses=("gateway:1",)),
        LinkSpec("carrier pigeon", path="x"),
        LinkSpec("tunnel", addresses=("gateway:1",), ca_pem="no certificate"),
    ],
)
def test_a_link_that_cannot_be(spec: LinkSpec) -> None:
    with pytest.raises(ValueError, match=r"link\."):
        Dial(spec)


@pytest.mark.parametrize("address", ["gateway", "gateway:", ":1", "gateway:0", "gateway:65536", "gateway:x"])
def test_addresses_have_host_and_port(tmp_path: Path, address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        Dial(tunnel(PrivateCa(tmp_path), address))
