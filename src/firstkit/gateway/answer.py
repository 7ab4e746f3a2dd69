"""How an answer ended: what it used where nobody could say, and the error that a client is told."""

from __future__ import annotations

import json
from math import ceil

from firstkit.engines.reported import BYTES_PER_TOKEN
from firstkit.errors import ApiError, EngineFailed, EngineTimeout, InvalidRequest, Overloaded, TooLarge
from firstkit.links.messages import Head, Outcome, Tail, Usage

ENGINE_RETRY_S = 5.0


def with_usage(tail: Tail, prompt_bytes: int, events: int) -> Tail:
    """``tail`` with an estimate, flagged as one, where nobody could say what was used but something was delivered."""
    if tail.usage is not None or events == 0:
        return tail
    usage = Usage(prompt_tokens=ceil(prompt_bytes / BYTES_PER_TOKEN), completion_tokens=events, estimated=True)
    return Tail(tail.outcome, usage, tail.error, tail.ttft_s, tail.gap_s, tail.duration_s)


def error_of(tail: Tail, head: Head | None = None, body: bytes = b"") -> ApiError:
    """The error that a client is told for an ending that is not COMPLETE."""
    if tail.outcome is Outcome.TIMEOUT:
        return EngineTimeout()
    if tail.outcome is Outcome.REJECTED and head is not None:
        return _refusal(head.status, body)
    if tail.outcome is Outcome.LOST:
        return EngineFailed("The replica that served this request was lost.", code="replica_lost")
    return EngineFailed(f"The engine failed: {tail.error}." if tail.error else None)


def _refusal(status: int, body: bytes) -> ApiError:
    """An engine's own 4xx as our error: its sentence and parameter are kept, its shape is not.

    What it says of our key is no news for clients, who sent another one, and may repeat it.
    """
    if status in (401, 403):
        return EngineFailed("The engine does not accept the key that it was given.")
    if status == 429:
        return Overloaded("The engine takes no more requests now.", retry_after_s=ENGINE_RETRY_S)
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    inner = data.get("error", data) if isinstance(data, dict) else None
    inner = inner if isinstance(inner, dict) else {"message": inner}
    message = inner.get("message") or inner.get("detail")
    param = inner.get("param")
    kind = TooLarge if status == 413 else InvalidRequest
    return kind(
        message if isinstance(message, str) else f"The engine refused the request (status {status}).",
        param=param if isinstance(param, str) else None,
        code="engine_refused",
    )
