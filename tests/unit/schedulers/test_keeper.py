import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from firstkit.schedulers import keeper
from firstkit.schedulers.keeper import _cut_log, _verdict
from firstkit.schedulers.processes import boot_id
from firstkit.schedulers.records import GRANT, JOB, Grant, JobRecord, Machine, Order, load
from firstkit.schedulers.scheduler import Resources
from firstkit.states import JobState

KEEP = (sys.executable, "-m", "firstkit.schedulers.keeper")


@pytest.mark.parametrize(
    ("status", "ending", "expected"),
    [
        (0, None, (JobState.COMPLETED, "exit status 0", 0)),
        (3 << 8, None, (JobState.FAILED, "exit status 3", 3)),
        (9, None, (JobState.FAILED, "killed by SIGKILL", 137)),
        (40, None, (JobState.FAILED, "killed by signal 40", 168)),
        (0, JobState.TIMEOUT, (JobState.TIMEOUT, "its walltime ended; exit status 0", 0)),
        (None, JobState.TIMEOUT, (JobState.TIMEOUT, "its walltime ended; killed after the grace", None)),
        (15, JobState.CANCELLED, (JobState.CANCELLED, "cancelled; killed by SIGTERM", 143)),
    ],
)
def test_last_words(status: int | None, ending: JobState | None, expected: tuple[JobState, str, int | None]) -> None:
    assert _verdict(status, ending) == expected


def test_a_long_log_is_moved_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keeper, "LOG_LIMIT_BYTES", 10)
    with open("pilot.log", "ab") as log:
        log.write(b"0123456789")
        log.flush()
        _cut_log()
        log.write(b"X")
        log.flush()
        _cut_log()
        log.write(b"next")
    assert Path("pilot.log").read_bytes() == b"next"
    assert Path("pilot.log.1").read_bytes() == b"0123456789X"


def given_job(state_dir: Path, argv: tuple[str, ...], launch: int = 1, cpus: tuple[int, ...] = (0,)) -> JobRecord:
    folder = state_dir / "jobs" / "job-a"
    folder.mkdir(parents=True)
    job = JobRecord("job-a", str(folder))
    machine = Machine(cpus, ("7",), 5)
    job.write(JOB, Order("job-a", Resources(walltime_s=60), argv, time.time()))
    job.write(GRANT, Grant(launch, machine, machine, KEEP, boot_id(), time.monotonic()))
    return job


def keep(job: JobRecord, launch: int) -> None:
    subprocess.run([*KEEP, job.folder, str(launch)], check=True, timeout=30, env={"PATH": os.environ["PATH"]})


def test_a_job_knows_its_share_and_little_else(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    script = "env > env; grep Cpus_allowed_list /proc/self/status > cores; exit 4"
    job = given_job(tmp_path, ("/bin/sh", "-c", script), cpus=(core,))
    keep(job, 1)
    final = load(job.folder).final
    assert final is not None
    assert (final.state, final.exit_code) == (JobState.FAILED, 4)
    env = dict(line.split("=", 1) for line in Path(job.folder, "env").read_text().splitlines())
    env.pop("LC_CTYPE", None)  # Python itself sets it in the C locale
    for of_the_shell in ("PWD", "OLDPWD", "SHLVL", "_"):
        env.pop(of_the_shell, None)
    assert float(env.pop("FIRST_JOB_END")) == pytest.approx(time.time() + 60, abs=30)
    assert env == {
        "PATH": os.environ["PATH"],
        "FIRST_JOB_ID": "job-a",
        "FIRST_JOB_MEMORY": "5",
        "CUDA_VISIBLE_DEVICES": "7",
    }
    assert Path(job.folder, "cores").read_text().split()[-1] == str(core)


def test_the_keeper_of_an_earlier_launch_does_not_run_the_job(tmp_path: Path) -> None:
    job = given_job(tmp_path, ("/bin/sh", "-c", "touch ran"), launch=2)
    keep(job, 1)
    assert load(job.folder).keeper is None
    assert not Path(job.folder, "ran").exists()
    keep(job, 2)
    assert Path(job.folder, "ran").exists()
    Path(job.folder, "ran").unlink()
    keep(job, 2)
    assert not Path(job.folder, "ran").exists()


def test_a_program_that_is_not_there_is_a_failed_job_with_words(tmp_path: Path) -> None:
    job = given_job(tmp_path, ("/does/not/exist",))
    with open(Path(job.folder) / "pilot.log", "wb") as log:
        subprocess.run([*KEEP, job.folder, "1"], check=True, timeout=30, stderr=log)
    final = load(job.folder).final
    assert final is not None
    assert (final.state, final.exit_code) == (JobState.FAILED, 127)
    assert "/does/not/exist: No such file" in Path(job.folder, "pilot.log").read_text()
