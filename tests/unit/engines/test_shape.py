"""The short cut never takes an event for what it is not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.engines.shape import MOST_SHAPES, TokenShape

TEXTS = st.text(min_size=1, max_size=8) | st.sampled_from(
    ["stop", "c-1", "usage", "error", '"', "\\", "index", "a\nb", ":", ": ", ",", ", ", "{", "}", "content"]
)
LINE = b"\n\n"


def event(text: str, is_compact: bool = False, **more: object) -> bytes:
    separators = (",", ":") if is_compact else None
    value = {"id": "c-1", "choices": [{"delta": {"content": text}}], **more}
    return b"data: " + json.dumps(value, separators=separators).encode()


@given(TEXTS, TEXTS, st.booleans(), st.booleans())
def test_what_fits_is_the_same_but_for_its_text(learnt: str, text: str, is_ascii: bool, is_compact: bool) -> None:
    shape = TokenShape()
    shape.learn(event(learnt, is_compact), learnt)
    value = {"id": "c-1", "choices": [{"delta": {"content": text}}]}
    other = json.dumps(value, ensure_ascii=is_ascii, separators=(",", ":") if is_compact else None)
    if shape.fits(raw := b"data: " + other.encode("utf-8", "replace") + LINE):
        assert json.loads(raw[6:]) == value


@given(TEXTS, st.binary(max_size=12) | TEXTS.map(lambda text: text.encode("utf-8", "replace")), st.booleans())
def test_bytes_that_fit_are_json(learnt: str, middle: bytes, is_compact: bool) -> None:
    shape = TokenShape()
    shape.learn(event(learnt, is_compact), learnt)
    before, after = event("\0", is_compact).split(b"\\u0000")
    raw = before + middle + after + LINE
    if shape.fits(raw):
        assert json.loads(raw[6:])["choices"][0]["delta"]["content"] == middle.decode()


@given(st.lists(st.tuples(TEXTS, st.integers(0, 9)), max_size=12), st.binary(max_size=40), st.booleans())
def test_any_bytes_after_any_lessons(lessons: list[tuple[str, int]], raw: bytes, is_compact: bool) -> None:
    shape = TokenShape()
    for text, number in lessons:
        shape.learn(event(text, is_compact, number=number), text)
        assert not shape.fits(raw)
        assert not shape.fits(raw + LINE)


def test_it_fits_what_it_should() -> None:
    shape = TokenShape()
    assert not shape.fits(event("a") + LINE)
    shape.learn(event("a"), "a")
    assert shape.fits(event(" word") + LINE)
    assert shape.fits(event("ä").replace(b"\\u00e4", "ä".encode()) + LINE)
    for other in (event(""), event('say "x"'), event("a\nb"), event("a", usage={}), event("a") + b"\n", b"data: a"):
        assert not shape.fits(other + LINE)
    assert not shape.fits(event("a"))
    assert not shape.fits((event("a") + LINE) * 2)
    assert not shape.fits(LINE)
    assert not shape.fits(b"")


@pytest.mark.parametrize("text", ["c-1", "id", "content", ":", ",", '"', "\n"])
@pytest.mark.parametrize("is_compact", [True, False])
def test_a_text_of_which_the_place_is_not_certain_teaches_nothing(text: str, is_compact: bool) -> None:
    shape = TokenShape()
    shape.learn(event(text, is_compact), text)
    before, after = event("\0", is_compact).split(b"\\u0000")
    broken = before[:-1] + b"x" + after[1:]
    assert not shape.fits(broken + LINE)
    if is_compact or text not in ":,":
        assert not shape.fits(event("other", is_compact) + LINE)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_few_shapes_are_known_at_a_time(is_first: bool) -> None:
    """Those of the choices of a stream, in whatever order they come, and whichever stands first, text or index."""

    def choice(index: int, text: str) -> bytes:
        value = {"index": index, "text": text} if is_first else {"text": text, "index": index}
        return b"data: " + json.dumps(value).encode()

    shape = TokenShape()
    for index in range(MOST_SHAPES):
        shape.learn(choice(index, "a"), "a")
    for index in (0, 1, 2, 3, 3, 1, 0, 2, 0):
        assert shape.fits(choice(index, "other") + LINE)
    shape.learn(choice(9, "a"), "a")
    known = [index for index in range(MOST_SHAPES) if shape.fits(choice(index, "other") + LINE)]
    assert len(known) == MOST_SHAPES - 1
    assert shape.fits(choice(9, "other") + LINE)
