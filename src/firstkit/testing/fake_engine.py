"""OpenAI-compatible engines without a model, named by what they do wrong.

    python -m firstkit.testing.fake_engine --behaviour DyingEngine --after 3 --socket engine.sock

They answer /v1/chat/completions, /v1/completions and /v1/embeddings (streaming and plain, the usage chunk only when it
was asked for), /v1/models, /health (503 until loaded) and /stats: what was delivered and aborted, the oracle for tests.
NativeEngine answers /v1/responses, /v1/messages and /v1/messages/count_tokens too.
"""

# ruff: noqa: ARG002 - a behaviour overrides only what it does wrong, with the arguments of the method that it replaces

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Iterable
from typing import Any, ClassVar

from firstkit.testing.byte_scripts import SCRIPTS, Step
from firstkit.testing.echo_engine import EchoEngine
from firstkit.testing.fake_answer import Answer, error, event
from firstkit.testing.native_engine import DyingNativeEngine, NativeEngine
from firstkit.testing.quick_engine import QuickEngine
from firstkit.testing.task_engine import TaskEngine
from firstkit.testing.tiny_http import Connection, serve

FOREVER_S = float("inf")
HELD_S = 0.02


class SlowEngine(QuickEngine):
    """Takes its time to load and for every token."""

    token_delay_s = 0.05
    load_delay_s = 0.5


class SilentEngine(QuickEngine):
    """Says that it is healthy, accepts requests and never answers one."""

    async def reply(self, path: str, body: dict[str, Any], connection: Connection) -> None:
        await connection.sleep(FOREVER_S)


class StallingEngine(QuickEngine):
    """Stops in mid-stream after ``after`` tokens, with the connection open."""

    async def stream(self, answer: Answer, connection: Connection) -> None:
        await connection.head(200, "text/event-stream")
        await self.say(answer, connection, self.after)
        await connection.sleep(FOREVER_S)

    async def plain(self, answer: Answer, connection: Connection) -> None:
        await connection.head(200, "application/json", 1000)
        await connection.raw(b'{"id":')
        await connection.sleep(FOREVER_S)


class DyingEngine(QuickEngine):
    """Its process ends at once, without a word, after ``after`` tokens of an answer."""

    async def stream(self, answer: Answer, connection: Connection) -> None:
        await connection.head(200, "text/event-stream")
        await self.say(answer, connection, self.after)
        os._exit(9)

    async def plain(self, answer: Answer, connection: Connection) -> None:
        await connection.sleep(self.token_delay * self.after)
        os._exit(9)


class RefusingEngine(QuickEngine):
    """Says that it is healthy, and closes the connection of every request before one byte of an answer."""

    async def reply(self, path: str, body: dict[str, Any], connection: Connection) -> None:
        raise ConnectionAbortedError


class FlappingEngine(RefusingEngine):
    """Refuses everything while the file ``--while-there`` is there, and else all but each ``--good-every``-th request.
    Keeps no connection: its clients cannot take a refusal for one that was closed."""

    async def reply(self, path: str, body: dict[str, Any], connection: Connection) -> None:
        connection.keeps_alive = False
        is_good = not os.path.exists(self.while_there) and self.stats.requests % self.good_every == 0
        kind = QuickEngine if is_good else RefusingEngine
        await kind.reply(self, path, body, connection)


class HeldEngine(QuickEngine):
    """Stops after the first token of a stream, and before a plain answer, for as long as the file ``--while-there`` is
    there."""

    async def say(self, answer: Answer, connection: Connection, tokens: int) -> None:
        await super().say(answer, connection, min(1, tokens))
        await self._held(connection)
        await super().say(answer, connection, tokens - 1)

    async def plain(self, answer: Answer, connection: Connection) -> None:
        await self._held(connection)
        await super().plain(answer, connection)

    async def _held(self, connection: Connection) -> None:
        while os.path.exists(self.while_there):
            await connection.sleep(HELD_S)


class CrashAtLoadEngine(QuickEngine):
    """Complains and exits with status 3 before it was ever healthy."""

    @property
    def is_loaded(self) -> bool:
        return False


class ClosingEngine(QuickEngine):
    """Closes the connection after every stream though it said keep-alive, as llama.cpp does."""

    async def stream(self, answer: Answer, connection: Connection) -> None:
        await super().stream(answer, connection)
        connection.keeps_alive = False


class LyingEngine(QuickEngine):
    """Reports usage that cannot be true."""

    def usage(self, answer: Answer) -> dict[str, int]:
        return {"prompt_tokens": 10**12, "completion_tokens": -5, "total_tokens": 7}


class GarbageEngine(QuickEngine):
    """Breaks the protocol in the way that ``--variant`` names, on every inference request."""

    variants: ClassVar[tuple[str, ...]] = (
        "bad-sse",
        "half-utf8",
        "html",
        "wrong-length",
        "half-event",
        "no-done",
        "no-finish",
        "error-event",
        "error-object",
        "endless-head",
        "endless-event",
        "not-http",
        "redirect",
    )

    async def reply(self, path: str, body: dict[str, Any], connection: Connection) -> None:
        await self.break_as(self.variant, self.answer_for(path, body), connection)

    async def break_as(self, variant: str, answer: Answer | None, connection: Connection) -> None:
        answer = answer or Answer(True, self.model, 1, 1, 1, "stop", False)
        broken = getattr(self, "_" + variant.replace("-", "_"), None)
        connection.keeps_alive = variant in ("bad-sse", "half-utf8", "html", "redirect")
        if broken is not None:
            await broken(answer, connection)
            return
        await connection.head(200, "text/event-stream")
        await self.say(answer, connection, self.after)
        for data in garbage(variant, answer):
            await connection.chunk(data)
        await connection.chunk(b"")

    async def _html(self, answer: Answer, connection: Connection) -> None:
        page = b"<html><body>Welcome to nginx</body></html>"
        await connection.head(200, "text/html", len(page))
        await connection.raw(page)

    async def _wrong_length(self, answer: Answer, connection: Connection) -> None:
        await connection.head(200, "application/json", 1_000_000)
        await connection.raw(b'{"choices": []}')

    async def _half_event(self, answer: Answer, connection: Connection) -> None:
        await connection.head(200, "text/event-stream")
        await self.say(answer, connection, self.after)
        await connection.chunk(answer.token(0, "cut off here")[:-12])

    async def _endless_head(self, answer: Answer, connection: Connection) -> None:
        await connection.raw(b"HTTP/1.1 200 OK\r\n")
        for i in range(100_000):
            await connection.raw(b"x-more-%d: %s\r\n" % (i, b"x" * 100))

    async def _endless_event(self, answer: Answer, connection: Connection) -> None:
        await connection.head(200, "text/event-stream")
        await connection.chunk(b"data: ")
        for _ in range(1000):
            await connection.chunk(b"x" * 65536)

    async def _not_http(self, answer: Answer, connection: Connection) -> None:
        await connection.raw(b"SSH-2.0-OpenSSH_9.9\r\n")

    async def _redirect(self, answer: Answer, connection: Connection) -> None:
        await connection.raw(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")


class ByteEngine(GarbageEngine):
    """Does what the last message or the prompt names: a variant of GarbageEngine, or one of SCRIPTS, which are raw
    bytes; answers correctly where it names neither. So one replica shows everything, with good answers in between."""

    async def reply(self, path: str, body: dict[str, Any], connection: Connection) -> None:
        said = last_words(body)
        if said in SCRIPTS:
            connection.keeps_alive = False
            await self._play(SCRIPTS[said](), connection)
        elif said in self.variants:
            await self.break_as(said, self.answer_for(path, body), connection)
        else:
            await QuickEngine.reply(self, path, body, connection)

    async def _play(self, steps: Iterable[Step], connection: Connection) -> None:
        for step in steps:
            if isinstance(step, bytes):
                await connection.raw(step)
                self.stats.script_bytes += len(step)
            else:
                await connection.sleep(step)


def last_words(body: dict[str, Any]) -> str:
    """The text of the last message, or the prompt; empty where there is no such text."""
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else {"content": body.get("prompt")}
    content = last.get("content") if isinstance(last, dict) else None
    return content if isinstance(content, str) else ""


def garbage(variant: str, answer: Answer) -> list[bytes]:
    """The events with which a stream of ``after`` good tokens goes wrong."""
    finish, done = answer.token(0, None, "stop"), event("[DONE]")
    return {
        "bad-sse": [event("{not json"), b"nonsense without colon\n\n", finish, done],
        "half-utf8": [answer.token(0, "x").replace(b"x", b"\xe2\x82"), finish, done],
        "no-done": [finish],
        "no-finish": [done],
        "error-event": [event(json.dumps(error("the cache is full"))), done],
        "error-object": [event('{"object":"error","message":"the cache is full","code":500}'), done],
    }[variant]


BEHAVIOURS: dict[str, type[QuickEngine]] = {
    cls.__name__: cls
    for cls in (
        QuickEngine,
        SlowEngine,
        SilentEngine,
        StallingEngine,
        DyingEngine,
        CrashAtLoadEngine,
        RefusingEngine,
        FlappingEngine,
        HeldEngine,
        ClosingEngine,
        LyingEngine,
        GarbageEngine,
        ByteEngine,
        EchoEngine,
        NativeEngine,
        DyingNativeEngine,
        TaskEngine,
    )
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fake_engine", description="An engine without a model.")
    parser.add_argument("--behaviour", choices=sorted(BEHAVIOURS), default="QuickEngine")
    parser.add_argument("--socket", help="listen on this UNIX socket")
    parser.add_argument("--port", type=int, help="listen on this port of 127.0.0.1; 0: any, printed to stdout")
    parser.add_argument("--model", default="fake-model")
    parser.add_argument("--tokens", type=int, default=8, help="tokens of an answer")
    parser.add_argument("--token-delay", type=float, help="seconds before each token")
    parser.add_argument("--load-delay", type=float, help="seconds until /health answers 200")
    parser.add_argument("--after", type=int, default=3, help="tokens until a stream goes wrong")
    parser.add_argument("--key-env", help="environment variable with the key that requests must carry")
    parser.add_argument("--variant", choices=GarbageEngine.variants, default="bad-sse", help="for GarbageEngine")
    parser.add_argument("--while-there", default="", help="for FlappingEngine and HeldEngine: a file")
    parser.add_argument("--good-every", type=int, default=1, help="for FlappingEngine: 1 for all requests")
    options = parser.parse_args(argv)
    if options.socket is None and options.port is None:
        parser.error("--socket or --port is needed")
    return options


async def run(options: argparse.Namespace) -> None:
    """Listen until the process is ended."""
    engine = BEHAVIOURS[options.behaviour](options)
    if isinstance(engine, CrashAtLoadEngine):
        await asyncio.sleep(engine.load_delay)
        sys.stderr.write("fake engine: cannot load the weights\n")
        raise SystemExit(3)
    server = await serve(engine.handle, options.socket, options.port)
    if options.socket is None:
        sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(run(parse()))
