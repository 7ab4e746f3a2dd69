import os
from typing import Any

import pytest

from firstkit.onsite.allotment import Share
from firstkit.onsite.devices import FolderRefused, visible_variable
from firstkit.onsite.job import Job, job_of, read_job

MIB = 1024**2
SLURM = {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "4", "SLURM_MEM_PER_NODE": "1000", "CUDA_VISIBLE_DEVICES": "0,1"}


def job(env: dict[str, str], cores: Any = range(4), host_cores: int = 64, now: float = 1000.0) -> Job:
    return job_of(env, cores, host_cores, 99, now)


def test_a_local_job_is_told_all_by_its_environment() -> None:
    env = {"FIRST_JOB_MEMORY": "50", "FIRST_JOB_END": "2000", "CUDA_VISIBLE_DEVICES": "3"}
    assert job(env, [2, 5]) == Job(Share((2, 5), ("3",), 50), 2000.0)
    assert job({}, [2, 5]) == Job(Share((2, 5), (), 99), None)


def test_a_job_of_slurm_that_is_bound_to_its_cores() -> None:
    assert job(SLURM, [8, 9, 10, 11]).total == Share((8, 9, 10, 11), ("0", "1"), 1000 * MIB)


def test_a_bound_job_may_have_the_threads_of_its_cores() -> None:
    assert job(SLURM, range(8, 16)).total.cpus == tuple(range(8, 16))


@pytest.mark.parametrize("host_cores", [2, 64])
def test_cores_are_counted_where_slurm_binds_nothing(host_cores: int) -> None:
    total = job(SLURM, range(host_cores), host_cores).total
    assert total == Share((0, 1, 2, 3), ("0", "1"), 1000 * MIB, is_bound=False)
    assert total.bound_cpus == ()


def test_a_whole_node_is_bound() -> None:
    assert job({**SLURM, "SLURM_CPUS_ON_NODE": "64"}, range(64)).total.is_bound


@pytest.mark.parametrize(
    ("env", "memory_bytes"),
    [
        ({"SLURM_MEM_PER_NODE": "", "SLURM_MEM_PER_CPU": "100"}, 400 * MIB),
        ({"SLURM_MEM_PER_NODE": "0"}, 99),
        ({"SLURM_MEM_PER_NODE": "much"}, 99),
    ],
)
def test_memory_is_what_slurm_says_else_what_is_there(env: dict[str, str], memory_bytes: int) -> None:
    assert job({**SLURM, **env}).total.memory_bytes == memory_bytes


def test_the_end_is_what_slurm_says_else_the_walltime_from_now() -> None:
    assert job(SLURM).ends_at is None
    assert job({**SLURM, "FIRST_JOB_WALLTIME": "600"}).ends_at == 1600.0
    assert job({**SLURM, "FIRST_JOB_WALLTIME": "600", "SLURM_JOB_END_TIME": "1500"}).ends_at == 1500.0


PBS = {
    "PBS_JOBID": "7.head", "NCPUS": "4", "FIRST_JOB_CPUS": "4", "FIRST_JOB_MEMORY": "50", "FIRST_JOB_WALLTIME": "600",
}  # fmt: skip


def test_a_job_of_pbs_knows_what_its_submission_told_it() -> None:
    assert job(PBS, [2, 5, 6, 7]) == Job(Share((2, 5, 6, 7), (), 50), 1600.0)
    assert job(PBS, range(64)) == Job(Share((0, 1, 2, 3), (), 50, is_bound=False), 1600.0)


def test_a_job_of_pbs_that_was_told_nothing_has_what_pbs_says() -> None:
    assert job({"PBS_JOBID": "7.head", "NCPUS": "2"}, range(64)) == Job(Share((0, 1), (), 99, is_bound=False), None)


def test_a_job_of_pbs_that_has_its_host_for_itself_has_all_cores_of_it() -> None:
    assert job({**PBS, "FIRST_JOB_EXCLUSIVE": "1"}, range(64)).total == Share(tuple(range(64)), (), 50)


def test_gpus_that_pbs_itself_gives_are_taken_as_they_are() -> None:
    env = {**PBS, "FIRST_JOB_GPUS": "2", "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}
    found = read_job(env)
    assert (found.total.gpus, found.env) == (("GPU-a", "GPU-b"), {})


@pytest.mark.parametrize(
    ("devices", "gpus"), [("", ("0", "1")), ("3+2+1+0", ("3", "2")), ("GPU-a+GPU-b", ("GPU-a", "GPU-b"))]
)
def test_gpus_of_a_host_that_is_ours_alone_are_counted_or_those_configured(devices: str, gpus: tuple[str, ...]) -> None:
    env = {**PBS, "FIRST_JOB_GPUS": "2", "FIRST_JOB_EXCLUSIVE": "1", "FIRST_JOB_DEVICES": devices}
    found = read_job(env)
    assert found.total.gpus == gpus
    assert found.env == {visible_variable(): ",".join(gpus)}


def test_gpus_of_a_host_that_others_use_are_those_that_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def take(wanted: int, listed: tuple[str, ...]) -> tuple[str, ...]:
        taken.append((wanted, listed))
        return ("1", "3")

    monkeypatch.setattr("firstkit.onsite.job.take_devices", take)
    found = read_job({**PBS, "FIRST_JOB_GPUS": "2", "FIRST_JOB_DEVICES": "0+1+2+3"})
    assert taken == [(2, ("0", "1", "2", "3"))]
    assert found.total.gpus == ("1", "3")
    assert found.env[visible_variable()] == "1,3"


def test_a_job_to_which_pbs_gave_no_gpus_in_spite_of_all_has_none(caplog: pytest.LogCaptureFixture) -> None:
    assert read_job({**PBS, "FIRST_JOB_GPUS": "2"}).total.gpus == ()
    assert "'assigns_gpus' is not true here" in caplog.text


def test_a_job_that_can_take_no_gpus_has_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(wanted: int, listed: tuple[str, ...]) -> tuple[str, ...]:
        raise FolderRefused("/tmp/x is not a folder of this user alone: remove it")

    monkeypatch.setattr("firstkit.onsite.job.take_devices", refuse)
    found = read_job({**PBS, "FIRST_JOB_GPUS": "2", "FIRST_JOB_DEVICES": "0+1"})
    assert found.total.gpus == ()
    assert "not a folder of this user alone" in caplog.text


def test_an_environment_that_says_little_or_nonsense_is_no_error() -> None:
    nonsense = dict.fromkeys([*SLURM, "SLURM_JOB_END_TIME", "FIRST_JOB_WALLTIME", "FIRST_JOB_END"], "²")
    assert job(nonsense).total.cpus == (0, 1, 2, 3)
    assert job({"SLURM_JOB_ID": "7"}, [3, 4]).total == Share((3, 4), (), 99)


def test_this_very_host() -> None:
    total = read_job({}).total
    assert total.cpus == tuple(sorted(os.sched_getaffinity(0)))
    assert total.memory_bytes > 0
