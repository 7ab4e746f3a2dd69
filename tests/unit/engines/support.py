"""Shared by the tests of engines: sinks, requests, fakes in this process, chunks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from firstkit.engines.engine import Address, Habits
from firstkit.engines.http import EngineClient, Target
from firstkit.links.messages import Exchange, Head, Open, Tail
from firstkit.testing.fake_engine import BEHAVIOURS, QuickEngine, parse
from firstkit.testing.tiny_http import serve
from waiting import LIMIT_S, until

CHAT = "/v1/chat/completions"


def request(
    stream: bool = True, body_bytes: int = 400, hide_usage: bool = False, path: str = CHAT, idle_timeout_s: float = 30
) -> Open:
    return Open("rep-1", "POST", path, body_bytes, {}, stream, hide_usage, idle_timeout_s)


def data(value: Any) -> bytes:
    """One event with a JSON object, or with text as it is."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return b"data: " + text.encode() + b"\n\n"


def chunk(text: str | None = None, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    delta = {} if text is None else {"content": text}
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return data({"id": "c-1", "object": "chat.completion.chunk", "choices": [choice], **more})


def usage_chunk(prompt: Any = 7, completion: Any = 2) -> bytes:
    return data({"id": "c-1", "choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}})


DONE = data("[DONE]")
GOOD = chunk("a") + chunk(None, "stop") + DONE
EVENTS = b"HTTP/1.1 200 OK\r\nx-y: z\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


def framed(*pieces: bytes) -> bytes:
    """Each piece as an HTTP chunk; an empty one ends the body."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


def chunked(*pieces: bytes) -> bytes:
    """A whole answer of events."""
    return EVENTS + framed(*pieces, b"")


def plain(body: bytes) -> bytes:
    """A whole answer of JSON."""
    return JSON + b"content-length: %d\r\n\r\n%s" % (len(body), body)


class Collected:
    """A Sink that remembers the order of its calls."""

    def __init__(self) -> None:
        self.head: Head | None = None
        self.body = b""
        self.tail: Tail | None = None
        self.calls: list[str] = []
        self.sent_bytes = 0
        self.keeps_body = True
        self.exchange: Exchange
        self.on_piece: Callable[[bytes], None] = lambda data: None
        self._ended = asyncio.Event()

    def on_head(self, head: Head) -> None:
        self.calls.append("head")
        self.head = head

    def on_data(self, data: bytes) -> None:
        self.calls.append("data")
        if self.keeps_body:
            self.body += data
        self.on_piece(data)

    def on_tail(self, tail: Tail) -> None:
        self.calls.append("tail")
        self.tail = tail
        self._ended.set()

    async def ended(self) -> Tail:
        await asyncio.wait_for(self._ended.wait(), LIMIT_S)
        assert self.tail is not None
        assert self.calls.count("tail") == 1
        assert self.calls[-1] == "tail"
        return self.tail


async def alone() -> None:
    """Wait until everything that the test started has ended, so that its loop closes with nothing open."""
    await until(lambda: len(asyncio.all_tasks()) == 1, "all other tasks to end")


class Fake:
    """A fake engine in this process, on a UNIX socket, with a client for it. Counts the connections made to it."""

    def __init__(self, folder: Path, behaviour: str = "QuickEngine", **options: object) -> None:
        argv = ["--behaviour", behaviour, "--socket", str(folder / "engine.sock"), "--load-delay", "0"]
        for name, value in options.items():
            argv += [f"--{name.replace('_', '-')}", str(value)]
        self.folder = folder
        self.connections = 0
        self.gate = asyncio.Event()
        """While it is not set, requests stay unanswered."""
        self.gate.set()
        self._options = parse(argv)
        self.engine: QuickEngine = BEHAVIOURS[behaviour](self._options)
        self._server: asyncio.Server | None = None
        self.client = EngineClient(self.target())

    def target(self, **values: Any) -> Target:
        return Target(**{"address": Address("engine.sock"), "folder": str(self.folder), "habits": Habits(), **values})

    def use(self, **target: Any) -> None:
        """Go on with another client, for a target with these values."""
        self.client.close()
        self.client = EngineClient(self.target(**target))

    async def __aenter__(self) -> Fake:
        async def handle(request: Any, connection: Any) -> None:
            if not hasattr(connection, "is_counted"):
                connection.is_counted = True
                self.connections += 1
            await self.gate.wait()
            await self.engine.handle(request, connection)

        self._server = await serve(handle, self._options.socket, None)
        return self

    async def __aexit__(self, *exc: object) -> None:
        in_flight = self.client.in_flight
        self.client.close()
        assert self._server is not None
        self._server.close()
        await alone()
        assert in_flight == self.engine.stats.in_flight == 0

    def open(self, path: str = CHAT, stream: bool = True, idle_timeout_s: float = 30, **body: Any) -> Collected:
        """Start a request; the body has a prompt of two words."""
        return send(self.client, path, stream, idle_timeout_s, **body)

    async def ask(self, *args: Any, **body: Any) -> Collected:
        sink = self.open(*args, **body)
        await sink.ended()
        return sink


def send(
    client: EngineClient,
    path: str = CHAT,
    stream: bool = True,
    idle_timeout_s: float = 30,
    timeout_s: float = 60,
    **body: Any,
) -> Collected:
    """Start a request with a prompt of two words; ``sent_bytes`` of the sink is the size of its body."""
    given = {"messages": [{"role": "user", "content": "two words"}], "prompt": "two words", "input": "two words"}
    key = {CHAT: "messages", "/v1/completions": "prompt"}.get(path, "input")
    if stream:
        body = {"stream": True, "stream_options": {"include_usage": True}, **body}
    sent = json.dumps({key: given[key], **body}).encode()
    sink = Collected()
    sink.sent_bytes = len(sent)
    opened = Open("rep-1", "POST", path, len(sent), {}, stream, False, idle_timeout_s, timeout_s)
    sink.exchange = client.open(opened, sent, sink)
    assert sink.calls == [], "the sink hears nothing before open returns"
    return sink


class Script:
    """A server that speaks given bytes: each connection gets the next answer, then is closed (or held open)."""

    def __init__(self, folder: Path, *answers: bytes, hold: bool = False) -> None:
        self.path = folder / "engine.sock"
        self.requests: list[bytes] = []
        self._answers = list(answers)
        self._hold = hold
        self._server: asyncio.Server | None = None
        self.client = EngineClient(Target(Address(str(self.path))))

    async def __aenter__(self) -> Script:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.client.close()
        assert self._server is not None
        self._server.close()
        await alone()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append(await take(reader))
        writer.write(self._answers.pop(0))
        if self._hold:
            with contextlib.suppress(ConnectionError):
                await reader.read()
        writer.close()


async def take(reader: asyncio.StreamReader) -> bytes:
    """The next request, head and body; raises IncompleteReadError when there is none."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class ByteServer:
    """A server that does with each connection what ``talk`` says, with a client for it.

    ``connections`` were made in all, ``alive`` are open, ``left`` were left by the client while the
    server talked or waited.
    """

    def __init__(self, folder: Path, talk: Talk, **target: Any) -> None:
        self.path = folder / "engine.sock"
        self.connections = 0
        self.alive = 0
        self.left = 0
        self._talk = talk
        self._server: asyncio.Server | None = None
        self.client = EngineClient(Target(Address(str(self.path)), **target))

    async def __aenter__(self) -> ByteServer:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *exc: object) -> None:
        in_flight = self.client.in_flight
        self.client.close()
        assert self._server is not None
        self._server.close()
        await until(lambda: self.alive == 0, "the client to close its connections")
        await alone()
        assert in_flight == 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.alive += 1
        try:
            await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left += 1
        finally:
            self.alive -= 1
            writer.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
