from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.onsite import logfile


def test_the_end_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    assert logfile.read_end(str(path)) == ""
    path.write_bytes(b"".join(b"line %d\n" % number for number in range(1000)))
    assert logfile.read_end(str(path), lines=2) == "line 998\nline 999"
    assert logfile.read_end(str(path), lines=1000, size_bytes=20) == "line 998\nline 999"


def test_an_end_without_a_line_break(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_bytes(b"x" * 100)
    assert logfile.read_end(str(path), size_bytes=10) == "x" * 10


@given(data=st.binary(max_size=300), lines=st.integers(1, 10), size=st.integers(1, 100))
def test_any_bytes_have_an_end(tmp_path_factory: pytest.TempPathFactory, data: bytes, lines: int, size: int) -> None:
    path = tmp_path_factory.getbasetemp() / "any.log"
    path.write_bytes(data)
    text = logfile.read_end(str(path), lines, size)
    assert len(text) <= size
    assert len(text.splitlines()) <= lines


async def test_rotation_keeps_three_files_and_the_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    descriptor = logfile.open_log(str(path))
    for number in range(4):
        os.write(descriptor, b"%d" % number * 20)
        await logfile.rotate(str(path), limit_bytes=10)
        assert path.read_bytes() == b""
    os.write(descriptor, b"last")
    await logfile.rotate(str(path), limit_bytes=10)
    os.close(descriptor)
    texts = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert texts == {"engine.log": "last", "engine.log.1": "3" * 20, "engine.log.2": "2" * 20}
    assert all(file.stat().st_mode & 0o077 == 0 for file in tmp_path.iterdir())


async def test_a_log_that_cannot_be_copied_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_bytes(b"x" * 20)
    (tmp_path / "engine.log.1").mkdir()
    await logfile.rotate(str(path), limit_bytes=10, files=2)
    assert path.read_bytes() == b""


async def test_no_log_is_no_error(tmp_path: Path) -> None:
    await logfile.rotate(str(tmp_path / "engine.log"))
