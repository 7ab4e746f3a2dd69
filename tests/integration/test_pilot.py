"""The pilot as it runs in a job: the zipapp in a process of its own, with a gateway's end of the link in this one."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from firstkit.errors import CallFailed
from firstkit.links.messages import Outcome, Refusal
from firstkit.states import ReplicaState
from firstkit.wire import to_dict
from integration.pilots import CORES, ENDLESS, FAILED, READY, STOPPED, TOKEN, Job, installed, made, replica
from unit.onsite.test_python39 import PYTHON39, needs_python39
from waiting import until


@pytest.fixture(scope="module")
def zipapp() -> Iterator[Path]:
    with installed() as path:
        yield path


@pytest.fixture
async def job(zipapp: Path) -> AsyncIterator[Job]:
    async with made(zipapp) as job:
        await job.listen()
        yield job


@pytest.mark.parametrize("python", [sys.executable, pytest.param(PYTHON39, marks=needs_python39)])
async def test_a_job_from_start_to_end(job: Job, python: str) -> None:
    """Also under Python 3.9: start, answer, drain with a request under way, SIGTERM."""
    job.start(replica("rep-1", tokens=50, token_delay=0.01), python=python)
    report = await job.until(READY)
    assert report.capabilities == ("chat",)
    assert report.load_s is not None
    assert (job.reports[-1].free_cpus, job.reports[-1].free_memory_bytes) == (len(CORES) - 1, 9000)
    assert await job.outcome(job.ask()) is Outcome.COMPLETE
    sink = job.ask(50)
    await job.tokens_of(sink)
    assert (await job.link.call("status"))["replicas"][0]["in_flight"] == 1
    job.process.send_signal(signal.SIGTERM)
    assert await job.outcome(sink) is Outcome.COMPLETE
    assert sink.tail is not None
    assert sink.tail.usage is not None
    assert await job.exit_status() == 0, job.log()
    assert job.engines() == []
    assert (await job.until(STOPPED)).reason == ""


async def test_what_does_not_finish_in_time_fails_and_says_so(job: Job) -> None:
    """Schedulers kill 10 s after SIGTERM: by then the pilot has left, and no request was lost without a word."""
    job.start(replica("rep-1", **ENDLESS))
    await job.until(READY)
    sink = job.ask(100000)
    await job.tokens_of(sink)
    started = time.monotonic()
    job.process.send_signal(signal.SIGTERM)
    assert await job.exit_status() == 0
    assert time.monotonic() - started < 10
    assert await job.outcome(sink) is Outcome.FAILED
    assert sink.tail is not None
    assert sink.tail.usage is not None


@pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")
async def test_two_replicas_on_disjoint_cores(job: Job) -> None:
    job.start(replica("rep-1"), replica("rep-2"))
    await job.until(READY, "rep-1")
    await job.until(READY, "rep-2")
    bound = [allowed_cores(engine.pid) for engine in job.engines()]
    assert sorted(map(len, bound)) == [1, 1]
    assert bound[0] != bound[1]
    for replica_id in ("rep-1", "rep-2"):
        assert await job.outcome(job.ask(replica_id=replica_id)) is Outcome.COMPLETE


def allowed_cores(pid: int) -> list[str]:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(line for line in status.splitlines() if line.startswith("Cpus_allowed_list")).split()[1].split(",")


async def test_an_engine_killed_in_mid_stream(job: Job) -> None:
    job.start(replica("rep-1", **ENDLESS))
    await job.until(READY)
    sink = job.ask(100000)
    await job.tokens_of(sink)
    job.engines()[0].kill()
    assert await job.outcome(sink) is Outcome.FAILED
    report = await job.until(FAILED)
    assert report.reason == "killed by SIGKILL"
    await until(lambda: job.reports[-1].free_cpus == len(CORES), "the cores are free")
    late = job.ask()
    assert await job.outcome(late) is Outcome.FAILED
    assert late.tail is not None
    assert late.tail.error == "replica not ready"


async def test_the_pilot_killed_takes_its_engines_along(job: Job) -> None:
    job.start(replica("rep-1"))
    await job.until(READY)
    job.process.kill()
    await until(lambda: not job.engines(), "the end of the engine")


async def test_a_pilot_without_a_gateway_leaves(job: Job) -> None:
    job.start(replica("rep-1"), orphan_s=0.5)
    await job.until(READY)
    await asyncio.sleep(1)  # longer than the time-out, with the link up: it stays
    assert job.process.poll() is None
    await job.lose_gateway()
    assert await job.exit_status() == 0
    assert job.engines() == []


async def test_a_pilot_finds_its_gateway_again(job: Job) -> None:
    job.start(replica("rep-1"))
    await job.until(READY)
    engine = job.engines()
    await job.lose_gateway()
    job.reports.clear()
    await job.listen()
    assert (await job.until(READY)).load_s is not None
    assert job.engines() == engine
    assert len(job.secrets) == 1


async def test_a_pilot_whose_job_is_over_leaves(job: Job) -> None:
    job.start(replica("rep-1"))
    await job.until(READY)
    job.refusal = Refusal("refused", "not now")
    job.link.close()
    await until(lambda: "not now" in job.log(), "the refusal")
    assert job.process.poll() is None, "whoever is refused for another reason stays"
    job.refusal = Refusal("over", "this job is over")
    assert await job.exit_status() == 0
    assert job.engines() == []
    assert "its job is over" in job.log()


async def test_a_pilot_leaves_before_its_job_ends(job: Job) -> None:
    ends_at = int(time.time()) + 16
    job.start(replica("rep-1"), FIRST_JOB_END=str(ends_at))
    await job.until(READY)
    assert job.reports[-1].ends_at == pytest.approx(ends_at)
    assert await job.exit_status() == 0
    assert time.time() < ends_at
    assert "its job is about to end" in job.log()


async def test_an_engine_that_cannot_load(job: Job) -> None:
    job.start(replica("rep-1", "CrashAtLoadEngine"))
    report = await job.until(FAILED)
    assert report.reason == "exit status 3"
    assert report.log_tail == "fake engine: cannot load the weights"
    assert await job.link.call("log", {"replica_id": "rep-1", "lines": 5}) == report.log_tail


async def test_what_does_not_fit_is_refused_with_both_numbers(job: Job) -> None:
    job.start(replica("rep-1", cpus=len(CORES)), replica("rep-2", cpus=999))
    report = await job.until(FAILED, "rep-2")
    assert report.reason == "The replica needs 999 cores; 0 are free in this job."
    with pytest.raises(CallFailed, match="needs 1 cores; 0 are free"):
        await job.link.call("start", {"replica": to_dict(replica("rep-3"))})


async def test_calls(job: Job) -> None:
    """Start is idempotent, drain and stop take their effect, the resources come back, exit ends the pilot."""
    job.start()
    await until(lambda: job.reports, "a report")
    for _ in range(2):
        await job.link.call("start", {"replica": to_dict(replica("rep-1", **ENDLESS))})
    await job.until(READY)
    assert len(job.engines()) == 1
    sink = job.ask(100000)
    await job.link.call("drain", {"replica_id": "rep-1"})
    await job.until(ReplicaState.DRAINING)
    await job.tokens_of(sink)
    await job.link.call("stop", {"replica_id": "rep-1", "grace_s": 0.2})
    await job.until(STOPPED)
    assert await job.outcome(sink) is Outcome.FAILED
    await until(lambda: job.reports[-1].free_cpus == len(CORES), "the cores are free")
    await job.link.call("start", {"replica": to_dict(replica("rep-1"))})
    assert job.engines() == []
    for verb, args in (
        ("stop", {"replica_id": "rep-9"}),
        ("stop", {"replica_id": "rep-1", "grace_s": "long"}),
        ("start", {"replica": {"replica_id": "../x"}}),
        ("start", {"replica": to_dict(replica("../x"))}),
        ("explode", {}),
    ):
        with pytest.raises(CallFailed):
            await job.link.call(verb, args)
    await job.link.call("exit")
    assert await job.exit_status() == 0


async def test_nothing_secret_reaches_an_engine_or_a_log(job: Job) -> None:
    job.start(replica("rep-1"), HF_TOKEN="canary-of-the-user")
    await job.until(READY)
    assert await job.outcome(job.ask()) is Outcome.COMPLETE
    [engine] = job.engines()
    seen = json.dumps([engine.environ(), engine.cmdline(), job.process.args, job.log()], default=str)
    for secret in (TOKEN, "canary-of-the-user", *job.secrets):
        assert secret not in seen
    assert engine.environ()["TMPDIR"]


def test_a_folder_without_a_job(zipapp: Path, tmp_path: Path) -> None:
    command: list[Any] = [sys.executable, "-I", zipapp, "pilot", tmp_path]
    result = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert result.returncode == 2
    assert b"pilot.json" in result.stderr
