"""How long an answer may be: what counts is what its engine reads, and what we say goes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from firstkit.errors import InvalidRequest
from firstkit.gateway.apis import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES_API, RESPONSES_API, Api, task
from firstkit.gateway.call import parse_body
from firstkit.gateway.lengths import length_of, limit_answer

TASK = task("tasks/fold")


@pytest.mark.parametrize(
    ("fields", "most", "choices"),
    [
        (b"", None, 1),
        (b', "max_tokens": null, "n": null', None, 1),
        (b', "max_tokens": 7', 7, 1),
        (b', "max_completion_tokens": 9', 9, 1),
        (b', "max_output_tokens": 9', None, 1),
        (b', "max_tokens": 7, "max_completion_tokens": 9', 9, 1),
        (b', "n": 3', None, 3),
        (b', "n": 2, "best_of": 5, "max_tokens": 1', 1, 5),
        (b', "max_tokens": 9223372036854775807, "n": 123456789012345678901234567890', 10_000_000, 10_000_000),
    ],
)
def test_how_long_an_answer_is_asked_for(fields: bytes, most: int | None, choices: int) -> None:
    assert length_of(parse_body(b'{"model": "m"%b}' % fields), CHAT) == (most, choices)


@pytest.mark.parametrize(
    ("api", "fields"),
    [
        (CHAT, {"max_tokens", "max_completion_tokens"}),
        (COMPLETIONS, {"max_tokens"}),
        (RESPONSES_API, {"max_output_tokens"}),
        (MESSAGES_API, {"max_tokens"}),
        (TASK, {"max_tokens", "max_completion_tokens", "max_output_tokens"}),
    ],
)
def test_what_says_how_long_it_may_be_is_what_the_engine_reads(api: Api, fields: set[str]) -> None:
    """Else who says it in the words of another protocol would be taken to need less than they get."""
    for field in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        assert length_of(parse_body(b'{"%b": 9}' % field.encode()), api) == (9 if field in fields else None, 1)


@pytest.mark.parametrize(
    ("api", "said", "left"),
    [
        (CHAT, {}, {"max_tokens": 20}),
        (CHAT, {"max_tokens": 7}, {"max_tokens": 7}),
        (CHAT, {"max_tokens": 70}, {"max_tokens": 20}),
        (CHAT, {"max_tokens": None}, {"max_tokens": 20}),
        (CHAT, {"max_completion_tokens": 70}, {"max_completion_tokens": 20}),
        (CHAT, {"max_completion_tokens": 7, "max_tokens": 70}, {"max_completion_tokens": 7, "max_tokens": 20}),
        (CHAT, {"max_output_tokens": 1}, {"max_tokens": 20, "max_output_tokens": 1}),
        (CHAT, {"n_predict": -1, "max_new_tokens": 9, "max_tokens": 7}, {"max_tokens": 7}),
        (COMPLETIONS, {"max_completion_tokens": 1}, {"max_tokens": 20, "max_completion_tokens": 1}),
        (RESPONSES_API, {}, {"max_output_tokens": 20}),
        (RESPONSES_API, {"max_tokens": 1}, {"max_output_tokens": 20, "max_tokens": 1}),
        (MESSAGES_API, {"max_tokens": 21}, {"max_tokens": 20}),
        (EMBEDDINGS, {}, {}),
        (TASK, {}, {}),
        (TASK, {"max_tokens": 70}, {"max_tokens": 20}),
    ],
)
def test_an_answer_may_be_limited(api: Api, said: dict[str, Any], left: dict[str, Any]) -> None:
    body = parse_body(json.dumps({"model": "m", **said}).encode())
    limit_answer(body, api, 20)
    assert json.loads(msgspec.json.encode(body)) == {"model": "m", **left}


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", '"7"', "true", "1e999", "[]"])
def test_a_length_is_a_whole_number(field: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        length_of(parse_body(f'{{"{field}": {value}}}'.encode()), CHAT)
    assert caught.value.param == field
