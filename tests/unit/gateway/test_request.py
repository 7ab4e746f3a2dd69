"""The guard, the type and the memory of a request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.errors import (
    AtCapacity,
    HeadersTooLarge,
    InvalidRequest,
    TooLarge,
    UnsupportedMediaType,
)
from firstkit.gateway.request import (
    FULL_RETRY_S,
    MAX_BODY_BYTES,
    BodyMemory,
    RequestHead,
    expects_json,
    guard,
)

HOST = (b"host", b"first.example.org:8000")


def head(*headers: tuple[bytes, bytes]) -> RequestHead:
    return RequestHead("GET", "/v1/models", list(headers))


@pytest.mark.parametrize("host", [b"localhost", b"127.0.0.1:8000", b"[::1]:8000", b"a-b.example"])
def test_one_valid_host_passes(host: bytes) -> None:
    guard(head((b"host", host)))


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (HOST, HOST),
        ((b"host", b"localhost/x?"),),
        ((b"host", b"a b"),),
        ((b"host", b""),),
        (HOST, (b"content-length", b"1"), (b"content-length", b"1")),
        (HOST, (b"content-length", b"1"), (b"transfer-encoding", b"chunked")),
        (HOST, (b"content-encoding", b"gzip")),
    ],
)
def test_what_parsers_disagree_about_is_refused(headers: tuple[tuple[bytes, bytes], ...]) -> None:
    with pytest.raises(InvalidRequest):
        guard(head(*headers))


def test_headers_are_bounded_in_number_and_size() -> None:
    with pytest.raises(HeadersTooLarge):
        guard(head(HOST, *[(b"x", b"y")] * 100))
    with pytest.raises(HeadersTooLarge):
        guard(head(HOST, (b"x", b"y" * 32 * 1024)))
    guard(head(HOST, *[(b"x", b"y")] * 99))


def test_a_header_may_stand_once() -> None:
    found = head((b"x", b" a "), (b"y", b"1"), (b"y", b"2"))
    assert (found.get(b"x"), found.get(b"z")) == ("a", None)
    assert (found.values(b"x"), found.values(b"y"), found.values(b"z")) == ([b" a "], [b"1", b"2"], [])
    with pytest.raises(InvalidRequest) as caught:
        found.get(b"y")
    assert caught.value.param == "y"


@pytest.mark.parametrize("kind", [b"application/json", b"Application/JSON", b" application/json ; charset=utf-8"])
def test_a_body_that_is_json(kind: bytes) -> None:
    expects_json(head((b"content-type", kind)))


@pytest.mark.parametrize("kind", [None, b"", b"text/plain", b"application/json5", b"multipart/form-data; x=json"])
def test_a_body_that_is_not(kind: bytes | None) -> None:
    with pytest.raises(UnsupportedMediaType):
        expects_json(head(*([] if kind is None else [(b"content-type", kind)])))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60)), max_size=60))
def test_memory_for_bodies_is_never_more_than_there_is(steps: list[tuple[int, int]]) -> None:
    """Four requests take more (from 30 on) or give all back."""
    memory = BodyMemory(100)
    held = [0] * 4
    for who, size in steps:
        if size < 30:
            memory.give_back(held[who])
            held[who] = 0
            continue
        try:
            memory.take(held[who], size)
        except AtCapacity as error:
            assert sum(held) + size > 100
            assert error.retry_after_s == FULL_RETRY_S
        else:
            held[who] += size
            assert sum(held) <= 100


def test_one_request_has_its_own_limit() -> None:
    memory = BodyMemory()
    memory.take(0, MAX_BODY_BYTES)
    with pytest.raises(TooLarge):
        memory.take(MAX_BODY_BYTES, 1)
    memory.take(0, 1)
