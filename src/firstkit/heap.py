"""How much freed memory a process keeps."""

from __future__ import annotations

import contextlib
import ctypes

KEPT_BYTES = 8 * 1024 * 1024
"""Kept for the next body. Asking the system for it anew costs seven times a copy of the body; without a bound, the C
library keeps up to 64 MiB after one large body."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""See mallopt(3)."""


def bound_heap() -> None:
    """From now on no more than KEPT_BYTES are kept, where the C library is glibc; others need no such word."""
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
