"""docs/howto/clients/litellm.md."""

from __future__ import annotations

from clients.reader import WORDS, Reader

USES = ["chat/completions"] * 2 + ["embeddings", "responses"]


def test_with_a_real_model(at_real_model: Reader) -> None:
    assert "2 vectors" in at_real_model.follows("litellm")
    assert at_real_model.used(len(USES)) == USES


def test_word_by_word(at_known_words: Reader) -> None:
    assert at_known_words.follows("litellm").splitlines() == [WORDS, WORDS, WORDS, "2 vectors"]
    assert at_known_words.used(len(USES)) == USES
