"""The wake-up socket: gateway and controller tell each other at once what the store would only show when asked.

JSON objects, one a line, both ways. Nothing is kept for a peer that is away: both ends say the whole truth again when
they meet (``on_connect``), so a message that is dropped is never missed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

logger = logging.getLogger(__name__)

REDIAL_S = 0.2
LINE_LIMIT_BYTES = 64 * 1024**2
"""Longest message. A snapshot of a thousand replicas takes half a megabyte."""
UNREAD_LIMIT_BYTES = 64 * 1024**2
"""A peer that leaves so much unread stands still: it is cut off, and told everything when it comes back."""

OnMessage = Callable[[dict[str, Any]], None]


class WakeServer:
    """The gateway's end: listens at ``path``. The last controller to connect is the one that is talked to."""

    def __init__(self, path: Path, on_message: OnMessage, on_connect: Callable[[], None]) -> None:
        self._path = path
        self._on_message = on_message
        self._on_connect = on_connect
        self._peer: _Peer | None = None
        self._server: asyncio.Server | None = None

    @property
    def is_connected(self) -> bool:
        return self._peer is not None

    async def start(self) -> None:
        """Listen, for our own user only. A socket that a predecessor left is replaced."""
        self._path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: _Peer(self._on_message, self._connected, self._lost), str(self._path)
        )
        os.chmod(self._path, 0o600)

    def send(self, message: dict[str, Any]) -> None:
        """Send to the controller; dropped when none is connected."""
        if self._peer is not None:
            self._peer.send(message)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)
        if self._peer is not None:
            self._peer.close()

    def _connected(self, peer: _Peer) -> None:
        previous, self._peer = self._peer, peer
        if previous is not None:
            previous.close()
        self._on_connect()

    def _lost(self, peer: _Peer) -> None:
        if self._peer is peer:
            self._peer = None


class WakeClient:
    """The controller's end: dials ``path``, and again every ``REDIAL_S`` when nobody is there."""

    def __init__(
        self,
        path: Path,
        on_message: OnMessage,
        on_connect: Callable[[], None],
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = path
        self._on_message = on_message
        self._on_connect = on_connect
        self._on_lost = on_lost
        self._peer: _Peer | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._is_lost = asyncio.Event()

    @property
    def is_connected(self) -> bool:
        return self._peer is not None

    async def start(self) -> None:
        """Begin to dial; returns at once, ``on_connect`` tells when somebody answered."""
        self._dialling = asyncio.ensure_future(self._dial())

    def send(self, message: dict[str, Any]) -> None:
        """Send to the gateway; dropped when it is not connected."""
        if self._peer is not None:
            self._peer.send(message)

    async def close(self) -> None:
        if self._dialling is not None:
            self._dialling.cancel()
            await asyncio.gather(self._dialling, return_exceptions=True)
        if self._peer is not None:
            self._peer.close()

    async def _dial(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._is_lost.clear()
            try:
                await loop.create_unix_connection(
                    lambda: _Peer(self._on_message, self._connected, self._lost), str(self._path)
                )
            except OSError:  # no gateway there now; that is no news
                await asyncio.sleep(REDIAL_S)
                continue
            await self._is_lost.wait()
            await asyncio.sleep(REDIAL_S)

    def _connected(self, peer: _Peer) -> None:
        self._peer = peer
        self._on_connect()

    def _lost(self, _peer: _Peer) -> None:
        self._peer = None
        self._is_lost.set()
        self._on_lost()


class _Peer(asyncio.Protocol):
    """One connection: cuts what comes into lines and decodes them."""

    def __init__(
        self, on_message: OnMessage, on_connect: Callable[[_Peer], None], on_lost: Callable[[_Peer], None]
    ) -> None:
        self._on_message = on_message
        self._on_connect = on_connect
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._pieces: list[bytes] = []
        self._size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._on_connect(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._on_lost(self)

    def data_received(self, data: bytes) -> None:
        head, newline, rest = data.rpartition(b"\n")
        if not newline:
            self._keep(data)
            return
        lines = b"".join([*self._pieces, head]).split(b"\n")
        self._pieces, self._size = [], 0
        self._keep(rest)
        for line in lines:
            self._hear(line)

    def send(self, message: dict[str, Any]) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > UNREAD_LIMIT_BYTES:
            logger.warning("the peer reads nothing; it is cut off", extra={"action": "wake_cut"})
            self._transport.abort()
            return
        self._transport.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _keep(self, data: bytes) -> None:
        if not data:
            return
        self._pieces.append(data)
        self._size += len(data)
        if self._size > LINE_LIMIT_BYTES and self._transport is not None:
            logger.warning("a message without end; the peer is cut off", extra={"action": "wake_cut"})
            self._transport.abort()

    def _hear(self, line: bytes) -> None:
        try:
            self._on_message(_object(line))
        except Exception:  # a boundary: one message that nobody understands must not silence the next
            logger.exception("a message was not understood", extra={"action": "wake_message"})


def _object(line: bytes) -> dict[str, Any]:
    message = json.loads(line)
    if not isinstance(message, dict):
        raise TypeError("a message is an object")
    return message
