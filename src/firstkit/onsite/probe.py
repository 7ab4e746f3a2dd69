"""One plain GET to an engine of ours: is it healthy, what does it say of itself."""

from __future__ import annotations

import asyncio
import os
from typing import Optional

from firstkit.engines.engine import Address

MAX_BODY = 1024**2


async def get(folder: str, address: Address, path: str, key: Optional[str], timeout_s: float) -> tuple[int, bytes]:
    """Status and body of at most MAX_BODY bytes; (0, b"") for anything that is no answer in time."""
    try:
        return await asyncio.wait_for(_get(folder, address, path, key), timeout_s)
    except (OSError, asyncio.TimeoutError, asyncio.LimitOverrunError, EOFError, ValueError, IndexError):
        return 0, b""


async def _get(folder: str, address: Address, path: str, key: Optional[str]) -> tuple[int, bytes]:
    if address.socket is not None:
        reader, writer = await asyncio.open_unix_connection(os.path.join(folder, address.socket))
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", address.port)
    try:
        bearer = f"Authorization: Bearer {key}\r\n" if key else ""
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{bearer}Connection: close\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status = int(head.split(" ", 2)[1])
        return status, await _body(reader, head)
    finally:
        writer.close()


async def _body(reader: asyncio.StreamReader, head: str) -> bytes:
    headers = dict(line.split(":", 1) for line in head.split("\r\n")[1:] if ":" in line)
    if "chunked" in headers.get("transfer-encoding", ""):
        return await _chunks(reader)
    length = headers.get("content-length")
    if length is not None:
        return await reader.readexactly(min(int(length), MAX_BODY))
    return await _rest(reader)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while len(body) < MAX_BODY:
        size = int((await reader.readline()).split(b";")[0], 16)
        if size == 0:
            break
        body += await reader.readexactly(min(size, MAX_BODY))
        await reader.readline()
    return body


async def _rest(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while len(body) < MAX_BODY and (piece := await reader.read(65536)):
        body += piece
    return body
