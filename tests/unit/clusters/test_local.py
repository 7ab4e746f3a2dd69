import asyncio
import os
import time
from pathlib import Path

import pytest

from firstkit.clusters import local
from firstkit.clusters.local import LocalCarrier
from firstkit.errors import SchedulerRefused, SchedulerSilent


def program(monkeypatch: pytest.MonkeyPatch, folder: Path, source: str) -> LocalCarrier:
    """A carrier that runs ``source`` instead of the zipapp."""
    path = folder / "program.py"
    path.write_text(source)
    monkeypatch.setattr(local, "install", lambda state_dir: path)
    return LocalCarrier(str(folder), {"CLUSTER": "yes"}, time_limit_s=10.0)


async def test_the_request_goes_in_and_the_result_comes_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = "import json, sys; print(json.dumps({'ok': True, 'result': [sys.argv[1:], json.load(sys.stdin)]}))"
    carrier = program(monkeypatch, tmp_path, source)
    assert await carrier.run("poll", {"a": 1}) == [["cluster", "poll"], {"a": 1}]


async def test_the_environment_of_commands_is_clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = "import json, os; print(json.dumps({'ok': True, 'result': dict(os.environ)}))"
    carrier = program(monkeypatch, tmp_path, source)
    monkeypatch.setenv("FIRST_CANARY", "s3cret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    environment = await carrier.run("poll", {})
    assert (environment["CLUSTER"], environment["CUDA_VISIBLE_DEVICES"]) == ("yes", "3")
    assert environment["PATH"] == os.environ["PATH"]
    assert "FIRST_CANARY" not in environment


async def test_a_command_that_hangs_is_silence_and_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    carrier = program(monkeypatch, tmp_path, source)
    carrier._time_limit_s = 1.0
    began = time.monotonic()
    with pytest.raises(SchedulerSilent, match="'poll' did not answer within 1 s"):
        await carrier.run("poll", {})
    assert time.monotonic() - began < 30, "and not after the minute that it would take"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_a_command_whose_caller_gave_up_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    task = asyncio.create_task(program(monkeypatch, tmp_path, source).run("poll", {}))
    async with asyncio.timeout(10):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_a_command_that_dies_is_silence_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    carrier = program(monkeypatch, tmp_path, "import sys; sys.exit('no room')")
    with pytest.raises(SchedulerSilent, match=r"'poll' gave no answer \(exit status 1\): no room"):
        await carrier.run("poll", {})


async def test_an_answer_of_no_is_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    carrier = program(monkeypatch, tmp_path, """print('{"ok": false, "error": "refused", "message": "too large"}')""")
    with pytest.raises(SchedulerRefused, match="too large"):
        await carrier.run("submit", {})


async def test_a_state_folder_that_cannot_be_written_is_silence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SchedulerSilent, match="could not be run"):
        await LocalCarrier(str(tmp_path / "file")).run("poll", {})
