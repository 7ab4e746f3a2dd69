"""What a fake engine says: the JSON of OpenAI-compatible answers and events."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass
class Answer:
    """One generation under way: what was asked, and how to say it."""

    is_chat: bool
    model: str
    prompt_tokens: int
    tokens: int
    choices: int
    finish_reason: str
    wants_usage: bool

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        data: dict[str, Any] = {"id": "fake-1", "object": kind, "created": 0, "model": self.model, "choices": choices}
        if usage is not None:
            data["usage"] = usage
        return event(json.dumps(data))

    def token(self, index: int, text: str | None, finish_reason: str | None = None) -> bytes:
        """One event with a piece of text, or with the reason why there is no more."""
        choice: dict[str, Any] = {"index": index, "finish_reason": finish_reason}
        if self.is_chat:
            choice["delta"] = {} if text is None else {"content": text}
        else:
            choice["text"] = text or ""
        return self.chunk([choice])

    def whole(self, usage: dict[str, int]) -> dict[str, Any]:
        text = "".join(word(i) for i in range(self.tokens))
        said = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        kind = "chat.completion" if self.is_chat else "text_completion"
        choices = [{"index": i, "finish_reason": self.finish_reason, **said} for i in range(self.choices)]
        return {"id": "fake-1", "object": kind, "created": 0, "model": self.model, "choices": choices, "usage": usage}


def event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


def word(i: int) -> str:
    return f"word{i} "


def error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "fake_error", "param": None, "code": None}}


def prompt_tokens(prompt: Any) -> int:
    """Words of a prompt, an input or messages; whole numbers count as the tokens that they are."""
    if isinstance(prompt, str):
        return len(prompt.split())
    if isinstance(prompt, list):
        return sum(prompt_tokens(item) for item in prompt)
    if isinstance(prompt, dict):
        return prompt_tokens(prompt.get("content") or "")
    return 1
