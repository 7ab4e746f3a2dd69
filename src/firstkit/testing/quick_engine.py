"""The fake engine that does everything right, and what it remembers: what the others of fake_engine.py start from."""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from firstkit.testing.fake_answer import Answer, error, event, prompt_tokens, word
from firstkit.testing.tiny_http import ClientGone, Connection, Request


@dataclass
class Stats:
    """What a fake did: ``tokens`` were written to clients, ``aborted`` requests ended because the client left.

    ``aborted_at``: when, in monotonic seconds, which all processes of a machine share. ``script_bytes``: of ByteEngine.
    """

    requests: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    completed: int = 0
    aborted: int = 0
    aborted_at: list[float] = field(default_factory=list)
    tokens: int = 0
    script_bytes: int = 0


class QuickEngine:
    """Answers at once and correctly. Options that mean nothing here are for the others, which say what they do."""

    token_delay_s: ClassVar[float] = 0.0
    load_delay_s: ClassVar[float] = 0.0
    paths: ClassVar[tuple[str, ...]] = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")

    def __init__(self, options: argparse.Namespace) -> None:
        self.model: str = options.model
        self.tokens: int = options.tokens
        self.after: int = options.after
        self.variant: str = options.variant
        self.while_there: str = options.while_there
        self.good_every: int = options.good_every
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
        elif path == "/metrics":
            text = b'# TYPE fake:running gauge\nfake:running{model="%b"} %d\n'
            text %= (self.model.encode(), self.stats.in_flight)
            await connection.head(200, "text/plain", len(text))
            await connection.raw(text)
        elif path == "/health":
            await connection.answer(200 if self.is_loaded else 503, {"status": "ok" if self.is_loaded else "loading"})
        elif self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            await connection.answer(401, error("a key is needed"))
        elif not self.is_loaded:
            await connection.answer(503, error("loading"))
        elif path == "/v1/models":
            await connection.answer(200, {"object": "list", "data": [{"id": self.model, "object": "model"}]})
        elif request.method == "POST" and path in self.paths:
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
            await self.reply_to(path, request, connection)
            stats.completed += 1
        except ClientGone:
            stats.aborted += 1
            stats.aborted_at.append(time.monotonic())
            raise
        finally:
            stats.in_flight -= 1

    async def reply_to(self, path: str, request: Request, connection: Connection) -> None:
        await self.reply(path, request.json(), connection)

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
