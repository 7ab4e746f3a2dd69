"""The pilot's part in copies of weights: one for all replicas, given up when nobody waits, removed at the end."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from firstkit.engines.engine import EngineSpec, Launch, Place, ReplicaSpec
from firstkit.links.messages import ReplicaReport
from firstkit.onsite import staging as module
from firstkit.onsite import supervise
from firstkit.onsite.allotment import Share
from firstkit.onsite.staging import Staging, StagingFailed, staged
from firstkit.onsite.supervise import Replica, Surroundings
from firstkit.states import ReplicaState
from unit.onsite.support import FakeAdapter, engines_below
from waiting import until

PRELUDE = """
import json, os, sys, time
source, folder, unused = sys.argv[2], sys.argv[3], sys.argv[4:]
def say(**word): print(json.dumps(word), flush=True)
def make(name):
    os.mkdir(os.path.join(folder, name))
    return os.path.join(folder, name, "weights")
"""
SLOW = 'make("a.part"); say(doing="copies its weights: 0.0 of 1.0 GB"); time.sleep(1000)'
QUICK = 'say(doing=" ".join(map(os.path.basename, unused))); say(path=make(os.path.basename(source)))'


class Bench:
    """A staging with weights to copy, and programs that copy nothing."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.weights = folder / "model.gguf"
        self.weights.write_bytes(b"weights")
        self.root = folder / f"first-{os.geteuid()}"
        self.staging = self.make(str(folder))
        self.said: list[str] = []
        self._monkeypatch = monkeypatch
        self._others = psutil.Process().children()

    def make(self, scratch: str | None) -> Staging:
        return Staging(scratch, "job-1", {"PATH": os.environ["PATH"], "SECRET": "x"})

    def program(self, script: str) -> None:
        """What is run from now on in place of our own program."""
        path = self.folder / "program.py"
        path.write_text(PRELUDE + script)
        self._monkeypatch.setattr(module, "self_path", lambda: str(path))

    def own_program(self) -> None:
        self._monkeypatch.undo()
        self._monkeypatch.chdir(self.folder)

    async def stage(self, path: Path | None = None) -> str:
        return await self.staging.stage(str(path or self.weights), self.said.append)

    def begin(self) -> asyncio.Task[str]:
        return asyncio.create_task(self.stage())

    def processes(self) -> list[psutil.Process]:
        """Of copies that are under way; tests before us in this process may have others of their own."""
        return [process for process in psutil.Process().children() if process not in self._others]

    def copies(self) -> list[str]:
        return sorted(path.name for path in (self.root / "job-1").iterdir() if path.name != "lock")


@pytest.fixture
async def bench(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.chdir(folder)
    bench = Bench(folder, monkeypatch)
    yield bench
    await bench.staging.close()
    assert not bench.processes()
    assert not bench.root.exists() or list(bench.root.iterdir()) == []


async def test_a_copy_is_made_and_removed_at_the_end(bench: Bench) -> None:
    copy = Path(await bench.stage())
    assert (copy.name, copy.read_bytes()) == ("model.gguf", b"weights")
    assert bench.said[0] == "copies its weights: 0.0 of 0.0 MB"
    await bench.staging.close()
    assert not copy.exists()
    await bench.staging.close()


async def test_all_who_come_while_it_is_made_get_the_same_copy(bench: Bench) -> None:
    bench.program('say(doing="copies"); time.sleep(0.2); say(path=make(str(os.getpid())))')
    first, second = await asyncio.gather(bench.stage(), bench.stage())
    assert first == second
    assert bench.said == ["copies", "copies"]
    bench.own_program()
    third = await bench.stage()
    assert third == await bench.stage()


async def test_one_copy_is_made_at_a_time(bench: Bench) -> None:
    bench.program('make("a.part"); time.sleep(0.1); os.rmdir(os.path.join(folder, "a.part"))\n' + QUICK)
    other = bench.folder / "other"
    assert len({await copy for copy in [bench.begin(), asyncio.create_task(bench.stage(other))]}) == 2


async def test_what_nobody_uses_may_go_for_another(bench: Bench) -> None:
    bench.program(QUICK)
    one, two = await bench.stage(bench.folder / "one"), await bench.stage(bench.folder / "two")
    bench.staging.release(one)
    bench.said.clear()
    await bench.stage(bench.folder / "three")
    bench.staging.release(two)
    await bench.stage(bench.folder / "four")
    assert bench.said == ["one", "one two"]


async def test_a_copy_for_which_nobody_waits_is_given_up(bench: Bench) -> None:
    bench.program(SLOW)
    first, second = bench.begin(), bench.begin()
    await until(lambda: len(bench.said) == 2, "progress")
    first.cancel()
    await asyncio.wait({first})
    assert bench.copies() == ["a.part"]
    assert not second.done()
    second.cancel()
    await asyncio.wait({second})
    bench.own_program()
    assert Path(await bench.stage()).read_bytes() == b"weights"
    assert len(bench.copies()) == 1


async def test_who_is_cancelled_when_the_copy_is_there_does_not_use_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.program(QUICK)
    asking = bench.begin()
    monkeypatch.setattr(bench.staging, "_forget", lambda *_: asking.cancel())
    await asyncio.wait({asking})
    assert asking.cancelled()
    assert set(bench.staging._uses.values()) == {0}


async def test_the_end_of_the_job_ends_a_copy_under_way(bench: Bench) -> None:
    bench.program(SLOW)
    asking = bench.begin()
    await until(lambda: bench.said, "progress")
    [process] = bench.processes()
    await bench.staging.close()
    assert not process.is_running()
    await asyncio.wait({asking})
    assert asking.cancelled()


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ('say(fault="The disk of n1 has no room.")', "The disk of n1 has no room."),
        ('make("a.part"); os.kill(os.getpid(), 9)', "the copy ended: killed by SIGKILL"),
        ('say(doing="copies"); os._exit(5)', "the copy ended: exit status 5"),
        ('raise RuntimeError("boom")', "RuntimeError: boom"),
        ('print("[]"); print("x" * 5000)', "x" * 300),
    ],
)
async def test_a_copy_that_fails_says_why_and_leaves_nothing(bench: Bench, script: str, sentence: str) -> None:
    bench.program(script)
    with pytest.raises(StagingFailed) as caught:
        await bench.stage()
    assert caught.value.message == f"its weights cannot be copied: {sentence}"
    assert bench.copies() == []
    bench.program(QUICK)
    assert await bench.stage()


@pytest.mark.parametrize(
    ("scratch", "sentence"),
    [
        (None, "This cluster has no scratch folder"),
        ("$TMPDIR", r"The scratch folder is \$TMPDIR, and jobs here have no TMPDIR"),
        ("/no/such", "The scratch folder /no/such of .*: No such file or directory"),
    ],
)
async def test_without_a_place_there_is_no_copy(bench: Bench, scratch: str | None, sentence: str) -> None:
    bench.staging = bench.make(scratch)
    with pytest.raises(StagingFailed, match=f"its weights cannot be copied: {sentence}"):
        await bench.stage()


async def test_a_program_that_cannot_be_started(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    handles = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(StagingFailed, match="No such file or directory: '/no/such/python'"):
        await bench.stage()
    assert len(os.listdir("/proc/self/fd")) == handles + 1  # the lock


async def test_the_process_gets_none_of_the_secrets_of_the_job(bench: Bench) -> None:
    bench.program('say(doing=str(sorted(os.environ))); say(path=make("a"))')
    await bench.stage()
    assert "SECRET" not in bench.said[0]
    assert "PATH" in bench.said[0]


# -- for a replica -----------------------------------------------------------------------------------------------------


def replica(weights: Path | None, stage: str, load_timeout_s: float = 60.0) -> ReplicaSpec:
    path = None if weights is None else str(weights)
    return ReplicaSpec("rep-1", "m", "m@here", EngineSpec("fake"), path, stage=stage, load_timeout_s=load_timeout_s)


async def test_a_replica_gets_the_copy_in_place_of_its_weights(bench: Bench) -> None:
    spec = replica(bench.weights, "node-local")
    here = await staged(spec, bench.staging, bench.said.append)
    assert here.weights is not None
    assert here.weights.startswith(str(bench.root / "job-1"))
    assert (here.replica_id, here.deployment) == (spec.replica_id, spec.deployment)


async def test_a_replica_that_wants_no_copy_gets_none(bench: Bench) -> None:
    for spec in (replica(bench.weights, "none"), replica(None, "node-local")):
        assert await staged(spec, bench.staging, bench.said.append) is spec
    assert not bench.root.exists()


async def test_a_copy_that_takes_longer_than_loading_may_take(bench: Bench) -> None:
    bench.program(SLOW)
    with pytest.raises(StagingFailed, match=r"its weights were not copied after 0\.02 s"):
        await staged(replica(bench.weights, "node-local", 0.02), bench.staging, bench.said.append)


async def test_a_way_that_this_version_does_not_know(bench: Bench) -> None:
    with pytest.raises(StagingFailed, match="no way 'burst-buffer'"):
        await staged(replica(bench.weights, "burst-buffer"), bench.staging, bench.said.append)


class Reader(FakeAdapter):
    """A fake engine that remembers what weights it was told to read."""

    def launch(self, replica: ReplicaSpec, place: Place) -> Launch:
        self.weights = replica.weights
        return super().launch(replica, place)


class Staged:
    """A replica that wants a copy of its weights, and what it reported."""

    def __init__(self, bench: Bench, load_delay: float = 0.2) -> None:
        self.reports: list[ReplicaReport] = []
        self.engine = Reader(load_delay=load_delay)
        around = Surroundings(
            str(bench.folder / "replicas"), os.environ, self._changed, lambda: None, staging=bench.staging
        )
        spec = replica(bench.weights, "node-local")
        self.replica = Replica(spec, self.engine, Share(tuple(sorted(os.sched_getaffinity(0)))[:1]), around)
        self.replica.start()

    def _changed(self) -> None:
        self.reports.append(self.replica.report())

    async def until(self, state: ReplicaState) -> ReplicaReport:
        await until(lambda: self.replica.state is state or self.replica.state.is_final, state.value)
        report = self.replica.report()
        assert report.state is state, report
        return report


async def test_a_replica_copies_its_weights_then_loads_them_and_then_gives_them_back(bench: Bench) -> None:
    bench.program('say(doing="copies its weights"); time.sleep(0.3); say(path=make("a"))')
    life = Staged(bench)
    report = await life.until(ReplicaState.READY)
    assert life.engine.weights == str(bench.root / "job-1" / "a" / "weights")
    assert [item.doing for item in life.reports] == ["copies its weights", ""]
    assert report.load_s is not None
    assert report.load_s >= 0.5
    assert set(bench.staging._uses.values()) == {1}
    await life.replica.stop(1.0)
    assert set(bench.staging._uses.values()) == {0}


async def test_a_replica_that_is_stopped_while_it_copies(bench: Bench) -> None:
    bench.program(SLOW)
    life = Staged(bench)
    await until(lambda: life.reports, "progress")
    await life.replica.stop(1.0)
    assert life.replica.report() == ReplicaReport("rep-1", ReplicaState.STOPPED, capabilities=("chat", "completions"))
    assert engines_below(bench.folder) == []


async def test_a_replica_whose_weights_cannot_be_copied_has_failed(bench: Bench) -> None:
    bench.weights.unlink()
    report = await Staged(bench).until(ReplicaState.FAILED)
    sentence = f"{bench.weights} cannot be read: No such file or directory."
    assert report.reason == f"could not be started: its weights cannot be copied: {sentence}"
    assert report.doing == ""


async def test_copying_and_loading_together_have_one_limit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes on by an hour while the copy is made, so there is no time left to load in."""
    clock = {"ahead": 0.0}
    monkeypatch.setattr(supervise, "monotonic", lambda: time.monotonic() + clock["ahead"])
    bench.program('say(doing="copies its weights"); time.sleep(0.1); say(path=make("a"))')
    life = Staged(bench, load_delay=1000)
    await until(lambda: life.reports, "progress")
    clock["ahead"] = 3600
    assert (await life.until(ReplicaState.FAILED)).reason == "was not ready after 60 s"
    await life.replica.stop(0.0)
