"""Slow conversations with a gateway, byte by byte: those that it must end, and those that it must bear with."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from faults.wire import Answer, Incomplete, chat_request, parsed
from lab import Lab

PAGE = b"GET /health HTTP/1.1\r\nhost: x\r\n"
"""The head of a request for a page, without its end."""


class Talk:
    """One slow conversation."""

    def __init__(self, lab: Lab) -> None:
        self.key = lab.key
        self.port = lab.port
        self.received = b""

    async def open(self) -> Talk:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def drip(self, data: bytes, every_s: float) -> None:
        """Byte by byte until the other side closes or there is no more."""
        with contextlib.suppress(ConnectionError):
            for i in range(len(data)):
                self.writer.write(data[i : i + 1])
                await self.writer.drain()
                await asyncio.sleep(every_s)

    async def rest(self) -> bytes:
        """All that comes until the connection is closed, by the other side."""
        with contextlib.suppress(ConnectionError):
            while piece := await self.reader.read(1 << 16):
                self.received += piece
        return self.received

    async def answer(self) -> Answer:
        while True:
            try:
                answer, self.received = parsed(self.received, is_closed=False)
            except Incomplete:
                piece = await self.reader.read(1 << 16)
                if not piece:
                    raise EOFError from None
                self.received += piece
            else:
                return answer

    def post(self, length: int, *lines: bytes, path: bytes = b"/v1/chat/completions") -> bytes:
        head = b"POST %b HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n" % (path, self.key.encode())
        more = b"".join(line + b"\r\n" for line in (b"content-type: application/json", *lines))
        framing = b"content-length: %d\r\n" % length if length else b"transfer-encoding: chunked\r\n"
        return head + more + framing + b"\r\n"


async def nothing(talk: Talk) -> bytes:
    return await talk.rest()


async def empty_lines(talk: Talk) -> bytes:
    await asyncio.gather(talk.drip(b"\r\n" * 20, 0.5), talk.rest())
    return talk.received


async def half_a_head(talk: Talk) -> bytes:
    talk.say(PAGE)
    return await talk.rest()


async def one_byte(talk: Talk) -> bytes:
    talk.say(b"G")
    return await talk.rest()


async def a_head_that_drips(talk: Talk) -> bytes:
    await asyncio.gather(talk.drip(PAGE + b"x: " + b"y" * 300, 0.1), talk.rest())
    return talk.received


async def lines_that_drip(talk: Talk) -> bytes:
    talk.say(PAGE)
    await asyncio.gather(talk.drip(b"x: y\r\n" * 40, 0.2), talk.rest())
    return talk.received


async def half_a_head_behind_an_answer(talk: Talk) -> bytes:
    talk.say(PAGE + b"\r\n")
    assert (await talk.answer()).status == 200
    await asyncio.sleep(3)
    talk.say(PAGE)
    return await talk.rest()


async def half_a_head_behind_a_stream(talk: Talk) -> bytes:
    """The stream takes longer than a head may: it is not cut off for what comes behind it."""
    talk.say(chat_request(talk.key, "x", "long", stream=True) + PAGE)
    assert (await talk.answer()).said.endswith("word139 ")
    return await talk.rest()


async def half_a_body_behind_a_stream(talk: Talk) -> bytes:
    talk.say(chat_request(talk.key, "x", "long", stream=True) + talk.post(100) + b"{")
    assert (await talk.answer()).said.endswith("word139 ")
    return await talk.rest()


async def no_body(talk: Talk) -> bytes:
    talk.say(talk.post(100))
    return await talk.rest()


async def half_a_body(talk: Talk) -> bytes:
    talk.say(talk.post(100) + b'{"model":')
    return await talk.rest()


async def a_body_that_drips(talk: Talk) -> bytes:
    talk.say(talk.post(100_000))
    await asyncio.gather(talk.drip(b" " * 1000, 0.02), talk.rest())
    return talk.received


async def chunks_that_drip(talk: Talk) -> bytes:
    talk.say(talk.post(0))
    await asyncio.gather(talk.drip(b"1\r\n \r\n" * 300, 0.02), talk.rest())
    return talk.received


async def a_chunk_size_that_drips(talk: Talk) -> bytes:
    talk.say(talk.post(0) + b"5;")
    await asyncio.gather(talk.drip(b"x" * 1000, 0.02), talk.rest())
    return talk.received


async def a_chunk_of_4_gib(talk: Talk) -> bytes:
    talk.say(talk.post(0) + b"100000000\r\n{")
    return await talk.rest()


async def a_body_that_was_asked_for(talk: Talk) -> bytes:
    talk.say(talk.post(100, b"expect: 100-continue"))
    return await talk.rest()


async def half_a_body_of_a_page(talk: Talk) -> bytes:
    talk.say(talk.post(100, path=b"/admin/keys") + b"{")
    return await talk.rest()


async def a_body_that_drips_into_a_page(talk: Talk) -> bytes:
    talk.say(talk.post(100_000, path=b"/admin/keys"))
    await asyncio.gather(talk.drip(b" " * 1000, 0.02), talk.rest())
    return talk.received


Conversation = Callable[[Talk], Awaitable[bytes]]
LATE: list[Conversation] = [
    half_a_head,
    one_byte,
    a_head_that_drips,
    lines_that_drip,
    half_a_head_behind_an_answer,
    half_a_head_behind_a_stream,
    half_a_body_behind_a_stream,
    no_body,
    half_a_body,
    a_body_that_drips,
    chunks_that_drip,
    a_chunk_size_that_drips,
    a_chunk_of_4_gib,
    a_body_that_was_asked_for,
    half_a_body_of_a_page,
    a_body_that_drips_into_a_page,
]


async def an_idle_connection(talk: Talk) -> bytes:
    """Between two requests it may be idle for longer than a head may take."""
    for pause_s in (13, 0):
        talk.say(chat_request(talk.key, "again"))
        assert (await talk.answer()).said == "again"
        await asyncio.sleep(pause_s)
    return b"fine"


async def a_body_that_is_fast_enough(talk: Talk) -> bytes:
    """3 KiB/s, for longer than a body may be slow."""
    request = chat_request(talk.key, "patience", filler="x" * 45_000)
    began = time.monotonic()
    for start in range(0, len(request), 1500):
        talk.say(request[start : start + 1500])
        await asyncio.sleep(began + start / 3072 - time.monotonic())
    assert (await talk.answer()).said == "patience"
    return b"fine"


async def a_stranger(talk: Talk) -> bytes:
    """Who has no key is told so before any body has come."""
    talk.say(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
    talk.say(b"content-length: 100\r\n\r\n")
    assert (await talk.answer()).status == 401
    return b"fine"


FINE: list[Conversation] = [an_idle_connection, a_body_that_is_fast_enough, a_stranger]
SILENT: list[Conversation] = [nothing, empty_lines]
