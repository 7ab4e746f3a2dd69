"""A copy of weights on the disk of a node, made and checked by a process of its own, so that no pilot waits for disks.

``stage SOURCE FOLDER [UNUSED ...]`` copies a file or folder into ``FOLDER/DIGEST/`` and says how far it is, one JSON
object (``Word``) a line. DIGEST stands for the names, sizes and times of the source: a source that has changed gets
another copy, one that has not is copied once. A copy is there under its name only when it is whole and was checked.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from io import FileIO
from typing import Any, Optional

from firstkit.clock import monotonic
from firstkit.errors import FirstError
from firstkit.onsite.manifest import Item, ManifestFault, expected_sums, list_items
from firstkit.onsite.scratch import remove_leftovers
from firstkit.wire import to_dict

PIECE_BYTES = 8 * 1024**2
STREAMS = 4
"""Files that are copied at a time: one stream alone does not fill a parallel file system's line."""
RESERVE_BYTES = 1024**3
"""Room that stays free on the disk, or a fiftieth of the disk where that is less."""
EVERY_S = 1.0
UNFINISHED = ".part"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class CopyFault(FirstError):
    """The copy could not be made."""


class _GivenUp(Exception):
    """Another file has failed."""


@dataclass(frozen=True)
class Word:
    """What the process says: what it is doing, and at the end the ``path`` of the copy, or what its ``fault`` is."""

    doing: str = ""
    path: Optional[str] = None
    fault: Optional[str] = None


def main(argv: Sequence[str]) -> int:
    """Make one copy; returns the exit status. Told to end, it removes what it has done so far."""
    if len(argv) < 2:
        sys.stderr.write("usage: first-onsite stage SOURCE FOLDER [UNUSED ...]\n")
        return 2
    signal.signal(signal.SIGTERM, _leave)
    try:
        path = stage(argv[0], argv[1], argv[2:], _say)
    except (CopyFault, ManifestFault) as exc:
        _say(Word(fault=exc.message))
        return 1
    except OSError as exc:
        _say(Word(fault=f"{exc.filename or argv[1]}: {exc.strerror}."))
        return 1
    _say(Word(path=path))
    return 0


def _leave(*_: Any) -> None:
    """Once: what removes the copy must not be told to end, too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)


def stage(source: str, folder: str, unused: Iterable[str], say: Callable[[Word], None]) -> str:
    """The path of a checked copy of ``source`` in ``folder``, made now unless it is there. ``unused``: copies of others
    in ``folder`` that may go when there is no room. Raises CopyFault, ManifestFault, or OSError."""
    remove_leftovers(os.path.dirname(folder))
    items = list_items(source)
    place = os.path.join(folder, _digest(source, items))
    path = os.path.join(place, os.path.basename(os.path.normpath(source)))
    if os.path.isdir(place):
        return path
    sums = expected_sums(source, items)
    needed = sum({item.identity: item.size_bytes for item in items}.values())
    _make_room(needed, folder, unused)
    part = place + UNFINISHED
    target = os.path.join(part, os.path.basename(path)) if os.path.isdir(source) else part
    try:
        os.makedirs(target, mode=0o700)
        _Copy(items, sums, target, needed, say).make()
        if list_items(source) != items:
            raise CopyFault(f"{source} changed while it was copied.")
        os.rename(part, place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return path


def remove_unfinished(folder: str) -> None:
    """Remove what a process that was killed left half done in ``folder``."""
    for name in os.listdir(folder):
        if name.endswith(UNFINISHED):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


class _Copy:
    """One copy under way: ``items`` below ``target``, several at a time."""

    def __init__(
        self, items: list[Item], sums: dict[str, str], target: str, total_bytes: int, say: Callable[[Word], None]
    ) -> None:
        self._sums = sums
        self._target = target
        self._total_bytes = total_bytes
        self._say = say
        self._lock = threading.Lock()
        self._is_given_up = threading.Event()
        self._doing = ""
        self._done_bytes = 0
        self._said_at = 0.0
        self._items: dict[tuple[int, int], list[Item]] = {}
        for item in sorted(items, key=lambda item: -item.size_bytes):
            self._items.setdefault(item.identity, []).append(item)

    def make(self) -> None:
        """Copy every file once, then read all copies again."""
        self._begin("copies its weights")
        firsts = [same[0] for same in self._items.values()]
        hashes = self._each(self._copy, firsts)
        self._begin("checks the copy of its weights")
        self._each(self._check, list(zip(firsts, hashes)))
        for same in self._items.values():
            for item in same[1:]:
                os.makedirs(os.path.dirname(self._path(item)), mode=0o700, exist_ok=True)
                os.link(self._path(same[0]), self._path(item))

    def _each(self, do: Callable[[Any], str], what: Sequence[Any]) -> list[str]:
        with ThreadPoolExecutor(STREAMS) as pool:
            futures = [pool.submit(do, one) for one in what]
            try:
                done, rest = wait(futures, return_when=FIRST_EXCEPTION)
            except BaseException:
                self._give_up(futures)
                raise
            faults = [fault for future in done if (fault := future.exception()) is not None]
            if faults:
                self._give_up(rest)
                raise next((fault for fault in faults if not isinstance(fault, _GivenUp)), faults[0])
            return [future.result() for future in futures]

    def _give_up(self, futures: Iterable[Future[str]]) -> None:
        self._is_given_up.set()
        for future in futures:
            future.cancel()

    def _copy(self, item: Item) -> str:
        """Returns the SHA-256 of what was read."""
        handle = self._made(item)
        try:
            sha256 = self._read_and_write(item, handle)
            self._settle(handle, item)
        except OSError as exc:
            raise CopyFault(f"{item.path} cannot be read: {exc.strerror}.") from exc
        finally:
            os.close(handle)
        if self._sums.get(item.name, sha256) != sha256:
            raise CopyFault(f"{item.path} is damaged: its SHA-256 is not the one that was noted for it.")
        return sha256

    def _read_and_write(self, item: Item, handle: int) -> str:
        sha256, size = hashlib.sha256(), 0
        with open(item.path, "rb", buffering=0) as source:
            for piece in self._pieces(source, item):
                sha256.update(piece)
                self._write(handle, piece, item)
                size += len(piece)
            # What was read is of no more use in memory, and counts as this job's.
            os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if size != item.size_bytes or not item.is_still(os.fstat(source.fileno())):
                raise CopyFault(f"{item.path} changed while it was copied.")
        return sha256.hexdigest()

    def _check(self, item_and_hash: tuple[Item, str]) -> str:
        item, expected = item_and_hash
        sha256, size = hashlib.sha256(), 0
        try:
            with open(self._path(item), "rb", buffering=0) as copy:
                for piece in self._pieces(copy, item):
                    sha256.update(piece)
                    size += len(piece)
        except OSError as exc:
            raise CopyFault(f"The copy of {item.path} on {_host()} cannot be read again: {exc.strerror}.") from exc
        if (size, sha256.hexdigest()) != (item.size_bytes, expected):
            raise CopyFault(f"The copy of {item.path} reads back differently: do not trust the disk of {_host()}.")
        return expected

    def _pieces(self, file: FileIO, item: Item) -> Iterator[memoryview]:
        """What is in ``file``; each piece is good until the next, and counts as done then."""
        buffer = memoryview(bytearray(min(PIECE_BYTES, item.size_bytes + 1)))
        while length := file.readinto(buffer):
            yield buffer[:length]
            self._count(length)

    def _made(self, item: Item) -> int:
        """The descriptor of the new file."""
        path = self._path(item)
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise self._cannot_write(item, exc) from exc

    def _write(self, handle: int, piece: memoryview, item: Item) -> None:
        try:
            while piece:
                piece = piece[os.write(handle, piece) :]
        except OSError as exc:
            raise self._cannot_write(item, exc) from exc

    def _settle(self, handle: int, item: Item) -> None:
        """Onto the disk and out of memory, so that reading it again reads the disk."""
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as exc:
            raise self._cannot_write(item, exc) from exc

    def _cannot_write(self, item: Item, exc: OSError) -> CopyFault:
        if exc.errno in _FULL:
            words = f"needed are {amount(self._total_bytes)} in {len(self._items)} files, others took what was free"
            return CopyFault(f"The disk of {_host()} became full under {self._target}: {words}.")
        return CopyFault(f"The copy of {item.name} under {self._target} cannot be written: {exc.strerror}.")

    def _path(self, item: Item) -> str:
        return os.path.join(self._target, item.name)

    def _begin(self, doing: str) -> None:
        self._doing, self._done_bytes, self._said_at = doing, 0, monotonic()
        self._say(Word(self._progress()))

    def _count(self, size_bytes: int) -> None:
        if self._is_given_up.is_set():
            raise _GivenUp
        with self._lock:
            self._done_bytes += size_bytes
            if monotonic() - self._said_at >= EVERY_S:
                self._said_at = monotonic()
                self._say(Word(self._progress()))

    def _progress(self) -> str:
        return f"{self._doing}: {amount(self._done_bytes, self._total_bytes)}"


def amount(size_bytes: int, total_bytes: Optional[int] = None) -> str:
    """Bytes for people: ``12.6 GB``, or ``3.1 of 12.6 GB``."""
    largest = size_bytes if total_bytes is None else total_bytes
    unit, size = ("GB", 1e9) if largest >= 1e9 else ("MB", 1e6)
    whole = "" if total_bytes is None else f" of {total_bytes / size:.1f}"
    return f"{size_bytes / size:.1f}{whole} {unit}"


def _make_room(needed_bytes: int, folder: str, unused: Iterable[str]) -> None:
    """Remove ``unused`` copies until there is room; raises CopyFault where there is none."""
    left = iter(unused)
    while True:
        disk = os.statvfs(folder)
        free, reserve = disk.f_bavail * disk.f_frsize, min(RESERVE_BYTES, disk.f_blocks * disk.f_frsize // 50)
        if needed_bytes + reserve <= free:
            return
        place = next(left, None)
        if place is None:
            words = f"needed are {amount(needed_bytes)}, free are {amount(free)}, of which {amount(reserve)} stay free"
            raise CopyFault(f"The disk of {_host()} has no room for a copy under {folder}: {words}.")
        shutil.rmtree(place, ignore_errors=True)


def _digest(source: str, items: list[Item]) -> str:
    text = json.dumps([os.path.realpath(source), *([i.name, i.size_bytes, i.changed_ns, *i.identity] for i in items)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _host() -> str:
    return os.uname().nodename


def _say(word: Word) -> None:
    sys.stdout.write(json.dumps(to_dict(word)) + "\n")
    sys.stdout.flush()
