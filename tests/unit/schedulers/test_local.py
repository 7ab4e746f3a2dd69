import os
import time
from pathlib import Path
from typing import Any

import pytest

from firstkit.errors import SchedulerRefused
from firstkit.schedulers import local
from firstkit.schedulers.local import LocalScheduler, job_environment, local_scheduler
from firstkit.schedulers.processes import boot_id, own_identity
from firstkit.schedulers.records import FINAL, KEEPER, SEEN, Final, Keeper, Machine, load
from firstkit.schedulers.scheduler import JobSpec, Resources
from firstkit.states import JobState

MACHINE = Machine(cpus=(0, 1, 2), gpus=("4",), memory_bytes=1000)


class Lab:
    """A scheduler whose launches are written down instead of done; the test plays the keepers."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.launched: list[tuple[str, int]] = []
        self.scheduler = LocalScheduler(str(folder), MACHINE, ["/bin/keep"], {"PATH": "/bin"})
        self.folder = folder
        monkeypatch.setattr(self.scheduler, "_spawn", self._spawn)

    def _spawn(self, argv: list[str], log: str) -> None:
        self.launched.append((os.path.basename(argv[1]), int(argv[2])))

    def submit(self, job_id: str, **needs: Any) -> str:
        folder = self.folder / "jobs" / job_id
        folder.mkdir(exist_ok=True)
        return self.scheduler.submit(JobSpec(job_id, Resources(**needs)), ["/bin/true"], str(folder))

    def state(self, job_id: str) -> tuple[JobState, str]:
        news = self.scheduler.poll()[job_id]
        return news.state, news.reason

    def keep(self, job_id: str, **changes: Any) -> None:
        self.record(job_id).write(KEEPER, Keeper(**{"process": own_identity(), "started_at": 100.0, **changes}))

    def end(self, job_id: str, ended_at: float | None = None) -> None:
        self.record(job_id).write(FINAL, Final(JobState.COMPLETED, "exit status 0", ended_at or time.time(), 0))

    def record(self, job_id: str) -> Any:
        return load(str(self.folder / "jobs" / job_id))


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(tmp_path, monkeypatch)


def test_jobs_start_on_their_own_cores_while_there_is_room(lab: Lab) -> None:
    assert lab.submit("job-a", cpus_per_node=2) == "local-job-a"
    lab.submit("job-b", gpus_per_node=1)
    lab.submit("job-c")
    assert lab.launched == [("job-a", 1), ("job-b", 1)]
    assert lab.record("job-a").grant.part.cpus == (0, 1)
    assert lab.record("job-b").grant.part == Machine((2,), ("4",), 0)
    assert lab.state("job-c") == (JobState.PENDING, "waits for cores, memory or GPUs")


def test_oldest_first_among_those_that_fit(lab: Lab) -> None:
    lab.submit("job-a", cpus_per_node=3)
    lab.submit("job-b", cpus_per_node=3)
    lab.submit("job-c", cpus_per_node=1)
    lab.submit("job-d", cpus_per_node=1)
    lab.keep("job-a")
    lab.end("job-a")
    lab.scheduler.poll()
    assert lab.launched == [("job-a", 1), ("job-b", 1)]
    lab.scheduler.cancel("job-b")
    assert lab.launched[2:] == [("job-c", 1), ("job-d", 1)]


def test_submit_twice_is_submit_once(lab: Lab) -> None:
    lab.submit("job-a")
    assert lab.submit("job-a", cpus_per_node=2) == "local-job-a"
    assert lab.launched == [("job-a", 1)]
    assert lab.record("job-a").order.resources.cpus_per_node == 1


def test_what_never_fits_is_refused_and_leaves_no_job(lab: Lab) -> None:
    with pytest.raises(SchedulerRefused, match="asks for 4 cores; this machine has 3"):
        lab.submit("job-a", cpus_per_node=4)
    assert lab.scheduler.poll() == {}


def test_a_job_that_was_cancelled_before_it_came_never_runs(lab: Lab) -> None:
    lab.scheduler.cancel("job-late")
    lab.submit("job-late")
    assert lab.launched == []
    assert lab.state("job-late")[0] is JobState.CANCELLED


def test_cancel_of_a_waiting_and_of_an_ended_job(lab: Lab) -> None:
    lab.submit("job-a", exclusive=True)
    lab.submit("job-b")
    lab.scheduler.cancel("job-b")
    assert lab.state("job-b") == (JobState.CANCELLED, "cancelled before it was started")
    lab.keep("job-a")
    lab.end("job-a")
    lab.scheduler.cancel("job-a")
    assert lab.state("job-a")[0] is JobState.COMPLETED


def test_news_of_running_ending_and_ended_jobs(lab: Lab) -> None:
    lab.submit("job-a", walltime_s=50)
    lab.keep("job-a", ends_at=150.0)
    news = lab.scheduler.poll()["job-a"]
    assert (news.state, news.started_at, news.ends_at) == (JobState.RUNNING, 100.0, 150.0)
    assert (news.node, news.exit_code) == (os.uname().nodename, None)
    lab.keep("job-a", ends_at=150.0, ending=JobState.TIMEOUT)
    assert lab.state("job-a") == (JobState.ENDING, "TIMEOUT")
    lab.end("job-a", 120.0)
    news = lab.scheduler.poll()["job-a"]
    assert (news.state, news.exit_code, news.ends_at) == (JobState.COMPLETED, 0, 120.0)


def test_after_a_restart_of_the_machine(lab: Lab) -> None:
    lab.submit("job-a")
    process = own_identity()
    lab.keep("job-a", process=type(process)(process.pid, process.started, "an earlier boot"))
    assert lab.state("job-a") == (JobState.NODE_FAIL, "the machine was restarted")
    assert lab.scheduler.capacity().free_cpus == 3


def test_a_keeper_that_never_reports_is_started_again_and_given_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.submit("job-a")
    assert lab.state("job-a") == (JobState.PENDING, "is being started")
    monkeypatch.setattr(local, "LAUNCH_LIMIT_S", -1.0)
    for _ in range(local.LAUNCHES):
        lab.scheduler.poll()
    assert lab.launched == [("job-a", 1), ("job-a", 2), ("job-a", 3)]
    assert lab.state("job-a") == (JobState.FAILED, "its keeper did not start in 3 attempts; see pilot.log")


def test_a_keeper_that_cannot_be_started_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "LAUNCH_LIMIT_S", -1.0)
    scheduler = LocalScheduler(str(tmp_path), MACHINE, ["/does/not/exist"], {})
    (tmp_path / "jobs" / "job-a").mkdir()
    scheduler.submit(JobSpec("job-a", Resources()), ["/bin/true"], str(tmp_path / "jobs" / "job-a"))
    for _ in range(local.LAUNCHES):
        news = scheduler.poll()["job-a"]
    assert news.state is JobState.FAILED
    assert "could not be started: No such file" in news.reason


def test_capacity_counts_what_is_given_away(lab: Lab) -> None:
    idle = lab.scheduler.capacity()
    assert (idle.nodes, idle.cpus, idle.gpus, idle.memory_bytes, idle.free_nodes) == (1, 3, 1, 1000, 1)
    lab.submit("job-a", cpus_per_node=2, gpus_per_node=1, memory_bytes=400)
    busy = lab.scheduler.capacity()
    assert (busy.free_nodes, busy.free_cpus, busy.free_gpus, busy.free_memory_bytes) == (0, 1, 0, 600)


def test_ended_jobs_are_kept_for_a_day_and_until_somebody_saw_the_end(lab: Lab) -> None:
    lab.submit("job-a")
    lab.end("job-a", time.time() - 90000)
    folder = lab.folder / "jobs" / "job-a"
    assert "job-a" in lab.scheduler.poll()
    assert "job-a" in lab.scheduler.poll()
    os.utime(folder / SEEN, (0, time.time() - 4000))
    assert lab.scheduler.poll() == {}
    assert not folder.exists()


def test_a_claim_without_a_job_is_absent_and_removed_after_a_day(lab: Lab) -> None:
    folder = lab.folder / "jobs" / "job-a"
    folder.mkdir()
    assert lab.scheduler.poll() == {}
    assert folder.exists()
    os.utime(folder, (0, time.time() - 90000))
    lab.scheduler.poll()
    assert not folder.exists()


def test_the_environment_of_jobs_is_clean() -> None:
    ours = {"PATH": "/bin", "HOME": "/h", "OPENAI_API_KEY": "secret", "LD_LIBRARY_PATH": "/lib"}
    assert job_environment(ours, {"EXTRA": "1"}) == {
        "PATH": "/bin",
        "HOME": "/h",
        "LD_LIBRARY_PATH": "/lib",
        "EXTRA": "1",
    }


@pytest.mark.parametrize(
    "settings", [{"cpus": "2"}, {"gpus": -1}, {"memory_gib": True}, {"env": {"A": 1}}, {"grace_s": "x"}]
)
def test_a_section_of_the_wrong_shape_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(SchedulerRefused, match=f"scheduler.{next(iter(settings))}"):
        local_scheduler(str(tmp_path), settings, ["/bin/keep"], {})


def test_grant_names_this_boot(lab: Lab) -> None:
    lab.submit("job-a")
    assert lab.record("job-a").grant.boot == boot_id()
