from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from firstkit.engines.engine import EngineSpec, Launch, Place, ReplicaSpec
from firstkit.errors import CallFailed, ConfigError
from firstkit.links.messages import Open
from firstkit.onsite import replicas as module
from firstkit.onsite.allotment import Share
from firstkit.onsite.replicas import KEPT, Replicas
from firstkit.onsite.supervise import Surroundings
from firstkit.schedulers.scheduler import Resources
from firstkit.states import ReplicaState
from unit.onsite.support import FakeAdapter, Sink
from waiting import until


class Unlaunchable(FakeAdapter):
    """Complains about one deployment, and cannot be launched for any other."""

    def check(self, replica: ReplicaSpec) -> None:
        if replica.deployment == "wrong":
            raise ConfigError("engine.argv: missing")

    def launch(self, replica: ReplicaSpec, place: Place) -> Launch:
        raise ConfigError("no command")


def spec(replica_id: str, deployment: str = "m@here", cpus: int = 1) -> ReplicaSpec:
    return ReplicaSpec(replica_id, "m", deployment, EngineSpec("fake"), needs=Resources(cpus_per_node=cpus))


@pytest.fixture
def replicas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Replicas:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "engine_of", lambda kind: Unlaunchable())

    def changed() -> None:
        made.settle()

    made = Replicas(Share((0, 1), (), 100), Surroundings(str(tmp_path / "replicas"), {}, changed, lambda: None))
    return made


async def all_ended(replicas: Replicas) -> None:
    await until(lambda: all(report.state.is_final for report in replicas.reports()), "the end of all replicas")


async def test_what_ended_gives_back_its_share_and_is_remembered(replicas: Replicas) -> None:
    replicas.start(spec("rep-1", cpus=2))
    assert replicas.free.cpus == ()
    await all_ended(replicas)
    assert replicas.free == Share((0, 1), (), 100)
    [report] = replicas.reports()
    assert (report.state, report.reason) == (ReplicaState.FAILED, "could not be started: no command")


async def test_the_same_id_makes_no_twin_even_long_after(replicas: Replicas) -> None:
    for number in range(KEPT + 3):
        for _ in range(2):
            replicas.start(spec(f"rep-{number}", cpus=2))
        assert replicas.free.cpus == ()
        await all_ended(replicas)
    kept = [report.replica_id for report in replicas.reports()]
    assert kept == [f"rep-{number}" for number in range(3, KEPT + 3)]
    replicas.start(spec("rep-0"))
    replicas.drain("rep-0")
    replicas.stop("rep-0", 0.0)
    assert len(replicas.reports()) == KEPT
    with pytest.raises(CallFailed, match="ended long ago"):
        replicas.log_path("rep-0")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (spec("rep-1", "wrong"), "engine.argv: missing"),
        (spec("rep-1", cpus=3), "needs 3 cores; 2 are free"),
        (spec(".."), "replica_id"),
        (spec("a/b"), "replica_id"),
        (spec("rep\n"), "replica_id"),
    ],
)
async def test_what_cannot_be_is_refused_or_reported(replicas: Replicas, wrong: ReplicaSpec, sentence: str) -> None:
    with pytest.raises(CallFailed, match=sentence):
        replicas.start(wrong)
    assert replicas.reports() == ()
    replicas.start_or_report(wrong)
    [report] = replicas.reports()
    assert report.state is ReplicaState.FAILED
    assert sentence in report.reason
    assert replicas.free.cpus == (0, 1)


async def test_what_the_list_of_the_cluster_lacks_does_not_start(replicas: Replicas, tmp_path: Path) -> None:
    """The list is two folders above the job's, and read anew each time."""
    folder = tmp_path / "state" / "jobs" / "job-1"
    folder.mkdir(parents=True)
    replicas._around = replace(replicas._around, folder=str(folder / "replicas"))
    path = tmp_path / "state" / "allowed.json"
    for text, words in (('{"engines": []}', 'the engine "" is not in'), ("{", "cannot be understood")):
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(CallFailed, match=words):
            replicas.start(spec("rep-1"))
    path.write_text('{"engines": [{"engine": {"kind": "fake"}}]}')
    replicas.start(spec("rep-1"))
    await all_ended(replicas)


async def test_unknown_replicas(replicas: Replicas) -> None:
    assert replicas.open(Open("rep-9", "POST", "/", 0), b"", Sink()) is None
    for act in (replicas.drain, replicas.log_path, lambda replica_id: replicas.stop(replica_id, 0.0)):
        with pytest.raises(CallFailed, match="no such replica"):
            act("rep-9")


def test_an_engine_that_runs_on_one_node_is_not_spread(replicas: Replicas) -> None:
    wide = replace(spec("rep-1"), needs=Resources(nodes=2))
    with pytest.raises(CallFailed, match=r"resources\.nodes: an engine of kind 'fake' runs on one node"):
        replicas.start(wide)


def test_a_job_of_one_node_takes_no_replica_of_two(replicas: Replicas) -> None:
    wide = replace(spec("rep-1"), engine=EngineSpec("command"), needs=Resources(nodes=2))
    with pytest.raises(CallFailed, match="needs 2 nodes; 1 are free"):
        replicas.start(wide)
    assert not replicas.has_spread
