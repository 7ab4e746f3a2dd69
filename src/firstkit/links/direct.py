"""The pilot's end of a direct link: waits on the node of its job for the gateway to dial, both with certificates."""

from __future__ import annotations

import asyncio
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from firstkit.links.dial import HANDSHAKE_S, SERVER_NAME, join, trusting
from firstkit.links.messages import LinkSpec

_ELSEWHERE = ("192.0.2.1", 9)
"""An address of nobody: asking for the way to it tells which interface leads out. Nothing is sent."""


@asynccontextmanager
async def listening(make: Callable[[], asyncio.Protocol], spec: LinkSpec) -> AsyncIterator[str]:
    """Where the gateway can dial, ``host:port``, for as long as the context lasts; each connection gets a protocol of
    ``make``. Raises OSError, and ValueError for a link that cannot be."""
    context = _serving(spec)
    listener = _bind()
    host, port = listener.getsockname()[:2]
    server = await asyncio.get_running_loop().create_server(
        make, sock=listener, ssl=context, ssl_handshake_timeout=HANDSHAKE_S
    )
    try:
        yield join(host, port)
    finally:
        server.close()


def is_gateway(transport: asyncio.BaseTransport) -> bool:
    """Whether the certificate that the other end has shown is the gateway's, and not one of another pilot."""
    certificate: dict[str, Any] = transport.get_extra_info("peercert") or {}
    return ("DNS", SERVER_NAME) in certificate.get("subjectAltName", ())


def _serving(spec: LinkSpec) -> ssl.SSLContext:
    """TLS with the certificate of our job, to who has one of the same CA for a client."""
    if not spec.ca_pem or not spec.identity_pem:
        raise ValueError("link.kind: 'direct' lacks its ca_pem or identity_pem")
    context = trusting(spec.ca_pem, ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    with tempfile.NamedTemporaryFile("w", suffix=".pem", dir=".") as file:  # for us alone, and gone at once
        file.write(spec.identity_pem)
        file.flush()
        try:
            context.load_cert_chain(file.name)
        except ssl.SSLError as exc:
            raise ValueError(f"link.identity_pem: no key with its certificate: {exc}") from exc
    return context


def _bind() -> socket.socket:
    """A free port of the interface by which others reach this host."""
    for family, host in _own_hosts():
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.bind((host, 0))
            listener.listen(16)
        except OSError:
            listener.close()
            continue
        listener.setblocking(False)
        return listener
    raise OSError("no interface of this host can be listened at")


def _own_hosts() -> Iterator[tuple[int, str]]:
    """Addresses of this host, the best one first: what its name means, what leads out, what only itself can reach."""
    with suppress(OSError):
        for family, _, _, _, address in socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM):
            host = str(address[0])
            if not host.startswith(("127.", "::1", "fe80")):
                yield family, host
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(_ELSEWHERE)
        yield socket.AF_INET, str(probe.getsockname()[0])
    yield socket.AF_INET, "127.0.0.1"
