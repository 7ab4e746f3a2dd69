from __future__ import annotations

import asyncio
import errno
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.accounting import entries
from firstkit.accounting import spool as module
from firstkit.accounting.entries import Entry, OpenEntry, UsageEntry, read_line
from firstkit.accounting.spool import Spool, full_segments, lines_of
from firstkit.errors import ConfigError, StoreUnavailable
from usage_entries import open_entry, usage_entry


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path / "spool")
    yield made
    made.close()


def _entries(spool: Spool) -> list[Entry | None]:
    return [read_line(line) for path in sorted(spool.folder.glob("usage-*.jsonl")) for line in lines_of(path)]


def test_lines_come_back_as_they_were(spool: Spool) -> None:
    entries = [open_entry("a"), usage_entry("a", model='späße "quoted"\n', ttft_s=None, cluster=None)]
    spool.opened(open_entry("a"))
    spool.ended(entries[1])  # type: ignore[arg-type]
    assert _entries(spool) == entries


def test_only_the_owner_may_read(spool: Spool) -> None:
    spool.opened(open_entry("a"))
    modes = {stat.S_IMODE(path.stat().st_mode) for path in spool.folder.iterdir()}
    assert modes == {0o600}
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700


def test_one_gateway_owns_a_spool(spool: Spool) -> None:
    with pytest.raises(ConfigError, match="another gateway"):
        Spool(spool.folder)


def test_a_closed_spool_may_be_owned_again_and_old_files_are_left_alone(tmp_path: Path) -> None:
    first = Spool(tmp_path)
    first.ended(usage_entry("a"))
    first.close()
    second = Spool(tmp_path)
    assert [read_line(line) for path in full_segments(second.folder) for line in lines_of(path)] == [usage_entry("a")]
    second.close()


def test_rotation_carries_open_requests_over(spool: Spool) -> None:
    for name in ("a", "b"):
        spool.opened(open_entry(name))
    spool.ended(usage_entry("a"))
    assert spool.has_usage
    spool.turn_over()
    assert not spool.has_usage
    assert len(spool) == 1
    for path in full_segments(spool.folder):
        path.unlink()
    assert _entries(spool) == [open_entry("b")]


def test_whoever_wants_to_hears_of_every_line_for_the_ledger_once(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of one that the disk refuses for now: it will come, and with a file before which nobody counted it."""
    heard: list[tuple[UsageEntry, bool]] = []
    spool.on_ended = lambda entry: heard.append((entry, spool.has_usage))
    spool.opened(open_entry("a"))
    spool.ended(usage_entry("a"))
    spool.turn_over()
    disk = _Disk(monkeypatch, 0)
    with pytest.raises(StoreUnavailable):
        spool.ended(usage_entry("b"))
    disk.room = 10**6
    spool.ended(usage_entry("c"))
    assert heard == [(usage_entry("a"), False), (usage_entry("b"), False), (usage_entry("c"), False)]


# -- a disk that refuses -------------------------------------------------------------------------------------------


class _Disk:
    """os.write that takes ``room`` bytes and then refuses, the last write being cut short."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        self._write = module.os.write
        monkeypatch.setattr(module.os, "write", self)

    def __call__(self, descriptor: int, data: bytes) -> int:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        written = self._write(descriptor, data[: self.room])
        self.room -= written
        return written


@pytest.mark.parametrize("room", [0, 1, 100])
@pytest.mark.parametrize("truncates", [True, False])
def test_a_line_that_the_disk_refuses_comes_later(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, room: int, truncates: bool
) -> None:
    spool.opened(open_entry("a"))
    disk = _Disk(monkeypatch, room)
    if not truncates:
        monkeypatch.setattr(module.os, "ftruncate", _refuse)
    with pytest.raises(StoreUnavailable):
        spool.ended(usage_entry("a"))
    with pytest.raises(StoreUnavailable):
        spool.opened(open_entry("b"))
    with pytest.raises(StoreUnavailable):
        spool.turn_over()
    disk.room = 10**6
    spool.opened(open_entry("b"))
    found = [entry for entry in _entries(spool) if entry is not None]
    assert found == [open_entry("a"), usage_entry("a"), open_entry("b")]
    assert len(spool) == 1


def _refuse(*_: Any) -> None:
    raise OSError(5, "Input/output error")


# -- the lines of one turn of the loop -------------------------------------------------------------------------------


async def test_the_lines_of_a_turn_are_one_write_and_nobody_goes_on_before_it(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[bytes] = []
    write = module._write_whole

    def noting(descriptor: int, data: bytes) -> None:
        writes.append(data)
        write(descriptor, data)

    spool.opened(open_entry("a"))
    monkeypatch.setattr(module, "_write_whole", noting)
    told: list[tuple[str, int]] = []
    spool.begin(open_entry("b"), lambda _: told.append(("b", len(spool))))
    spool.end(usage_entry("a"), lambda _: told.append(("a", len(spool))))
    spool.begin(open_entry("c"), lambda _: told.append(("c", len(spool))))
    assert (told, writes) == ([], [])
    await asyncio.sleep(0)
    assert len(writes) == 1
    assert told == [("a", 2), ("b", 2), ("c", 2)], "those that are open now are b and c"
    assert _entries(spool) == [open_entry("a"), usage_entry("a"), open_entry("b"), open_entry("c")]
    assert spool.has_usage


async def test_a_turn_that_the_disk_refuses_lets_nothing_begin_and_loses_no_end(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.opened(open_entry("a"))
    told: list[tuple[str, bool]] = []
    with monkeypatch.context() as full:
        full.setattr(module, "_write_whole", _no_space)
        spool.begin(open_entry("b"), lambda refusal: told.append(("b", refusal is None)))
        spool.end(usage_entry("a"), lambda refusal: told.append(("a", refusal is None)))
        await asyncio.sleep(0)
    assert told == [("a", False), ("b", False)]
    assert len(spool) == 0
    spool.begin(open_entry("c"), lambda refusal: told.append(("c", refusal is None)))
    await asyncio.sleep(0)
    assert told[2:] == [("c", True)]
    assert _entries(spool)[1:] == [usage_entry("a"), open_entry("c")], "what ended comes before what begins"


async def test_a_turn_that_ends_in_another_file_loses_nothing_and_has_nothing_twice(spool: Spool) -> None:
    told: list[str] = []
    spool.opened(open_entry("a"))
    spool.begin(open_entry("b"), lambda _: told.append("b"))
    spool.end(usage_entry("a"), lambda _: told.append("a"))
    spool.turn_over()
    await asyncio.sleep(0)
    assert told == ["a", "b"]
    [full] = full_segments(spool.folder)
    assert [read_line(line) for line in lines_of(full)] == [open_entry("a"), usage_entry("a")]
    assert _entries(spool)[2:] == [open_entry("b")]
    spool.end(usage_entry("b"), lambda _: told.append("end of b"))
    await asyncio.sleep(0)
    assert (told[2:], len(spool)) == (["end of b"], 0)


def _no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "no space")


def test_a_rotation_that_the_disk_refuses_changes_nothing(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.opened(open_entry("a"))
    spool.ended(usage_entry("b"))
    disk = _Disk(monkeypatch, 10)
    with pytest.raises(StoreUnavailable):
        spool.turn_over()
    assert full_segments(spool.folder) == []
    disk.room = 10**6
    spool.ended(usage_entry("a"))
    assert _entries(spool) == [open_entry("a"), usage_entry("b"), usage_entry("a")]
    assert full_segments(spool.folder) == []


def test_a_full_disk_for_real(tmp_path: Path) -> None:
    """In a process of its own, with a limit on the size of files for a disk that is full."""
    code = """
import resource, signal, sys
from pathlib import Path
from usage_entries import open_entry, usage_entry
from firstkit.accounting.spool import Spool
from firstkit.errors import StoreUnavailable
spool = Spool(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
accepted, kept = 0, 0
while not kept:
    try:
        spool.opened(open_entry(str(accepted)))
        accepted += 1
        spool.ended(usage_entry(str(accepted - 1)))
    except StoreUnavailable:
        kept += 1
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
spool.flush()
spool.opened(open_entry("after"))
print(accepted)
"""
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd="tests", capture_output=True, check=True)
    accepted = int(run.stdout)
    entries = [read_line(line) for line in lines_of(tmp_path / "usage-1.jsonl")]
    ended = [entry.request_id for entry in entries if isinstance(entry, UsageEntry)]
    assert None not in entries
    assert set(ended) >= {str(number) for number in range(accepted - 1)}
    assert len(ended) == len(set(ended))
    assert entries[-1] == open_entry("after")


# -- reading -------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_any_bytes_are_an_entry_or_nothing(line: bytes) -> None:
    assert read_line(line) is None or isinstance(read_line(line), OpenEntry | UsageEntry)


@given(st.integers(0, 500))
def test_torn_lines_are_nothing(length: int) -> None:
    whole = entries._encoder.encode(usage_entry("a"))
    assert (read_line(whole[:length]) is None) == (length < len(whole))


@pytest.mark.parametrize(
    "values",
    [
        {"prompt_tokens": -1},
        {"completion_tokens": 2**63},
        {"model": "x" * 301},
        {"model": "a\x00b"},
        {"user_id": ""},
        {"outcome": "splendid"},
        {"at": "2026-11-24T12:00:00"},
    ],
)
def test_what_the_ledger_would_refuse_is_malformed(values: dict[str, Any]) -> None:
    assert read_line(entries._encoder.encode(usage_entry("a", **values))) is None
