"""docs/howto/clients/openai-python.md."""

from __future__ import annotations

from clients.reader import WORDS, Reader

USES = ["chat/completions"] * 4 + ["embeddings"] + ["responses"] * 2


def test_with_a_real_model(at_real_model: Reader) -> None:
    assert "2 vectors" in at_real_model.follows("openai-python")
    assert at_real_model.used(len(USES)) == USES


def test_word_by_word(at_known_words: Reader) -> None:
    assert at_known_words.follows("openai-python").splitlines() == [
        WORDS,
        WORDS,
        'weather {"city": "Chicago"}',
        "name='Chicago' inhabitants=3",
        "2 vectors",
        WORDS,
        WORDS,
    ]
    assert at_known_words.used(len(USES)) == USES
