"""The packaged embedding model in vLLM, and what vLLM offers with it: scores and rankings."""

from __future__ import annotations

import math

import openai
import pytest
from openai import BaseModel

QUERY = "What do cats eat?"
DOCUMENTS = ["The invoice is due in March.", "A cat likes fish and mice.", "Steel is made from iron."]


class Score(BaseModel):
    index: int
    score: float


class Counted(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Scores(BaseModel):
    model: str
    data: list[Score]
    usage: Counted


class Ranked(BaseModel):
    index: int
    relevance_score: float


class Ranking(BaseModel):
    model: str
    results: list[Ranked]
    usage: Counted


def test_vectors(client: openai.OpenAI) -> None:
    """The SDK asks for base64 unless told otherwise: both forms are the same vectors."""
    answer = client.embeddings.create(model="minilm", input=[QUERY, *DOCUMENTS])
    vectors = [item.embedding for item in answer.data]
    assert [item.index for item in answer.data] == [0, 1, 2, 3]
    assert {len(vector) for vector in vectors} == {384}
    for vector in vectors:
        assert math.hypot(*vector) == pytest.approx(1, abs=1e-3)
    likeness = [_dot(vectors[0], vector) for vector in vectors[1:]]
    assert likeness.index(max(likeness)) == 1
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 10
    [plain] = client.embeddings.create(model="minilm", input=QUERY, encoding_format="float").data
    assert plain.embedding == pytest.approx(vectors[0], abs=1e-3)


def test_a_text_that_is_too_long(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="minilm", input="word " * 4000)


def test_scores(client: openai.OpenAI) -> None:
    body = {"model": "minilm", "text_1": QUERY, "text_2": DOCUMENTS}
    answer = client.post("/score", cast_to=Scores, body=body)
    assert answer.model == "minilm"
    scores = [item.score for item in answer.data]
    assert scores.index(max(scores)) == 1
    assert answer.usage.prompt_tokens > 10


def test_a_ranking(client: openai.OpenAI) -> None:
    body = {"model": "minilm", "query": QUERY, "documents": DOCUMENTS, "top_n": 2}
    answer = client.post("/rerank", cast_to=Ranking, body=body)
    best, second = answer.results
    assert best.index == 1
    assert best.relevance_score > second.relevance_score
    assert answer.usage.prompt_tokens > 10


def _dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
