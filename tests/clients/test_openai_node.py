"""docs/howto/clients/openai-node.md."""

from __future__ import annotations

from clients.reader import WORDS, Reader

USES = ["chat/completions"] * 3 + ["embeddings", "responses"]


def test_with_a_real_model(at_real_model: Reader, node: None) -> None:
    assert "2 vectors" in at_real_model.follows("openai-node", "javascript")
    assert at_real_model.used(len(USES)) == USES


def test_word_by_word(at_known_words: Reader, node: None) -> None:
    assert at_known_words.follows("openai-node", "javascript").splitlines() == [
        WORDS,
        WORDS,
        'weather {"city": "Chicago"}',
        WORDS,
        "2 vectors",
    ]
    assert at_known_words.used(len(USES)) == USES
