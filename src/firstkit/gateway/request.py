"""The steps of a request before and after the relay, as plain functions: guard, identify, permit, account.

Whatever carries the request (ASGI, or raw protocols on hot routes) calls these; none of them knows about transports.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from datetime import datetime

from firstkit import metrics
from firstkit.accounting.entries import OpenEntry, UsageEntry
from firstkit.accounting.ledger import plausible
from firstkit.accounting.spool import Spool, Then
from firstkit.auth.permissions import Identity, Scope, require
from firstkit.clock import now
from firstkit.errors import (
    AtCapacity,
    ExpectationFailed,
    HeadersTooLarge,
    HttpVersionRefused,
    InvalidRequest,
    TooLarge,
    UnsupportedMediaType,
)
from firstkit.gateway.forms import is_form
from firstkit.ids import new_request_id
from firstkit.links.messages import Outcome, Tail, Usage
from firstkit.routing.table import Route

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 1024
MAX_BODY_BYTES = 32 * 1024 * 1024
"""Of a request to a model."""
SMALL_BODY_BYTES = 1024 * 1024
"""Of any other request."""
MOST_HELD_BYTES = 1024**3
FULL_RETRY_S = 5.0
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")


class RequestHead:
    """Method, path, headers (names in lower case) and HTTP version of one request."""

    __slots__ = ("_by_name", "_has_twins", "headers", "method", "path", "version")

    def __init__(self, method: str, path: str, headers: list[tuple[bytes, bytes]], version: str = "1.1") -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.version = version
        self._by_name = dict(headers)
        self._has_twins = len(self._by_name) != len(headers)

    def values(self, name: bytes) -> list[bytes]:
        """All values of a header, in order."""
        if name not in self._by_name:
            return []
        if not self._has_twins:
            return [self._by_name[name]]
        return [value for key, value in self.headers if key == name]

    def get(self, name: bytes) -> str | None:
        """The value of a header that may stand once; None where it is absent."""
        if name not in self._by_name:
            return None
        values = self.values(name)
        if len(values) > 1:
            raise InvalidRequest(f"The header '{name.decode()}' may stand only once.", param=name.decode())
        return values[0].decode("latin-1").strip() if values else None


def guard(head: RequestHead, most_body_bytes: int = MAX_BODY_BYTES) -> None:
    """Refuse what parsers disagree about, desynchronised lengths, a missing or doubled Host; and what is too large."""
    if head.version not in ("1.0", "1.1"):
        raise HttpVersionRefused
    size = sum(map(len, itertools.chain.from_iterable(head.headers))) + 4 * len(head.headers)
    if len(head.headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        raise HeadersTooLarge(f"At most {MAX_HEADERS} headers and {MAX_HEADER_BYTES} bytes of them are allowed.")
    hosts = head.values(b"host")
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        raise InvalidRequest("Exactly one valid Host header is needed.", param="host")
    _guard_lengths(head, most_body_bytes)
    if head.values(b"content-encoding"):
        raise InvalidRequest("Compressed request bodies are not accepted.", param="content-encoding")
    if any(value.lower() != b"100-continue" for value in head.values(b"expect")):
        raise ExpectationFailed(param="expect")


def _guard_lengths(head: RequestHead, most_body_bytes: int) -> None:
    lengths, codings = head.values(b"content-length"), head.values(b"transfer-encoding")
    if len(lengths) > 1 or (lengths and codings):
        raise InvalidRequest("Content-Length may stand once, and not beside Transfer-Encoding.", param="content-length")
    if codings and (head.version == "1.0" or [coding.lower() for coding in codings] != [b"chunked"]):
        raise InvalidRequest("Transfer-Encoding may only be 'chunked', in HTTP/1.1.", param="transfer-encoding")
    if lengths and not re.fullmatch(rb"[0-9]{1,19}", lengths[0]):
        raise InvalidRequest("Content-Length must be a number.", param="content-length")
    if lengths and int(lengths[0]) > most_body_bytes:
        raise TooLarge(f"The request body is larger than {most_body_bytes} bytes.")


class BodyMemory:
    """Bytes of request bodies that the gateway holds, of all requests together."""

    def __init__(self, limit_bytes: int = MOST_HELD_BYTES) -> None:
        self._left = limit_bytes

    def take(self, has_bytes: int, more_bytes: int) -> None:
        """Count ``more_bytes`` of a request that ``has_bytes`` already.

        Raises TooLarge when that is more than one may have, AtCapacity when it is not left.
        """
        if has_bytes + more_bytes > MAX_BODY_BYTES:
            raise TooLarge(f"The request body is larger than {MAX_BODY_BYTES} bytes.")
        if more_bytes > self._left:
            raise AtCapacity("The gateway holds as many request bodies as it can.", retry_after_s=FULL_RETRY_S)
        self._left -= more_bytes

    def give_back(self, size_bytes: int) -> None:
        self._left += size_bytes


def expects_json(head: RequestHead) -> None:
    """Raise UnsupportedMediaType unless the body says that it is JSON.

    A page of another origin cannot make a browser say so without asking us first: it cannot spend the tokens of
    somebody whose browser remembers a key.
    """
    kind = (head.get(b"content-type") or "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMediaType(param="content-type")


def form_type(head: RequestHead) -> str | None:
    """The content-type of a body that is a form; None where it is none, or comes with a key that a browser adds by
    itself: pages of any origin may send forms unasked."""
    kind = head.get(b"content-type") or ""
    if not is_form(kind) or (head.get(b"authorization") or "").lower().startswith("basic"):
        return None
    return kind


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
    request_id: str = field(default_factory=new_request_id)
    at: datetime = field(default_factory=now)
    is_open: bool = False
    reserved: int = 0
    """The tokens that it was expected to need."""
    usage: Usage | None = None
    """What was accounted."""

    def open(self, spool: Spool, then: Then) -> None:
        """Note that work is about to be given out: with ``then``, unless that is told of a refusal."""
        self.is_open = True
        spool.begin(
            OpenEntry(
                request_id=self.request_id,
                at=self.at,
                user_id=self.identity.user_id,
                project_id=self.identity.project_id,
                key_prefix=self.identity.key_prefix,
                model=self.model,
                endpoint=self.endpoint,
                prompt_bytes=self.prompt_bytes,
            ),
            then,
        )

    def close(self, spool: Spool, then: Then, tail: Tail, *, route: Route, queue_s: float, relayed: int) -> None:
        """Write the usage line; ``usage`` is known at once."""
        claimed = tail.usage or Usage(0, 0)
        usage = plausible(claimed, relayed)
        if usage is not claimed:
            metrics.DISPUTED.labels(self.model).inc()
        self.is_open = False
        self.usage = usage
        spool.end(
            UsageEntry(
                request_id=self.request_id,
                at=self.at,
                user_id=self.identity.user_id,
                project_id=self.identity.project_id,
                key_prefix=self.identity.key_prefix,
                model=self.model,
                endpoint=self.endpoint,
                cluster=route.cluster,
                replica_id=route.replica_id,
                outcome=tail.outcome.value,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                estimated=usage.estimated,
                queue_s=queue_s,
                ttft_s=None if tail.ttft_s is None else queue_s + tail.ttft_s,
                duration_s=tail.duration_s,
                engine=route.engine,
                revision=route.revision,
            ),
            then,
        )
        self._observe(tail, usage, queue_s)

    def _observe(self, tail: Tail, usage: Usage, queue_s: float) -> None:
        series = metrics.REQUESTS.of_model(self.model)
        series.count(self.endpoint, tail.outcome.value)
        series.prompt_tokens += usage.prompt_tokens
        series.completion_tokens += usage.completion_tokens
        series.queue.observe(queue_s)
        used = usage.prompt_tokens + usage.completion_tokens
        if used and self.reserved and tail.outcome is Outcome.COMPLETE and not usage.estimated:
            series.estimate.observe(self.reserved / used)
        if tail.ttft_s is not None:
            series.ttft.observe(queue_s + tail.ttft_s)
        if tail.gap_s is not None and tail.outcome is Outcome.COMPLETE:
            series.gap.observe(tail.gap_s)
