"""What a request will need, from the sizes of what it says: rather too much than too little, and never more than was
asked for."""

from __future__ import annotations

import base64
import json
import os
import timeit
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.accounting.estimate import (
    ADDED_TOKENS,
    FIRST_MEAN_TOKENS,
    MEDIA_TOKENS,
    PROMPT_BYTES_PER_TOKEN,
    Estimate,
    Means,
    estimate,
)

DEFAULT = 1000
CHAT = "chat/completions"
PICTURE = "data:image/png;base64," + base64.b64encode(os.urandom(300_000)).decode()


def estimated(
    endpoint: str,
    body: dict[str, Any],
    most: int | None = None,
    choices: int = 1,
    context: int | None = None,
    uploads: int = 0,
) -> Estimate:
    raw = json.dumps(body).encode()
    fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    return estimate(endpoint, fields, len(raw), most, choices, default=DEFAULT, context=context, uploads=uploads)


def chat(content: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content}], **fields}


def tokens_of(*texts: Any) -> int:
    """Of what is said, as JSON."""
    return -(-sum(len(json.dumps(text)) for text in texts) // PROMPT_BYTES_PER_TOKEN)


# -- prompts -----------------------------------------------------------------------------------------------------------

TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize(
    ("endpoint", "body", "said"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "hi"}], "tools": TOOLS, "metadata": {"a": "x" * 99}},
         ("messages", "tools")),
        ("completions", {"prompt": "Once upon a time", "suffix": "the end", "user": "x" * 99}, ("prompt", "suffix")),
        ("embeddings", {"input": ["a text", "another"], "user": "x" * 99}, ("input",)),
        ("responses", {"input": "hi", "instructions": "Be kind.", "tools": TOOLS}, ("input", "instructions", "tools")),
        ("messages", {"messages": [{"role": "user", "content": "hi"}], "system": "Be kind."}, ("messages", "system")),
        ("rerank", {"query": "what?", "documents": ["a text"]}, ("query", "documents")),
        ("score", {"text_1": "what?", "text_2": "a text"}, ("text_1", "text_2")),
    ],
)  # fmt: skip
def test_a_prompt_is_what_its_model_reads(endpoint: str, body: dict[str, Any], said: tuple[str, ...]) -> None:
    found = estimated(endpoint, {"model": "m", **body})
    assert found.prompt == tokens_of(*[body[field] for field in said])
    size_bytes = len(json.dumps({"model": "m", **body}))
    assert found.most_prompt == size_bytes + ADDED_TOKENS, "at most a token a byte, whatever else it reads"


def test_of_a_task_all_may_be_read() -> None:
    body = {"model": "m", "sequence": "ACGT" * 100, "steps": 3}
    found = estimated("tasks/fold", body)
    assert (found.prompt, found.completion, found.given) == (-(-len(json.dumps(body)) // 3), 0, True)


def test_counting_tokens_uses_none() -> None:
    found = estimated("messages/count_tokens", chat("x" * 5000), 7)
    assert found == Estimate(0, 0, 0, given=True)


@given(st.text(max_size=300))
def test_no_text_has_more_tokens_than_bytes(text: str) -> None:
    found = estimated(CHAT, chat(text))
    assert found.most_prompt >= len(text.encode("utf-8", "surrogatepass"))
    assert found.prompt <= found.most_prompt


# -- media -------------------------------------------------------------------------------------------------------------

B64 = PICTURE.partition(",")[2]
MEDIA = [
    {"type": "image_url", "image_url": {"url": PICTURE}},
    {"type": "input_audio", "input_audio": {"data": B64, "format": "wav"}},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": B64}},
    {"type": "file", "file": {"filename": "a.pdf", "file_data": PICTURE}},
    {"type": "input_image", "image_url": PICTURE},
]


@pytest.mark.parametrize("part", MEDIA)
def test_a_picture_is_no_text(part: dict[str, Any]) -> None:
    text = {"type": "text", "text": "What is that? " * 300}
    with_picture = estimated(CHAT, chat([text, part, part]))
    without = estimated(CHAT, chat([text]))
    assert without.prompt < with_picture.prompt - 2 * MEDIA_TOKENS < without.prompt + 150
    assert without.most_prompt < with_picture.most_prompt - 2 * MEDIA_TOKENS < without.most_prompt + 400


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": f'"url": "{PICTURE}"'},
        {"prompt": "Wort" * 10_000},
        {"prompt": B64},
        {"prompt": "x", "tools": [{"data": B64}]},
    ],
)
def test_what_only_looks_like_one_is_text(body: dict[str, Any]) -> None:
    found = estimated("completions", {"model": "m", **body})
    assert found.prompt == tokens_of(body["prompt"])
    assert found.most_prompt >= len(json.dumps(body))


def test_nor_are_tools_looked_at_for_media() -> None:
    tools = [{"type": "function", "function": {"parameters": {"url": PICTURE}}}]
    assert estimated(CHAT, chat("hi", tools=tools)).prompt > len(PICTURE) / PROMPT_BYTES_PER_TOKEN


def test_uploads_are_media() -> None:
    body = {"model": "m", "file": None, "prompt": "Names: Ada, Ben."}
    found = estimated("audio/transcriptions", body, uploads=1)
    assert found.prompt == tokens_of(body["prompt"]) + MEDIA_TOKENS
    assert (found.completion, found.given) == (DEFAULT, False)


# -- pairs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "times"),
    [
        ({"query": "what?" * 100, "documents": ["a", "b", "c"]}, 3),
        ({"query": "what?" * 100, "documents": [{"text": "a"}]}, 1),
        ({"query": "what?" * 100, "documents": "a"}, 1),
        ({"query": "what?" * 100, "documents": []}, 1),
    ],
)
def test_a_query_is_read_with_each_document(body: dict[str, Any], times: int) -> None:
    found = estimated("rerank", {"model": "m", **body})
    assert found.prompt == tokens_of(*[body["query"]] * times, body["documents"])
    assert found.most_prompt >= len(json.dumps(body["query"])) * times


def test_lists_of_texts_are_read_in_pairs() -> None:
    found = estimated("score", {"model": "m", "text_1": ["a" * 99, "b" * 99], "text_2": ["c" * 99, "d" * 99]})
    assert found.prompt == tokens_of(["a" * 99, "b" * 99], ["c" * 99, "d" * 99])
    assert estimated("score", {"model": "m", "text_1": "a"}).prompt > 0


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "choices", "context", "completion", "given"),
    [
        (None, 1, None, DEFAULT, False),
        (None, 1, 100_000, DEFAULT, False),
        (None, 1, 500, 500 - ADDED_TOKENS - tokens_of([{"role": "user", "content": "hi"}]), False),
        (None, 1, 1, 1, False),
        (50, 1, None, 50, True),
        (5000, 1, None, 5000, True),
        (5000, 1, 4096, 4096, True),
        (None, 3, None, 3 * DEFAULT, False),
        (50, 3, None, 150, True),
    ],
)
def test_an_answer_is_as_long_as_is_asked_for_or_else_as_it_may_be(
    most: int | None, choices: int, context: int | None, completion: int, given: bool
) -> None:
    for endpoint, said in ((CHAT, "messages"), ("messages", "messages"), ("responses", "input")):
        body = {"model": "m", said: [{"role": "user", "content": "hi"}]}
        found = estimated(endpoint, body, most, choices, context)
        assert (found.completion, found.given, found.choices) == (completion, given, choices)
        assert found.tokens == found.prompt + completion


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a text", 1),
        (["a text"], 1),
        (["a", "b", "c"], 3),
        ([1, 2, 3], 1),
        ([[1, 2], [3]], 2),
        ([], 1),
        (None, 1),
        (7, 1),
    ],
)
def test_each_prompt_is_answered(prompt: Any, prompts: int) -> None:
    found = estimated("completions", {"model": "m", "prompt": prompt}, 10, 2)
    assert (found.completion, found.choices) == (10 * 2 * prompts, 2 * prompts)


def test_a_list_that_is_too_deep_is_the_engine_s_to_refuse() -> None:
    raw = b"[" * 100_000 + b"]" * 100_000
    fields = {"prompt": msgspec.Raw(raw)}
    assert estimate("completions", fields, len(raw), 1, 1, default=DEFAULT).choices == 1


def test_what_does_not_answer_in_words_needs_no_more_than_its_prompt() -> None:
    for endpoint, body in (
        ("embeddings", {"input": "x"}),
        ("rerank", {"query": "x", "documents": ["y"]}),
        ("tasks/fold", {"sequence": "x"}),
    ):
        found = estimated(endpoint, {"model": "m", **body})
        assert (found.completion, found.given) == (0, True)
    assert estimated("tasks/dream", {"model": "m"}, 9).completion == 9, "it says that it will"


# -- what models have been used for ------------------------------------------------------------------------------------


def test_who_waits_is_expected_to_need_what_others_needed() -> None:
    means = Means(["m", "other"])
    long, short = Estimate(100, 300, 8000, given=True), Estimate(100, 300, 20, given=True)
    assert means.expected("m", long) == 100 + FIRST_MEAN_TOKENS
    assert means.expected("m", short) == 120, "no more than it asks for"
    for _ in range(500):
        means.learn("m", 1000)
    assert 1080 <= means.expected("m", long) <= 1100
    assert means.expected("m", short) == 120
    assert means.expected("other", long) == 100 + FIRST_MEAN_TOKENS
    for _ in range(500):
        means.learn("m", 0)
    assert means.expected("m", long) <= 101
    assert means.expected("m", Estimate(0, 0, 0, given=True)) == 1


# -- what it costs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size_bytes", "most_us"), [(50, 200), (200_000, 2000)])
def test_it_is_no_second_reading(size_bytes: int, most_us: float) -> None:
    """In tenths of what a request of that size costs otherwise, on the slowest of machines."""
    raw = json.dumps(chat("some words " * (size_bytes // 11))).encode()
    fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    times = timeit.repeat(lambda: estimate(CHAT, fields, len(raw), None, 1, default=DEFAULT), number=20, repeat=5)
    assert min(times) / 20 * 1e6 < most_us
