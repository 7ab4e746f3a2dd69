"""The spool: one line appended to a file for each request that was opened or ended, before its answer is complete.

Lines go to an O_APPEND file by ``write``, those of one turn of the loop by one, so that a gateway that is killed loses
none that anybody acted on; it is not synced to the disk, so that a host that loses power may lose those of the last
seconds. Files are called ``usage-<n>.jsonl``. One gateway owns the folder and writes to the newest, which holds a line
for every request that is open; the others are full, and whoever has loaded one (``ledger``) removes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from firstkit.accounting.entries import Entry, OpenEntry, UsageEntry, line_of, read_line, start_of
from firstkit.errors import ConfigError, StoreUnavailable

_SEGMENT = re.compile(r"usage-(\d+)\.jsonl")
BAD_LINES = "usage-bad.jsonl"
NEW = "usage-new"
MOST_SEARCHED_BYTES = 32 * 1024 * 1024
"""Of what was written last, where the end of one request is looked for: that of minutes under full load."""
_SEARCHED_AT_ONCE = 256 * 1024
MOST_FULL = 3
"""So many files wait to be loaded at most; then the newest grows."""

Then = Callable[[StoreUnavailable | None], None]
"""Called when a line is written, or refused; may not raise."""


class Spool:
    """The spool in ``folder`` (made 0700), owned until ``close`` or the end of the process. Requests that a dead owner
    left open are still open: see ``close_lost``.

    Raises ConfigError when another process owns it, StoreUnavailable when the disk refuses. Not for several threads.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._unwritten: list[bytes] = []
        self._begun: list[tuple[str, bytes, Then]] = []
        self._heard: list[Then] = []
        """Of lines of requests that ended in this turn of the loop."""
        self._is_commit_due = False
        self._is_torn = False
        self.has_usage = False
        """Whether the newest file holds a line for the ledger."""
        self.on_ended: Callable[[UsageEntry], None] = _nobody
        """Hears of every line for the ledger, in the moment in which it becomes one of the newest file."""
        with _disk_refusals():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _lock(folder / "lock")
            found = _segments(folder)
            self._number = found[-1][0] if found else 0
            self._open: dict[str, bytes] = _open_lines(found[-1][1]) if found else {}
            self._descriptor = self._next_segment()

    def __len__(self) -> int:
        """How many requests are open."""
        return len(self._open)

    def opened(self, entry: OpenEntry) -> None:
        """Note that work on a request begins; raises StoreUnavailable, and then it must not begin."""
        line = line_of(entry)
        self._write_all([line])
        self._open[entry.request_id] = line

    def ended(self, entry: UsageEntry) -> None:
        """Note how a request ended.

        When the disk refuses, StoreUnavailable is raised, and the line is kept and written before any later one:
        the caller need not, and must not, hand it in again.
        """
        self._take(entry)
        self.flush()

    def _take(self, entry: UsageEntry) -> None:
        self._unwritten.append(line_of(entry))
        self._open.pop(entry.request_id, None)
        self.on_ended(entry)

    def begin(self, entry: OpenEntry, then: Then) -> None:
        """As ``opened``, together with all other lines of this turn of the loop: work may begin with ``then``."""
        self._begun.append((entry.request_id, line_of(entry), then))
        self._commit_soon()

    def end(self, entry: UsageEntry, then: Then) -> None:
        """As ``ended``, together with all other lines of this turn of the loop."""
        self._take(entry)
        self._heard.append(then)
        self._commit_soon()

    def _commit_soon(self) -> None:
        if not self._is_commit_due:
            self._is_commit_due = True
            asyncio.get_running_loop().call_soon(self._commit)

    def _commit(self) -> None:
        """Write what came in this turn: one ``write`` costs as much as a fifth of a small request."""
        self._is_commit_due = False
        begun, self._begun = self._begun, []
        heard, self._heard = self._heard, []
        refusal: StoreUnavailable | None = None
        try:
            self._write_all([line for _, line, _ in begun])
        except StoreUnavailable as error:
            refusal = error
        else:
            self._open.update((request_id, line) for request_id, line, _ in begun)
        for then in heard:
            then(refusal)
        for _, _, then in begun:
            then(refusal)

    def find(self, request_id: str) -> Entry | None:
        """The entry of a request that is open, or of one that ended and is not written yet."""
        line = self._open.get(request_id)
        if line is None:
            start = start_of(request_id)
            line = next((line for line in self._unwritten if line.startswith(start)), None)
        return None if line is None else read_line(line.strip())

    def close_lost(self) -> int:
        """End every request that a dead owner left open, as lost; to be called before the first request. Returns how
        many they were. May itself be killed at any point."""
        lost = [entry for entry in map(read_line, self._open.values()) if isinstance(entry, OpenEntry)]
        for opened in lost:
            self.ended(UsageEntry.lost(opened))
        return len(lost)

    def flush(self) -> None:
        """Write what the disk refused before; raises StoreUnavailable when it still refuses."""
        self._write_all([])

    def _write_all(self, begun: list[bytes]) -> None:
        """Write all lines that wait, then those that ``begun``; raises StoreUnavailable, and then none is."""
        if lines := self._unwritten + begun:
            self._write(b"".join(lines))
            self.has_usage = self.has_usage or bool(self._unwritten)
            self._unwritten.clear()

    def turn_over(self) -> None:
        """Make all that is for the ledger part of full files, unless many wait already to be loaded. Raises
        StoreUnavailable, and then nothing has changed."""
        self.flush()
        if self.has_usage and len(full_segments(self.folder)) < MOST_FULL:
            self._rotate()

    def _rotate(self) -> None:
        """Begin a new file, with the lines of open requests carried over: older files may go once they are loaded."""
        with _disk_refusals():
            old, self._descriptor = self._descriptor, self._next_segment()
            os.close(old)
        self.has_usage = False
        self._is_torn = False

    def close(self) -> None:
        """Give the spool up for another process to own."""
        os.close(self._descriptor)
        os.close(self._lock)

    def _next_segment(self) -> int:
        """A new file that holds the lines of all open requests, and is there with all of them or not at all; nothing
        has changed when the disk refuses."""
        path = self.folder / NEW
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        try:
            _write_whole(descriptor, b"".join(self._open.values()))
            path.rename(self.folder / f"usage-{self._number + 1}.jsonl")
        except OSError:
            os.close(descriptor)
            path.unlink()
            raise
        self._number += 1
        return descriptor

    def _write(self, lines: bytes) -> None:
        """One write; a part that was written is cut off again, or else its last line ended by the next one."""
        if self._is_torn:
            lines = b"\n" + lines
        self._is_torn = True
        try:
            _write_whole(self._descriptor, lines)
        except OSError as error:
            raise _refusal(error) from error
        self._is_torn = False


def _nobody(_: UsageEntry) -> None:
    """Who hears of lines where nobody wants to."""


def _write_whole(descriptor: int, data: bytes) -> None:
    """One write of all of ``data``; raises OSError, having tried to cut off again what was written of it."""
    written = os.write(descriptor, data)
    if written != len(data):
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def _disk_refusals() -> Iterator[None]:
    """Tell an OSError as StoreUnavailable."""
    try:
        yield
    except OSError as error:
        raise _refusal(error) from error


def _refusal(error: OSError) -> StoreUnavailable:
    return StoreUnavailable(f"The usage spool cannot be written: {error.strerror or error}.")


def full_segments(folder: Path) -> list[Path]:
    """The files that will not be written to any more, oldest first; none where there is no spool yet."""
    return [path for _, path in _segments(folder)[:-1]] if folder.exists() else []


def find_ended(folder: Path, request_id: str) -> UsageEntry | None:
    """How a request ended, where that stands in the last MOST_SEARCHED_BYTES of a spool. May take a while; any thread
    may look, and never holds the interpreter for long."""
    left = MOST_SEARCHED_BYTES
    for _, path in reversed(_segments(folder)):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:  # it has been loaded meanwhile
            size = file.seek(0, os.SEEK_END)
            if (line := _line_in(file, start_of(request_id), max(0, size - left))) is not None:
                entry = read_line(line)
                return entry if isinstance(entry, UsageEntry) else None
            left -= size
        if left <= 0:
            break
    return None


def _line_in(file: BinaryIO, start: bytes, offset: int) -> bytes | None:
    """The line that begins with ``start``, behind ``offset``."""
    file.seek(offset)
    rest = b"\n" if offset == 0 else b""
    while piece := file.read(_SEARCHED_AT_ONCE):
        piece = rest + piece
        at = piece.find(b"\n" + start)
        if at >= 0:
            found = piece[at + 1 :]
            return (found if b"\n" in found else found + file.readline()).partition(b"\n")[0]
        rest = piece[-len(start) :]
    return None


def _segments(folder: Path) -> list[tuple[int, Path]]:
    """All files of a spool with their numbers, oldest first."""
    found = [(match, path) for path in folder.iterdir() if (match := _SEGMENT.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found)


def _open_lines(path: Path) -> dict[str, bytes]:
    """By request id the lines of requests that were opened and not ended in the newest file of a spool."""
    found: dict[str, bytes] = {}
    for line in lines_of(path):
        entry = read_line(line)
        if isinstance(entry, OpenEntry):
            found[entry.request_id] = line + b"\n"
        elif entry is not None:
            found.pop(entry.request_id, None)
    return found


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f"{path.parent}: another gateway owns this usage spool; stop it first") from None
    return descriptor


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file without their ends; empty ones are left out."""
    with path.open("rb") as file:
        for line in file:
            if stripped := line.strip():
                yield stripped
