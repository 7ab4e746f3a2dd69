"""Tokens of Messages requests, by their sizes."""

from __future__ import annotations

from typing import Any

from firstkit.translation.counting import MEDIA_TOKENS, estimated_tokens
from unit.translation.support import raw


def estimate(**fields: Any) -> int:
    return estimated_tokens(raw(model="m", **fields))


def said(*content: Any) -> int:
    return estimate(messages=[{"role": "user", "content": list(content)}])


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def test_four_bytes_are_a_token() -> None:
    assert said(text("x" * 4000)) - said(text("")) == 1000
    assert said(text("é" * 2000)) - said(text("")) == 1000
    assert said(text("x"), text("y")) > said(text("x"))


def test_all_that_a_model_reads_counts() -> None:
    messages: list[Any] = [{"role": "user", "content": "hi"}]
    bare = estimate(messages=messages)
    assert 1 <= bare <= 8
    tool = {"name": "f", "description": "x" * 400, "input_schema": {"type": "object", "properties": {"y" * 400: {}}}}
    assert estimate(messages=messages, tools=[tool]) >= bare + 200
    assert estimate(messages=messages, system=[text("x" * 400)]) >= bare + 100
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": ["x" * 400, 12345678]}}
    assert estimate(messages=[*messages, {"role": "assistant", "content": [use]}]) >= bare + 100


def test_media_have_a_flat_number() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "A" * 400_000}
    image = {"type": "image", "source": source}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [image, {"type": "document", "source": source}]}
    assert MEDIA_TOKENS <= said(image) <= MEDIA_TOKENS + 50
    assert 2 * MEDIA_TOKENS <= said(result) <= 2 * MEDIA_TOKENS + 50
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x" * 4000}}
    assert 1000 <= said(document) <= 1050


def test_what_no_model_reads_does_not_count() -> None:
    plain = said(text("hi"))
    assert said(text("hi", cache_control={"type": "ephemeral"}, citations=[{"cited_text": "x" * 999}])) == plain
    assert estimate(messages=[], metadata={"user_id": "x" * 999}, max_tokens=9) == estimate(messages=[])
