"""A replica of three ranks, all on this host: srun is a script here that starts them as the real one does."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import psutil
import pytest

from firstkit.engines.engine import EngineSpec, Head, ReplicaSpec
from firstkit.engines.registry import engine_of
from firstkit.links.messages import ReplicaReport
from firstkit.onsite import rank as rank_module
from firstkit.onsite import ranks
from firstkit.onsite.allotment import Share, visible_gpus
from firstkit.onsite.ranks import RANKS, Party, Silence
from firstkit.onsite.supervise import Replica, Rhythm, Surroundings
from firstkit.schedulers.records import write_file
from firstkit.schedulers.scheduler import Resources
from firstkit.states import ReplicaState
from firstkit.wire import encode
from unit.onsite.support import RHYTHM, engines_below
from waiting import until

ARGV = (
    sys.executable, "-m", "firstkit.testing.ranked_engine", "--rank", "{rank}", "--ranks", "{ranks}",
    "--head", "{head_address}:{head_port}", "--socket", "{socket}",
)  # fmt: skip
HOSTS = ("n1", "n2", "n3")
SLURM = {"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "1"}
SRUN = """#!/bin/sh
# Options, then the program: the first that is no option.
while [ "${1#--}" != "$1" ]; do shift; done
export SLURM_STEP_ID=0
SLURM_PROCID=0 SLURMD_NODENAME=n2 "$@" & one=$!
SLURM_PROCID=1 SLURMD_NODENAME=n3 "$@" & two=$!
trap 'kill -9 $one $two' TERM
wait $one && wait $two
status=$?
kill $one $two 2>/dev/null
wait
exit $status
"""
PBSDSH = """#!/bin/sh
# Starts two on this host, as where it has two virtual nodes, with the little that PBS gives to such a task.
shift
env -i PBS_JOBID=1.pbs PATH=/bin "$@" & one=$!
env -i PBS_JOBID=1.pbs PATH=/bin "$@" & two=$!
wait $one
wait $two
"""


class Spread:
    """One replica on ``hosts``, in ``folder`` of its job, whose ranks the script ``launcher`` starts."""

    def __init__(
        self,
        folder: Path,
        argv: tuple[str, ...] = ARGV,
        launcher: tuple[str, str] = ("srun", SRUN),
        rhythm: Rhythm = RHYTHM,
        hosts: tuple[str, ...] = HOSTS,
        env: Mapping[str, str] = SLURM,
        load_timeout_s: float = 60.0,
    ) -> None:
        self.folder = folder / "replicas" / "rep-1"
        name, script = launcher
        (folder / "bin").mkdir()
        (folder / "bin" / name).write_text(script)
        (folder / "bin" / name).chmod(0o755)
        path = f"{folder / 'bin'}:{os.environ['PATH']}"
        self.env = {**os.environ, "PATH": path, **env}
        needs = Resources(nodes=len(hosts), gpus_per_node=len(env.get("CUDA_VISIBLE_DEVICES", "").split()))
        engine = EngineSpec("command", argv=argv)
        spec = ReplicaSpec("rep-1", "m", "m@here", engine, needs=needs, load_timeout_s=load_timeout_s)
        around = Surroundings(
            str(folder / "replicas"), self.env, lambda: None, lambda: None, rhythm, hosts, interface="lo"
        )
        self.replica = Replica(spec, engine_of(spec.engine), Share((0,), visible_gpus(env), is_bound=False), around)
        self.replica.start()

    async def until(self, state: ReplicaState) -> ReplicaReport:
        await until(lambda: self.replica.state is state or self.replica.state.is_final, state.value)
        report = self.replica.report()
        assert report.state is state, report
        return report

    def engine(self, rank: int) -> psutil.Process:
        at = self.folder / f"rank-{rank}" if rank else self.folder
        [found] = [process for process in self.engines() if process.cwd() == str(at)]
        return found

    def engines(self) -> list[psutil.Process]:
        return [process for process in engines_below(self.folder.parent.parent) if "--ranks" in process.cmdline()]

    async def gone(self) -> None:
        await until(lambda: self.replica.has_ended, "the end of all")
        await until(lambda: not engines_below(self.folder.parent.parent), "the end of what ran on other nodes")
        assert not (self.folder / RANKS).exists()


@pytest.fixture
async def spread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Spread]:
    monkeypatch.chdir(folder)
    spread = Spread(folder)
    yield spread
    await spread.replica.stop(0.0, 2.0)
    await until(lambda: not engines_below(folder), "the end of all")


async def test_all_ranks_make_one_replica_and_stop_together(spread: Spread) -> None:
    await spread.until(ReplicaState.READY)
    environments = [spread.engine(rank).environ() for rank in range(3)]
    assert [env["NCCL_SOCKET_IFNAME"] for env in environments] == ["=lo"] * 3
    assert not [name for env in environments for name in env if name.startswith("SLURM")]
    assert (spread.folder / RANKS).stat().st_mode & 0o777 == 0o600
    await spread.replica.stop(1.0)
    assert spread.replica.state is ReplicaState.STOPPED
    await spread.gone()
    left = {path.name for path in (spread.folder / "rank-2").iterdir()}
    assert "engine.log" in left
    assert "tmp" not in left


@pytest.mark.parametrize("rank", [0, 1, 2])
async def test_a_rank_that_is_killed_fails_the_replica_by_name(spread: Spread, rank: int) -> None:
    await spread.until(ReplicaState.READY)
    spread.engine(rank).kill()
    report = await spread.until(ReplicaState.FAILED)
    assert f"rank {rank} on n{rank + 1}: killed by SIGKILL" in report.reason
    await spread.gone()


async def test_a_rank_that_hangs_is_missed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a node that is cut off: no word, no end of any connection."""
    monkeypatch.chdir(folder)
    spread = Spread(folder, rhythm=Rhythm(silent_s=5.0))
    await spread.until(ReplicaState.READY)
    engine = spread.engine(2)
    hanging = [engine, *engine.parents()[:1]]
    for process in hanging:
        process.send_signal(signal.SIGSTOP)
    report = await spread.until(ReplicaState.FAILED)
    assert report.reason == "rank 2 on n3: is silent; its node may be lost"
    for process in hanging:
        process.send_signal(signal.SIGCONT)
    await spread.gone()


async def test_ranks_whose_launcher_is_killed_end(spread: Spread) -> None:
    await spread.until(ReplicaState.READY)
    launcher = spread.replica._ranks._launcher  # type: ignore[union-attr]
    assert launcher is not None
    os.kill(launcher.pid, signal.SIGKILL)
    report = await spread.until(ReplicaState.FAILED)
    assert "rank 1 on n2: " in report.reason or "rank 2 on n3: " in report.reason
    await spread.gone()


async def test_an_engine_that_cannot_start_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its log says there is what is told."""
    monkeypatch.chdir(folder)
    script = 'if [ "$0" = 2 ]; then echo "no such GPU" >&2; exit 7; fi; exec "$@"'
    spread = Spread(folder, ("sh", "-c", script, "{rank}", *ARGV))
    report = await spread.until(ReplicaState.FAILED)
    assert "rank 2 on n3: exit status 7" in report.reason
    assert report.log_tail == "no such GPU"
    await spread.gone()


async def test_a_launcher_that_starts_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    spread = Spread(folder, launcher=("srun", "#!/bin/sh\necho 'srun: error: Invalid node' >&2\nexit 1\n"))
    report = await spread.until(ReplicaState.FAILED)
    assert report.reason == "rank 1 on n2: did not start (its launcher: exit status 1) srun: error: Invalid node"
    await spread.gone()


async def test_a_rank_that_does_not_come_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    spread = Spread(folder, launcher=("srun", "#!/bin/sh\nexec sleep 1000\n"), load_timeout_s=0.2)
    report = await spread.until(ReplicaState.FAILED)
    assert report.reason == "rank 0 on n1: was not ready after 0.2 s; rank 1 on n2 has not come"
    await spread.replica.stop(0.0, 0.0)
    await spread.gone()


async def test_where_there_is_no_launcher(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(ranks, "launcher", lambda *_: ["/no/such/srun"])
    spread = Spread(folder)
    report = await spread.until(ReplicaState.FAILED)
    assert report.reason.startswith("could not be started: ")
    await spread.gone()


async def test_ranks_in_a_job_of_pbs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each host has one, however many PBS starts there, with the paths and GPUs that the pilot has."""
    monkeypatch.chdir(folder)
    pbs = {"PBS_JOBID": "1.pbs", "CUDA_VISIBLE_DEVICES": "3", "FIRST_JOB_ID": "job-1"}
    spread = Spread(folder, launcher=("pbsdsh", PBSDSH), hosts=("n1", socket.gethostname()), env=pbs)
    await spread.until(ReplicaState.READY)
    first, second = (spread.engine(rank).environ() for rank in range(2))
    assert len(spread.engines()) == 2
    for name in ("PATH", "CUDA_VISIBLE_DEVICES", "FIRST_JOB_ID", "NCCL_SOCKET_IFNAME"):
        assert first[name] == second[name]
    spread.engine(1).kill()
    report = await spread.until(ReplicaState.FAILED)
    assert f"rank 1 on {socket.gethostname()}: killed by SIGKILL" in report.reason
    await spread.gone()


# -- the part `rank` -----------------------------------------------------------------------------------------------

PARTY = Party("attempt", ReplicaSpec("rep-1", "m", "m@here", EngineSpec("command")), HOSTS, Head())


@pytest.mark.parametrize("argv", [[], ["/job"], ["job", "rep-1"], ["/job", "../rep-1"]])
def test_a_rank_takes_a_folder_and_an_id(argv: list[str]) -> None:
    assert rank_module.main(argv) == 2


def test_a_rank_that_comes_too_late_ends_in_peace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert rank_module.main([str(folder), "rep-1"]) == 0


def test_a_rank_is_started_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "replicas" / "rep-1").mkdir(parents=True)
    write_file(str(folder / "replicas" / "rep-1" / RANKS), encode(PARTY))
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_PROCID", "0")
    started: list[int] = []

    async def serve(folder: str, party: Party, rank: int, host: str) -> int:
        started.append(rank)
        return 0

    monkeypatch.setattr(rank_module, "_serve", serve)
    assert [rank_module.main([str(folder), "rep-1"]) for _ in range(2)] == [0, 0]
    assert started == [1]


def test_a_rank_has_the_paths_of_the_pilot_and_the_gpus_that_it_is_shown() -> None:
    party = Party("a", PARTY.spec, HOSTS, Head(), env={"PATH": "/job/bin", "CUDA_VISIBLE_DEVICES": "0,1"})
    bare = rank_module.rank_environment(party, {"PATH": "/bin", "PBS_JOBID": "1"})
    assert bare == {"PATH": "/job/bin", "PBS_JOBID": "1", "CUDA_VISIBLE_DEVICES": "0,1"}
    shown = rank_module.rank_environment(party, {"CUDA_VISIBLE_DEVICES": "2,3"})
    assert shown["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_silence_is_counted_in_looks(tmp_path: Path) -> None:
    """A process that was suspended has missed nothing."""
    file = tmp_path / "note.json"
    silence = Silence(str(file), limit_s=1.0, tick_s=0.5)
    assert [silence.is_too_long() for _ in range(5)] == [False] * 5
    file.touch()
    assert [silence.is_too_long() for _ in range(3)] == [False, False, True]
    os.utime(file, (1, 1))
    assert not silence.is_too_long()
    file.unlink()
    assert [silence.is_too_long() for _ in range(2)] == [False, True]
