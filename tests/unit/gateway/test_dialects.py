"""What FIRST itself says in each protocol: to its clients' own packages where that can be shown."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from anthropic.types import ThreadUnsupportedRequestErrorDetails

from firstkit.errors import (
    ApiError,
    ClusterNotFound,
    ClusterUnderMaintenance,
    EngineFailed,
    EngineTimeout,
    Forbidden,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    ModelNotReady,
    NotFound,
    Overloaded,
    RateLimited,
    RequestTimeout,
    StoreUnavailable,
    TooLarge,
    Unauthenticated,
    UnsupportedFramework,
)
from firstkit.gateway.dialects import CHUNKS, MESSAGES, OLDER, OLDER_MESSAGES, OLDER_RESPONSES, RESPONSES, Dialect

ALL = {
    "chunks": CHUNKS,
    "responses": RESPONSES,
    "messages": MESSAGES,
    "older": OLDER,
    "older responses": OLDER_RESPONSES,
    "older messages": OLDER_MESSAGES,
}
EACH = pytest.mark.parametrize("dialect", ALL.values(), ids=ALL)
EACH_OF_OPENAI = pytest.mark.parametrize("dialect", [CHUNKS, OLDER])
NOT_READY = ModelNotReady(
    "The model 'm' is not running yet.", retry_after_s=9, details={"status": "queued", "eta_s": 9}
)


def events(said: bytes) -> list[dict[str, Any] | str]:
    """The data of events."""
    data = [line[6:] for line in said.decode().splitlines() if line.startswith("data: ")]
    return [text if text == "[DONE]" else json.loads(text) for text in data]


def answering(body: bytes, status: int = 200, kind: str = "text/event-stream") -> httpx2.MockTransport:
    return httpx2.MockTransport(lambda _: httpx2.Response(status, content=body, headers={"content-type": kind}))


def openai_client(transport: httpx2.MockTransport) -> openai.OpenAI:
    client = httpx2.Client(transport=transport)
    return openai.OpenAI(base_url="http://x/v1", api_key="key", max_retries=0, http_client=client)


def anthropic_client(transport: httpx2.MockTransport) -> anthropic.Anthropic:
    client = httpx2.Client(transport=transport)
    return anthropic.Anthropic(base_url="http://x", api_key="key", max_retries=0, http_client=client)


# -- signs of life -----------------------------------------------------------------------------------------------------


@EACH
def test_a_sign_of_life_has_words_for_people(dialect: Dialect) -> None:
    said = dialect.waiting("position=1").decode()
    assert said.startswith(": position=1\n")
    assert said.endswith("\n\n")
    assert [event for event in events(said.encode()) if event != {"type": "ping"}] == []


# -- errors in the middle of a stream ----------------------------------------------------------------------------------


@EACH_OF_OPENAI
def test_the_openai_package_raises_on_an_error_in_a_stream_of_chunks(dialect: Dialect) -> None:
    chunk = b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[]}\n\n'
    said = dialect.waiting("working") + chunk + dialect.error_event(EngineFailed("The engine failed."), "req-1")
    with openai_client(answering(said)) as client:
        stream = client.chat.completions.create(model="m", messages=[], stream=True)
        assert next(stream).id == "1"
        with pytest.raises(openai.APIError, match=r"The engine failed\.") as raised:
            next(stream)
    assert raised.value.type == "server_error"


@pytest.mark.parametrize("dialect", [RESPONSES, OLDER_RESPONSES])
def test_the_openai_package_raises_on_an_error_in_a_response(dialect: Dialect) -> None:
    said = dialect.waiting("working") + dialect.error_event(EngineFailed("The engine failed."), "req-1")
    with openai_client(answering(said)) as client:
        stream = client.responses.create(model="m", input="hi", stream=True)
        with pytest.raises(openai.APIError, match=r"The engine failed\."):
            list(stream)


@pytest.mark.parametrize("dialect", [MESSAGES, OLDER_MESSAGES])
def test_the_anthropic_package_raises_on_an_error_in_a_message(dialect: Dialect) -> None:
    """It passes over events without a name, so that an error in another form would be a silent end."""
    said = dialect.waiting("working") + dialect.error_event(EngineFailed("The engine failed."), "req-1")
    with anthropic_client(answering(said)) as client:
        stream = client.messages.create(model="m", max_tokens=1, messages=[], stream=True)
        with pytest.raises(anthropic.APIStatusError, match=r"The engine failed\."):
            list(stream)


def test_clients_of_the_older_service_get_both_forms_and_the_end_that_they_wait_for() -> None:
    data, done = events(OLDER.error_event(EngineTimeout(), "req-1"))
    assert done == "[DONE]"
    assert isinstance(data, dict)
    assert (data["object"], data["type"], data["code"]) == ("error", "StreamingTimeoutError", 504)
    assert data["message"] == data["error"]["message"] == "The engine sent nothing for too long."
    assert events(OLDER.error_event(EngineFailed(), "req-1"))[0]["type"] == "InternalServerError"  # type: ignore[index]


@EACH
def test_no_other_error_ends_as_a_good_stream_does(dialect: Dialect) -> None:
    said = dialect.error_event(EngineFailed(), "req-1")
    assert said.endswith(b"\n\n")
    if dialect is not OLDER and dialect.done:
        assert dialect.done not in said


# -- statuses and codes that the older service had ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Unauthenticated(), 401, "unauthorized"),
        (Forbidden(), 401, "unauthorized"),
        (ClusterNotFound(), 404, "cluster_not_found"),
        (ClusterNotFound("not there", param="model"), 404, "endpoint_not_found"),
        (ModelNotFound(), 404, "endpoint_not_found"),
        (NotFound(), 404, "not_found"),
        (NotFound(code="batch_not_found"), 404, "batch_not_found"),
        (MethodNotAllowed(), 405, "method_not_allowed"),
        (UnsupportedFramework(), 400, "unsupported_framework"),
        (InvalidRequest(code="unsupported_endpoint"), 400, "unsupported_endpoint"),
        (InvalidRequest(code="batch_unavailable"), 400, "batch_unavailable"),
        (InvalidRequest(code="engine_refused"), 400, "engine_refused"),
        (TooLarge(code="engine_refused"), 413, "engine_refused"),
        (TooLarge(), 413, "request_too_large"),
        (InvalidRequest(), 422, "invalid_request"),
        (InvalidRequest(code="invalid_json"), 422, "invalid_request"),
        (RequestTimeout(), 408, "request_timeout"),
        (RateLimited(), 429, "too_many_requests"),
        (Overloaded(), 429, "too_many_requests"),
        (ApiError(), 500, "internal_error"),
        (EngineFailed(), 502, "internal_endpoint_error"),
        (NOT_READY, 503, "internal_endpoint_error"),
        (StoreUnavailable(), 503, "internal_endpoint_error"),
        (ClusterUnderMaintenance(), 503, "cluster_under_maintenance"),
        (EngineTimeout(), 504, "internal_endpoint_error"),
    ],
    ids=lambda value: getattr(value, "code", str(value)),
)
@pytest.mark.parametrize("dialect", [OLDER, OLDER_RESPONSES, OLDER_MESSAGES])
def test_what_older_clients_know(dialect: Dialect, error: ApiError, status: int, code: str) -> None:
    assert dialect.status(error) == status
    said = dialect.error(error, "req-1")["error"]
    assert (said["code"], said["message"], said["param"]) == (code, error.message, error.param)
    assert said["info"].get("code", code) == error.code, "ours is not lost"


@pytest.mark.parametrize("dialect", [CHUNKS, RESPONSES, MESSAGES])
def test_nobody_else_is_told_another_status(dialect: Dialect) -> None:
    for error in (Forbidden(), InvalidRequest(), ModelNotReady()):
        assert dialect.status(error) == error.status
        assert dialect.error(error, "req-1")["error"]["code"] == error.code


def test_what_is_known_of_an_error_is_its_info() -> None:
    said = OLDER.error(NOT_READY, "req-1")
    assert said == {
        "error": {
            "code": "internal_endpoint_error",
            "message": "The model 'm' is not running yet.",
            "info": {"status": "queued", "eta_s": 9, "code": "model_not_ready"},
            "type": "server_error",
            "param": None,
        }
    }


def test_what_is_wrong_with_a_request() -> None:
    info = OLDER.error(InvalidRequest("'n' must be at least 1.", param="n"), "req-1")["error"]["info"]
    assert info == {"errors": [{"field": "n", "message": "'n' must be at least 1.", "type": "invalid_request"}]}


def test_a_message_of_the_older_service_is_one_of_anthropic_too() -> None:
    said = OLDER_MESSAGES.error(NOT_READY, "req-1")
    assert (said["type"], said["request_id"], said["error"]["type"]) == ("error", "req-1", "overloaded_error")


@EACH_OF_OPENAI
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (Unauthenticated(), openai.AuthenticationError),
        (ModelNotFound(), openai.NotFoundError),
        (RateLimited(), openai.RateLimitError),
        (NOT_READY, openai.InternalServerError),
    ],
    ids=lambda value: getattr(value, "code", ""),
)
def test_errors_that_the_openai_package_knows(
    dialect: Dialect, error: ApiError, raised: type[openai.APIStatusError]
) -> None:
    body = json.dumps(dialect.error(error, "req-1")).encode()
    with (
        openai_client(answering(body, dialect.status(error), "application/json")) as client,
        pytest.raises(raised) as told,
    ):
        client.chat.completions.create(model="m", messages=[])
    assert told.value.code == dialect.error(error, "req-1")["error"]["code"]
    assert told.value.type == error.type
    assert error.message in str(told.value)


@pytest.mark.parametrize("dialect", [MESSAGES, OLDER_MESSAGES])
@pytest.mark.parametrize(
    ("error", "raised", "kind"),
    [
        (Unauthenticated(), anthropic.AuthenticationError, "authentication_error"),
        (ModelNotFound(), anthropic.NotFoundError, "not_found_error"),
        (RateLimited(), anthropic.RateLimitError, "rate_limit_error"),
        (EngineFailed(), anthropic.InternalServerError, "api_error"),
    ],
    ids=lambda value: getattr(value, "code", ""),
)
def test_errors_that_the_anthropic_package_knows(
    dialect: Dialect, error: ApiError, raised: type[anthropic.APIStatusError], kind: str
) -> None:
    body = json.dumps(dialect.error(error, "req-1")).encode()
    with (
        anthropic_client(answering(body, dialect.status(error), "application/json")) as client,
        pytest.raises(raised) as told,
    ):
        client.messages.create(model="m", max_tokens=1, messages=[])
    said: Any = told.value.body
    assert (said["type"], said["error"]["type"], said["request_id"]) == ("error", kind, "req-1")


def test_who_asks_for_a_thread_learns_in_the_words_of_the_package_that_there_are_none() -> None:
    said = MESSAGES.error(InvalidRequest("'thread' is not accepted.", param="thread"), "req-1")
    assert ThreadUnsupportedRequestErrorDetails.model_validate(said["error"]["details"])
    assert "details" not in MESSAGES.error(InvalidRequest("'n' is not accepted.", param="n"), "req-1")["error"]
