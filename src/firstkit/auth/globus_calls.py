"""The three questions that we ask Globus, by its SDK. They hold up whoever asks, at most for a known time.

Needs the extra ``globus``; imported where ``auth.globus`` is configured.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import globus_sdk
import requests
import urllib3
from globus_sdk.transport import RequestsTransport, RetryConfig
from globus_sdk.transport.retry import RetryCheckResult, RetryContext
from requests.adapters import HTTPAdapter

from firstkit.auth.globus_rules import GROUPS_SCOPE, NotUnderstood, read_groups, read_groups_token
from firstkit.clock import monotonic
from firstkit.errors import ApiError, LoginRefused, ProviderUnavailable, Unauthenticated

CALL_S = 5.0
"""Longest silence of Globus in one call, and longest time from a call's start to the end of its answer's body."""
ANSWER_LIMIT_BYTES = 4 * 1024**2
ERROR_LIMIT_BYTES = 64 * 1024
PAUSE_S = 0.2
"""Longest pause before a call that met a passing fault is made again, once."""
TELL_EVERY_S = 60.0
"""The same complaint is written to the log no more often."""

logger = logging.getLogger("firstkit.auth")
logging.getLogger("globus_sdk").setLevel(logging.CRITICAL)  # a line for each call that failed: told here, more rarely


class GlobusCalls:
    """Asks Globus as the confidential client of this service. For any number of threads."""

    def __init__(self, client_id: str, client_secret: str, connections: int) -> None:
        self._transport = RequestsTransport(http_timeout=CALL_S)
        self._transport.session.mount("https://", _Bounded(pool_maxsize=connections))
        self._transport.session.mount("http://", _Bounded(pool_maxsize=connections))
        self._client = globus_sdk.ConfidentialAppAuthClient(
            client_id, client_secret, app_name="firstkit", transport=self._transport, retry_config=_retries()
        )
        self._told: dict[str, float] = {}

    def introspect(self, token: str, policies: tuple[str, ...]) -> Any:
        """What Globus says of ``token``, as JSON values; raises ProviderUnavailable."""
        form = {"token": token, "include": "session_info,identity_set_detail"}
        if policies:
            form["authentication_policies"] = ",".join(policies)
        try:
            return self._post("/v2/oauth2/token/introspect", form)
        except globus_sdk.GlobusAPIError as exc:
            raise self._unanswered(exc) from None

    def groups(self, token: str) -> frozenset[str]:
        """The ids of the groups of whoever holds ``token``. Raises Unauthenticated where it is not good any more,
        LoginRefused where its holder did not let us see them, ProviderUnavailable, NotUnderstood."""
        client = self._groups_client(self._groups_token(token))
        try:
            with self._answered():
                return read_groups(client.get_my_groups(statuses="active").data)
        except globus_sdk.GlobusAPIError as exc:
            self._tell("groups", "the groups service of Globus refused or failed, with status %d", exc.http_status)
            raise ProviderUnavailable from None

    def close(self) -> None:
        self._transport.close()

    def _groups_token(self, token: str) -> str:
        form = {
            "grant_type": "urn:globus:auth:grant_type:dependent_token",
            "token": token,
            "scope": GROUPS_SCOPE,
        }
        try:
            found = read_groups_token(self._post("/v2/oauth2/token", form))
        except globus_sdk.GlobusAPIError as exc:
            raise self._no_groups_token(exc) from None
        if found is None:
            raise self._hidden_groups()
        return found

    def _groups_client(self, token: str) -> globus_sdk.GroupsClient:
        return globus_sdk.GroupsClient(
            authorizer=globus_sdk.AccessTokenAuthorizer(token), transport=self._transport, retry_config=_retries()
        )

    def _post(self, path: str, form: Mapping[str, str]) -> Any:
        """The answer to a form; raises GlobusAPIError, ProviderUnavailable, NotUnderstood.

        Not by the SDK's own methods: that for introspection takes no policies. A redirect is no answer: it would carry
        the token elsewhere.
        """
        with self._answered():
            return self._client.request("POST", path, data=dict(form), encoding="form", allow_redirects=False).data

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Silence as ProviderUnavailable, and JSON too deep to be read as NotUnderstood."""
        try:
            yield
        except globus_sdk.NetworkError as exc:
            raise self._silent(exc) from None
        except RecursionError:
            raise NotUnderstood from None

    # -- what it means when there is no answer -------------------------------------------------------------------------

    def _unanswered(self, exc: globus_sdk.GlobusAPIError) -> ApiError:
        status = exc.http_status
        if status in (401, 403):
            told = (
                "Globus refuses our own client, so that nobody can log in: see auth.globus.client_id and the file of "
            )
            self._tell("client", told + "auth.globus.client_secret_file", level=logging.ERROR)
        elif status == 429 or status >= 500:
            self._tell("status", "Globus answered with status %d, so that new logins have to wait", status)
        else:
            told = "Globus does not take our question about a token (status %d): see auth.globus.policies"
            self._tell("question", told, status, level=logging.ERROR)
        return ProviderUnavailable()

    def _no_groups_token(self, exc: globus_sdk.GlobusAPIError) -> ApiError:
        reason = exc.raw_json.get("error") if isinstance(exc.raw_json, dict) else None
        if reason in ("invalid_grant", "invalid_token"):
            return Unauthenticated("This Globus token is not good any more: log in again.")
        if exc.http_status in (401, 429) or exc.http_status >= 500:
            return self._unanswered(exc)
        return self._hidden_groups()

    def _hidden_groups(self) -> ApiError:
        told = "Globus gives no token for a user's groups: the scope of auth.globus has to depend on %s"
        self._tell("consent", told, GROUPS_SCOPE, level=logging.ERROR)
        return LoginRefused("Globus does not let this service see your groups: log in again, and allow it there.")

    def _silent(self, exc: globus_sdk.NetworkError) -> ApiError:
        kind = type(exc.underlying_exception).__name__
        self._tell("silent", "Globus does not answer (%s), so that new logins have to wait", kind)
        return ProviderUnavailable()

    def _tell(self, what: str, sentence: str, *values: object, level: int = logging.WARNING) -> None:
        """Write to the log, not the same again and again. Never an error of the SDK: those repeat what was sent."""
        if monotonic() >= self._told.get(what, 0.0):
            self._told[what] = monotonic() + TELL_EVERY_S
            logger.log(level, sentence, *values, extra={"action": "globus"})


class _TooMuch(requests.RequestException):
    """The answer is longer than any good one."""


class _Bounded(HTTPAdapter):
    """Reads each answer whole, within a time and a size: one that drips or never ends must not keep its thread."""

    def send(self, *args: Any, **options: Any) -> requests.Response:
        until = monotonic() + CALL_S
        response = super().send(*args, **options)
        try:
            response._content = _body(response, until)
        except requests.RequestException:
            response.close()
            raise
        response.encoding = "utf-8"  # JSON has no other, and guessing costs seconds
        return response


def _body(response: requests.Response, until: float) -> bytes:
    most = ANSWER_LIMIT_BYTES if response.ok else ERROR_LIMIT_BYTES
    data = bytearray()
    try:
        while piece := response.raw.read1(65_536, decode_content=True):
            data += piece
            if len(data) > most:
                raise _TooMuch
            if monotonic() > until:
                raise requests.ReadTimeout
    except urllib3.exceptions.ReadTimeoutError as exc:
        raise requests.ReadTimeout from exc
    except urllib3.exceptions.HTTPError as exc:
        raise requests.ConnectionError from exc
    return bytes(data)


def _retries() -> RetryConfig:
    made = RetryConfig(max_retries=1, max_sleep=PAUSE_S)
    made.checks.register_check(_may_pass)
    return made


def _may_pass(context: RetryContext) -> RetryCheckResult:
    """Not again after silence, which has cost its time, nor where Globus has too much to do; else as the SDK thinks."""
    if isinstance(context.exception, (requests.Timeout, _TooMuch)):
        return RetryCheckResult.do_not_retry
    is_crowded = context.response is not None and context.response.status_code == 429
    return RetryCheckResult.do_not_retry if is_crowded else RetryCheckResult.no_decision
