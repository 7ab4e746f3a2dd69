"""A fake engine that uses tools and keeps to schemas, always in one way: what pages show is known to the letter."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from firstkit.testing.fake_answer import Answer, event
from firstkit.testing.fake_engine import BEHAVIOURS, parse, run
from firstkit.testing.quick_engine import QuickEngine
from firstkit.testing.tiny_http import Connection

SAMPLES: dict[str, Any] = {"string": "Chicago", "integer": 3, "number": 1.5, "boolean": True}
CALL_ID = "call_1"


class CallingEngine(QuickEngine):
    """Calls the first tool that it is given, repeats what that said, and fills the schema that it is held to."""

    async def reply(self, path: str, body: dict[str, Any], connection: Connection) -> None:
        answer = self.answer_for(path, body)
        deltas = deltas_for(body) if answer is not None and answer.is_chat else []
        if answer is None or not deltas:
            await super().reply(path, body, connection)
            return
        if "tool_calls" in deltas[0]:
            answer.finish_reason = "tool_calls"
        if body.get("stream"):
            await self._stream_deltas(answer, deltas, connection)
        else:
            await connection.answer(200, self._whole(answer, deltas))

    async def _stream_deltas(self, answer: Answer, deltas: list[dict[str, Any]], connection: Connection) -> None:
        await connection.head(200, "text/event-stream")
        for delta in [{"role": "assistant", "content": None}, *deltas]:
            await connection.chunk(answer.chunk([{"index": 0, "delta": delta, "finish_reason": None}]))
        await connection.chunk(answer.token(0, None, answer.finish_reason))
        if answer.wants_usage:
            await connection.chunk(answer.chunk([], self.usage(answer)))
        await connection.chunk(event("[DONE]"))
        await connection.chunk(b"")

    def _whole(self, answer: Answer, deltas: list[dict[str, Any]]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": None}
        if "tool_calls" in deltas[0]:
            first, *more = (delta["tool_calls"][0] for delta in deltas)
            arguments = "".join(part["function"]["arguments"] for part in (first, *more))
            message["tool_calls"] = [{**first, "function": {**first["function"], "arguments": arguments}}]
        else:
            message["content"] = "".join(delta["content"] for delta in deltas)
        whole = answer.whole(self.usage(answer))
        whole["choices"] = [{"index": 0, "finish_reason": answer.finish_reason, "message": message}]
        return whole


def deltas_for(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The answer in pieces; none: nothing here is about tools or schemas."""
    last = body["messages"][-1]
    if last.get("role") == "tool":
        return [{"content": "The tool says: "}, {"content": last["content"]}]
    if body.get("tools") and body.get("tool_choice") != "none":
        return _call(body["tools"][0]["function"])
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema":
        text = json.dumps(sample(form["json_schema"]["schema"]))
        return [{"content": text[:5]}, {"content": text[5:]}]
    return []


def _call(function: dict[str, Any]) -> list[dict[str, Any]]:
    arguments = json.dumps(sample(function.get("parameters") or {}))
    named = {"index": 0, "id": CALL_ID, "type": "function", "function": {"name": function["name"], "arguments": ""}}
    parts = [{"index": 0, "function": {"arguments": part}} for part in (arguments[:5], arguments[5:])]
    return [{"tool_calls": [part]} for part in (named, *parts)]


def sample(schema: dict[str, Any]) -> Any:
    """A value that fits."""
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type") == "array":
        return [sample(schema["items"])]
    if schema.get("type") in SAMPLES:
        return SAMPLES[schema["type"]]
    return {name: sample(inner) for name, inner in schema.get("properties", {}).items()}


if __name__ == "__main__":
    BEHAVIOURS["CallingEngine"] = CallingEngine
    asyncio.run(run(parse()))
