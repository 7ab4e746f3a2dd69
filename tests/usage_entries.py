"""Lines of the spool for tests, with everything that a test does not care about filled in."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from firstkit.accounting.entries import OpenEntry, UsageEntry

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
_WHO = {"at": AT, "user_id": "u1", "project_id": "p1", "key_prefix": "abcdefghijkl", "model": "m", "endpoint": "chat"}


def open_entry(request_id: str, **values: Any) -> OpenEntry:
    return OpenEntry(**{**_WHO, "request_id": request_id, "prompt_bytes": 101, **values})


def usage_entry(request_id: str, **values: Any) -> UsageEntry:
    how: dict[str, Any] = {"cluster": "here", "replica_id": "r1", "outcome": "complete", "estimated": False}
    numbers: dict[str, Any] = {"prompt_tokens": 10, "completion_tokens": 5, "queue_s": 0.1, "ttft_s": 0.2}
    return UsageEntry(**{**_WHO, **how, **numbers, "request_id": request_id, "duration_s": 1.0, **values})
