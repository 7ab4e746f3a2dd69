"""The log of an engine. The engine appends to the file itself, so it neither dies nor waits when the pilot is slow."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator

logger = logging.getLogger(__name__)

LOG_BYTES = 50 * 1024**2
LOG_FILES = 3
_PIECE = 1024**2
_TAIL_LINES = 40
_TAIL_BYTES = 2048


def open_log(path: str) -> int:
    """A descriptor that appends to ``path``; the caller closes it."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def read_end(path: str, lines: int = _TAIL_LINES, size_bytes: int = _TAIL_BYTES) -> str:
    """At most the last ``lines`` lines and ``size_bytes`` bytes of a file; empty where there is none."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - size_bytes))
            data = file.read(size_bytes)
    except OSError:
        return ""
    if size > size_bytes:
        data = _without_first_line(data)
    return "\n".join(data.decode(errors="replace").splitlines()[-lines:])


async def rotate(path: str, limit_bytes: int = LOG_BYTES, files: int = LOG_FILES) -> None:
    """Move what is in a log of more than ``limit_bytes`` aside, as ``path.1`` and so on, ``files`` in all.

    Copies and cuts: who appends goes on at the new beginning. Copies in pieces, since the loop has other work.
    """
    if _size(path) <= limit_bytes:
        return
    try:
        for _ in _copy_aside(path, files):
            await asyncio.sleep(0)
    except OSError as exc:
        # A full disk must not cost an engine its life: what could not be copied is dropped.
        logger.warning("a log could not be kept: %s", exc.strerror, extra={"action": "rotate_log"})
    os.truncate(path, 0)


def _copy_aside(path: str, files: int) -> Iterator[None]:
    """Yields after each piece."""
    for number in range(files - 1, 1, -1):
        if os.path.exists(f"{path}.{number - 1}"):
            os.replace(f"{path}.{number - 1}", f"{path}.{number}")
    with open(path, "rb") as source, open(f"{path}.1", "wb", opener=_private) as target:
        while piece := source.read(_PIECE):
            target.write(piece)
            yield


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _without_first_line(data: bytes) -> bytes:
    """The first line of a cut is half a line, unless it is all that there is."""
    head, newline, rest = data.partition(b"\n")
    return rest if newline and rest else head
