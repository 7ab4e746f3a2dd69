"""What a copy of weights is made of: the files of the source, and the SHA-256 that somebody noted for them."""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Optional

from firstkit.errors import FirstError

SUMS = "SHA256SUMS"
MOST_FILES = 10_000
SUMS_LIMIT_BYTES = 4 * 1024**2
_SUM = re.compile(r"(\\?)([0-9a-fA-F]{64}) [ *](.+)")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_SHARD = re.compile(r"(.+-)[0-9]{5}(-of-[0-9]{5}\.gguf)\Z")
_UNESCAPED = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}


class ManifestFault(FirstError):
    """The source is nothing that could be copied."""


@dataclass(frozen=True)
class Item:
    """One file: its ``name`` in the copy, where it is read, and what tells that it is still the same. Files of one
    ``identity`` (device and inode) are one file under several names."""

    name: str
    path: str
    size_bytes: int
    changed_ns: int
    identity: tuple[int, int]

    def is_still(self, status: os.stat_result) -> bool:
        return (status.st_size, status.st_mtime_ns) == (self.size_bytes, self.changed_ns)


def list_items(source: str) -> list[Item]:
    """All files of ``source``, symbolic links followed; hidden ones, such as ``.git``, are left out. A file comes with
    the other parts that a split GGUF has. Raises ManifestFault."""
    if not os.path.isabs(source):
        raise ManifestFault(f"The weights are at {source}; to be copied they need an absolute path.")
    try:
        if os.path.isdir(source):
            items = list(islice(_walk(source, "", ()), MOST_FILES + 1))
        else:
            items = [_item(path, os.path.basename(path)) for path in _parts(source)]
    except OSError as exc:
        raise ManifestFault(f"{exc.filename} cannot be read: {exc.strerror}.") from exc
    if not items:
        raise ManifestFault(f"There is no file in {source}.")
    if len(items) > MOST_FILES:
        raise ManifestFault(f"There are more than {MOST_FILES} files in {source}: that is no folder of weights.")
    return items


def expected_sums(source: str, items: list[Item]) -> dict[str, str]:
    """Name of an item -> its SHA-256, where that is known: from a file SHA256SUMS in the folder of the weights, or from
    its name in a Hugging Face cache. Raises ManifestFault."""
    sums = {item.name: noted for item in items if (noted := _name_of_blob(item.path)) is not None}
    is_folder = os.path.isdir(source)
    path = os.path.join(source if is_folder else os.path.dirname(source), SUMS)
    names = {item.name for item in items}
    for name, noted in _read_sums(path):
        if name in names:
            sums[name] = noted
        elif is_folder and not _is_hidden(name):
            raise ManifestFault(f"{path} names {name}, which is not there.")
    return sums


def _walk(folder: str, prefix: str, above: tuple[str, ...]) -> Iterator[Item]:
    here = os.path.realpath(folder)
    if here in above:
        raise ManifestFault(f"{folder} leads back to a folder that holds it.")
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if _is_hidden(name):
            continue
        if os.path.isdir(path):
            yield from _walk(path, f"{prefix}{name}/", (*above, here))
        else:
            yield _item(path, prefix + name)


def _item(path: str, name: str) -> Item:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ManifestFault(f"{path} is neither a file nor a folder.")
    if not os.access(path, os.R_OK):
        raise ManifestFault(f"{path} cannot be read by this user.")
    return Item(name, path, status.st_size, status.st_mtime_ns, (status.st_dev, status.st_ino))


def _parts(path: str) -> list[str]:
    """The file itself, first, and the others of a split GGUF: the engine finds them by their names."""
    folder, name = os.path.split(path)
    match = _SHARD.match(name)
    if not match:
        return [path]
    others = [other for other in sorted(os.listdir(folder)) if other != name and _is_shard(other, match)]
    return [path, *(os.path.join(folder, other) for other in others)]


def _is_shard(name: str, of: re.Match[str]) -> bool:
    match = _SHARD.match(name)
    return match is not None and match.groups() == of.groups()


def _name_of_blob(path: str) -> Optional[str]:
    """The SHA-256 that a Hugging Face cache names its large files by."""
    folder, name = os.path.split(os.path.realpath(path))
    return name if os.path.islink(path) and os.path.basename(folder) == "blobs" and _SHA256.match(name) else None


def _read_sums(path: str) -> Iterator[tuple[str, str]]:
    """Names and hashes as ``sha256sum`` writes them; nothing where there is no such file."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(SUMS_LIMIT_BYTES)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise ManifestFault(f"{path} cannot be read: {exc.strerror}.") from exc
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _SUM.fullmatch(line)
        if not match:
            raise ManifestFault(f"{path}: line {number} is not one of sha256sum.")
        name = re.sub(r"\\[\\nr]", lambda found: _UNESCAPED[found[0]], match[3]) if match[1] else match[3]
        name = posixpath.normpath(name)
        if name != SUMS:  # it cannot hold its own sum; one of an earlier version got in
            yield name, match[2].lower()


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
