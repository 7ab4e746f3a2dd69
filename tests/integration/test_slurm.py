"""Real Slurm through carrier, zipapp and adapter; the pilot is a shell script."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from firstkit.clusters import local
from firstkit.clusters.carrier import ClusterClient
from firstkit.clusters.local import LocalCarrier
from firstkit.errors import ClaimedBefore, SchedulerRefused, SchedulerSilent
from firstkit.ids import new_id
from firstkit.schedulers.scheduler import JobSpec, Resources
from firstkit.states import JobState
from firstkit.testing.slurm_lab import LabError, SlurmCluster, is_available
from integration.scripted import FOREVER, ScriptedJobs, scripted_zipapp

LIMIT_S = 30.0
GIB = 1024**3


@pytest.fixture(scope="module", autouse=True)
def slurm_is_here() -> None:
    is_there, why = is_available()
    if not is_there and os.environ.get("CI") == "true":
        pytest.fail(f"Slurm cannot be run: {why}")
    if not is_there:
        pytest.skip(f"Slurm cannot be run: {why}")


class Site(ScriptedJobs):
    """One cluster of Slurm and what FIRST keeps there."""

    def __init__(self, slurm: SlurmCluster, state_dir: Path) -> None:
        self.slurm = slurm
        self.state_dir = state_dir
        super().__init__(self.client_with(), state_dir, LIMIT_S, pause_s=0.05)

    def client_with(self, time_limit_s: float = LIMIT_S, **settings: Any) -> ClusterClient:
        env = {**self.slurm.env, **settings.pop("env", {})}
        section = {"kind": "slurm", "command_timeout": 20, **settings, "env": env}
        carrier = LocalCarrier(str(self.state_dir), env, time_limit_s)
        return ClusterClient(carrier, str(self.state_dir), section)

    def numbers(self, job_id: str) -> list[str]:
        """Slurm's numbers of all jobs of that name."""
        return self.slurm.run("squeue", "-h", "-t", "all", f"--name={job_id}", "-o", "%i").split()


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    zipapp = scripted_zipapp(folder)
    monkeypatch.setattr(local, "install", lambda state_dir: zipapp)


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    """For tests that leave it as they found it."""
    folder = Path(tempfile.mkdtemp(prefix="first-", dir="/tmp"))
    made = SlurmCluster("sophia", folder / "slurm", nodes=2, gpus_per_node=8)
    made.start()
    yield made
    made.stop()
    shutil.rmtree(folder)


@pytest.fixture
def site(cluster: SlurmCluster, folder: Path, scripted: None) -> Iterator[Site]:
    yield Site(cluster, folder / "state")
    cluster.end_jobs()
    for node, state in cluster.node_states().items():
        if state.startswith("drain"):
            cluster.set_node(node, "RESUME")
    cluster.wait_idle()


@pytest.fixture
def own_site(folder: Path, scripted: None) -> Iterator[Site]:
    """For tests that break it."""
    made = SlurmCluster("polaris", folder / "slurm", nodes=2, gpus_per_node=4, slurmd_timeout_s=5)
    made.start()
    yield Site(made, folder / "state")
    made.stop()


# -- a job and its news ------------------------------------------------------------------------------------------------


async def test_a_job_has_its_folder_its_share_and_its_end(site: Site) -> None:
    script = (
        'echo "$PWD $FIRST_JOB_ID $CUDA_VISIBLE_DEVICES $SLURM_CPUS_ON_NODE $SLURM_MEM_PER_NODE" > here; ' + FOREVER
    )
    began = time.time()
    job = await site.submit(script, cpus_per_node=4, gpus_per_node=2, memory_bytes=GIB, walltime_s=601)
    news = await site.running(job)
    folder = site.state_dir / "jobs" / job
    assert await site.wrote(job, "here") == f"{folder} {job} 0,1 4 1024\n"
    assert (news.node, news.scheduler_id) == ("sophia-n1", site.numbers(job)[0])
    assert news.started_at is not None
    assert news.ends_at == news.started_at + 660
    assert abs(news.started_at - began) < LIMIT_S
    assert oct((folder / "pilot.log").stat().st_mode & 0o777) == "0o600"


async def test_how_jobs_end(site: Site) -> None:
    good, bad, killed = [await site.submit(script) for script in ("exit 0", "exit 3", "kill -9 $$")]
    assert (await site.ended(good)).exit_code == 0
    news = await site.ended(bad)
    assert (news.state, news.exit_code, news.reason) == (JobState.FAILED, 3, "NonZeroExitCode")
    assert (await site.ended(killed)).exit_code == 137


async def test_what_the_pilot_reads_of_its_job(site: Site) -> None:
    read = "from firstkit.onsite.job import read_job as r; import os; j = r(os.environ); print(j.total, j.ends_at)"
    script = f"PYTHONPATH={os.environ.get('PYTHONPATH', '')} {sys.executable} -c '{read}' > here; {FOREVER}"
    job = await site.submit(script, cpus_per_node=16, gpus_per_node=1, memory_bytes=GIB, walltime_s=600)
    share, _, ends_at = (await site.wrote(job, "here")).strip().rpartition(" ")
    assert f"cpus={tuple(range(16))}, gpus=('0',), memory_bytes={GIB}" in share
    news = await site.running(job)
    assert news.ends_at is not None
    assert abs(news.ends_at - float(ends_at)) < 10


async def test_a_moved_end_is_news(site: Site) -> None:
    job = await site.submit(walltime_s=600)
    before = await site.running(job)
    site.slurm.run("scontrol", "update", f"JobId={before.scheduler_id}", "TimeLimit=5")
    after = await site.running(job)
    assert before.ends_at is not None
    assert after.ends_at == before.ends_at - 300


@pytest.mark.long
async def test_the_end_of_the_walltime(site: Site) -> None:
    job = await site.submit(walltime_s=60)
    news = await site.ended(job, limit_s=110)
    assert (news.state, news.reason) == (JobState.TIMEOUT, "TimeLimit")


# -- once, and no more -------------------------------------------------------------------------------------------------


async def test_submitting_at_once_and_again_makes_one_job(site: Site) -> None:
    job = new_id("job")
    spec = JobSpec(job, Resources(), {"script": FOREVER})
    numbers = await asyncio.gather(*[site.client.submit(spec) for _ in range(4)])
    assert [*set(numbers), await site.client.submit(spec)] == [numbers[0]] * 2
    assert site.numbers(job) == [numbers[0]]


def slow_sbatch(folder: Path) -> dict[str, str]:
    """A PATH on which sbatch submits and then says nothing."""
    programs = folder / "bin"
    programs.mkdir()
    program = programs / "sbatch"
    program.write_text(f'#!/bin/sh\n{shutil.which("sbatch")} "$@"\necho done > {folder}/submitted\nexec sleep 100\n')
    program.chmod(0o755)
    return {"PATH": f"{programs}:{os.environ['PATH']}"}


@pytest.mark.parametrize("who_gives_up", ["command", "carrier"])
async def test_a_job_whose_answer_was_lost_is_found_by_its_name(site: Site, folder: Path, who_gives_up: str) -> None:
    limits = {"command_timeout": 2} if who_gives_up == "command" else {"time_limit_s": 2}
    lossy = site.client_with(**limits, env=slow_sbatch(folder))
    job = new_id("job")
    spec = JobSpec(job, Resources(), {"script": FOREVER})
    with pytest.raises(SchedulerSilent):
        await lossy.submit(spec)
    assert (folder / "submitted").exists()
    number = (await site.running(job)).scheduler_id
    assert await site.client.submit(spec) == number
    assert site.numbers(job) == [number]


async def test_a_claim_that_made_no_job_is_burnt(site: Site, folder: Path) -> None:
    job = new_id("job")
    (site.state_dir / "jobs" / job).mkdir(parents=True)
    (site.state_dir / "jobs" / job / "claim").touch()
    with pytest.raises(ClaimedBefore):
        await site.submit(job_id=job)
    assert job not in await site.client.poll()


async def test_what_slurm_refuses_is_refused_with_its_words(site: Site) -> None:
    asked: list[dict[str, Any]] = [{"partition": "nope"}, {"constraint": "moon"}, {"directives": ("--x=1",)}]
    for needs in asked:
        job = new_id("job")
        with pytest.raises(SchedulerRefused, match="Slurm has refused the job: "):
            await site.submit(job_id=job, **needs)
        assert site.numbers(job) == []


# -- cancel ------------------------------------------------------------------------------------------------------------


async def test_cancel_ends_jobs_and_all_their_processes(site: Site) -> None:
    running = await site.submit("sleep 301 & echo up > up; wait")
    waiting = await site.submit(exclusive=True, cpus_per_node=16, nodes=2)
    await site.wrote(running, "up")
    for job in (running, waiting, waiting):
        await site.client.cancel(job)
    for job in (running, waiting):
        assert (await site.ended(job)).state is JobState.CANCELLED
    async with asyncio.timeout(LIMIT_S):
        while [process for process in psutil.process_iter() if "301" in _arguments(process)]:
            await asyncio.sleep(0.05)


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() if process.cwd().startswith("/tmp/first-") else []
    except (psutil.Error, OSError):
        return []


async def test_cancel_of_what_never_was_keeps_it_out(site: Site) -> None:
    job = new_id("job")
    await site.client.cancel(job)
    with pytest.raises(SchedulerRefused, match="cancelled before it was submitted"):
        await site.submit(job_id=job)
    assert (await site.client.poll())[job].state is JobState.CANCELLED
    assert site.numbers(job) == []


async def test_who_cancels_from_outside_is_believed(site: Site) -> None:
    job = await site.submit()
    await site.running(job)
    site.slurm.run("scancel", f"--name={job}")
    assert (await site.ended(job)).state is JobState.CANCELLED


# -- the queue and the nodes -------------------------------------------------------------------------------------------


async def test_jobs_that_wait_have_a_place_a_reason_and_a_start(site: Site) -> None:
    blocker = await site.submit(nodes=2, exclusive=True, walltime_s=600)
    blocked_until = (await site.running(blocker)).ends_at
    first = await site.submit(nodes=2, exclusive=True, walltime_s=600)
    second = await site.submit(nodes=2, exclusive=True, walltime_s=600)
    news = await site.until(first, lambda news: news.starts_at is not None)
    assert (news.state, news.reason, news.position) == (JobState.PENDING, "Resources", 1)
    assert news.starts_at is not None
    assert blocked_until is not None
    assert abs(news.starts_at - blocked_until) < 60
    assert (await site.until(second, lambda news: news.reason == "Priority")).position == 2


async def test_a_drained_cluster_keeps_its_jobs_and_has_no_capacity(site: Site) -> None:
    job = await site.submit(gpus_per_node=2)
    await site.running(job)
    for node in site.slurm.nodes:
        site.slurm.set_node(node, "DRAIN", "a leak, see ticket 12")
    waiting = await site.submit()
    news = await site.until(waiting, lambda news: news.reason not in ("", "Priority"))
    assert " " in news.reason
    assert (await site.client.poll())[job].state is JobState.RUNNING
    capacity = await site.client.capacity()
    assert (capacity.nodes, capacity.gpus, capacity.free_gpus) == (0, 0, 0)
    assert (await site.client.estimate(Resources())).starts_at is None


async def test_capacity(site: Site) -> None:
    whole = await site.client.capacity()
    assert (whole.nodes, whole.cpus, whole.gpus, whole.memory_bytes) == (2, 32, 16, 2 * 64000 * 1024**2)
    assert (whole.free_nodes, whole.free_cpus, whole.free_gpus) == (2, 32, 16)
    job = await site.submit(cpus_per_node=4, gpus_per_node=3, memory_bytes=GIB)
    await site.running(job)
    left = await site.client.capacity()
    assert (left.free_nodes, left.free_cpus, left.free_gpus) == (1, 28, 13)
    assert left.free_memory_bytes == whole.memory_bytes - GIB
    typed = await site.client_with(gpu_type="h100").capacity()
    assert (typed.nodes, typed.gpus) == (2, 0)


async def test_estimates(site: Site) -> None:
    whole = Resources(nodes=2, gpus_per_node=8, walltime_s=600)
    now = await site.client.estimate(whole)
    assert now.starts_at is not None
    assert abs(now.starts_at - time.time()) < 60
    ends_at = (await site.running(await site.submit(gpus_per_node=1, walltime_s=1200))).ends_at
    later = await site.client.estimate(whole)
    assert later.starts_at is not None
    assert ends_at is not None
    assert abs(later.starts_at - ends_at) < 60
    for never in (Resources(gpus_per_node=9), Resources(nodes=3), Resources(partition="nope")):
        with pytest.raises(SchedulerRefused, match="would not run such a job"):
            await site.client.estimate(never)
    alive = [news for news in (await site.client.poll()).values() if not news.state.is_final]
    assert len(alive) == 1


# -- what may go wrong -------------------------------------------------------------------------------------------------


async def test_a_node_that_goes_down_ends_its_job_for_good(own_site: Site) -> None:
    job = await own_site.submit("echo up >> up; " + FOREVER)
    news = await own_site.running(job)
    await own_site.wrote(job, "up")
    assert news.node is not None
    own_site.slurm.kill_node(news.node)
    own_site.slurm.set_node(news.node, "DOWN", "smoke")
    assert (await own_site.ended(job)).state is JobState.NODE_FAIL
    own_site.slurm.start_node(news.node)
    own_site.slurm.wait_idle()
    assert (await own_site.client.poll())[job].state is JobState.NODE_FAIL
    assert await own_site.wrote(job, "up") == "up\n"
    with pytest.raises(LabError):
        own_site.slurm.run("scontrol", "requeue", news.scheduler_id)


async def test_a_controller_that_is_gone_is_silence_and_its_jobs_are_there_when_it_is_back(own_site: Site) -> None:
    job = await own_site.submit()
    own_site.slurm.save_state((await own_site.running(job)).scheduler_id)
    own_site.slurm.kill_controller()
    hasty = own_site.client_with(command_timeout=1)
    began = time.monotonic()
    questions = [hasty.poll(), hasty.capacity(), hasty.estimate(Resources()), hasty.cancel(new_id("job"))]
    questions.append(hasty.submit(JobSpec(new_id("job"), Resources(), {})))
    answers = await asyncio.gather(*questions, return_exceptions=True)
    assert {type(answer) for answer in answers} == {SchedulerSilent}, answers
    assert time.monotonic() - began < 15  # scancel by itself would have tried for 18 s
    own_site.slurm.start_controller()
    states = {news.state for job_id, news in (await own_site.client.poll()).items() if job_id != job}
    assert states == {JobState.CANCELLED}  # what was cancelled is known never to have been
    assert (await own_site.running(job)).scheduler_id == own_site.numbers(job)[0]


async def test_a_controller_that_hangs_is_silence(own_site: Site) -> None:
    job = await own_site.submit()
    own_site.slurm.stop_answering()
    with pytest.raises(SchedulerSilent, match="squeue did not answer within 1 s"):
        await own_site.client_with(command_timeout=1).poll()
    own_site.slurm.answer_again()
    assert list(await own_site.client.poll()) == [job]


async def test_two_clusters_may_give_their_jobs_the_same_numbers(own_site: Site, folder: Path) -> None:
    other = Site(SlurmCluster("sophia", folder / "other", gpus_per_node=8), folder / "state2")
    other.slurm.start()
    try:
        jobs = [await site.submit(f"echo $SLURM_CLUSTER_NAME > here; {FOREVER}") for site in (own_site, other)]
        news = [await site.running(job) for site, job in zip((own_site, other), jobs, strict=True)]
        assert [job.scheduler_id for job in news] == ["1", "1"]
        assert [await own_site.wrote(jobs[0], "here"), await other.wrote(jobs[1], "here")] == ["polaris\n", "sophia\n"]
        await other.client.cancel(jobs[1])
        assert (await other.ended(jobs[1])).state is JobState.CANCELLED
        assert [job.state for job in (await own_site.client.poll()).values()] == [JobState.RUNNING]
    finally:
        other.slurm.stop()


# -- the lab itself ----------------------------------------------------------------------------------------------------


def lab_command(*argv: str) -> str:
    command = [sys.executable, "-m", "firstkit.testing.slurm_lab", *argv]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_lab_comes_up_and_leaves_nothing_behind(folder: Path) -> None:
    lab = folder / "lab"
    said = lab_command("up", str(lab)).splitlines()
    assert said == [f"{name}: SLURM_CONF={lab}/{name}/slurm.conf" for name in ("sophia", "polaris")]
    polaris = SlurmCluster.found(lab / "polaris")
    assert sorted(polaris.processes()) == ["munged", "slurmctld", "slurmd-polaris-n1", "slurmd-polaris-n2"]
    polaris.run("sbatch", "--output=/dev/null", "--wrap", "setsid sleep 302 & trap '' TERM; sleep 302; sleep 302")
    listening = {c.laddr.ip for p in polaris.processes().values() for c in _connections(p.pid)}
    assert listening == {"127.0.0.1"}
    lab_command("down", str(lab))
    assert list(lab.iterdir()) == []
    assert not [process for process in psutil.process_iter() if str(lab) in " ".join(_environment(process))]


def _connections(pid: int) -> list[Any]:
    return [c for c in psutil.Process(pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]


def _environment(process: psutil.Process) -> list[str]:
    try:
        return [] if process.status() == psutil.STATUS_ZOMBIE else [*process.environ().values()]
    except (psutil.Error, OSError):
        return []
