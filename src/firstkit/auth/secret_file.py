"""A secret that lies in a file of its own."""

from __future__ import annotations

import os
from pathlib import Path

from firstkit.errors import ConfigError

LONGEST_BYTES = 4096


def read_secret(path: Path, key: str) -> str:
    """The secret in the file that the configuration names at ``key``; raises ConfigError, which never repeats it."""
    path = path.expanduser()
    try:
        with path.open("rb") as file:
            mode, data = os.fstat(file.fileno()).st_mode, file.read(LONGEST_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"{key}: {path} cannot be read: {exc.strerror}") from exc
    if mode & 0o077:
        raise ConfigError(
            f"{key}: {path} has the mode {mode & 0o777:04o}, so that others may read it; allowed are 0600 and 0400"
        )
    secret = data.decode("latin-1").strip()
    if not secret or len(data) > LONGEST_BYTES or not secret.isascii() or not secret.isprintable():
        raise ConfigError(f"{key}: {path} must hold the secret alone: one line of printable ASCII")
    return secret
