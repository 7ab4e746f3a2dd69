"""docs/howto/clients/anthropic-python.md."""

from __future__ import annotations

from clients.reader import WORDS, Reader


def test_with_a_real_model(at_real_model: Reader) -> None:
    assert at_real_model.follows("anthropic-python").splitlines()[-1].endswith(" tokens")
    assert set(at_real_model.used(4)) == {"messages", "messages/count_tokens"}


def test_word_by_word(at_known_words: Reader) -> None:
    *said, counted = at_known_words.follows("anthropic-python").splitlines()
    assert said == [
        WORDS,
        WORDS,
        "weather {'city': 'Chicago'}",
        "The tool says: It is sunny in Chicago.",
    ]
    assert counted.endswith(" tokens")
    assert at_known_words.used(4) == ["messages"] * 4
