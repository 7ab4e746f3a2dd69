"""docs/howto/clients/llama-index.md."""

from __future__ import annotations

from clients.reader import WORDS, Reader

USES = ["chat/completions"] * 2 + ["embeddings"]


def test_with_a_real_model(at_real_model: Reader) -> None:
    assert "2 vectors" in at_real_model.follows("llama-index")
    assert at_real_model.used(len(USES)) == USES


def test_word_by_word(at_known_words: Reader) -> None:
    assert at_known_words.follows("llama-index").splitlines() == [WORDS, WORDS, "2 vectors"]
    assert at_known_words.used(len(USES)) == USES
