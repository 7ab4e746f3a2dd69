"""The local cluster with real processes: carrier, zipapp, scheduler, keepers; the pilot is a shell script."""

import asyncio
import json
import os
import shutil
import signal
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
from firstkit.schedulers.processes import send_signal
from firstkit.schedulers.records import GRANT, KEEPER, Grant, Keeper, load
from firstkit.states import JobState
from integration.scripted import ScriptedJobs, scripted_zipapp

ONE_CORE = {"kind": "local", "cpus": 1, "grace_s": 0.5}
LIMIT_S = 20.0
FOREVER = "sleep 300"


class Lab(ScriptedJobs):
    """One local cluster in a folder of its own, whose pilots run the script that the test gives them."""

    def __init__(self, folder: Path, scheduler: dict[str, Any]) -> None:
        self.folder = folder
        self.carrier = LocalCarrier(str(folder))
        self.scheduler = scheduler
        super().__init__(ClusterClient(self.carrier, str(folder), scheduler), folder, LIMIT_S, pause_s=0.02)

    def record(self, job_id: str) -> Any:
        return load(str(self.folder / "jobs" / job_id))

    def processes(self, job_id: str) -> list[psutil.Process]:
        """All that runs with the job's id in its environment."""
        return [process for process in psutil.process_iter() if _job_of(process) == job_id]

    async def gone(self, job_id: str) -> None:
        async with asyncio.timeout(LIMIT_S):
            while self.processes(job_id):
                await asyncio.sleep(0.01)

    def close(self) -> None:
        for path in (self.folder / "jobs").glob("job-*"):
            record = load(str(path))
            if record.keeper is not None:
                send_signal(record.keeper.process, signal.SIGKILL)
            for process in self.processes(path.name):
                process.kill()
        shutil.rmtree(self.folder)


def _job_of(process: psutil.Process) -> str | None:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process.environ().get("FIRST_JOB_ID")
    except (psutil.Error, OSError):
        return None


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    folder = Path(tempfile.mkdtemp(prefix="first-", dir="/tmp"))
    zipapp = scripted_zipapp(folder)
    monkeypatch.setattr(local, "install", lambda state_dir: zipapp)
    made = Lab(folder, {"kind": "local", "grace_s": 0.5})
    yield made
    made.close()


@pytest.fixture
def one_core(lab: Lab) -> Lab:
    lab.client = ClusterClient(lab.carrier, str(lab.folder), ONE_CORE)
    return lab


async def test_a_job_runs_at_once_and_its_end_is_told(lab: Lab) -> None:
    job = await lab.submit("echo here > here; exit 0", walltime_s=60)
    await lab.wrote(job, "here")
    news = await lab.ended(job)
    assert (news.state, news.reason, news.exit_code) == (JobState.COMPLETED, "exit status 0", 0)
    assert news.scheduler_id == f"local-{job}"


async def test_jobs_side_by_side_have_cores_of_their_own(lab: Lab) -> None:
    cores = len(os.sched_getaffinity(0))
    jobs = [
        await lab.submit(f"grep Cpus_allowed_list /proc/self/status > cores; {FOREVER}") for _ in range(min(cores, 4))
    ]
    seen = [(await lab.wrote(job, "cores")).split()[-1] for job in jobs]
    assert len(set(seen)) == len(jobs)
    capacity = await lab.client.capacity()
    assert (capacity.free_nodes, capacity.free_cpus) == (0, cores - len(jobs))


async def test_a_job_that_does_not_fit_waits_and_is_started_by_the_end_of_the_other(one_core: Lab) -> None:
    first = await one_core.submit(f"echo up > up; exec {FOREVER}")
    second = await one_core.submit("echo up > up")
    assert (await one_core.client.poll())[second].state is JobState.PENDING
    await one_core.wrote(first, "up")
    assert not (one_core.folder / "jobs" / second / "up").exists()
    os.kill(one_core.record(first).keeper.process.pid, signal.SIGTERM)
    # Nobody polls: the keeper of the first starts the second.
    await one_core.wrote(second, "up")
    assert (await one_core.ended(second)).state is JobState.COMPLETED


async def test_a_cancelled_job_leaves_the_queue_or_the_machine(one_core: Lab) -> None:
    running = await one_core.submit(f"trap 'exit 7' TERM; echo up > up; {FOREVER} & wait")
    waiting = await one_core.submit(FOREVER)
    await one_core.wrote(running, "up")
    await one_core.client.cancel(waiting)
    await one_core.client.cancel(running)
    assert (await one_core.ended(waiting)).state is JobState.CANCELLED
    news = await one_core.ended(running)
    assert (news.state, news.reason, news.exit_code) == (JobState.CANCELLED, "cancelled; exit status 7", 7)
    await one_core.gone(running)
    await one_core.client.cancel(running)
    await one_core.client.cancel(new_id("job"))


async def test_a_job_that_will_not_end_is_ended_with_all_that_it_started(lab: Lab) -> None:
    job = await lab.submit(f"trap '' TERM; setsid {FOREVER} & echo up > up; while true; do sleep 1; done")
    await lab.wrote(job, "up")
    await lab.client.cancel(job)
    news = await lab.until(job, lambda news: news.state is not JobState.RUNNING)
    assert news.state in (JobState.ENDING, JobState.CANCELLED)
    news = await lab.ended(job)
    assert (news.state, news.reason) == (JobState.CANCELLED, "cancelled; killed after the grace")
    assert lab.processes(job) == []


async def test_walltime_ends_a_job(lab: Lab) -> None:
    job = await lab.submit(f"echo $FIRST_JOB_END > end; {FOREVER}", walltime_s=1)
    end = int(await lab.wrote(job, "end"))
    assert abs(end - time.time()) < 10
    news = await lab.ended(job)
    assert news.state is JobState.TIMEOUT
    assert news.reason.startswith("its walltime ended")
    assert news.started_at is not None
    assert news.ends_at is not None
    assert news.ends_at - news.started_at >= 1.0
    assert lab.processes(job) == []


async def test_when_the_main_process_is_killed_nothing_below_it_survives(lab: Lab) -> None:
    tree = f"(setsid bash -c '{FOREVER} & {FOREVER} & wait' & {FOREVER}) & echo $$ > pid; wait"
    job = await lab.submit(tree)
    pid = int(await lab.wrote(job, "pid"))
    async with asyncio.timeout(LIMIT_S):
        while len(lab.processes(job)) < 6:
            await asyncio.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    news = await lab.ended(job)
    assert (news.state, news.reason, news.exit_code) == (JobState.FAILED, "killed by SIGKILL", 137)
    assert lab.processes(job) == []


async def test_when_the_keeper_is_killed_the_job_dies_and_the_next_poll_says_so(one_core: Lab) -> None:
    job = await one_core.submit(f"setsid {FOREVER} & echo $$ > pid; wait")
    pid = int(await one_core.wrote(job, "pid"))
    waiting = await one_core.submit("exit 0")
    os.kill(one_core.record(job).keeper.process.pid, signal.SIGKILL)
    async with asyncio.timeout(LIMIT_S):
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.01)
    news = await one_core.ended(job)
    assert news.state is JobState.FAILED
    assert news.reason.startswith("keeper died")
    assert one_core.processes(job) == []
    assert (await one_core.ended(waiting)).state is JobState.COMPLETED


async def test_twenty_submissions_of_one_id_make_one_job(lab: Lab) -> None:
    job = new_id("job")
    await asyncio.gather(*(lab.submit(f"echo $$ >> pids; {FOREVER}", job) for _ in range(20)))
    await lab.running(job)
    assert len((await lab.wrote(job, "pids")).split()) == 1
    assert list(await lab.client.poll()) == [job]
    assert lab.record(job).grant.launch == 1


async def test_a_job_outlives_whoever_submitted_it(lab: Lab) -> None:
    job = new_id("job")
    spec = {"job_id": job, "resources": {}, "pilot": {"script": f"echo up > up; {FOREVER}"}}
    request = json.dumps({"state_dir": str(lab.folder), "scheduler": lab.scheduler, "job": spec})
    # The session of the submitter is killed as a whole, as a terminal or a service manager would.
    script = "import subprocess, sys, time; subprocess.run(sys.argv[2:], input=sys.argv[1].encode()); time.sleep(60)"
    command = [sys.executable, "-I", str(lab.folder / "scripted.pyz"), "cluster", "submit"]
    submitter = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, request, *command), stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    await lab.wrote(job, "up")
    os.killpg(submitter.pid, signal.SIGKILL)
    await submitter.communicate()
    assert (await lab.running(job)).state is JobState.RUNNING
    keeper = lab.record(job).keeper.process.pid
    assert os.getsid(keeper) == keeper


async def test_a_submission_that_died_after_its_claim_burns_the_id(lab: Lab) -> None:
    job = new_id("job")
    folder = lab.folder / "jobs" / job
    folder.mkdir(parents=True)
    (folder / "claim").touch()
    assert job not in await lab.client.poll()
    with pytest.raises(ClaimedBefore):
        await lab.submit(FOREVER, job)
    assert job not in await lab.client.poll()


async def test_a_submission_that_died_before_it_started_the_keeper_is_made_good(lab: Lab) -> None:
    job = await lab.submit("echo up >> up")
    await lab.ended(job)
    record = lab.record(job)
    stale = Grant(1, record.grant.part, record.grant.machine, record.grant.keep, "an earlier boot", 0.0)
    for name in ("keeper.json", "final.json", "seen"):
        (lab.folder / "jobs" / job / name).unlink()
    record.write(GRANT, stale)
    assert (await lab.ended(job)).state is JobState.COMPLETED
    assert lab.record(job).grant.launch == 2
    assert await lab.wrote(job, "up") == "up\nup\n"


async def test_after_a_restart_of_the_machine_the_job_is_lost_with_its_node(lab: Lab) -> None:
    job = await lab.submit(FOREVER)
    await lab.running(job)
    record = lab.record(job)
    process = record.keeper.process
    record.write(KEEPER, Keeper(type(process)(process.pid, process.started, "an earlier boot"), 1.0))
    assert (await lab.ended(job)).state is JobState.NODE_FAIL
    send_signal(process, signal.SIGKILL)
    await lab.gone(job)


async def test_the_environment_of_the_submitter_does_not_reach_the_job(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRST_CANARY", "s3cret")
    lab.carrier = LocalCarrier(str(lab.folder), {"OF_CLUSTER": "yes"})
    scheduler = {**lab.scheduler, "env": {"OF_CLUSTER": "yes"}}
    lab.client = ClusterClient(lab.carrier, str(lab.folder), scheduler)
    job = await lab.submit(f"echo $OF_CLUSTER > told; {FOREVER}")
    assert await lab.wrote(job, "told") == "yes\n"
    keeper = psutil.Process(lab.record(job).keeper.process.pid)
    for process in [keeper, *lab.processes(job)]:
        assert "FIRST_CANARY" not in process.environ()
    assert all(os.readlink(f"/proc/{keeper.pid}/fd/{fd}").endswith(("/dev/null", "/pilot.log")) for fd in range(3))
    assert set(os.listdir(f"/proc/{keeper.pid}/fd")) <= {"0", "1", "2"}


async def test_what_can_never_run_is_refused(lab: Lab) -> None:
    with pytest.raises(SchedulerRefused, match="asks for 4096 cores"):
        await lab.submit(FOREVER, cpus_per_node=4096)
    assert await lab.client.poll() == {}


async def test_a_stopped_holder_of_the_lock_is_silence(lab: Lab) -> None:
    await lab.client.capacity()
    holder = await asyncio.create_subprocess_exec(
        *("flock", str(lab.folder / "local.lock"), "-c", "echo held; exec sleep 60"),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert holder.stdout is not None
    await holder.stdout.readline()
    lab.carrier._time_limit_s = 1.0
    with pytest.raises(SchedulerSilent):
        await lab.client.poll()
    os.killpg(holder.pid, signal.SIGKILL)
    await holder.communicate()
    lab.carrier._time_limit_s = 30.0
    assert await lab.client.poll() == {}


async def test_random_deaths_of_submitters_make_neither_orphan_nor_twin(lab: Lab) -> None:
    """Submit commands killed at any moment: afterwards each job runs once or not at all, and poll knows which."""
    runs = {}
    for attempt in range(12):
        job = new_id("job")
        lab.carrier._time_limit_s = 0.01 * (attempt + 1)
        try:
            await lab.submit("echo $$ >> pids; exit 0", job)
            runs[job] = True
        except SchedulerSilent:
            runs[job] = False
        lab.carrier._time_limit_s = 30.0
        try:
            await lab.submit("echo $$ >> pids; exit 0", job)
        except ClaimedBefore:
            assert not runs[job]
            assert job not in await lab.client.poll()
            await lab.client.cancel(job)
    for job in runs:
        news = await lab.ended(job)
        pids = lab.folder / "jobs" / job / "pids"
        count = len(pids.read_text().split()) if pids.exists() else 0
        assert count == (1 if news.state is JobState.COMPLETED else 0)
