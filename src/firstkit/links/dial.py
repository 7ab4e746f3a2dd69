"""How a pilot reaches its gateway: a UNIX socket on one host, TLS over TCP to one of several addresses elsewhere. Where
the site wants it, through an HTTP proxy."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Optional

from firstkit.links.messages import LinkSpec

SERVER_NAME = "pilots.first.internal"
"""What the certificate of the gateway's door for pilots is for, wherever that door is."""
DIAL_S = 10.0
HANDSHAKE_S = 5.0
PROXY_HEAD_BYTES = 8192
"""Longest answer of a proxy before the way is open."""

Make = Callable[[], asyncio.Protocol]


class Unreachable(Exception):
    """A dial failed; the text says where and why, in one sentence."""


class Dial:
    """The gateway's addresses, the one that is dialled next in front."""

    def __init__(self, spec: LinkSpec) -> None:
        """Raises ValueError for a link that cannot be."""
        self._addresses: deque[str] = deque()
        self._trusted: Optional[ssl.SSLContext] = None
        self._proxy: Optional[tuple[str, int]] = None
        if spec.kind == "socket" and spec.path:
            self._addresses.append(spec.path)
        elif spec.kind == "tunnel" and spec.addresses and spec.ca_pem:
            self._addresses.extend(spec.addresses)
            self._trusted = trusting(spec.ca_pem, ssl.PROTOCOL_TLS_CLIENT)
            for address in spec.addresses:
                host_and_port(address)
            if spec.proxy is not None:
                self._proxy = host_and_port(spec.proxy.partition("://")[2], "link.proxy")
        else:
            raise ValueError(f"link.kind: '{spec.kind}' is unknown, or lacks its path, addresses or ca_pem")

    async def connect(self, make: Make) -> None:
        """Connect the protocol that ``make`` gives; raises Unreachable. Its loss, later, is the protocol's to hear."""
        try:
            await asyncio.wait_for(self._connect(make), DIAL_S)
        except asyncio.TimeoutError:
            raise Unreachable(f"no gateway at {self._where}: no connection within {DIAL_S:g} s") from None
        except (OSError, UnicodeError) as exc:
            raise Unreachable(f"no gateway at {self._where}: {reason_of(exc)}") from exc

    def turn(self) -> None:
        """The address in front is of no use now: the next one shall be dialled."""
        self._addresses.rotate(-1)

    @property
    def _where(self) -> str:
        if self._proxy is None:
            return self._addresses[0]
        return f"{self._addresses[0]} through the proxy {join(*self._proxy)}"

    async def _connect(self, make: Make) -> None:
        loop, address = asyncio.get_running_loop(), self._addresses[0]
        if self._trusted is None:
            await loop.create_unix_connection(make, address)
            return
        tls: dict[str, Any] = {
            "ssl": self._trusted,
            "server_hostname": SERVER_NAME,
            "ssl_handshake_timeout": HANDSHAKE_S,
        }
        if self._proxy is None:
            await loop.create_connection(make, *host_and_port(address), **tls)
            return
        way = await _way_through(self._proxy, address)
        try:
            await loop.create_connection(make, sock=way, **tls)
        except BaseException:
            way.close()
            raise


async def _way_through(proxy: tuple[str, int], address: str) -> socket.socket:
    """A connection to ``address`` that an HTTP proxy has opened by CONNECT. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(*proxy, type=socket.SOCK_STREAM)
    way = await _first_that_answers(found)
    try:
        request = f"CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n\r\n"
        await loop.sock_sendall(way, request.encode("ascii"))
        _check_answer(await _read_head(way))
    except BaseException:
        way.close()
        raise
    return way


async def _first_that_answers(found: Sequence[Any]) -> socket.socket:
    """A connection to one of what ``getaddrinfo`` gave; raises the last one's OSError."""
    failure = OSError("it has no address")
    for family, kind, protocol, _, address in found:
        way = socket.socket(family, kind, protocol)
        way.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(way, address)
        except OSError as exc:
            way.close()
            failure = exc
        except BaseException:
            way.close()
            raise
        else:
            return way
    raise failure


async def _read_head(way: socket.socket) -> bytes:
    """What the proxy says before the way is open: a gateway says nothing until TLS has begun."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        part = await asyncio.get_running_loop().sock_recv(way, PROXY_HEAD_BYTES)
        head += part
        if not part or len(head) > PROXY_HEAD_BYTES or b"\r\n\r\n" in head[:-4]:
            break  # by now the status says why, or nothing does
    return head


def _check_answer(head: bytes) -> None:
    status = re.match(rb"HTTP/1\.[01] ([0-9]{3})(?: ([ -~]{0,100}))?", head)
    if status is None:
        raise OSError("it does not answer as an HTTP proxy")
    if not status[1].startswith(b"2"):
        raise OSError(f"it answers {status[1].decode()} {(status[2] or b'').decode()}".rstrip())
    if not head.endswith(b"\r\n\r\n"):
        raise OSError("its answer has no end")


def trusting(ca_pem: str, side: ssl._SSLMethod) -> ssl.SSLContext:
    """TLS with whoever has a certificate of this CA; no other CA counts, whatever this host trusts."""
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=ca_pem)
    except (ssl.SSLError, ValueError) as exc:
        raise ValueError(f"link.ca_pem: not a certificate: {exc}") from exc
    return context


def host_and_port(address: str, key: str = "link.addresses") -> tuple[str, int]:
    """The parts of ``host:port``; raises ValueError that names ``key``."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{key}: '{address}': host:port is needed")
    return host.strip("[]"), int(port)


def join(host: str, port: int) -> str:
    """``host:port`` of its parts."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reason_of(exc: Exception) -> str:
    """Why a connection failed, for people."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not the gateway's ({exc.verify_message})"
    if isinstance(exc, ssl.SSLError):
        return f"TLS failed ({exc.reason or exc})"
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc) or type(exc).__name__
