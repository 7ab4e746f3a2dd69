"""Services over TLS: who cannot prove its name is not spoken to, and the reason is told."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from firstkit.clock import now
from firstkit.engines.http import EngineClient, Target
from firstkit.links.messages import Open, Outcome
from unit.engines.support import CHAT, DONE, EVENTS, GOOD, Collected, alone, chunk, chunked, framed, send, take
from waiting import until

pytestmark = pytest.mark.usefixtures("clients")
WHOLE = chunked(GOOD)
Context = Callable[[ssl.SSLContext], None]


def certificate(folder: Path, name: str, days: int = 1) -> Path:
    """A file with a key and a certificate for ``name`` that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - timedelta(days=10))
        .not_valid_after(now() + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    path = folder / f"{name}.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    )
    return path


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await take(reader)
        writer.write(WHOLE)


class Service:
    """What a test knows of the service: its URL, how often it was connected to, by which version of TLS."""

    def __init__(self, port: int) -> None:
        self.url = f"https://localhost:{port}/v1"
        self.versions: list[str | None] = []


@asynccontextmanager
async def service(
    pem: Path | None,
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object] = answer,
    change: Context = lambda context: None,
) -> AsyncIterator[Service]:
    """A server with the certificate in ``pem``; without one it knows no TLS."""
    context = None
    if pem is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        change(context)
    serving: Service

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found = writer.get_extra_info("ssl_object")
        serving.versions.append(found.version() if found else None)
        try:
            await talk(reader, writer)  # type: ignore[misc]
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    serving = Service(server.sockets[0].getsockname()[1])
    yield serving
    server.close()
    await alone()


@pytest.fixture
def trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A certificate for localhost that the process trusts."""
    pem = certificate(folder, "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    return pem


async def ask(url: str, **values: float) -> Collected:
    client = EngineClient(Target(url=url))
    sink = send(client, **values)
    await sink.ended()
    client.close()
    return sink


async def test_streams_over_tls(trusted: Path) -> None:
    async with service(trusted) as served:
        client = EngineClient(Target(url=served.url, key="canary"))
        for _ in range(3):
            sink = send(client)
            tail = await sink.ended()
            assert (tail.outcome, tail.error) == (Outcome.COMPLETE, None)
            assert sink.body + DONE == GOOD
        assert served.versions == ["TLSv1.3"], "one connection, used again"
        client.close()


@pytest.mark.parametrize("size", [100_000, 5_000_000])
async def test_large_bodies_over_tls(trusted: Path, size: int) -> None:
    bodies: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            bodies.append((await take(reader)).partition(b"\r\n\r\n")[2])
            writer.write(WHOLE)

    body = bytes(range(256)) * (size // 256)
    async with service(trusted, note) as served:
        client = EngineClient(Target(url=served.url))
        for _ in range(2):
            sink = Collected()
            client.open(Open("r", "POST", CHAT, len(body), {}, True), body, sink)
            assert (await sink.ended()).outcome is Outcome.COMPLETE
        assert bodies == [body, body]
        assert len(served.versions) == 1
        client.close()


async def test_pause_and_cancel_over_tls(trusted: Path) -> None:
    written = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await take(reader)
        writer.write(EVENTS)
        while not writer.is_closing():
            writer.write(framed(chunk("a" * 10_000)))
            written += 10_000
            await writer.drain()
            await asyncio.sleep(0)  # else a connection that was lost may never be heard of

    async with service(trusted, pour) as served:
        client = EngineClient(Target(url=served.url))
        sink = send(client)
        sink.keeps_body = False
        sink.on_piece = lambda data: sink.exchange.pause()
        await until(lambda: "data" in sink.calls, "a first piece")
        seen = -1
        while seen != written:  # until all that lies in between is full
            seen = written
            await asyncio.sleep(0.05)
        calls = len(sink.calls)
        sink.on_piece = lambda data: None
        sink.exchange.resume()
        await until(lambda: len(sink.calls) > calls + 100, "more pieces")
        sink.exchange.cancel()
        assert (await sink.ended()).outcome is Outcome.CANCELLED
        client.close()


async def test_an_authority_that_is_not_known(folder: Path, trusted: Path) -> None:
    async with service(trusted) as served:
        trusted.write_bytes(certificate(folder, "unrelated.example").read_bytes())
        sink = await ask(served.url)
        assert sink.tail is not None
        assert sink.tail.outcome is Outcome.FAILED
        assert (sink.tail.error or "").startswith("the engine cannot be reached: its certificate is not accepted: self")
        assert served.versions == [], "no request went out"


async def test_another_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = certificate(folder, "other.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    async with service(pem) as served:
        sink = await ask(served.url)
        assert sink.tail is not None
        assert (sink.tail.outcome, sink.tail.error) == (
            Outcome.FAILED,
            "the engine cannot be reached: its certificate is not accepted: "
            "Hostname mismatch, certificate is not valid for 'localhost'",
        )
        by_address = await ask(served.url.replace("localhost", "127.0.0.1"))
        assert by_address.tail is not None
        assert "IP address mismatch" in (by_address.tail.error or "")


async def test_a_certificate_that_is_past(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = certificate(folder, "localhost", days=-1)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    async with service(pem) as served:
        sink = await ask(served.url)
        assert sink.tail is not None
        assert (sink.tail.error or "").endswith("its certificate is not accepted: certificate has expired")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_versions(trusted: Path) -> None:
    def only_1_2(context: ssl.SSLContext) -> None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2

    async with service(trusted, answer, only_1_2) as served:
        sink = await ask(served.url)
        assert sink.tail is not None
        assert sink.tail.outcome is Outcome.COMPLETE
        assert served.versions == ["TLSv1.2"]

    def old(context: ssl.SSLContext) -> None:
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")

    async with service(trusted, answer, old) as served:
        sink = await ask(served.url)
        assert sink.tail is not None
        assert sink.tail.outcome is Outcome.FAILED
        assert (sink.tail.error or "").startswith("the engine cannot be reached: ")
        assert served.versions == []


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)


async def say_garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"SSH-2.0-OpenSSH_9.9\r\n" * 10)
    await reader.read()


async def say_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(WHOLE)
    await reader.read()


@pytest.mark.parametrize(
    ("talk", "error"),
    [
        (say_garbage, "TLS failed: wrong version number"),
        (say_http, "TLS failed: wrong version number"),
        (leave, "the connection was closed"),
        (say_nothing, "no connection in time"),
    ],
)
async def test_what_is_no_tls(
    trusted: Path, talk: Callable[..., object], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firstkit.engines.http.CONNECT_TIMEOUT_S", 1.0)
    async with service(None, talk) as served:
        sink = await ask(served.url)
        assert sink.tail is not None
        assert (sink.tail.outcome, sink.tail.error) == (Outcome.FAILED, f"the engine cannot be reached: {error}")


async def test_garbage_in_the_midst_of_tls(trusted: Path) -> None:
    heard: list[bytes] = []

    async def spoil(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await take(reader)
        writer.write(EVENTS + framed(chunk("a")))
        await writer.drain()
        await until(lambda: heard, "the client to hear what was good")
        plain = writer.transport._ssl_protocol._transport  # type: ignore[attr-defined]
        plain.write(b"no record of TLS, by no means" * 10)
        await reader.read()

    async with service(trusted, spoil) as served:
        client = EngineClient(Target(url=served.url))
        sink = send(client)
        sink.on_piece = heard.append
        assert (await sink.ended()).outcome is Outcome.FAILED
        assert sink.body == chunk("a")
        client.close()
