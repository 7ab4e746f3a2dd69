"""docs/howto/clients/langchain.md."""

from __future__ import annotations

from clients.reader import WORDS, Reader

USES = ["chat/completions"] * 3 + ["embeddings"]


def test_with_a_real_model(at_real_model: Reader) -> None:
    assert "2 vectors" in at_real_model.follows("langchain")
    assert at_real_model.used(len(USES)) == USES


def test_word_by_word(at_known_words: Reader) -> None:
    said = at_known_words.follows("langchain").splitlines()
    assert said == [WORDS, WORDS, "It is sunny in Chicago.", "2 vectors"]
    assert at_known_words.used(len(USES)) == USES
