"""How the protocols of clients differ where it is FIRST that speaks: errors, signs of life, the end of a stream."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

from firstkit.errors import ApiError
from firstkit.translation.messages_answer import STOP


class Dialect(Protocol):
    """One protocol."""

    @property
    def done(self) -> bytes:
        """The good end of a stream, where the engine's last event is not that."""

    def id_lines(self, request_id: bytes) -> bytes:
        """The header lines that name a request."""

    def status(self, error: ApiError) -> int:
        """The HTTP status of an error."""

    def error(self, error: ApiError, request_id: str) -> dict[str, Any]:
        """The body of an error."""

    def error_event(self, error: ApiError, request_id: str) -> bytes:
        """An error in a stream, which ends it: clients raise on it."""

    def waiting(self, text: str) -> bytes:
        """A sign of life, which clients pass over, with words for people."""


@dataclass(frozen=True)
class Chunks:
    """Completions of OpenAI."""

    done: bytes = b"data: [DONE]\n\n"

    def id_lines(self, request_id: bytes) -> bytes:
        return b"x-request-id: %b\r\n" % request_id

    def status(self, error: ApiError) -> int:
        return error.status

    def error(self, error: ApiError, request_id: str) -> dict[str, Any]:  # noqa: ARG002
        return error.body()

    def error_event(self, error: ApiError, request_id: str) -> bytes:
        return b"data: %b\n\n" % json.dumps(self.error(error, request_id)).encode()

    def waiting(self, text: str) -> bytes:
        return f": {text}\n\n".encode()


class Responses(Chunks):
    """Responses of OpenAI. The error event has the form of its protocol and, beside it, the ``error`` on which the SDKs
    raise."""

    def __init__(self) -> None:
        super().__init__(done=b"")

    def error_event(self, error: ApiError, request_id: str) -> bytes:
        said = {"type": "error", "sequence_number": 0, "code": error.code, "message": error.message}
        data = {**said, "param": error.param, **self.error(error, request_id)}
        return b"event: error\ndata: %b\n\n" % json.dumps(data).encode()


_MESSAGE_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""https://docs.anthropic.com/en/api/errors"""
_NO_THREADS = {"error_code": "thread_unsupported_request"}
"""By this Anthropic's packages go on with the whole conversation in each request."""


class Messages:
    """Messages of Anthropic."""

    done = STOP

    def id_lines(self, request_id: bytes) -> bytes:
        """Also by the name that Anthropic's packages know."""
        return b"x-request-id: %b\r\nrequest-id: %b\r\n" % (request_id, request_id)

    def status(self, error: ApiError) -> int:
        return error.status

    def error(self, error: ApiError, request_id: str) -> dict[str, Any]:
        kind = _MESSAGE_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
        said = {"type": kind, "message": error.message, "param": error.param, "code": error.code, **error.details}
        if error.param == "thread":
            said["details"] = _NO_THREADS
        return {"type": "error", "error": said, "request_id": request_id}

    def error_event(self, error: ApiError, request_id: str) -> bytes:
        return b"event: error\ndata: %b\n\n" % json.dumps(self.error(error, request_id)).encode()

    def waiting(self, text: str) -> bytes:
        """With the words as a comment: of a ping clients know only the type."""
        return f': {text}\nevent: ping\ndata: {{"type":"ping"}}\n\n'.encode()


_AS_OLDER = {
    400: (422, "invalid_request"),
    401: (401, "unauthorized"),
    403: (401, "unauthorized"),
    429: (429, "too_many_requests"),
    502: (502, "internal_endpoint_error"),
    503: (503, "internal_endpoint_error"),
    504: (504, "internal_endpoint_error"),
}
"""By our status: the status and code that clients of the older service know for the same."""
_SAME = frozenset(
    (
        "batch_unavailable",
        "cluster_under_maintenance",
        "engine_refused",
        "unsupported_endpoint",
        "unsupported_framework",
    )
)
"""Codes that they know, or may learn."""


class Older:
    """A protocol as the service spoke it that had this name before: errors have its statuses and codes, and ``info``.
    What the protocol itself says of an error is there too."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self.done = dialect.done

    def id_lines(self, request_id: bytes) -> bytes:
        return self._dialect.id_lines(request_id)

    def status(self, error: ApiError) -> int:
        return self._known(error)[0]

    def error(self, error: ApiError, request_id: str) -> dict[str, Any]:
        code, usual = self._known(error)[1], self._dialect.error(error, request_id)
        info = dict(error.details)
        if code != error.code:
            info["code"] = error.code
        if code == "invalid_request":
            info["errors"] = [{"field": error.param, "message": error.message, "type": error.code}]
        said = {"code": code, "message": error.message, "info": info}
        return {**usual, "error": {**said, "type": usual["error"]["type"], "param": error.param}}

    def error_event(self, error: ApiError, request_id: str) -> bytes:
        """Of chunks in its form and ours, and then the end that its clients wait for. It streamed nothing else."""
        if self._dialect is not CHUNKS:
            return self._dialect.error_event(error, request_id)
        kind = "StreamingTimeoutError" if error.status == 504 else "InternalServerError"
        said = {"object": "error", "message": error.message, "type": kind, "param": error.param, "code": error.status}
        return b"data: %b\n\n%b" % (json.dumps({**said, **self.error(error, request_id)}).encode(), self.done)

    def waiting(self, text: str) -> bytes:
        return self._dialect.waiting(text)

    @staticmethod
    def _known(error: ApiError) -> tuple[int, str]:
        if error.code in _SAME:
            return error.status, error.code
        if error.code == "model_not_found" or (error.code == "cluster_not_found" and error.param == "model"):
            return error.status, "endpoint_not_found"
        return _AS_OLDER.get(error.status, (error.status, error.code))


CHUNKS: Dialect = Chunks()
RESPONSES: Dialect = Responses()
MESSAGES: Dialect = Messages()
OLDER: Dialect = Older(CHUNKS)
OLDER_RESPONSES: Dialect = Older(RESPONSES)
OLDER_MESSAGES: Dialect = Older(MESSAGES)
