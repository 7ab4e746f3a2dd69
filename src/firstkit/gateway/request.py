"""The steps of a request before and after the relay, as plain functions: guard, identify, permit, account.

Whatever carries the request (ASGI, or raw protocols on hot routes) calls these; none of them knows about transports.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from datetime import datetime

from firstkit import metrics
from firstkit.accounting.ledger import plausible
from firstkit.accounting.spool import OpenEntry, Spool, UsageEntry
from firstkit.auth.authenticator import Authenticator, Identity
from firstkit.auth.permissions import Scope, require
from firstkit.clock import now
from firstkit.errors import HeadersTooLarge, InvalidRequest, TooLarge, Unauthenticated
from firstkit.ids import new_id
from firstkit.links.messages import Outcome, Tail, Usage

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 1024
MAX_BODY_BYTES = 32 * 1024 * 1024
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class RequestHead:
    """Method, path and headers (names in lower case) of one request."""

    method: str
    path: str
    headers: list[tuple[bytes, bytes]]

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]

    def get(self, name: bytes) -> str | None:
        """The value of a header that may stand once; None where it is absent."""
        values = self.values(name)
        if len(values) > 1:
            raise InvalidRequest(f"The header '{name.decode()}' may stand only once.", param=name.decode())
        return values[0].decode("latin-1").strip() if values else None


def guard(head: RequestHead) -> None:
    """Refuse what parsers disagree about, desynchronised lengths, a missing or doubled Host; and what is too large."""
    size = sum(len(key) + len(value) + 4 for key, value in head.headers)
    if len(head.headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        raise HeadersTooLarge(f"At most {MAX_HEADERS} headers and {MAX_HEADER_BYTES} bytes of them are allowed.")
    hosts = head.values(b"host")
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        raise InvalidRequest("Exactly one valid Host header is needed.", param="host")
    lengths = head.values(b"content-length")
    if len(lengths) > 1 or (lengths and head.values(b"transfer-encoding")):
        raise InvalidRequest("Content-Length may stand once, and not beside Transfer-Encoding.", param="content-length")
    if lengths and not re.fullmatch(rb"[0-9]{1,19}", lengths[0]):
        raise InvalidRequest("Content-Length must be a number.", param="content-length")
    if lengths and int(lengths[0]) > MAX_BODY_BYTES:
        raise TooLarge(f"The request body is larger than {MAX_BODY_BYTES} bytes.")
    if head.values(b"content-encoding"):
        raise InvalidRequest("Compressed request bodies are not accepted.", param="content-encoding")


def api_key(head: RequestHead) -> str:
    """The key that came with a request: a Bearer token, ``x-api-key``, or the password of HTTP Basic (browsers)."""
    authorization = head.get(b"authorization")
    if authorization is None:
        if key := head.get(b"x-api-key"):
            return key
        raise Unauthenticated
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        return _basic_password(value)
    raise Unauthenticated


def _basic_password(value: str) -> str:
    try:
        return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        raise Unauthenticated from None


async def identify(head: RequestHead, authenticator: Authenticator) -> Identity:
    """Who asks; raises Unauthenticated, or StoreUnavailable when nobody can say."""
    token = api_key(head)
    return authenticator.cached(token) or await authenticator.identify(token)


def permit(identity: Identity, scope: Scope) -> None:
    """Raise Forbidden unless ``identity`` holds ``scope``."""
    require(identity, scope)


@dataclass(slots=True)
class Account:
    """One request on its way into the ledger; ``close`` once, on every ending, before the terminal bytes leave."""

    identity: Identity
    model: str
    endpoint: str
    prompt_bytes: int
    request_id: str = field(default_factory=lambda: new_id("req", 16))
    at: datetime = field(default_factory=now)
    is_open: bool = False

    def open(self, spool: Spool) -> None:
        """Note that work is about to be given out; raises StoreUnavailable, and then it must not be."""
        spool.opened(
            OpenEntry(
                request_id=self.request_id,
                at=self.at,
                user_id=self.identity.user_id,
                project_id=self.identity.project_id,
                key_prefix=self.identity.key_prefix,
                model=self.model,
                endpoint=self.endpoint,
                prompt_bytes=self.prompt_bytes,
            )
        )
        self.is_open = True

    def close(self, spool: Spool, tail: Tail, *, cluster: str, replica_id: str, queue_s: float, relayed: int) -> Usage:
        """Write the usage line; returns the usage that was written."""
        claimed = tail.usage or Usage(0, 0)
        usage = plausible(claimed, relayed)
        if usage != claimed:
            metrics.DISPUTED.labels(self.model).inc()
        self.is_open = False
        spool.ended(
            UsageEntry(
                request_id=self.request_id,
                at=self.at,
                user_id=self.identity.user_id,
                project_id=self.identity.project_id,
                key_prefix=self.identity.key_prefix,
                model=self.model,
                endpoint=self.endpoint,
                cluster=cluster,
                replica_id=replica_id,
                outcome=tail.outcome.value,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                estimated=usage.estimated,
                queue_s=queue_s,
                ttft_s=None if tail.ttft_s is None else queue_s + tail.ttft_s,
                duration_s=tail.duration_s,
            )
        )
        self._observe(tail, usage, queue_s)
        return usage

    def _observe(self, tail: Tail, usage: Usage, queue_s: float) -> None:
        model = self.model
        metrics.REQUESTS.labels(model, self.endpoint, tail.outcome.value).inc()
        metrics.TOKENS.labels(model, "prompt").inc(usage.prompt_tokens)
        metrics.TOKENS.labels(model, "completion").inc(usage.completion_tokens)
        metrics.QUEUE.labels(model).observe(queue_s)
        if tail.ttft_s is not None:
            metrics.TTFT.labels(model).observe(queue_s + tail.ttft_s)
        if tail.gap_s is not None and tail.outcome is Outcome.COMPLETE:
            metrics.GAP.labels(model).observe(tail.gap_s)
