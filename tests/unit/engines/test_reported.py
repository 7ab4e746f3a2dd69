"""What engines report in JSON, in the words of all protocols."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.engines.reported import (
    MOST_COMPLETION_TOKENS,
    TEMPLATE_TOKENS,
    error_in,
    is_json,
    last_usage,
    message_of,
    object_of,
    read_usage,
    said_bytes,
)
from firstkit.links.messages import Usage
from unit.engines.support import request

LARGEST = 400 + TEMPLATE_TOKENS  # of support.request()


@pytest.mark.parametrize(
    ("told", "usage"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}, Usage(7, 2)),
        ({"prompt_tokens": 7, "total_tokens": 7}, Usage(7, 0)),
        ({"prompt_tokens": 7, "completion_tokens": None}, Usage(7, 0)),
        (
            {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 5}},
            Usage(7, 2),
        ),
        ({"input_tokens": 7, "input_tokens_details": {"cached_tokens": 5}, "output_tokens": 2}, Usage(7, 2)),
        ({"input_tokens": 2, "cache_read_input_tokens": 5, "output_tokens": 2}, Usage(7, 2)),
        (
            {"input_tokens": 1, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 1, "output_tokens": 2},
            Usage(7, 2),
        ),
        ({"input_tokens": 7, "cache_read_input_tokens": None, "output_tokens": 2}, Usage(7, 2)),
        ({"prompt_tokens": None, "input_tokens": 7, "output_tokens": 2}, Usage(7, 2)),
        ({"completion_tokens": 2}, Usage(0, 2)),
        ({"total_tokens": 7}, Usage(7, 0)),
        (
            {"prompt_tokens": LARGEST, "completion_tokens": MOST_COMPLETION_TOKENS},
            Usage(LARGEST, MOST_COMPLETION_TOKENS),
        ),
    ],
)
def test_usage_of_all_protocols(told: dict[str, Any], usage: Usage) -> None:
    assert read_usage(told, request()) == usage


@pytest.mark.parametrize(
    "told",
    [
        None, [], "7", 7, {}, {"type": "duration", "seconds": 3}, {"prompt_tokens": "7"}, {"prompt_tokens": 7.0},
        {"prompt_tokens": True}, {"prompt_tokens": False}, {"prompt_tokens": 7, "completion_tokens": []},
        {"prompt_tokens": -1}, {"prompt_tokens": 7, "completion_tokens": -1}, {"prompt_tokens": LARGEST + 1},
        {"prompt_tokens": 7, "completion_tokens": MOST_COMPLETION_TOKENS + 1}, {"total_tokens": "7"},
        {"input_tokens": 7, "cache_read_input_tokens": "5"}, {"input_tokens": 7, "cache_read_input_tokens": True},
        {"input_tokens": 7, "cache_read_input_tokens": LARGEST}, {"input_tokens": 7, "cache_read_input_tokens": -8},
    ],
)  # fmt: skip
def test_what_is_no_usage_or_cannot_be_true(told: Any) -> None:
    assert read_usage(told, request()) is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"error": {"message": "full"}}, "full"),
        ({"error": "full"}, "full"),
        ({"object": "error", "message": "full"}, "full"),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "full"}}, "full"),
        ({"error": {"code": 5}}, "the engine reported an error"),
        ({"error": {"message": {"not": "text"}}}, "the engine reported an error"),
        ({"error": ["?"]}, "the engine reported an error"),
        ({"error": None}, None),
        ({"message": "hello"}, None),
    ],
)
def test_errors_with_a_good_status(data: dict[str, Any], message: str | None) -> None:
    assert error_in(data) == message
    if message is not None:
        assert message_of(data) == message


@pytest.mark.parametrize(
    ("answer", "size"),
    [
        ({"choices": [{"message": {"content": "four"}}, {"message": {"reasoning_content": "four"}}]}, 8),
        ({"choices": [{"text": "four"}]}, 4),
        ({"output": [{"type": "message", "content": [{"type": "output_text", "text": "four"}]}]}, 4),
        ({"output": [{"type": "reasoning", "content": [{"text": "four"}]}, {"content": [{"refusal": "four"}]}]}, 8),
        ({"content": [{"type": "text", "text": "four"}]}, len('[{"type": "text", "text": "four"}]')),
        ({"text": "four"}, 4),
        ({"output": "?", "choices": None}, 0),
        ({}, 0),
    ],
)
def test_text_of_plain_answers(answer: dict[str, Any], size: int) -> None:
    assert said_bytes(answer) == size


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
keys = st.sampled_from(["usage", "error", "message", "content", "choices", "output", "text", "total_tokens",
                        "prompt_tokens", "output_tokens", "cache_read_input_tokens"])  # fmt: skip


@given(st.dictionaries(keys, json_values | st.dictionaries(keys, json_values, max_size=3), max_size=4))
def test_nothing_that_is_reported_is_raised(data: dict[str, Any]) -> None:
    usage = read_usage(data, request())
    assert usage is None or (usage.prompt_tokens >= 0 and usage.completion_tokens >= 0)
    assert said_bytes(data) >= 0
    assert error_in(data) is None or isinstance(message_of(data), str)


@given(st.binary(max_size=60))
def test_bytes_are_an_object_or_none(data: bytes) -> None:
    found = object_of(data)
    assert found is None or (isinstance(found, dict) and is_json(data))
    last_usage(b'{"usage": {' + data)


def test_json_of_any_kind() -> None:
    assert all(map(is_json, (b"[1]", b" {}\n", b'"x"', bytearray(b"[]"))))
    assert not any(map(is_json, (b"", b"[1", b"\xff", b"[" * 100_000, b"{} {}")))
