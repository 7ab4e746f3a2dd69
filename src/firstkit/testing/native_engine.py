"""A fake engine that speaks OpenAI Responses and Anthropic Messages by itself, event by event as vLLM does."""

from __future__ import annotations

import json
import os
import secrets
from typing import Any, ClassVar

from firstkit.testing.echo_engine import EchoEngine, Said, cut, said_to
from firstkit.testing.fake_answer import prompt_tokens
from firstkit.testing.quick_engine import QuickEngine
from firstkit.testing.tiny_http import Connection

RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
COUNT_TOKENS = "/v1/messages/count_tokens"
Object = dict[str, Any]


class NativeEngine(EchoEngine):
    """Says what it was asked, in the protocol in which that was; counts tokens, which to it are words."""

    paths: ClassVar[tuple[str, ...]] = (*QuickEngine.paths, RESPONSES, MESSAGES, COUNT_TOKENS)

    async def reply(self, path: str, body: Object, connection: Connection) -> None:
        if path == RESPONSES:
            await self._respond(body, connection)
        elif path == MESSAGES:
            await self._message(body, connection)
        elif path == COUNT_TOKENS:
            await connection.answer(200, {"input_tokens": _prompt_tokens(body), "context_management": None})
        else:
            await super().reply(path, body, connection)

    # -- Responses ---------------------------------------------------------------------------------------------

    async def _respond(self, body: Object, connection: Connection) -> None:
        said = said_to(
            body,
            [(tool["name"], tool.get("parameters")) for tool in body.get("tools") or ()],
            thinks=bool((body.get("reasoning") or {}).get("effort")),
            is_forced=body.get("tool_choice") not in (None, "auto", "none"),
            most=body.get("max_output_tokens"),
        )
        items, response = _items(said), _response(body)
        if not body.get("stream"):
            await connection.sleep(self.token_delay * said.tokens)
            await connection.answer(200, _ended(response, items, said, body))
            self.stats.tokens += said.tokens
            return
        event = Events()
        await connection.head(200, "text/event-stream")
        for name in ("response.created", "response.in_progress"):
            await connection.chunk(event(name, response=response))
        for place, item in enumerate(items):
            await self._stream_item(place, item, said, event, connection)
        await connection.chunk(event("response.completed", response=_ended(response, items, said, body)))
        await connection.chunk(b"")

    async def _stream_item(self, place: int, item: Object, said: Said, event: Events, connection: Connection) -> None:
        at = {"item_id": item["id"], "output_index": place}
        nothing: Object = {"content": []} if "content" in item else {"arguments": ""}
        empty = {**item, "status": "in_progress", **nothing}
        await connection.chunk(event("response.output_item.added", output_index=place, item=empty))
        if "content" in item:
            await self._stream_text({**at, "content_index": 0}, item, said, event, connection)
        else:
            for piece in cut(item["arguments"]):
                await self.tell(event("response.function_call_arguments.delta", **at, delta=piece), connection)
            done = {"name": item["name"], "arguments": item["arguments"]}
            await connection.chunk(event("response.function_call_arguments.done", **at, **done))
        await connection.chunk(event("response.output_item.done", output_index=place, item=item))

    async def _stream_text(self, at: Object, item: Object, said: Said, event: Events, connection: Connection) -> None:
        [part], is_thought = item["content"], item["type"] == "reasoning"
        name = f"response.{part['type']}"
        more: Object = {} if is_thought else {"logprobs": []}
        await connection.chunk(event("response.content_part.added", **at, part={**part, "text": ""}))
        for piece in said.thoughts if is_thought else said.words:
            await self.tell(event(f"{name}.delta", **at, delta=piece, **more), connection)
        await connection.chunk(event(f"{name}.done", **at, text=part["text"], **more))
        await connection.chunk(event("response.content_part.done", **at, part=part))

    # -- Messages ----------------------------------------------------------------------------------------------

    async def _message(self, body: Object, connection: Connection) -> None:
        choice = (body.get("tool_choice") or {}).get("type")
        said = said_to(
            body,
            [(tool["name"], tool["input_schema"]) for tool in body.get("tools") or ()],
            thinks=(body.get("thinking") or {}).get("type") == "enabled",
            is_forced=choice in ("any", "tool"),
            most=body["max_tokens"],
        )
        about = {"id": f"chatcmpl-{secrets.token_hex(8)}", "type": "message", "role": "assistant"}
        about |= {"model": body["model"]}
        reason = {"stop_reason": _stop_reason(said), "stop_sequence": None}
        usage = {"input_tokens": _prompt_tokens(body), "output_tokens": said.tokens}
        if not body.get("stream"):
            await connection.sleep(self.token_delay * said.tokens)
            await connection.answer(200, {**about, "content": _blocks(said), **reason, "usage": usage})
            self.stats.tokens += said.tokens
            return
        begun: Object = {
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**usage, "output_tokens": 0},
        }
        await connection.head(200, "text/event-stream")
        await connection.chunk(named("message_start", message={**about, **begun}))
        for place, block in enumerate(_blocks(said)):
            await self._stream_block(place, block, said, connection)
        await connection.chunk(named("message_delta", delta=reason, usage=usage))
        await connection.chunk(named("message_stop"))
        await connection.chunk(b"")

    async def _stream_block(self, index: int, block: Object, said: Said, connection: Connection) -> None:
        kind = block["type"]
        empty = {**block, "input": {}} if kind == "tool_use" else {"type": kind, kind: ""}
        empty |= {"signature": ""} if kind == "thinking" else {}  # vLLM leaves it out, though its type demands it
        await connection.chunk(named("content_block_start", index=index, content_block=empty))
        delta, key = {
            "text": ("text_delta", "text"),
            "thinking": ("thinking_delta", "thinking"),
            "tool_use": ("input_json_delta", "partial_json"),
        }[kind]
        pieces = {"text": said.words, "thinking": said.thoughts}.get(kind) or cut(json.dumps(block.get("input")))
        for piece in pieces:
            told = named("content_block_delta", index=index, delta={"type": delta, key: piece})
            await self.tell(told, connection)
        if kind == "thinking":
            signed = {"type": "signature_delta", "signature": block["signature"]}
            await connection.chunk(named("content_block_delta", index=index, delta=signed))
        await connection.chunk(named("content_block_stop", index=index))


class DyingNativeEngine(NativeEngine):
    """Its process ends at once, without a word, after ``after`` tokens of an answer."""

    async def tell(self, data: bytes, connection: Connection) -> None:
        if self.stats.tokens == self.after:
            os._exit(9)
        await super().tell(data, connection)


class Events:
    """Named events with a number each."""

    def __init__(self) -> None:
        self._number = 0

    def __call__(self, name: str, /, **data: Any) -> bytes:
        self._number += 1
        return named(name, sequence_number=self._number - 1, **data)


def named(name: str, /, **data: Any) -> bytes:
    """One event with a name."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()


def _prompt_tokens(body: Object) -> int:
    return prompt_tokens(body.get("system") or []) + prompt_tokens(body.get("messages") or body.get("input"))


def _response(body: Object) -> Object:
    """One that has begun. What vLLM tells of requests that it keeps is not here: it is asked to keep none."""
    told = {key: body.get(key) for key in ("instructions", "metadata", "max_tool_calls", "reasoning", "text", "user")}
    return {
        "id": f"resp_{secrets.token_hex(16)}",
        "object": "response",
        "created_at": 0,
        "model": body["model"],
        "status": "in_progress",
        "output": [],
        "incomplete_details": None,
        "background": False,
        "max_output_tokens": body.get("max_output_tokens") or 1024,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt": None,
        "service_tier": "auto",
        "temperature": body.get("temperature", 1.0),
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools") or [],
        "top_logprobs": None,
        "top_p": body.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": None,
        **told,
    }


def _ended(response: Object, items: list[Object], said: Said, body: Object) -> Object:
    prompt = _prompt_tokens(body)
    usage = {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": said.tokens,
        "output_tokens_details": {"reasoning_tokens": len(said.thoughts)},
        "total_tokens": prompt + said.tokens,
    }
    ended = {**response, "status": "incomplete" if said.is_cut else "completed", "output": items, "usage": usage}
    return ended | ({"incomplete_details": {"reason": "max_output_tokens"}} if said.is_cut else {})


def _items(said: Said) -> list[Object]:
    items: list[Object] = []
    if said.thoughts:
        part: Object = {"type": "reasoning_text", "text": "".join(said.thoughts)}
        items.append({"type": "reasoning", "id": f"rs_{secrets.token_hex(8)}", "summary": [], "content": [part]})
    if said.words:
        part = {"type": "output_text", "text": said.text, "annotations": [], "logprobs": []}
        items.append({"type": "message", "id": f"msg_{secrets.token_hex(8)}", "role": "assistant", "content": [part]})
    for name, arguments in said.calls:
        ids = {"id": f"fc_{secrets.token_hex(8)}", "call_id": f"call_{secrets.token_hex(8)}"}
        items.append({"type": "function_call", **ids, "name": name, "arguments": arguments})
    return [{**item, "status": "completed"} for item in items]


def _blocks(said: Said) -> list[Object]:
    blocks: list[Object] = []
    if said.thoughts:
        thinking = "".join(said.thoughts)
        blocks.append({"type": "thinking", "thinking": thinking, "signature": secrets.token_hex(16)})
    if said.words:
        blocks.append({"type": "text", "text": said.text})
    for name, arguments in said.calls:
        tool_id = f"toolu_{secrets.token_hex(8)}"
        blocks.append({"type": "tool_use", "id": tool_id, "name": name, "input": json.loads(arguments)})
    return blocks


def _stop_reason(said: Said) -> str:
    return "tool_use" if said.calls else "max_tokens" if said.is_cut else "end_turn"
