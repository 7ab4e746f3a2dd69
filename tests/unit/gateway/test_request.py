"""The guard and the key of a request."""

from __future__ import annotations

import base64

import pytest

from firstkit.errors import ApiError, HeadersTooLarge, InvalidRequest, Unauthenticated
from firstkit.gateway.request import RequestHead, api_key, guard

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


def test_the_key_comes_by_one_of_three_doors() -> None:
    basic = base64.b64encode(b"anybody:secret")
    assert api_key(head((b"authorization", b"Bearer secret"))) == "secret"
    assert api_key(head((b"authorization", b"bearer  secret"))) == "secret"
    assert api_key(head((b"x-api-key", b"secret"))) == "secret"
    assert api_key(head((b"authorization", b"Basic " + basic))) == "secret"


@pytest.mark.parametrize("value", [b"", b"secret", b"Basic !!", b"Basic " + base64.b64encode(b"\xff"), b"Digest x"])
def test_other_credentials_are_none(value: bytes) -> None:
    with pytest.raises(Unauthenticated):
        api_key(head((b"authorization", value)))


def test_two_keys_are_one_too_many() -> None:
    with pytest.raises(ApiError) as caught:
        api_key(head((b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")))
    assert caught.value.status == 400
