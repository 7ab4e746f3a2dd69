"""What the pilot decides by itself; tests/integration/test_pilot.py has it with engines and a gateway."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from firstkit.engines.engine import EngineSpec, ReplicaSpec
from firstkit.errors import CallFailed
from firstkit.links.messages import Call, LinkSpec, Open, Outcome, PilotSpec
from firstkit.onsite import pilot as module
from firstkit.onsite.allotment import Share
from firstkit.onsite.pilot import END_MARGIN_S, Pilot
from firstkit.schedulers.scheduler import Resources
from firstkit.states import ReplicaState
from unit.onsite.support import Sink
from waiting import until


@pytest.fixture
def place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def pilot(ends_in_s: float | None = None, orphan_timeout_s: float = 60.0) -> Pilot:
    spec = PilotSpec("job-1", "here", LinkSpec(path="none.sock"), "token", orphan_timeout_s=orphan_timeout_s)
    return Pilot(spec, Share((0, 1), ("0",), 100), {}, None if ends_in_s is None else time.time() + ends_in_s)


async def test_it_reports_what_is_free_until_it_leaves(place: Path) -> None:
    ours = pilot(1000)
    report = ours.report()
    assert (report.job_id, report.free_cpus, report.free_gpus, report.free_memory_bytes) == ("job-1", 2, 1, 100)
    assert report.ends_at == pytest.approx(time.time() + 1000, abs=5)
    await ours.call(Call("exit"))
    report = ours.report()
    assert (report.free_cpus, report.free_gpus, report.free_memory_bytes) == (0, 0, 0)
    with pytest.raises(CallFailed, match="is leaving"):
        await ours.call(Call("start", {"replica": {}}))


async def test_requests_for_nobody_fail_after_open_returned(place: Path) -> None:
    sink = Sink()
    exchange = pilot().open(Open("rep-1", "POST", "/", 0), b"", sink)
    assert sink.tail is None
    exchange.pause()
    exchange.resume()
    exchange.cancel()
    await until(lambda: sink.tail, "the tail")
    assert sink.tail is not None
    assert (sink.tail.outcome, sink.tail.error) == (Outcome.FAILED, "replica not ready")


@pytest.mark.parametrize(
    ("verb", "args", "sentence"),
    [
        ("explode", {}, "no verb 'explode'"),
        ("start", {}, "replica: an object is needed"),
        ("start", {"replica": {"replica_id": 5}}, "replica.replica_id"),
        ("drain", {}, "replica_id: text"),
        ("drain", {"replica_id": "rep-1"}, "no such replica"),
        ("stop", {"replica_id": "rep-1", "grace_s": -1}, "grace_s: a number"),
        ("stop", {"replica_id": "rep-1", "grace_s": True}, "grace_s: a number"),
        ("stop", {"replica_id": "rep-1", "grace_s": float("nan")}, "grace_s: a number"),
        ("log", {"replica_id": ["rep-1"]}, "replica_id: text"),
    ],
)
async def test_calls_that_make_no_sense(place: Path, verb: str, args: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CallFailed, match=sentence):
        await pilot().call(Call(verb, args))


@pytest.mark.parametrize(("ends_in_s", "margin_s"), [(3600, END_MARGIN_S), (20, 5), (-5, 0)])
async def test_a_short_job_has_a_short_margin(place: Path, ends_in_s: float, margin_s: float) -> None:
    assert module._margin(time.time() + ends_in_s) == pytest.approx(margin_s, abs=0.5)


@pytest.mark.parametrize("options", [{"ends_in_s": 0.1}, {"orphan_timeout_s": 0.1}])
async def test_it_leaves_by_itself(place: Path, options: dict[str, float]) -> None:
    await asyncio.wait_for(pilot(**options).run(), 10)


async def test_traffic_alone_is_reported_seldom(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRAFFIC_REPORT_S", 0.05)
    ours, pushes = pilot(), list[float]()
    monkeypatch.setattr(ours._link, "push_report", lambda: pushes.append(time.monotonic()))
    for _ in range(3):
        for _ in range(100):
            ours._traffic_changed()
        await asyncio.sleep(0.07)
    assert len(pushes) == 3


async def test_the_scheduler_may_move_the_end_of_its_job(place: Path) -> None:
    ours = pilot(1000)
    ends_at = time.time() + 5000
    await ours.call(Call("end", {"ends_at": ends_at}))
    assert ours.report().ends_at == ends_at


async def test_it_leaves_when_its_job_is_over_in_the_books(place: Path) -> None:
    ours = pilot(1000)
    ours.over()
    assert ours.report().free_cpus == 0
    await asyncio.wait_for(ours.run(), 10)


async def test_where_it_can_be_dialled_is_for_its_owner_to_read(place: Path) -> None:
    module._write_address("10.0.0.1:4711")
    assert (place / "address").read_text() == "10.0.0.1:4711"
    assert (place / "address").stat().st_mode & 0o777 == 0o600


async def test_it_leaves_when_its_replica_of_several_nodes_has_ended(place: Path) -> None:
    """The job was for that one alone."""
    engine = EngineSpec("command", argv=("/bin/sleep", "1000", "{rank}", "{socket}"))
    replica = ReplicaSpec("rep-1", "m", "m@here", engine, needs=Resources(nodes=2))
    spec = PilotSpec("job-1", "here", LinkSpec(path="none.sock"), "token", (replica,), interface="lo")
    env = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[1-2]", "PATH": str(place)}
    ours = Pilot(spec, Share((0,)), env)
    await asyncio.wait_for(ours.run(), 20)
    [report] = ours.report().replicas
    assert report.state is ReplicaState.FAILED
    assert report.reason == "could not be started: [Errno 2] No such file or directory: 'srun'"
