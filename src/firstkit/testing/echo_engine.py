"""A fake engine that says what it was asked, so that a test sees what of a request reached an engine."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any

from firstkit.testing.fake_answer import error, event, prompt_tokens
from firstkit.testing.quick_engine import QuickEngine
from firstkit.testing.tiny_http import Connection

PIECES = 8
MOST_CALLS = 2


@dataclass
class Said:
    """One answer in its pieces: ``thoughts`` if reasoning was asked for, ``words``, which are the request as JSON, and
    calls of the first tools, whose arguments are the parameters that they were declared with."""

    thoughts: list[str]
    words: list[str]
    calls: list[tuple[str, str]]
    is_cut: bool

    @property
    def text(self) -> str:
        return "".join(self.words)

    @property
    def tokens(self) -> int:
        return len(self.thoughts) + len(self.words) + len(self.calls)


def said_to(
    body: dict[str, Any], tools: list[tuple[str, Any]], *, thinks: bool, is_forced: bool, most: int | None
) -> Said:
    """The answer to ``body``, with at most so many words. ``is_forced``: a tool must be called, so nothing else is."""
    words = [] if is_forced else cut(json.dumps(body))
    calls = [(name, json.dumps(parameters)) for name, parameters in tools[:MOST_CALLS]]
    return Said(["hm, ", "well"] if thinks else [], words[:most], calls, most is not None and most < len(words))


def cut(text: str) -> list[str]:
    """``text`` in at most PIECES pieces."""
    size = -(-len(text) // PIECES)
    return [text[start : start + size] for start in range(0, len(text), size)]


class EchoEngine(QuickEngine):
    """Says what it was asked: see ``Said``. Each of ``n`` choices says the same, with logprobs if those were asked for;
    ``system_fingerprint`` names the seed."""

    async def reply(self, path: str, body: dict[str, Any], connection: Connection) -> None:
        if path != "/v1/chat/completions":
            await super().reply(path, body, connection)
        elif not body.get("messages"):
            await connection.answer(400, error("messages is missing"))
        else:
            functions = [tool["function"] for tool in body.get("tools") or ()]
            said = said_to(
                body,
                [(function["name"], function.get("parameters")) for function in functions],
                thinks=body.get("reasoning_effort") not in (None, "none"),
                is_forced=body.get("tool_choice") not in (None, "auto", "none"),
                most=body.get("max_completion_tokens") or body.get("max_tokens"),
            )
            await (self._stream_chat if body.get("stream") else self._plain_chat)(said, body, connection)

    async def tell(self, data: bytes, connection: Connection) -> None:
        """Write one token, after the delay of this engine."""
        await connection.sleep(self.token_delay)
        await connection.chunk(data)
        self.stats.tokens += 1

    async def _plain_chat(self, said: Said, body: dict[str, Any], connection: Connection) -> None:
        await connection.sleep(self.token_delay * said.tokens)
        message: dict[str, Any] = {"role": "assistant", "content": said.text or None}
        if said.thoughts:
            message["reasoning"] = "".join(said.thoughts)
        if said.calls:
            message["tool_calls"] = [_call(place, *call) for place, call in enumerate(said.calls)]
        choice = {"message": message, "finish_reason": _finish(said), "logprobs": _logprobs(said.words, body)}
        choices = [{"index": index, **choice} for index in range(body.get("n") or 1)]
        about = _about("chat.completion", body)
        await connection.answer(200, {**about, "choices": choices, "usage": _usage(said, body)})
        self.stats.tokens += said.tokens

    async def _stream_chat(self, said: Said, body: dict[str, Any], connection: Connection) -> None:
        about, count = _about("chat.completion.chunk", body), body.get("n") or 1

        def chunk(finish: str | None = None, logprobs: Any = None, **delta: Any) -> bytes:
            choice = {"delta": delta, "finish_reason": finish, "logprobs": logprobs}
            choices = [{"index": index, **choice} for index in range(count)]
            return event(json.dumps({**about, "choices": choices}))

        await connection.head(200, "text/event-stream")
        await connection.chunk(chunk(role="assistant", content=""))
        for thought in said.thoughts:
            await self.tell(chunk(reasoning=thought), connection)
        for word in said.words:
            await self.tell(chunk(content=word, logprobs=_logprobs([word], body)), connection)
        for place, (name, arguments) in enumerate(said.calls):
            await connection.chunk(chunk(tool_calls=[_call(place, name, "")]))
            for piece in cut(arguments):
                await self.tell(chunk(tool_calls=[{"index": place, "function": {"arguments": piece}}]), connection)
        await connection.chunk(chunk(_finish(said)))
        if (body.get("stream_options") or {}).get("include_usage"):
            await connection.chunk(event(json.dumps({**about, "choices": [], "usage": _usage(said, body)})))
        await connection.chunk(event("[DONE]"))
        await connection.chunk(b"")


def _about(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    seed = body.get("seed")
    fingerprint = None if seed is None else f"seed-{seed}"
    return {
        "id": f"chatcmpl-{secrets.token_hex(8)}",
        "object": kind,
        "created": 0,
        "model": body["model"],
        "system_fingerprint": fingerprint,
    }


def _call(place: int, name: str, arguments: str) -> dict[str, Any]:
    return {
        "index": place,
        "id": f"call_{secrets.token_hex(8)}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _finish(said: Said) -> str:
    return "tool_calls" if said.calls else "length" if said.is_cut else "stop"


def _logprobs(words: list[str], body: dict[str, Any]) -> dict[str, Any] | None:
    if not body.get("logprobs"):
        return None

    def token(text: str) -> dict[str, Any]:
        return {"token": text, "logprob": -0.25, "bytes": list(text.encode())}

    others = [token(f"other{number}") for number in range(body.get("top_logprobs") or 0)]
    return {"content": [{**token(word), "top_logprobs": others} for word in words], "refusal": None}


def _usage(said: Said, body: dict[str, Any]) -> dict[str, Any]:
    prompt, count = prompt_tokens(body["messages"]), said.tokens * (body.get("n") or 1)
    details = {"reasoning_tokens": len(said.thoughts)}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": count,
        "total_tokens": prompt + count,
        "completion_tokens_details": details,
    }
