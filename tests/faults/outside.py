"""External services that say what they were asked, and a gateway in front of them."""

from __future__ import annotations

import argparse
import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import psutil

from firstkit.testing.background import Background
from firstkit.testing.fake_answer import Answer, event
from firstkit.testing.fake_engine import QuickEngine, parse
from firstkit.testing.tiny_http import ClientGone, Connection, Request
from lab import Lab

PROXY_ROOM = 1_000_000
"""So many requests may be in flight at an external service: the tests are not about its line."""
MOST_SAID = 1000


def content_of(body: bytes) -> tuple[str, bool]:
    """The beginning of what a request body says last, and whether it wants a stream; of any bytes that are JSON."""
    try:
        data = json.loads(body)
        last = data["messages"][-1]["content"] if "messages" in data else data.get("prompt")
        return (last[:MOST_SAID] if isinstance(last, str) else ""), data.get("stream") is True
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return "", False


class EchoEngine(QuickEngine):
    """Answers every request with its own last message, after ``token_delay`` seconds. Keeps all bodies that it got."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.bodies: list[bytes] = []

    async def infer(self, path: str, request: Request, connection: Connection) -> None:
        """Count the request in and out, and answer it whatever it is."""
        self.bodies.append(request.body)
        self.stats.in_flight += 1
        try:
            await self.say_it_back(path, *content_of(request.body), connection)
        except ClientGone:
            self.stats.aborted += 1
            raise
        finally:
            self.stats.in_flight -= 1

    async def say_it_back(self, path: str, text: str, wants_stream: bool, connection: Connection) -> None:
        await connection.sleep(self.token_delay)
        if path == "/v1/embeddings":
            await self.embed({"input": "x"}, connection)
            return
        answer = Answer(path == "/v1/chat/completions", self.model, 1, 1, 1, "stop", False)
        if wants_stream:
            await self.echo(answer, text, connection)
            return
        whole = answer.whole(self.usage(answer))
        said = whole["choices"][0]
        said.update({"message": {"role": "assistant", "content": text}} if answer.is_chat else {"text": text})
        await connection.answer(200, whole)

    async def echo(self, answer: Answer, text: str, connection: Connection) -> None:
        """The text as a stream of one token."""
        await connection.head(200, "text/event-stream")
        for data in (answer.token(0, text), answer.token(0, None, "stop"), event("[DONE]"), b""):
            await connection.chunk(data)


class GatedEngine(EchoEngine):
    """Its streams stop behind the first token until ``gate`` is set."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.gate = threading.Event()

    async def echo(self, answer: Answer, text: str, connection: Connection) -> None:
        await connection.head(200, "text/event-stream")
        await connection.chunk(answer.token(0, "first "))
        while not self.gate.is_set():
            await connection.sleep(0.01)
        for data in (answer.token(0, text), answer.token(0, None, "stop"), event("[DONE]"), b""):
            await connection.chunk(data)


class FloodEngine(EchoEngine):
    """Streams without end, tokens of 4 KiB, as fast as they are taken."""

    async def echo(self, answer: Answer, text: str, connection: Connection) -> None:
        await connection.head(200, "text/event-stream")
        tokens = answer.token(0, "x" * 4096) * 64
        while True:
            await connection.chunk(tokens)
            self.stats.tokens += 64


class Outside:
    """Engines as models of a configuration."""

    def __init__(self, background: Background) -> None:
        self.models: dict[str, Any] = {}
        self._background = background

    def add(self, name: str, kind: type[QuickEngine] = EchoEngine, **options: object) -> Any:
        """Start an engine of ``kind`` as the model ``name`` and return it; options as of ``fake_engine``."""
        argv = ["--port", "0", "--model", f"their-{name}", "--load-delay", "0"]
        for option, value in options.items():
            argv += [f"--{option.replace('_', '-')}", str(value)]
        engine = kind(parse(argv))
        url = self._background.serve(engine.handle)
        self.serve(name, {"kind": "external", "url": url, "model": f"their-{name}"})
        return engine

    def serve(self, name: str, engine: dict[str, Any]) -> None:
        """Let the gateway know an external ``engine`` as the model ``name``."""
        deployment = {"cluster": "outside", "engine": engine, "scale": {"max_in_flight": PROXY_ROOM}}
        self.models[name] = {"deployments": [deployment]}


@contextlib.contextmanager
def outside() -> Iterator[Outside]:
    """A place for engines; all end with it."""
    with Background() as background:
        yield Outside(background)


@contextlib.contextmanager
def gateway(engines: Outside, kind: type[Lab] = Lab, **server: Any) -> Iterator[Lab]:
    """A gateway process, alone, in front of ``engines``."""
    lab = kind.make(engines.models, **server)
    try:
        lab.start_gateway()
        yield lab
    finally:
        lab.close()


def log_of(lab: Lab) -> str:
    return (lab.folder / "firstkit.gateway.log").read_text(errors="replace")


def descriptors(lab: Lab) -> int:
    """How many the gateway has open: a handful, one for each client, one for each request to an engine."""
    assert lab.gateway
    return int(psutil.Process(lab.gateway.pid).num_fds())


def assert_sound(lab: Lab, since: int = 0) -> None:
    """The gateway lives, is healthy, measures, and has written no fault of ours into its log (from ``since`` on)."""
    assert lab.gateway is not None
    assert lab.gateway.poll() is None, lab.logs()
    assert lab.get("/health") == (200, b'{"status":"ok"}')
    status, metrics = lab.get("/metrics", authorization=f"Bearer {lab.key}")
    assert status == 200
    assert b"first_loop_lag_seconds_count" in metrics
    log = log_of(lab)[since:]
    for fault in ("Traceback", "internal_error", "never retrieved", "Unclosed", "Exception"):
        assert fault not in log, log[-6000:]
