"""OpenAI-compatible engines without a model, named by what they do wrong.

    python -m firstkit.testing.fake_engine --behaviour DyingEngine --after 3 --socket engine.sock

They answer /v1/chat/completions, /v1/completions and /v1/embeddings (streaming and plain, the usage chunk only when it
was asked for), /v1/models, /health (503 until loaded) and /stats: what was delivered and aborted, the oracle for tests.
"""

# ruff: noqa: ARG002 - a behaviour overrides only what it does wrong, with the arguments of the method that it replaces

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from firstkit.testing.fake_answer import Answer, error, event, prompt_tokens, word
from firstkit.testing.tiny_http import ClientGone, Connection, Request, serve

FOREVER_S = float("inf")


@dataclass
class Stats:
    """What a fake did: ``tokens`` were written to clients, ``aborted`` requests ended because the client left."""

    requests: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    completed: int = 0
    aborted: int = 0
    tokens: int = 0


class QuickEngine:
    """Answers at once and correctly. ``after`` means nothing here; the others say what it does."""

    token_delay_s: ClassVar[float] = 0.0
    load_delay_s: ClassVar[float] = 0.0

    def __init__(self, options: argparse.Namespace) -> None:
        self.model: str = options.model
        self.tokens: int = options.tokens
        self.after: int = options.after
        self.variant: str = options.variant
        self.token_delay: float = self.token_delay_s if options.token_delay is None else options.token_delay
        self.load_delay: float = self.load_delay_s if options.load_delay is None else options.load_delay
        self.key: str | None = os.environ[options.key_env] if options.key_env else None
        self.stats = Stats()
        self.loaded_at = time.monotonic() + self.load_delay

    @property
    def is_loaded(self) -> bool:
        return time.monotonic() >= self.loaded_at

    async def handle(self, request: Request, connection: Connection) -> None:
        """Answer one request: the reporting paths, then, if loaded and allowed, the inference paths."""
        path = request.path.split("?")[0]
        if path == "/stats":
            await connection.answer(200, asdict(self.stats))
        elif path == "/health":
            await connection.answer(200 if self.is_loaded else 503, {"status": "ok" if self.is_loaded else "loading"})
        elif self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            await connection.answer(401, error("a key is needed"))
        elif not self.is_loaded:
            await connection.answer(503, error("loading"))
        elif path == "/v1/models":
            await connection.answer(200, {"object": "list", "data": [{"id": self.model, "object": "model"}]})
        elif request.method == "POST" and path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            await self.infer(path, request, connection)
        else:
            await connection.answer(404, error("no such path"))

    async def infer(self, path: str, request: Request, connection: Connection) -> None:
        """Count the request in and out, whatever becomes of it."""
        stats = self.stats
        stats.requests += 1
        stats.in_flight += 1
        stats.most_in_flight = max(stats.most_in_flight, stats.in_flight)
        try:
            await self.reply(path, request.json(), connection)
            stats.completed += 1
        except ClientGone:
            stats.aborted += 1
            raise
        finally:
            stats.in_flight -= 1

    async def reply(self, path: str, body: dict[str, Any], connection: Connection) -> None:
        if path == "/v1/embeddings":
            await self.embed(body, connection)
            return
        answer = self.answer_for(path, body)
        if answer is None:
            await connection.answer(400, error("messages or prompt is missing"))
        elif body.get("stream"):
            await self.stream(answer, connection)
        else:
            await self.plain(answer, connection)

    def answer_for(self, path: str, body: dict[str, Any]) -> Answer | None:
        is_chat = path == "/v1/chat/completions"
        prompt = body.get("messages" if is_chat else "prompt")
        if not prompt:
            return None
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or self.tokens
        return Answer(
            is_chat=is_chat,
            model=self.model,
            prompt_tokens=prompt_tokens(prompt),
            tokens=min(self.tokens, limit),
            choices=body.get("n") or 1,
            finish_reason="length" if limit < self.tokens else "stop",
            wants_usage=bool((body.get("stream_options") or {}).get("include_usage")),
        )

    async def stream(self, answer: Answer, connection: Connection) -> None:
        """A whole, correct stream."""
        await connection.head(200, "text/event-stream")
        if answer.is_chat:
            first = [{"index": i, "delta": {"role": "assistant", "content": None}} for i in range(answer.choices)]
            await connection.chunk(answer.chunk(first))
        await self.say(answer, connection, answer.tokens)
        for index in range(answer.choices):
            await connection.chunk(answer.token(index, None, answer.finish_reason))
        if answer.wants_usage:
            await connection.chunk(answer.chunk([], self.usage(answer)))
        await connection.chunk(event("[DONE]"))
        await connection.chunk(b"")

    async def say(self, answer: Answer, connection: Connection, tokens: int) -> None:
        """Write ``tokens`` tokens of each choice, with the delay of this engine before each."""
        for i in range(tokens):
            await connection.sleep(self.token_delay)
            for index in range(answer.choices):
                await connection.chunk(answer.token(index, word(i)))
                self.stats.tokens += 1

    async def plain(self, answer: Answer, connection: Connection) -> None:
        await connection.sleep(self.token_delay * answer.tokens)
        await connection.answer(200, answer.whole(self.usage(answer)))
        self.stats.tokens += answer.tokens * answer.choices

    async def embed(self, body: dict[str, Any], connection: Connection) -> None:
        given = body.get("input", [])
        texts = [given] if isinstance(given, str) else given
        data = [{"object": "embedding", "index": i, "embedding": [0.6, 0.8]} for i in range(len(texts))]
        count = prompt_tokens(given)
        usage = {"prompt_tokens": count, "total_tokens": count}
        await connection.answer(200, {"object": "list", "model": self.model, "data": data, "usage": usage})

    def usage(self, answer: Answer) -> dict[str, int]:
        said = answer.tokens * answer.choices
        total = answer.prompt_tokens + said
        return {"prompt_tokens": answer.prompt_tokens, "completion_tokens": said, "total_tokens": total}


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
        answer = self.answer_for(path, body) or Answer(True, self.model, 1, 1, 1, "stop", False)
        broken = getattr(self, "_" + self.variant.replace("-", "_"), None)
        connection.keeps_alive = self.variant in ("bad-sse", "half-utf8", "html", "redirect")
        if broken is not None:
            await broken(answer, connection)
            return
        await connection.head(200, "text/event-stream")
        await self.say(answer, connection, self.after)
        for data in garbage(self.variant, answer):
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
        ClosingEngine,
        LyingEngine,
        GarbageEngine,
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
