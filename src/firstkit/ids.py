"""Random identifiers: none can be guessed, and any process may make them."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import time


def new_id(prefix: str, size_bytes: int = 10) -> str:
    """``prefix-`` and ``size_bytes`` random bytes in lower-case base32 (16 characters for 10 bytes)."""
    text = base64.b32encode(secrets.token_bytes(size_bytes)).decode().rstrip("=").lower()
    return f"{prefix}-{text}"


def new_request_id() -> str:
    """``req-``, the time in milliseconds and 80 random bits, in hexadecimal: later ones sort behind earlier ones, and
    the ledger grows at one end."""
    if not _random_ends:
        text = os.urandom(10 * 256).hex()  # the system is asked for those of many at once
        _random_ends.extend([text[start : start + 20] for start in range(0, len(text), 20)])
    return f"req-{time.time_ns() // 1_000_000:012x}{_random_ends.pop()}"


_random_ends: list[str] = []
"""80 random bits each, in hexadecimal."""


def new_secret() -> str:
    """256 random bits in lower-case base32 (52 characters)."""
    return new_id("s", 32)[2:]


def digest(secret: str) -> str:
    """SHA-256 of a secret in hexadecimal: the only form of it that is ever stored."""
    return hashlib.sha256(secret.encode()).hexdigest()
