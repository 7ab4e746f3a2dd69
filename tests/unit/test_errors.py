"""Errors: one shape for clients, a status and a code each, a sentence from the docstring."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from firstkit import errors
from firstkit.errors import (
    ApiError,
    AtCapacity,
    FirstError,
    HttpVersionRefused,
    InvalidRequest,
    ModelNotReady,
    NotFound,
    Overloaded,
)


def below(kind: type[FirstError]) -> Iterator[type[FirstError]]:
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from below(child)


ALL = sorted(set(below(FirstError)), key=lambda kind: kind.__name__)
FOR_CLIENTS = [kind for kind in ALL if issubclass(kind, ApiError)]


@pytest.mark.parametrize("kind", ALL)
def test_the_docstring_is_the_message(kind: type[FirstError]) -> None:
    error = kind()
    assert str(error) == error.message == (kind.__doc__ or "").splitlines()[0].strip()
    assert error.message.endswith(".") or ":" in error.message
    assert str(kind("Something else.")) == "Something else."


@pytest.mark.parametrize("kind", FOR_CLIENTS)
def test_clients_get_the_shape_of_openai(kind: type[ApiError]) -> None:
    error = json.loads(json.dumps(kind().body()))["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert re.fullmatch(r"[a-z_]+", error["code"])
    assert error["param"] is None
    is_our_fault = kind.status >= 500 and kind is not HttpVersionRefused
    assert is_our_fault == (error["type"] == "server_error")
    assert 400 <= kind.status < 600


def test_one_status_has_one_type_but_for_the_plain_mistakes() -> None:
    types = {kind.status: kind.type for kind in FOR_CLIENTS}
    assert types[401] == "authentication_error"
    assert types[403] == "permission_error"
    assert types[404] == "not_found_error"
    assert types[429] == "rate_limit_error"
    assert types[505] == "invalid_request_error"
    assert {types[status] for status in types if 500 <= status < 505} == {"server_error"}


def test_no_two_kinds_share_a_code() -> None:
    """But one: a model's line and the gateway are overloaded in two ways, and clients do the same about it."""
    codes = [kind.code for kind in FOR_CLIENTS if kind is not AtCapacity]
    assert len(codes) == len(set(codes))
    assert (AtCapacity.code, AtCapacity.status, Overloaded.status) == (Overloaded.code, 503, 429)


def test_trying_again_helps_only_where_the_request_was_right() -> None:
    again = {kind.status for kind in FOR_CLIENTS if kind.retryable}
    assert again == {408, 429, 502, 503, 504}


def test_param_code_and_details() -> None:
    error = InvalidRequest("No.", param="n", code="unsupported_field", details={"eta_s": 3})
    assert error.body() == {
        "error": {
            "message": "No.",
            "type": "invalid_request_error",
            "param": "n",
            "code": "unsupported_field",
            "eta_s": 3,
        }
    }
    assert InvalidRequest().code == "invalid_request", "a code of one error is not that of all"
    assert NotFound().details == ModelNotReady().details == {}
