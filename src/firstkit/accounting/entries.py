"""The two kinds of lines that a spool has, and how they are written and read."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from firstkit.engines.reported import BYTES_PER_TOKEN
from firstkit.links.messages import Outcome

# What the ledger's columns take: a line beyond that is malformed, and must not block the lines behind it.
_Id = Annotated[str, Meta(min_length=1, max_length=64)]
_Prefix = Annotated[str, Meta(max_length=32)]
_Model = Annotated[str, Meta(max_length=300)]
_Endpoint = Annotated[str, Meta(max_length=100)]
_Cluster = Annotated[str, Meta(max_length=200)]
_Origin = Annotated[str, Meta(max_length=200)]
_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Time = Annotated[datetime, Meta(tz=True)]
_Ending = Literal["complete", "rejected", "failed", "timeout", "cancelled", "lost"]


class _Entry(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What both say of a request."""

    request_id: _Id
    at: _Time
    user_id: _Id
    project_id: _Id
    key_prefix: _Prefix
    model: _Model
    endpoint: _Endpoint


class OpenEntry(_Entry, frozen=True, kw_only=True, tag="open"):
    """Work on a request is about to be given out. ``prompt_bytes``: size of what was sent to be read."""

    prompt_bytes: _Count


class UsageEntry(_Entry, frozen=True, kw_only=True, tag="usage"):
    """A row of the ledger: how a request ended and what it used. Times in seconds."""

    cluster: _Cluster | None
    replica_id: _Id | None
    outcome: _Ending
    prompt_tokens: _Count
    completion_tokens: _Count
    estimated: bool
    queue_s: float
    ttft_s: float | None
    duration_s: float
    engine: _Origin | None = None
    revision: _Origin | None = None

    @classmethod
    def lost(cls, opened: OpenEntry) -> UsageEntry:
        """The end of a request that nobody saw end: the prompt estimated at four bytes a token, nothing delivered."""
        return cls(
            request_id=opened.request_id,
            at=opened.at,
            user_id=opened.user_id,
            project_id=opened.project_id,
            key_prefix=opened.key_prefix,
            model=opened.model,
            endpoint=opened.endpoint,
            cluster=None,
            replica_id=None,
            outcome=Outcome.LOST.value,
            prompt_tokens=-(-opened.prompt_bytes // BYTES_PER_TOKEN),
            completion_tokens=0,
            estimated=True,
            queue_s=0.0,
            ttft_s=None,
            duration_s=0.0,
        )


Entry = OpenEntry | UsageEntry
OPENED = b'{"kind":"open",'
"""How the line of an OpenEntry begins."""
_ENDED = b'{"kind":"usage","request_id":'
"""How that of a UsageEntry does."""
_NUL = b"\\u0000"
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)


def read_line(line: bytes) -> Entry | None:
    """The entry of one line; None when it is torn or malformed."""
    if _NUL in line:  # PostgreSQL takes none; JSON has no other way to say it
        return None
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def line_of(entry: Entry) -> bytes:
    """The line of an entry, with its end."""
    return _encoder.encode(entry) + b"\n"


def start_of(request_id: str) -> bytes:
    """How the line of a UsageEntry begins."""
    return _ENDED + _encoder.encode(request_id) + b","
