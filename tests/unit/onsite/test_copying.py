"""Copies of weights: what is copied, what is checked, and what is said when it cannot be."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from firstkit.onsite import copying, manifest
from firstkit.onsite.copying import CopyFault, Word, amount, main, stage
from firstkit.onsite.manifest import ManifestFault
from firstkit.wire import decode

Disk = namedtuple("Disk", "f_bavail f_frsize f_blocks")


class Here:
    """A source folder, and the folder of a job for its copies."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "models" / "llama"
        self.source.mkdir(parents=True)
        self.copies = folder / "scratch" / "first-0" / "job-1"
        self.copies.mkdir(parents=True)
        self.said: list[Word] = []

    def write(self, name: str, data: bytes = b"weights") -> Path:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def stage(self, source: Path | None = None, *unused: str) -> Path:
        return Path(stage(str(source or self.source), str(self.copies), unused, self.said.append))

    def refused(self, source: Path | None = None) -> str:
        """The sentence of a copy that fails and leaves nothing."""
        before = sorted(self.copies.iterdir())
        with pytest.raises((CopyFault, ManifestFault)) as caught:
            self.stage(source)
        assert sorted(self.copies.iterdir()) == before
        return caught.value.message


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sums_of(*paths: Path) -> str:
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths]
    return "".join(lines)


# -- what is copied ----------------------------------------------------------------------------------------------------


def test_a_folder_is_copied_with_all_below_it_but_what_is_hidden(here: Here) -> None:
    large = os.urandom(3 * 1024**2 + 1)
    here.write("config.json", b"{}")
    here.write("model.safetensors", large)
    here.write("empty.txt", b"")
    here.write("original/params.json", b"[]")
    here.write(".git/lfs/model", large)
    copy = here.stage()
    assert copy.name == "llama"
    assert copy.parent.parent == here.copies
    assert files_of(copy) == {
        "config.json": b"{}", "model.safetensors": large, "empty.txt": b"", "original/params.json": b"[]"
    }  # fmt: skip
    assert {path.stat().st_mode & 0o077 for path in copy.rglob("*")} == {0}


def test_a_file_keeps_its_name(here: Here) -> None:
    copy = here.stage(here.write("model.gguf", b"one"))
    assert (copy.name, files_of(copy.parent)) == ("model.gguf", {"model.gguf": b"one"})


def test_a_split_file_comes_with_its_other_parts(here: Here) -> None:
    for number in (1, 2):
        here.write(f"m-0000{number}-of-00002.gguf", b"%d" % number)
    here.write("m-00001-of-00003.gguf")
    here.write("other-00001-of-00002.gguf")
    copy = here.stage(here.source / "m-00001-of-00002.gguf")
    assert copy.name == "m-00001-of-00002.gguf"
    assert files_of(copy.parent) == {"m-00001-of-00002.gguf": b"1", "m-00002-of-00002.gguf": b"2"}


def cache(folder: Path, data: bytes = b"weights") -> tuple[Path, Path]:
    """A cache as Hugging Face's library makes it: the snapshot, and the blob of its large file."""
    blob = folder / "models--a--b" / "blobs" / hashlib.sha256(b"weights").hexdigest()
    snapshot = folder / "models--a--b" / "snapshots" / "abc123"
    for path in (blob.parent, snapshot):
        path.mkdir(parents=True)
    blob.write_bytes(data)
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{blob.name}")
    return snapshot, blob


def test_links_of_a_hugging_face_cache_become_files(here: Here, tmp_path: Path) -> None:
    snapshot, _ = cache(tmp_path)
    copy = here.stage(snapshot)
    assert files_of(copy) == {"model.safetensors": b"weights"}
    assert not (copy / "model.safetensors").is_symlink()


def test_a_file_with_several_names_is_copied_once(here: Here, tmp_path: Path) -> None:
    snapshot, blob = cache(tmp_path)
    copy = here.stage(snapshot.parent.parent)
    first, second = copy / "blobs" / blob.name, copy / "snapshots" / "abc123" / "model.safetensors"
    assert first.samefile(second)
    assert here.said[0].doing == "copies its weights: 0.0 of 0.0 MB"


def test_nothing_is_copied_twice_unless_it_has_changed(here: Here) -> None:
    model = here.write("model")
    copy = here.stage()
    inode = (copy / "model").stat().st_ino
    assert here.stage() == copy
    assert (copy / "model").stat().st_ino == inode
    model.write_bytes(b"other weights")
    changed = here.stage()
    assert changed != copy
    assert files_of(changed) == {"model": b"other weights"}
    assert files_of(copy) == {"model": b"weights"}


# -- what cannot be copied ---------------------------------------------------------------------------------------------


def test_a_source_that_is_not_there(here: Here) -> None:
    missing = here.source / "missing"
    assert here.refused(missing) == f"{missing} cannot be read: No such file or directory."
    (here.source / "link").symlink_to("nowhere")
    assert here.refused() == f"{here.source}/link cannot be read: No such file or directory."
    assert here.refused(Path("llama")) == "The weights are at llama; to be copied they need an absolute path."


def test_a_source_that_is_nothing_to_copy(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    assert here.refused() == f"There is no file in {here.source}."
    (here.source / "loop").symlink_to(".")
    assert here.refused() == f"{here.source}/loop leads back to a folder that holds it."
    (here.source / "loop").unlink()
    os.mkfifo(here.source / "pipe")
    assert here.refused() == f"{here.source}/pipe is neither a file nor a folder."
    (here.source / "pipe").unlink()
    for number in range(4):
        here.write(f"folder/{number}")
    monkeypatch.setattr(manifest, "MOST_FILES", 3)
    assert here.refused() == f"There are more than 3 files in {here.source}: that is no folder of weights."


def test_a_file_that_may_not_be_read(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    path = here.write("secret")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert here.refused() == f"{path} cannot be read by this user."


def fails(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    def fail(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, fail)


def test_a_disk_that_becomes_full(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        here.write(f"model-{number}", os.urandom(1000))
    fails(monkeypatch, "write", errno.ENOSPC)
    sentence = here.refused()
    assert sentence.startswith(f"The disk of {os.uname().nodename} became full under {here.copies}/")
    assert sentence.endswith("needed are 0.0 MB in 20 files, others took what was free.")


def test_a_disk_that_fails_when_it_shall_keep_what_it_took(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here.write("model")
    fails(monkeypatch, "fsync", errno.EIO)
    sentence = here.refused()
    assert sentence.startswith("The copy of model under ")
    assert sentence.endswith("cannot be written: Input/output error.")


def test_a_limit_of_the_size_of_files(here: Here) -> None:
    """In a process of its own, since the limit cannot be taken back."""
    here.write("model", bytes(20000))
    result = subprocess.run(
        [sys.executable, "-m", "firstkit.onsite", "stage", str(here.source), str(here.copies)],
        capture_output=True,
        check=False,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000)),
    )
    assert result.returncode == 1
    fault = decode(Word, result.stdout.splitlines()[-1]).fault
    assert fault is not None
    assert fault.endswith("cannot be written: File too large.")
    assert list(here.copies.iterdir()) == []


def free(monkeypatch: pytest.MonkeyPatch, size_bytes: Callable[[], int], whole_bytes: int = 10**13) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: Disk(size_bytes() // 1000, 1000, whole_bytes // 1000))


def test_no_room_is_said_before_anything_is_copied(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here.write("model", bytes(2_600_000))
    free(monkeypatch, lambda: 1_074_000_000)
    sentence = here.refused()
    assert sentence.startswith(f"The disk of {os.uname().nodename} has no room for a copy under {here.copies}: ")
    assert sentence.endswith("needed are 2.6 MB, free are 1.1 GB, of which 1.1 GB stay free.")
    assert here.said == []


def test_of_a_small_disk_less_stays_free(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here.write("model", bytes(9_000_000))
    free(monkeypatch, lambda: 10_000_000, 50_000_000)
    assert here.stage().is_dir()


def test_unused_copies_make_room_one_after_the_other(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    unused = []
    for name in ("old", "older", "oldest"):
        unused.append(here.copies / name)
        unused[-1].mkdir()
    free(monkeypatch, lambda: 10_000_000 * (4 - len(list(here.copies.iterdir()))), 50_000_000)
    here.write("model", bytes(25_000_000))
    copy = here.stage(None, *map(str, unused))
    assert sorted(path.name for path in here.copies.iterdir()) == sorted([copy.parent.name, "oldest"])


def test_a_copy_that_is_told_to_end_leaves_nothing(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        here.write(f"model-{number}", os.urandom(1000))
    really_write, before = os.write, signal.getsignal(signal.SIGTERM)

    def write(handle: int, data: bytes) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return really_write(handle, data)

    monkeypatch.setattr(os, "write", write)
    try:
        with pytest.raises(SystemExit):
            main([str(here.source), str(here.copies)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert list(here.copies.iterdir()) == []


# -- what is checked ---------------------------------------------------------------------------------------------------


def test_a_source_that_changes_while_it_is_copied(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    path = here.write("model")
    really_write = os.write

    def write(handle: int, data: bytes) -> int:
        path.write_bytes(b"changed")
        os.utime(path, ns=(1, 1))
        return really_write(handle, data)

    monkeypatch.setattr(os, "write", write)
    assert here.refused() == f"{path} changed while it was copied."


def test_a_source_that_gets_another_file_while_it_is_copied(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here.write("model")
    really_sync = os.fsync

    def sync(handle: int) -> None:
        here.write("another")
        really_sync(handle)

    monkeypatch.setattr(os, "fsync", sync)
    assert here.refused() == f"{here.source} changed while it was copied."


def test_a_disk_that_gives_back_something_else(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    path = here.write("model", b"weights")
    really_write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: really_write(handle, bytes(data).replace(b"w", b"v")))
    sentence = f"The copy of {path} reads back differently: do not trust the disk of {os.uname().nodename}."
    assert here.refused() == sentence


def test_sums_beside_the_weights_are_compared(here: Here) -> None:
    first, second = here.write("model-1"), here.write("model-2", b"more")
    here.write("SHA256SUMS", sums_of(first, second).replace("model-2", "./model-2").encode())
    assert here.stage().is_dir()
    second.write_bytes(b"MORE")
    assert here.refused() == f"{second} is damaged: its SHA-256 is not the one that was noted for it."
    assert here.refused(second) == f"{second} is damaged: its SHA-256 is not the one that was noted for it."
    assert here.stage(first).is_file()


def test_a_file_of_the_sums_that_is_missing(here: Here) -> None:
    first, second = here.write("model-1"), here.write("model-2")
    sums = here.write("SHA256SUMS", sums_of(first, second).encode())
    second.unlink()
    assert here.refused() == f"{sums} names model-2, which is not there."


def test_sums_with_odd_names_and_marks(here: Here) -> None:
    odd = here.write("a\\b\nc")
    noted = hashlib.sha256(b"weights").hexdigest()
    here.write("SHA256SUMS", f"# made by hand\n\n\\{noted.upper()} *a\\\\b\\nc\n".encode())
    assert here.stage().is_dir()
    odd.write_bytes(b"other")
    assert "is damaged" in here.refused()


def test_a_sum_of_the_sums_themselves_says_nothing(here: Here) -> None:
    here.write("SHA256SUMS", f"{'0' * 64}  SHA256SUMS\n".encode())
    assert here.stage().is_dir()


@pytest.mark.parametrize("line", [b"no sum", b"abc  model", b"\xff\xfe", b"0" * 64, b"0" * 63 + b"g  model"])
def test_sums_that_cannot_be_read_are_no_sums(here: Here, line: bytes) -> None:
    here.write("model")
    sums = here.write("SHA256SUMS", b"\n" + line)
    assert here.refused() == f"{sums}: line 2 is not one of sha256sum."


def test_a_damaged_blob_of_a_hugging_face_cache(here: Here, tmp_path: Path) -> None:
    snapshot, _ = cache(tmp_path, b"damaged")
    assert here.refused(snapshot).endswith("is damaged: its SHA-256 is not the one that was noted for it.")


# -- what is said ------------------------------------------------------------------------------------------------------


def test_progress_is_said_at_most_once_a_second(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "PIECE_BYTES", 100_000)
    monkeypatch.setattr(copying, "STREAMS", 1)
    clock = iter(0.25 * tick for tick in range(10_000))
    monkeypatch.setattr(copying, "monotonic", lambda: next(clock))
    here.write("model", bytes(1_000_000))
    here.stage()
    words = [word.doing for word in here.said]
    assert words[0] == "copies its weights: 0.0 of 1.0 MB"
    assert "checks the copy of its weights: 0.0 of 1.0 MB" in words
    assert 4 <= len(words) <= 8
    done = [float(text.split(": ")[1].split(" ")[0]) for text in words if text.startswith("copies")]
    assert done == sorted(done)


def test_amounts_are_for_people() -> None:
    assert amount(3_100_000_000, 12_600_000_000) == "3.1 of 12.6 GB"
    assert amount(250_000_000, 999_000_000) == "250.0 of 999.0 MB"
    assert amount(1_500_000_000) == "1.5 GB"


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[Word]]]:
    return lambda: [decode(Word, line) for line in capsys.readouterr().out.splitlines()]


def test_the_program_says_where_the_copy_is_or_what_is_wrong(here: Here, lines: Callable[[], list[Word]]) -> None:
    model = here.write("model")
    assert main([str(here.source), str(here.copies)]) == 0
    *_, last = lines()
    assert last.path is not None
    assert files_of(Path(last.path)) == {"model": b"weights"}
    model.unlink()
    assert main([str(here.source), str(here.copies)]) == 1
    assert lines() == [Word(fault=f"There is no file in {here.source}.")]
    here.write("model")
    missing = f"{here.copies.parent}-x/job-1"
    assert main([str(here.source), missing]) == 1
    assert lines() == [Word(fault=f"{here.copies.parent}-x: No such file or directory.")]
    assert main([]) == 2
