"""Where an engine or a service is, and how a connection to it is made."""

from __future__ import annotations

import asyncio
import os
import ssl
from dataclasses import dataclass, field
from typing import Callable, Optional
from urllib.parse import urlsplit

from firstkit.engines.engine import Address, Habits

SOCKET_PATH_LIMIT = 107


@dataclass(frozen=True)
class Target:
    """An engine at ``address`` (a socket is relative to ``folder``), or a service at ``url``: the base URL that OpenAI
    clients are given for it. ``key`` goes with each request as a bearer token. ``most_connections``: so many at most,
    those included that wait to be used again."""

    address: Optional[Address] = None
    folder: str = ""
    url: Optional[str] = None
    key: Optional[str] = field(default=None, repr=False)
    habits: Habits = field(default_factory=Habits)
    most_connections: int = 4096


class Way:
    """A target taken apart: dials it, and knows its names in HTTP. Raises ValueError for a URL that leads nowhere."""

    def __init__(self, target: Target) -> None:
        self._target = target
        parts = urlsplit(target.url or "http://engine")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("an http:// or https:// URL is needed")
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = _tls() if parts.scheme == "https" else None
        self._base = parts.path.rstrip("/")
        self.host = parts.netloc.rpartition("@")[2]
        """For the Host header."""

    def path(self, path: str) -> str:
        """The path of a request there: of a service, the base URL stands for our ``/v1``, if it has a path."""
        if self._base and path.startswith("/v1/"):
            return self._base + path[len("/v1") :]
        return path

    async def dial(self, protocol: Callable[[], asyncio.Protocol]) -> asyncio.BaseProtocol:
        """A new connection; raises OSError or UnicodeError."""
        loop = asyncio.get_running_loop()
        address = self._target.address
        if address is None:
            return (await loop.create_connection(protocol, self._host, self._port, ssl=self._tls))[1]
        if address.socket is not None:
            return await _dial_socket(protocol, os.path.join(self._target.folder, address.socket))
        return (await loop.create_connection(protocol, "127.0.0.1", address.port or 0))[1]


async def _dial_socket(protocol: Callable[[], asyncio.Protocol], path: str) -> asyncio.BaseProtocol:
    loop = asyncio.get_running_loop()
    if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT:
        return (await loop.create_unix_connection(protocol, path))[1]
    folder = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY)
    try:
        short = f"/proc/self/fd/{folder}/{os.path.basename(path)}"
        return (await loop.create_unix_connection(protocol, short))[1]
    finally:
        os.close(folder)


def _tls() -> ssl.SSLContext:
    """Certificates and names are verified, by the system's authorities or those of SSL_CERT_FILE."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # Python 3.9 allows older ones
    context.set_alpn_protocols(["http/1.1"])
    return context
