"""A minimal HTTP/1.1 server for fakes: it counts, keeps connections alive, and may break every rule on purpose."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

SLICE_S = 0.02
"""How often a connection that waits looks whether its client is gone."""
MAX_BODY_BYTES = 64 * 1024 * 1024


class ClientGone(Exception):
    """The client closed the connection before the answer was whole."""


@dataclass
class Request:
    """One request with its whole body."""

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> dict[str, Any]:
        """The body as an object; an empty one when it is none."""
        try:
            data = json.loads(self.body)
        except ValueError:
            return {}
        return data if isinstance(data, dict) else {}


class Connection:
    """One client's connection: reads requests, writes answers piece by piece."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.keeps_alive = True

    async def request(self) -> Request | None:
        """The next request; None when the client is done."""
        try:
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        line, *rest = head.split("\r\n")
        method, path, _ = line.split(" ", 2)
        headers = {k.strip().lower(): v.strip() for k, v in (h.split(":", 1) for h in rest if h)}
        body = await self._reader.readexactly(min(int(headers.get("content-length", 0)), MAX_BODY_BYTES))
        self.keeps_alive = headers.get("connection", "").lower() != "close"
        return Request(method, path, headers, body)

    async def raw(self, data: bytes) -> None:
        """Write bytes as they are; raises ClientGone."""
        self.look()
        self._writer.write(data)
        try:
            await self._writer.drain()
        except ConnectionError as exc:
            raise ClientGone from exc

    async def head(self, status: int, content_type: str, length: int | None = None) -> None:
        """The head of an answer; without ``length`` its body comes in chunks."""
        framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
        alive = "keep-alive" if self.keeps_alive else "close"
        await self.raw(
            f"HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\n{framing}\r\nconnection: {alive}\r\n\r\n".encode()
        )

    async def chunk(self, data: bytes) -> None:
        """One chunk of a body; an empty one ends it."""
        await self.raw(b"%x\r\n%s\r\n" % (len(data), data))

    async def answer(self, status: int, body: Any) -> None:
        """A whole JSON answer."""
        data = json.dumps(body).encode()
        await self.head(status, "application/json", len(data))
        await self.raw(data)

    async def sleep(self, seconds: float) -> None:
        """Wait; raises ClientGone soon after the client left. ``inf`` waits for that."""
        until = asyncio.get_running_loop().time() + seconds
        await asyncio.sleep(0)
        while (left := until - asyncio.get_running_loop().time()) > 0:
            self.look()
            await asyncio.sleep(min(left, SLICE_S))
        self.look()

    def look(self) -> None:
        """Raise ClientGone if the client closed the connection."""
        if self._reader.at_eof() or self._writer.is_closing():
            raise ClientGone

    def close(self) -> None:
        self._writer.close()


Handler = Callable[[Request, Connection], Awaitable[None]]


async def serve(handler: Handler, socket: str | None, port: int | None) -> asyncio.Server:
    """Listen on a UNIX socket or on 127.0.0.1 (port 0: any free one) and give each request to ``handler``."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        try:
            while request := await connection.request():
                await handler(request, connection)
                if not connection.keeps_alive:
                    break
        except (ClientGone, ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            connection.close()

    if socket is not None:
        return await asyncio.start_unix_server(connected, socket)
    return await asyncio.start_server(connected, "127.0.0.1", port or 0)
