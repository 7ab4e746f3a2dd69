"""Events come out the same however their bytes come in."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.engines.sse import EventSplitter, EventTooLong, is_named_error, payload_of

PARTS = [b"data: a", b"x", b"\n", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r", b": c", b""]
PIECES = st.lists(st.sampled_from(PARTS), max_size=30)


def split_at(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def events_of(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    splitter = EventSplitter()
    events = [event for piece in pieces for event in splitter.feed(piece)]
    return events, splitter.rest


@given(PIECES, st.lists(st.integers(0, 1000), max_size=12))
def test_any_split_gives_the_same_events(pieces: list[bytes], cuts: list[int]) -> None:
    data = b"".join(pieces)
    whole, rest = events_of([data])
    assert events_of(split_at(data, cuts)) == (whole, rest)
    assert events_of([data[i : i + 1] for i in range(len(data))]) == (whole, rest)


@pytest.mark.parametrize(
    ("data", "events", "rest"),
    [
        (b"data: a\n\ndata: b\n\n", [b"data: a", b"data: b"], b""),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"data: a", b"data: b"], b""),
        (b"data: a\n\r\ndata: b\r\n\n", [b"data: a", b"data: b"], b""),
        (b"\n\n\ndata: a\n\n\n\ndata: b\n\n\n", [b"data: a", b"data: b"], b""),
        (b"data: a\r\rdata: b\r\n\rdata: c\n\rdata: d\n", [b"data: a", b"data: b", b"data: c"], b"data: d\n"),
        (b": ping\rdata: [DONE]\n\n", [b": ping\ndata: [DONE]"], b""),
        (b"event: x\r\ndata: a\r\n\r\ndata: b", [b"event: x\ndata: a"], b"data: b"),
        (b"", [], b""),
    ],
)
def test_events(data: bytes, events: list[bytes], rest: bytes) -> None:
    assert events_of([data]) == (events, rest)


def test_an_endless_event_is_refused() -> None:
    splitter = EventSplitter(limit_bytes=100)
    splitter.feed(b"data: " + b"x" * 90)
    with pytest.raises(EventTooLong):
        splitter.feed(b"x" * 10)


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        (b"data: {}", b"{}"),
        (b"data:{}", b"{}"),
        (b"data", None),
        (b": ping", None),
        (b"event: ping", None),
        (b"event: x\ndata: 1\nid: 7\ndata: 2", b"1\n2"),
        (b"data:", b""),
        (b"\xef\xbb\xbfdata: {}", b"{}"),
    ],
)
def test_payload(event: bytes, payload: bytes | None) -> None:
    assert payload_of(event) == payload


def test_named_errors() -> None:
    assert is_named_error(b"event: error\ndata: {}")
    assert is_named_error(b"data: {}\nevent:error")
    assert not is_named_error(b"event: errors\ndata: error")
    assert not is_named_error(b"data: event: error")
