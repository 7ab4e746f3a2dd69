"""The backend for PBS through carrier, zipapp and adapter, against a double that answers as a real OpenPBS was recorded
to; the pilot is a shell script."""

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstkit.clusters import local
from firstkit.clusters.carrier import ClusterClient
from firstkit.clusters.local import LocalCarrier
from firstkit.clusters.zipapp import build, sources
from firstkit.errors import ClaimedBefore, SchedulerRefused, SchedulerSilent
from firstkit.ids import new_id
from firstkit.schedulers.scheduler import JobNews, JobSpec, Resources
from firstkit.states import JobState
from firstkit.testing.pbs_lab import PbsLab
from integration.scripted import FOREVER, PILOT, ScriptedJobs

LIMIT_S = 30.0
GIB = 1024**3
STUBBORN = "trap '' TERM; echo up > up; while :; do sleep 0.1; done"
QUEUES = {
    "workq": {}, "short": {"max_walltime": "00:01:00"}, "closed": {"enabled": False}, "stopped": {"started": False},
    "private": {"users": ["somebody-else"]},
}  # fmt: skip


class Site(ScriptedJobs):
    """One cluster with PBS and what FIRST keeps there."""

    def __init__(self, pbs: PbsLab, state_dir: Path) -> None:
        self.pbs = pbs
        self.state_dir = state_dir
        super().__init__(self.client_with(), state_dir, LIMIT_S, pause_s=0.05)

    def client_with(self, time_limit_s: float = LIMIT_S, **settings: Any) -> ClusterClient:
        section = {"kind": "pbs", "command_timeout": 20, "devices": ["0", "1", "2", "3"], **settings}
        section["env"] = {**self.pbs.env, **section.get("env", {})}
        carrier = LocalCarrier(str(self.state_dir), section["env"], time_limit_s)
        return ClusterClient(carrier, str(self.state_dir), section)

    def numbers(self, job_id: str) -> list[str]:
        """PBS's ids of all jobs of that name."""
        return self.pbs.ids(job_id)

    async def seen(self, job_id: str) -> JobNews:
        return (await self.client.poll())[job_id]

    def pretend_age(self, job_id: str, name: str, age_s: float) -> None:
        """As if a note in the job's folder had been written so long ago."""
        then = time.time() - age_s
        os.utime(self.state_dir / "jobs" / job_id / name, (then, then))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Jobs of PBS begin in the home directory, so these pilots go to their folder first."""
    pilot = PILOT.replace(b"def main(args):\n", b"def main(args):\n    os.chdir(args[0])\n")
    zipapp = folder / "scripted.pyz"
    zipapp.write_bytes(build({**sources(), "firstkit/onsite/pilot.py": pilot}))
    monkeypatch.setattr(local, "install", lambda state_dir: zipapp)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PbsLab]:
    """For tests that leave it as they found it."""
    made = PbsLab(
        tmp_path_factory.mktemp("pbs"), queues=QUEUES, kill_delay_s=1.0,
        traits={"gputype": "a100"}, job_resources=["filesystems"],
    )  # fmt: skip
    made.start()
    yield made
    made.stop()


@pytest.fixture
def site(cluster: PbsLab, folder: Path, scripted: None) -> Iterator[Site]:
    yield Site(cluster, folder / "state")
    for node in cluster.nodes:
        cluster.set_node(node, is_offline=False)
    cluster.end_jobs()


@pytest.fixture
def own_site(folder: Path, scripted: None) -> Iterator[Site]:
    """For tests that break it; its clients speak the other dialect."""
    made = PbsLab(folder / "pbs", clients="v23", kill_delay_s=1.0, node_fail_requeue_s=5.0)
    made.start()
    yield Site(made, folder / "state")
    made.stop()
    assert made.left_behind() == []


# -- a job and its news ------------------------------------------------------------------------------------------------


async def test_a_job_has_its_folder_its_share_and_its_end(site: Site) -> None:
    script = 'echo "$PWD $FIRST_JOB_ID $PBS_JOBNAME $NCPUS $(cat $PBS_NODEFILE) ${CUDA_VISIBLE_DEVICES-none}" > here; '
    began = time.time()
    job = await site.submit(script + FOREVER, cpus_per_node=4, gpus_per_node=2, memory_bytes=GIB, walltime_s=601)
    news = await site.running(job)
    folder = site.state_dir / "jobs" / job
    assert await site.wrote(job, "here") == f"{folder} {job} {job} 4 {news.node} none\n"
    assert (news.node, news.scheduler_id) == ("hpc-n1", site.numbers(job)[0])
    assert news.started_at is not None
    assert news.ends_at == news.started_at + 601
    assert abs(news.started_at - began) < LIMIT_S
    assert oct((folder / "pilot.log").stat().st_mode & 0o777) == "0o600"


async def test_how_jobs_end(site: Site) -> None:
    good, bad, killed = [await site.submit(script) for script in ("exit 0", "exit 3", "kill -9 $$")]
    assert (await site.ended(good)).exit_code == 0
    news = await site.ended(bad)
    assert (news.state, news.exit_code) == (JobState.FAILED, 3)
    assert (await site.ended(killed)).exit_code == 137


async def test_the_end_of_the_walltime(site: Site) -> None:
    job = await site.submit(STUBBORN, walltime_s=1)
    assert (await site.ended(job)).state is JobState.TIMEOUT


async def test_what_the_pilot_reads_of_its_job(site: Site) -> None:
    read = "from firstkit.onsite.job import read_job as r; import os; j = r(os.environ); print(j.total, j.ends_at)"
    path = Path(__file__).parents[2] / "src"
    script = f"PYTHONPATH={path} {sys.executable} -c '{read}' > here; {FOREVER}"
    job = await site.submit(script, cpus_per_node=16, gpus_per_node=1, memory_bytes=GIB, exclusive=True, walltime_s=600)
    share, _, ends_at = (await site.wrote(job, "here")).strip().rpartition(" ")
    assert "gpus=('0',)" in share
    news = await site.running(job)
    assert news.ends_at is not None
    assert abs(news.ends_at - float(ends_at)) < 10


async def test_what_a_job_asks_for_arrives(site: Site) -> None:
    client = site.client_with(filesystems=["home", "eagle"], account="alpha", project="p7", constraint="gputype=a100")
    job = new_id("job")
    await client.submit(JobSpec(job, Resources(2, 3, 4, GIB, True, 3661), {"script": FOREVER}))
    [known] = [known for known in site.pbs.jobs() if known["name"] == job]
    assert known["resources"] == {
        "filesystems": "home:eagle", "mem": "2gb", "ncpus": 6, "ngpus": 8, "nodect": 2, "place": "scatter:exclhost",
        "select": "2:ncpus=3:ngpus=4:mem=1024mb:gputype=a100", "walltime": "01:01:01",
    }  # fmt: skip
    assert (known["account"], known["project"], known["is_rerunnable"]) == ("alpha", "p7", "False")
    await site.running(job)
    assert set(site.pbs.node_states().values()) == {"job-exclusive"}


# -- once, and no more -------------------------------------------------------------------------------------------------


async def test_submitting_at_once_and_again_makes_one_job(site: Site) -> None:
    job = new_id("job")
    spec = JobSpec(job, Resources(), {"script": FOREVER})
    numbers = await asyncio.gather(*[site.client.submit(spec) for _ in range(4)])
    assert [*set(numbers), await site.client.submit(spec)] == [numbers[0]] * 2
    assert site.numbers(job) == [numbers[0]]


@pytest.mark.parametrize("who_gives_up", ["command", "carrier"])
async def test_a_job_whose_answer_was_lost_is_found_by_its_name(own_site: Site, who_gives_up: str) -> None:
    own_site.pbs.lose_answers()
    limits = {"command_timeout": 2} if who_gives_up == "command" else {"time_limit_s": 2}
    job = new_id("job")
    spec = JobSpec(job, Resources(), {"script": FOREVER})
    with pytest.raises(SchedulerSilent):
        await own_site.client_with(**limits).submit(spec)
    number = (await own_site.running(job)).scheduler_id
    assert await own_site.client.submit(spec) == number
    assert own_site.numbers(job) == [number]


async def test_a_submission_that_hung_is_not_made_up_for_later(own_site: Site) -> None:
    """Its qsub was killed while the server slept: no job comes of it when the server wakes."""
    before = await own_site.submit()
    own_site.pbs.stop_answering()
    job = new_id("job")
    with pytest.raises(SchedulerSilent):
        await own_site.client_with(command_timeout=2).submit(JobSpec(job, Resources(), {"script": FOREVER}))
    own_site.pbs.answer_again()
    with pytest.raises(ClaimedBefore):
        await own_site.submit(job_id=job)
    assert list(await own_site.client.poll()) == [before]
    assert own_site.numbers(job) == []


async def test_a_claim_that_made_no_job_is_burnt(site: Site) -> None:
    job = new_id("job")
    (site.state_dir / "jobs" / job).mkdir(parents=True)
    (site.state_dir / "jobs" / job / "claim").touch()
    with pytest.raises(ClaimedBefore):
        await site.submit(job_id=job)
    assert job not in await site.client.poll()


async def test_what_pbs_refuses_is_refused_with_its_words(site: Site) -> None:
    asked: list[tuple[dict[str, Any], str]] = [
        ({"partition": "nope"}, "Unknown queue"),
        ({"partition": "closed"}, "Queue is not enabled"),
        ({"partition": "private"}, "Unauthorized Request"),
        ({"partition": "short", "walltime_s": 61}, "Job violates queue and/or server resource limits"),
        ({"constraint": "moon=full"}, "Unknown resource: moon"),
    ]
    for needs, words in asked:
        job = new_id("job")
        with pytest.raises(SchedulerRefused, match=f"PBS has refused the job: .*{words}"):
            await site.submit(job_id=job, **needs)
        assert site.numbers(job) == []


async def test_gpus_that_nobody_assigns_are_refused(site: Site) -> None:
    job = new_id("job")
    with pytest.raises(SchedulerRefused, match="exclusive"):
        await site.client_with(devices=[]).submit(JobSpec(job, Resources(gpus_per_node=1), {"script": FOREVER}))
    assert site.numbers(job) == []


async def test_jobs_of_others_are_none_of_ours(site: Site) -> None:
    """Neither one of the same name, nor one that spoils every answer in which it is."""
    job = await site.submit()
    odd = ["-v", "A=nan,B=gr\u00f6\u00dfe\\d,C=|Job_Name=x", "--", "/bin/sleep", "300"]
    theirs = [site.pbs.run("qsub", "-N", name, *odd, user="hpc2") for name in (job, "nan")]
    news = await site.running(job)
    assert list(await site.client.poll()) == [job]
    await site.client.cancel(job)
    assert (await site.ended(job)).scheduler_id == news.scheduler_id
    assert {known["id"] for known in site.pbs.jobs()} >= set(theirs)
    site.pbs.run("qdel", *theirs, user="hpc2")


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
        while site.pbs.left_behind():
            await asyncio.sleep(0.05)


async def test_cancel_of_what_has_ended_is_no_error(site: Site) -> None:
    job = await site.submit("exit 0")
    await site.ended(job)
    await site.client.cancel(job)
    assert (await site.seen(job)).state is JobState.COMPLETED


async def test_cancel_of_what_never_was_keeps_it_out(site: Site) -> None:
    job = new_id("job")
    await site.client.cancel(job)
    with pytest.raises(SchedulerRefused, match="cancelled before it was submitted"):
        await site.submit(job_id=job)
    assert (await site.seen(job)).state is JobState.CANCELLED
    assert site.numbers(job) == []


async def test_who_cancels_from_outside_is_believed(site: Site) -> None:
    job = await site.submit()
    news = await site.running(job)
    site.pbs.run("qdel", news.scheduler_id)
    assert (await site.ended(job)).state is JobState.CANCELLED


async def test_a_job_that_does_not_end_is_ended_by_force(folder: Path, scripted: None) -> None:
    pbs = PbsLab(folder / "pbs", kill_delay_s=1000.0)
    pbs.start()
    try:
        site = Site(pbs, folder / "state")
        job = await site.submit(STUBBORN)
        await site.wrote(job, "up")
        await site.client.cancel(job)
        assert (await site.seen(job)).state is JobState.RUNNING
        for name in ("cancelled", "deleted"):
            site.pretend_age(job, name, 3600.0)
        assert (await site.ended(job)).state is JobState.CANCELLED
        assert pbs.left_behind() == []
    finally:
        pbs.stop()


# -- the queue and the nodes -------------------------------------------------------------------------------------------


async def test_jobs_that_wait_have_a_reason_and_a_start(site: Site) -> None:
    blocker = await site.submit(nodes=2, exclusive=True, walltime_s=600)
    blocked_until = (await site.running(blocker)).ends_at
    job = await site.submit(nodes=2, exclusive=True, walltime_s=600)
    news = await site.until(job, lambda news: news.starts_at is not None)
    assert (news.state, news.node, news.started_at) == (JobState.PENDING, None, None)
    assert "Not enough free nodes available" in news.reason
    assert blocked_until is not None
    assert news.starts_at is not None
    assert abs(news.starts_at - blocked_until) < 5


async def test_a_job_that_somebody_holds_waits(site: Site) -> None:
    blocker = await site.submit(nodes=2, exclusive=True)
    job = await site.submit()
    number = (await site.until(job, lambda news: news.reason != "")).scheduler_id
    site.pbs.hold(number)
    await site.client.cancel(blocker)
    await site.ended(blocker)
    assert (await site.seen(job)).state is JobState.PENDING
    site.pbs.hold(number, is_held=False)
    await site.running(job)


async def test_offline_nodes_keep_their_jobs_and_have_no_capacity(site: Site) -> None:
    job = await site.submit(gpus_per_node=2)
    await site.running(job)
    for node in site.pbs.nodes:
        site.pbs.set_node(node, is_offline=True, comment='a "leak", see \\ ticket 12')
    waiting = await site.submit()
    assert "Not Running" in (await site.until(waiting, lambda news: news.reason != "")).reason
    assert (await site.seen(job)).state is JobState.RUNNING
    capacity = await site.client.capacity()
    assert (capacity.nodes, capacity.gpus, capacity.free_gpus) == (0, 0, 0)
    assert (await site.client.estimate(Resources())).starts_at is None


async def test_capacity(site: Site) -> None:
    whole = await site.client.capacity()
    assert (whole.nodes, whole.cpus, whole.gpus, whole.memory_bytes) == (2, 32, 8, 2 * 64 * GIB)
    assert (whole.free_nodes, whole.free_cpus, whole.free_gpus) == (2, 32, 8)
    job = await site.submit(cpus_per_node=4, gpus_per_node=3, memory_bytes=GIB)
    await site.running(job)
    left = await site.client.capacity()
    assert (left.free_nodes, left.free_cpus, left.free_gpus) == (1, 28, 5)
    assert left.free_memory_bytes == whole.memory_bytes - GIB
    other = await site.client_with(constraint="gputype=h100").capacity()
    assert (other.nodes, other.gpus) == (0, 0)


async def test_capacity_of_hosts_of_several_vnodes(folder: Path, scripted: None) -> None:
    pbs = PbsLab(folder / "pbs", vnodes=2)
    pbs.start()
    try:
        site = Site(pbs, folder / "state")
        job = await site.submit(exclusive=True, gpus_per_node=4)
        await site.running(job)
        capacity = await site.client.capacity()
        assert (capacity.nodes, capacity.cpus, capacity.gpus) == (2, 32, 8)
        assert (capacity.free_nodes, capacity.free_gpus) == (1, 4)
    finally:
        pbs.stop()


async def test_estimates(site: Site) -> None:
    whole = Resources(nodes=2, gpus_per_node=4, walltime_s=600)
    now = await site.client.estimate(whole)
    assert now.starts_at is not None
    assert abs(now.starts_at - time.time()) < 60
    await site.running(await site.submit(gpus_per_node=1))
    later = await site.client.estimate(whole)
    assert later.starts_at is None
    assert later.reason
    for never in (Resources(cpus_per_node=17), Resources(nodes=3), Resources(constraint="gputype=h100")):
        with pytest.raises(SchedulerRefused, match="would never run such a job"):
            await site.client.estimate(never)
    assert len([news for news in (await site.client.poll()).values() if not news.state.is_final]) == 1


# -- what may go wrong -------------------------------------------------------------------------------------------------


async def test_a_lost_node_ends_its_job_for_good(own_site: Site) -> None:
    """PBS gives it up while its processes live on, until the node comes back."""
    job = await own_site.submit("echo up >> up; " + FOREVER)
    news = await own_site.running(job)
    await own_site.wrote(job, "up")
    assert news.node is not None
    own_site.pbs.kill_node(news.node)
    assert (await own_site.seen(job)).state is JobState.RUNNING
    assert (await own_site.ended(job)).state is JobState.NODE_FAIL
    assert own_site.pbs.left_behind() != []
    own_site.pbs.start_node(news.node)
    async with asyncio.timeout(LIMIT_S):
        while own_site.pbs.left_behind():
            await asyncio.sleep(0.05)
    own_site.pbs.run_scheduler()
    assert (await own_site.seen(job)).state is JobState.NODE_FAIL
    assert await own_site.wrote(job, "up") == "up\n"
    assert own_site.numbers(job) == [news.scheduler_id]


async def test_a_node_that_hangs_makes_no_poll_hang(own_site: Site) -> None:
    job, other = await own_site.submit(cpus_per_node=16), await own_site.submit(cpus_per_node=16)
    node = (await own_site.running(job)).node
    await own_site.running(other)
    assert node is not None
    own_site.pbs.hang_node(node)
    with pytest.raises(SchedulerSilent, match="qdel did not answer"):
        await own_site.client_with(command_timeout=2).cancel(job)
    assert {news.state for news in (await own_site.client.poll()).values()} == {JobState.RUNNING}
    await own_site.client.cancel(other)
    await own_site.ended(other)
    own_site.pbs.wake_node(node)
    own_site.pretend_age(job, "deleted", 3600.0)
    assert (await own_site.ended(job)).state is JobState.CANCELLED


async def test_a_server_that_is_gone_is_silence_and_its_jobs_are_there_when_it_is_back(own_site: Site) -> None:
    job = await own_site.submit()
    number = (await own_site.running(job)).scheduler_id
    own_site.pbs.kill_server()
    hasty = own_site.client_with(command_timeout=2)
    never, cancelled = new_id("job"), new_id("job")
    questions = [hasty.poll(), hasty.capacity(), hasty.estimate(Resources()), hasty.cancel(cancelled)]
    questions.append(hasty.submit(JobSpec(never, Resources(), {})))
    answers = await asyncio.gather(*questions, return_exceptions=True)
    assert {type(answer) for answer in answers} == {SchedulerSilent}, answers
    own_site.pbs.start_server()
    assert (await own_site.running(job)).scheduler_id == number
    after = await own_site.submit()
    assert own_site.numbers(after) == ["1000.hpc-head"]
    assert own_site.numbers(never) == own_site.numbers(cancelled) == []
    assert {name for name, news in (await own_site.client.poll()).items() if not news.state.is_final} == {job, after}


async def test_a_server_that_hangs_is_silence(own_site: Site) -> None:
    job = await own_site.submit()
    own_site.pbs.stop_answering()
    with pytest.raises(SchedulerSilent, match="did not answer within 1 s"):
        await own_site.client_with(command_timeout=1).poll()
    own_site.pbs.answer_again()
    assert list(await own_site.client.poll()) == [job]


async def test_without_history_living_jobs_are_seen_and_ended_ones_are_absent(own_site: Site) -> None:
    own_site.pbs.set_history(False)
    alive, short = await own_site.submit(), await own_site.submit("exit 0")
    await own_site.running(alive)
    async with asyncio.timeout(LIMIT_S):
        while own_site.numbers(short):
            await asyncio.sleep(0.05)
    for _ in range(2):
        news = await own_site.client.poll()
        assert {name: one.state for name, one in news.items()} == {alive: JobState.RUNNING}
    await own_site.client.cancel(alive)


async def test_without_history_a_job_whose_answer_was_lost_is_found(own_site: Site) -> None:
    own_site.pbs.set_history(False)
    own_site.pbs.lose_answers()
    job = new_id("job")
    with pytest.raises(SchedulerSilent):
        await own_site.client_with(command_timeout=2).submit(JobSpec(job, Resources(), {"script": FOREVER}))
    assert (await own_site.running(job)).scheduler_id == own_site.numbers(job)[0]


async def test_a_job_that_ends_between_polls_is_known_to_have_ended(own_site: Site) -> None:
    job = await own_site.submit("exit 7")
    async with asyncio.timeout(LIMIT_S):
        while [known for known in own_site.pbs.jobs() if known["name"] == job]:
            await asyncio.sleep(0.05)
    assert (await own_site.seen(job)).exit_code == 7


async def test_news_stay_right_while_the_server_restarts_again_and_again(own_site: Site) -> None:
    jobs = [await own_site.submit() for _ in range(3)]
    for job in jobs:
        await own_site.running(job)
    for _ in range(3):
        own_site.pbs.kill_server()
        with pytest.raises(SchedulerSilent):
            await own_site.client.poll()
        own_site.pbs.start_server()
        news = await own_site.client.poll()
        assert {name: one.state for name, one in news.items()} == dict.fromkeys(jobs, JobState.RUNNING)
