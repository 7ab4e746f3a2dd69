"""Fuzz target for connections of clients: any bytes, cut anywhere. Nothing is raised, what is answered is valid HTTP,
nothing follows an answer after which the connection closes, and nothing is left when it is gone.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import logging
import random
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from firstkit.auth.permissions import Identity
from firstkit.errors import EngineFailed, Unauthenticated
from firstkit.gateway.call import Call
from firstkit.gateway.client import Client
from firstkit.gateway.guard import Guard
from firstkit.gateway.hot import HotRoutes
from firstkit.gateway.http import Door, Protocol
from firstkit.gateway.state import Gateway
from firstkit.ids import digest
from fuzz.driver import Target, pieces
from unit.gateway.support import limits_of, without_database

IDENTITY = Identity("u", "user", "p", "prefix", frozenset({"inference", "metrics", "admin"}))
MOST_TURNS = 200
MOST_PIECES = 100
QUIET_TURNS = 6
LATER_S = 1e6


# -- a gateway without anything behind it ------------------------------------------------------------------------------


class Authenticator:
    """One key is good. It is found at once, or in the next turn of the loop."""

    def cached(self, token: str) -> Identity | None:
        return IDENTITY if token == "good" else None

    def known(self, token_digest: str) -> Identity | None:
        return IDENTITY if token_digest == digest("good") else None

    async def identify(self, token: str) -> Identity:
        await asyncio.sleep(0)
        if token != "late":
            raise Unauthenticated
        return IDENTITY


class Relay:
    """Answers every call in the next turn of the loop: a stream, a plain body, an error for models but ``m``."""

    def serve(self, call: Call, client: Client) -> None:
        asyncio.get_running_loop().call_soon(self._answer, call, client)

    def _answer(self, call: Call, client: Client) -> None:
        if call.model != "m":
            client.fail(EngineFailed())
        elif call.stream:
            client.begin()
            client.write(b"data: {}\n\n")
            asyncio.get_running_loop().call_soon(self._end, call, client)
            return
        else:
            client.plain("application/json", b"{}")
        call.owner.over()

    def _end(self, call: Call, client: Client) -> None:
        client.done()
        call.owner.over()


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the whole body, then answers without one."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


class Transport(asyncio.Transport):
    """A client that takes all at once."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_aborted = False
        self._is_closing = False
        self.protocol: Protocol

    def write_eof(self) -> None:
        """Nothing more will be written; what is heard of it is the end."""

    def write(self, data: Any) -> None:
        if not self._is_closing:
            self.written += data

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.is_aborted = True
        self.close()

    def is_closing(self) -> bool:
        return self._is_closing

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


# -- one connection ----------------------------------------------------------------------------------------------------


def run_one(data: bytes) -> None:
    """The first byte says how to cut the rest, whether the loop turns between the pieces, and whether the client then
    goes at once."""
    if data:
        step = max((data[0] >> 2) + 1, len(data) // MOST_PIECES)
        turns_between, stays = data[0] & 1 == 1, data[0] & 2 == 0
        written = runner().run(converse(data[1:], step, turns_between, stays))
        if stays and b"HEAD " not in data:  # answers to it have a length, but no body
            look_at(written)


@functools.cache
def runner() -> asyncio.Runner:
    """One loop for all inputs: it would cost more than what is tried."""
    made = asyncio.Runner()
    atexit.register(made.close)
    return made


async def converse(data: bytes, step: int, turns_between: bool, stays: bool) -> bytes:
    """Send ``data``, wait, let time pass, hang up; returns what was answered. Raises what the loop would log."""
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    transport, limits = Transport(), limits_of(concurrency_per_key=1000)
    hot = HotRoutes(gateway(), limits)
    protocol = transport.protocol = Protocol(settings(), ServerState(), {}, door=Door(hot))
    unused = hot.memory._left
    protocol.connection_made(transport)
    for piece in pieces(data, step):
        if transport.is_closing():
            break
        protocol.data_received(piece)
        if turns_between:
            await asyncio.sleep(0)
    if stays:
        await let_time_pass(protocol, transport)
    transport.close()
    await alone()
    assert not protocol.connections
    assert not faults, faults
    inside = [subject.running for kind in limits._kinds for subject in kind.subjects.values()]
    assert (sum(inside), hot.memory._left) == (0, unused), "who came in has left, and taken all along"
    return transport.written


async def let_time_pass(protocol: Protocol, transport: Transport) -> None:
    """Whatever it waits for, a connection is not kept for ever: it may linger once."""
    await settle(protocol, transport)
    for later in (1, 2):
        protocol.look(asyncio.get_running_loop().time() + later * LATER_S)
        await settle(protocol, transport)
    assert transport.is_closing()


async def alone() -> None:
    """Wait until all other tasks have ended, and what needs no task has had its turns."""
    for turn in range(MOST_TURNS):
        await asyncio.sleep(0)
        if turn > QUIET_TURNS and len(asyncio.all_tasks()) == 1:
            return
    raise AssertionError(f"left: {asyncio.all_tasks()}")


@functools.cache
def gateway() -> Gateway:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    made = without_database(Path(folder))
    made.authenticator, made.relay = cast(Any, Authenticator()), cast(Any, Relay())
    return made


@functools.cache
def settings() -> uvicorn.Config:
    return uvicorn.Config(Guard(app), http=Protocol, lifespan="off", log_config=None, ws="none")


async def settle(protocol: Protocol, transport: Transport) -> None:
    """Let the loop turn until nothing of the connection is to be done."""
    quiet, size = 0, -1
    for _ in range(MOST_TURNS):
        await asyncio.sleep(0)
        is_quiet = len(transport.written) == size and all(task.done() for task in protocol.tasks)
        quiet, size = quiet + 1 if is_quiet else 0, len(transport.written)
        if quiet == QUIET_TURNS:
            break


# -- what was answered -------------------------------------------------------------------------------------------------

STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [ -~]*\r\n")
HEADER = re.compile(rb"([a-z0-9-]+): ([ -~]*)\r\n")


def look_at(written: bytes) -> None:
    """One valid answer after the other, and none after the last."""
    at, is_last = 0, False
    while at < len(written):
        assert not is_last, "nothing follows an answer that closes"
        status, headers, at = read_head(written, at)
        is_last = headers.get(b"connection") == b"close"
        assert status >= 200 or (status == 100 and not headers)
        if status == 100:
            continue
        if b"transfer-encoding" in headers:
            assert headers[b"transfer-encoding"] == b"chunked"
            assert b"content-length" not in headers
            at = read_chunks(written, at)
        elif b"content-length" in headers:
            at += int(headers[b"content-length"])
        else:
            assert is_last, "a body until the connection closes"
            at = len(written)
    assert at == len(written), "the last answer is whole"


def read_head(written: bytes, at: int) -> tuple[int, dict[bytes, bytes], int]:
    line = STATUS_LINE.match(written, at)
    assert line, written[at:][:100]
    headers, at = {}, line.end()
    while header := HEADER.match(written, at):
        assert header[1] not in headers
        headers[header[1]], at = header[2], header.end()
    assert written[at : at + 2] == b"\r\n"
    return int(line[1]), headers, at + 2


def read_chunks(written: bytes, at: int) -> int:
    while True:
        end = written.index(b"\r\n", at)
        size = int(written[at:end], 16)
        at = end + 2 + size + 2
        assert written[at - 2 : at] == b"\r\n"
        if size == 0:
            return at


# -- inputs ------------------------------------------------------------------------------------------------------------

LINES = [
    *[b"POST /v1/chat/completions HTTP/1.1", b"POST /v1/completions HTTP/1.1", b"POST /v1/embeddings HTTP/1.0"],
    *[b"GET /health HTTP/1.1", b"GET /health HTTP/1.0", b"POST /admin/keys HTTP/1.1", b"OPTIONS * HTTP/1.1"],
    *[
        b"GET http://x/health HTTP/1.1",
        b"CONNECT x:80 HTTP/1.1",
        b"CONNECT /health HTTP/1.1",
        b"PRI * HTTP/2.0",
        b"GET /%ff?a=%00 HTTP/1.1",
        b"GET",
    ],
]
HEADERS = [
    *[b"content-encoding: gzip", b"expect: 100-continue", b"expect: x", b"upgrade: websocket", b"connection: upgrade"],
    *[b"connection: close", b"connection: keep-alive", b"content-length: 2", b"content-length: 99999999999", b"x: y"],
    *[b"content-length: +2", b"transfer-encoding: chunked", b"transfer-encoding: gzip, chunked", b"host: b", b"x : y"],
    *[
        b"authorization: Basic !",
        b"x-api-key: good",
        b"x-first-hold: 1e9",
        b"x: " + b"y" * 40_000,
        b" folded",
        b"\xff: \xff",
    ],
    *[b"content-type: text/plain", b"http2-settings: AA", b"trailer: x", b"te: trailers", *[b"y: z"] * 4],
]
KEYS = [b"good", b"good", b"good", b"late", b"wrong"]
BODIES = [
    b'{"model":"m","messages":[{"content":"hello"}],"stream":true}',
    b'{"model":"m","messages":[{"content":"hello"}],"prompt":"x","input":"x"}',
    b'{"model":"org/embedder","messages":[{}],"prompt":"x","input":"x"}',
    b'{"model":"m"}',
    b"{}",
    b"",
]


def random_input(chance: random.Random) -> bytes:
    """Up to four requests, one after the other on a connection; most of them could be answered."""
    return chance.randbytes(1) + b"".join(request(chance) for _ in range(chance.randrange(1, 5)))


def request(chance: random.Random) -> bytes:
    body = chance.choice(BODIES)
    lines = [chance.choice(LINES), b"host: x", b"authorization: Bearer " + chance.choice(KEYS)]
    lines += [b"content-type: application/json"] * (chance.random() < 0.9)
    if chance.random() < 0.4:
        lines.append(b"transfer-encoding: chunked")
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces(body, 20), b""))
    else:
        lines.append(b"content-length: %d" % len(body))
    for _ in range(chance.choice([0, 0, 0, 1, 2])):
        lines.insert(chance.randrange(1, len(lines) + 1), chance.choice(HEADERS))
    return b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


TARGET = Target(run_one, random_input)

if __name__ == "__main__":
    logging.getLogger("firstkit.gateway").setLevel(logging.CRITICAL)
    TARGET.main(__doc__)
