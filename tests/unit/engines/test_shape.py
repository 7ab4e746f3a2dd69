"""The short cut never takes an event for what it is not."""

import json

from hypothesis import given
from hypothesis import strategies as st

from firstkit.engines.shape import TokenShape

TEXTS = st.text(min_size=1, max_size=8) | st.sampled_from(["stop", "c-1", "usage", "error", '"', "\\", "index", "a\nb"])


def event(text: str, **more: object) -> bytes:
    return b"data: " + json.dumps({"id": "c-1", "choices": [{"delta": {"content": text}}], **more}).encode()


@given(TEXTS, TEXTS, st.booleans())
def test_what_fits_is_the_same_but_for_its_text(learnt: str, text: str, is_ascii: bool) -> None:
    shape = TokenShape()
    shape.learn(event(learnt), learnt)
    other = json.dumps({"id": "c-1", "choices": [{"delta": {"content": text}}]}, ensure_ascii=is_ascii)
    if shape.fits(raw := b"data: " + other.encode()):
        assert json.loads(raw[6:]) == {"id": "c-1", "choices": [{"delta": {"content": text}}]}


@given(TEXTS, st.binary(max_size=12))
def test_bytes_that_fit_are_json(learnt: str, middle: bytes) -> None:
    shape = TokenShape()
    shape.learn(event(learnt), learnt)
    raw = b'data: {"id": "c-1", "choices": [{"delta": {"content": "' + middle + b'"}}]}'
    if shape.fits(raw):
        assert json.loads(raw[6:])["choices"][0]["delta"]["content"] == middle.decode()


def test_it_fits_what_it_should() -> None:
    shape = TokenShape()
    assert not shape.fits(event("a"))
    shape.learn(event("a"), "a")
    assert shape.fits(event(" word"))
    assert shape.fits(event("ä").replace(b"\\u00e4", "ä".encode()))
    for other in (event(""), event('say "x"'), event("a\nb"), event("a", usage={}), event("a") + b"\n", b"data: a"):
        assert not shape.fits(other)
    shape.learn(event("c-1"), "c-1")
    assert not shape.fits(event("d")), "a text that stands in the event twice teaches nothing"
