"""How a pilot reaches its gateway: a UNIX socket on one host, TLS over TCP to one of several addresses elsewhere."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Optional

from firstkit.links.messages import LinkSpec

SERVER_NAME = "pilots.first.internal"
"""What the certificate of the gateway's door for pilots is for, wherever that door is."""
DIAL_S = 10.0
HANDSHAKE_S = 5.0

Make = Callable[[], asyncio.Protocol]


class Unreachable(Exception):
    """A dial failed; the text says where and why, in one sentence."""


class Dial:
    """The gateway's addresses, the one that is dialled next in front."""

    def __init__(self, spec: LinkSpec) -> None:
        """Raises ValueError for a link that cannot be."""
        self._addresses: deque[str] = deque()
        self._trusted: Optional[ssl.SSLContext] = None
        if spec.kind == "socket" and spec.path:
            self._addresses.append(spec.path)
        elif spec.kind == "tunnel" and spec.addresses and spec.ca_pem:
            self._addresses.extend(spec.addresses)
            self._trusted = _trusting(spec.ca_pem)
            for address in spec.addresses:
                _host_and_port(address)
        else:
            raise ValueError(f"link.kind: '{spec.kind}' is unknown, or lacks its path, addresses or ca_pem")

    async def connect(self, make: Make) -> None:
        """Connect the protocol that ``make`` gives; raises Unreachable. Its loss, later, is the protocol's to hear."""
        try:
            await asyncio.wait_for(self._connect(make), DIAL_S)
        except asyncio.TimeoutError:
            raise Unreachable(f"no gateway at {self._addresses[0]}: no connection within {DIAL_S:g} s") from None
        except (OSError, UnicodeError) as exc:
            raise Unreachable(f"no gateway at {self._addresses[0]}: {_reason(exc)}") from exc

    def turn(self) -> None:
        """The address in front is of no use now: the next one shall be dialled."""
        self._addresses.rotate(-1)

    async def _connect(self, make: Make) -> None:
        loop, address = asyncio.get_running_loop(), self._addresses[0]
        if self._trusted is None:
            await loop.create_unix_connection(make, address)
            return
        host, port = _host_and_port(address)
        await loop.create_connection(
            make,
            host,
            port,
            ssl=self._trusted,
            server_hostname=SERVER_NAME,
            ssl_handshake_timeout=HANDSHAKE_S,
        )


def _trusting(ca_pem: str) -> ssl.SSLContext:
    """TLS to whoever has the name and a certificate of this CA; no other CA counts, whatever this host trusts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=ca_pem)
    except (ssl.SSLError, ValueError) as exc:
        raise ValueError(f"link.ca_pem: not a certificate: {exc}") from exc
    return context


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"link.addresses: '{address}': host:port is needed")
    return host.strip("[]"), int(port)


def _reason(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not the gateway's ({exc.verify_message})"
    if isinstance(exc, ssl.SSLError):
        return f"TLS failed ({exc.reason or exc})"
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc) or type(exc).__name__
