"""Errors are nouns with a sentence: each carries status, code and whether trying again can help.

The first line of a class's docstring is its message where none is given. The classes below ``ApiError`` reach
clients in the OpenAI shape; the others stay inside and are translated where they are caught.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Optional


class FirstError(Exception):
    """Something went wrong."""

    def __init__(self, message: Optional[str] = None) -> None:
        self.message = message or (inspect.getdoc(type(self)) or "").splitlines()[0]
        super().__init__(self.message)


class ApiError(FirstError):
    """Something went wrong on our side; it has been logged."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str = "internal_error"
    retryable: ClassVar[bool] = False
    is_denial: bool = False
    """Somebody asked for what they may not have: such is written to the audit log."""

    def __init__(
        self,
        message: Optional[str] = None,
        *,
        param: Optional[str] = None,
        code: Optional[str] = None,
        retry_after_s: Optional[float] = None,
        details: Optional[dict[str, Any]] = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code or type(self).code
        self.retry_after_s = retry_after_s
        self.details = details or {}
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """The OpenAI error object, with ``details`` as further keys."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": {**error, **self.details}}


class InvalidRequest(ApiError):
    """The request is not valid."""

    status, type, code = 400, "invalid_request_error", "invalid_request"


class Unauthenticated(ApiError):
    """A valid API key or login is needed: send the header 'Authorization: Bearer <key>'."""

    status, type, code = 401, "authentication_error", "invalid_api_key"
    is_denial = True


class Forbidden(ApiError):
    """You do not have the scope that this route needs."""

    status, type, code = 403, "permission_error", "insufficient_scope"
    is_denial = True


class LoginRefused(Forbidden):
    """The login is good, but this service does not admit it."""

    code = "login_refused"


class NotFound(ApiError):
    """There is nothing at this path."""

    status, type, code = 404, "not_found_error", "not_found"


class ModelNotFound(NotFound):
    """The model does not exist or you do not have access to it."""

    code = "model_not_found"


class ClusterNotFound(NotFound):
    """The cluster does not exist or you do not have access to it."""

    code = "cluster_not_found"


class UnsupportedFramework(InvalidRequest):
    """There is no such framework on this cluster."""

    code = "unsupported_framework"


class MethodNotAllowed(ApiError):
    """This path does not take this method."""

    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class RequestTimeout(ApiError):
    """The request did not arrive in time."""

    status, type, code, retryable = 408, "invalid_request_error", "request_timeout", True


class UnsupportedMediaType(ApiError):
    """This route takes JSON: send the header 'Content-Type: application/json'."""

    status, type, code = 415, "invalid_request_error", "unsupported_media_type"


class ExpectationFailed(ApiError):
    """The header 'Expect' may only say '100-continue'."""

    status, type, code = 417, "invalid_request_error", "expectation_failed"


class TooLarge(ApiError):
    """The request body is larger than allowed."""

    status, type, code = 413, "invalid_request_error", "request_too_large"


class HeadersTooLarge(ApiError):
    """The request has more headers than allowed."""

    status, type, code = 431, "invalid_request_error", "headers_too_large"


class BudgetSpent(ApiError):
    """The budget is used up."""

    status, type, code = 429, "insufficient_quota", "insufficient_quota"
    is_denial = True


class Overloaded(ApiError):
    """Too many requests are waiting for this model."""

    status, type, code, retryable = 429, "rate_limit_error", "overloaded", True


class RateLimited(ApiError):
    """This key has sent too many requests."""

    status, type, code, retryable = 429, "rate_limit_error", "rate_limit_exceeded", True


class EngineFailed(ApiError):
    """The engine that served this request failed."""

    status, type, code, retryable = 502, "server_error", "engine_failed", True


class ModelNotReady(ApiError):
    """The model is not running yet."""

    status, type, code, retryable = 503, "server_error", "model_not_ready", True


class ReplicasFailing(ApiError):
    """All replicas of this model failed the requests before this one; they are tried again soon."""

    status, type, code, retryable = 503, "server_error", "replicas_failing", True


class ClusterUnderMaintenance(ApiError):
    """The cluster takes no requests now: it is drained, or in maintenance."""

    status, type, code, retryable = 503, "server_error", "cluster_under_maintenance", True


class AtCapacity(ApiError):
    """The gateway has no room for another request now."""

    status, type, code, retryable = 503, "server_error", "overloaded", True


class ShuttingDown(ApiError):
    """The gateway is shutting down."""

    status, type, code, retryable = 503, "server_error", "shutting_down", True


class ProviderUnavailable(ApiError):
    """The identity provider does not answer, so that nobody can say who this is; try again."""

    status, type, code, retryable = 503, "server_error", "identity_provider_unavailable", True


class StoreUnavailable(ApiError):
    """The database or the usage spool cannot be written, so new work is refused."""

    status, type, code, retryable = 503, "server_error", "store_unavailable", True


class EngineTimeout(ApiError):
    """The engine sent nothing for too long."""

    status, type, code, retryable = 504, "server_error", "engine_timeout", True


class HttpVersionRefused(ApiError):
    """HTTP/1.1 and HTTP/1.0 are spoken here."""

    status, type, code = 505, "invalid_request_error", "http_version_not_supported"


class ConfigError(FirstError):
    """The configuration is not valid."""


class SchedulerSilent(FirstError):
    """The scheduler (or the way to it) is not answering; nothing follows from that about its jobs."""


class ParseError(SchedulerSilent):
    """The answer of the scheduler cannot be understood, so it is none."""


class SchedulerRefused(FirstError):
    """The scheduler answered and said no."""


class LinkLost(FirstError):
    """The link to the pilot is gone."""


class CallFailed(FirstError):
    """The pilot answered a call with an error."""


class ClaimedBefore(SchedulerRefused):
    """This job id was claimed by an earlier submission that did not reach the scheduler; use a new id."""
