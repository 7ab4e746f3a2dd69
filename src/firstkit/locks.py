"""One process of a kind at a time, held by a lock that dies with the process."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firstkit.errors import ConfigError


def hold(path: Path, what: str, patience_s: float = 5.0) -> int:
    """Take the lock at ``path`` until this process ends; returns its descriptor.

    Waits ``patience_s`` for a predecessor that is just ending, then raises ConfigError naming ``what`` runs already.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise ConfigError(f"{what} is running already with this state directory ({path.parent})") from None
            time.sleep(0.05)
        else:
            return descriptor


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock at ``path`` for a block; waits for whoever holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
