"""The adapter over programs that answer as the test says: what no real Slurm does when a test wants it."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from firstkit.errors import SchedulerRefused, SchedulerSilent
from firstkit.schedulers import notes, slurm
from firstkit.schedulers.scheduler import Estimate, JobSpec, Resources
from firstkit.schedulers.slurm import slurm_scheduler
from firstkit.states import JobState

JOB, OTHER = "job-" + "a" * 16, "job-" + "b" * 16
PILOT = ["/bin/true"]


class ScriptedSlurm:
    """Programs in a folder of their own; each writes its call down and answers as it was told last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.calls_path = folder / "calls"
        for name in ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "sacct"):
            self.answers(name)
        self.scheduler = self.make()

    def make(self, **settings: Any) -> slurm.SlurmScheduler:
        env = {"PATH": f"{self.bin}:/usr/bin:/bin"}
        return slurm_scheduler(str(self.folder), {"kind": "slurm", "command_timeout": 5, "env": env, **settings}, {})

    def answers(self, name: str, output: str = "", status: int = 0, errors: str = "", script: str = "") -> None:
        """``script`` may override the answer for some calls."""
        for kind, text in (("out", output), ("err", errors)):
            (self.folder / f"{name}.{kind}").write_text(text)
        program = self.bin / name
        program.write_text(
            f'#!/bin/sh\necho "{name} $*" >> {self.calls_path}\n{script}\n'
            f"cat {self.folder}/{name}.out; cat {self.folder}/{name}.err >&2; exit {status}\n"
        )
        program.chmod(0o755)

    def has(self, word: str, job_id: str = JOB, reason: str = "None") -> None:
        self.job_folder(job_id)
        self.answers("squeue", f"{job_id}|7|{word}|n1|100|200|5|gpu|{reason}\n")

    def calls(self) -> list[str]:
        """The programs that were called since the last question."""
        lines = self.calls_path.read_text().splitlines() if self.calls_path.exists() else []
        self.calls_path.unlink(missing_ok=True)
        return [" ".join(line.split()[:2]) if line.startswith("sbatch") else line.split()[0] for line in lines]

    def job_folder(self, job_id: str = JOB) -> Path:
        folder = self.folder / "jobs" / job_id
        folder.mkdir(exist_ok=True)
        return folder

    def submit(self, job_id: str = JOB, **needs: Any) -> str:
        spec = JobSpec(job_id, Resources(**needs))
        return self.scheduler.submit(spec, PILOT, str(self.job_folder(job_id)))


@pytest.fixture
def lab(tmp_path: Path) -> ScriptedSlurm:
    return ScriptedSlurm(tmp_path)


# -- submit ------------------------------------------------------------------------------------------------------------


def test_submit_is_one_command(lab: ScriptedSlurm) -> None:
    lab.answers("sbatch", "hello\n41;sophia\n")
    assert lab.submit() == "41"
    assert lab.calls() == ["sbatch --parsable"]
    assert (lab.job_folder() / "job.sh").read_text().endswith('exec "$@"\n')


def test_no_twice_from_a_slurm_that_answers_is_a_no(lab: ScriptedSlurm) -> None:
    lab.answers("sbatch", status=1, errors="sbatch: error: Invalid qos specification\n")
    with pytest.raises(SchedulerRefused, match="Invalid qos specification"):
        lab.submit()
    assert lab.calls() == ["sbatch --parsable", "scontrol", "squeue", "sbatch --test-only"]


def test_a_no_that_may_pass_is_silence(lab: ScriptedSlurm) -> None:
    only_tests = 'case "$1" in --test-only) exit 0;; esac'
    lab.answers("sbatch", status=1, errors="sbatch: error: submit limit reached\n", script=only_tests)
    with pytest.raises(SchedulerSilent, match="submit limit reached"):
        lab.submit()


def test_a_no_while_no_slurmctld_answers_is_silence(lab: ScriptedSlurm) -> None:
    lab.answers("sbatch", status=1, errors="sbatch: error: Invalid account\n")
    lab.answers("scontrol", status=1)
    with pytest.raises(SchedulerSilent, match="scontrol failed"):
        lab.submit()


def test_a_job_that_was_made_in_spite_of_an_error_is_found(lab: ScriptedSlurm) -> None:
    made = f"echo '{JOB}|7|PENDING||N/A|N/A|5|gpu|None' > {lab.folder}/squeue.out"
    lab.answers("sbatch", status=1, errors="Socket timed out on send/recv operation\n", script=made)
    assert lab.submit() == "7"


def test_success_without_a_number_is_looked_up(lab: ScriptedSlurm) -> None:
    made = f"echo '{JOB}|7|PENDING||N/A|N/A|5|gpu|None' > {lab.folder}/squeue.out"
    lab.answers("sbatch", "done\n", script=made)
    assert lab.submit() == "7"
    lab.answers("squeue")
    lab.answers("sbatch", "done\n")
    with pytest.raises(SchedulerSilent, match="exit status 0"):
        lab.submit()


def test_a_job_that_was_cancelled_is_not_let_in_later(lab: ScriptedSlurm) -> None:
    (lab.job_folder() / "claim").touch()
    lab.scheduler.cancel(JOB)
    assert lab.scheduler.poll() == {}
    with pytest.raises(SchedulerRefused, match="was cancelled before it was submitted"):
        lab.submit()
    assert "sbatch --parsable" not in lab.calls()
    news = lab.scheduler.poll()[JOB]
    assert (news.state, news.reason) == (JobState.CANCELLED, "cancelled before it was submitted")


def test_a_cancel_during_the_submission_reaches_the_job(lab: ScriptedSlurm) -> None:
    lab.answers("sbatch", "41\n", script=f"touch {lab.job_folder()}/cancelled")
    assert lab.submit() == "41"
    assert lab.calls() == ["sbatch --parsable", "scancel"]


# -- cancel ------------------------------------------------------------------------------------------------------------


def test_cancel_of_what_never_came_is_its_end(lab: ScriptedSlurm) -> None:
    lab.scheduler.cancel(JOB)
    lab.scheduler.cancel(JOB)
    assert lab.scheduler.poll()[JOB].state is JobState.CANCELLED


def test_a_cancel_that_failed_is_left_to_the_polls_while_slurm_answers(lab: ScriptedSlurm) -> None:
    """It fails for a job that ends in this moment, too, and nobody is asked about one job alone."""
    lab.answers("scancel", status=1, errors="scancel: error: it is too late\n")
    lab.scheduler.cancel(JOB)
    assert lab.calls() == ["scancel", "scontrol"]
    lab.answers("scontrol", status=1)
    with pytest.raises(SchedulerSilent):
        lab.scheduler.cancel(JOB)


def test_a_poll_repeats_a_cancel_that_came_to_nothing(lab: ScriptedSlurm) -> None:
    lab.scheduler.cancel(JOB)
    lab.calls()
    lab.has("RUNNING")
    assert lab.scheduler.poll()[JOB].state is JobState.RUNNING
    assert lab.calls() == ["squeue", "scancel"]
    lab.has("COMPLETING")
    lab.scheduler.poll()
    assert lab.calls() == ["squeue"]


def test_a_job_that_slurm_would_start_again_is_cancelled(lab: ScriptedSlurm) -> None:
    lab.has("REQUEUE_HOLD")
    assert lab.scheduler.poll()[JOB].state is JobState.ENDING
    assert lab.calls() == ["squeue", "scancel"]


# -- poll --------------------------------------------------------------------------------------------------------------


def test_a_poll_is_one_squeue(lab: ScriptedSlurm) -> None:
    lab.job_folder(OTHER)
    lab.has("RUNNING")
    assert list(lab.scheduler.poll()) == [JOB]
    assert lab.calls() == ["squeue"]


def test_the_exit_code_of_a_failed_job_is_asked_for_once(lab: ScriptedSlurm) -> None:
    lab.job_folder()
    lab.has("FAILED", reason="NonZeroExitCode")
    lab.answers("scontrol", "JobId=7 ExitCode=3:0\n")
    for _ in range(2):
        news = lab.scheduler.poll()[JOB]
        assert (news.state, news.exit_code, news.reason) == (JobState.FAILED, 3, "NonZeroExitCode")
    assert lab.calls() == ["squeue", "scontrol", "squeue"]


def test_final_news_stay_when_slurm_has_forgotten_the_job(lab: ScriptedSlurm) -> None:
    lab.job_folder()
    lab.has("NODE_FAIL")
    lab.scheduler.poll()
    lab.answers("squeue")
    assert lab.scheduler.poll()[JOB].state is JobState.NODE_FAIL
    assert "sacct" not in lab.calls()


def test_a_note_that_cannot_be_read_is_none(lab: ScriptedSlurm) -> None:
    (lab.job_folder() / "ended.json").write_text("{")
    assert lab.scheduler.poll() == {}


def vanished(lab: ScriptedSlurm, age_s: float = slurm.ASK_AFTER_S + 10) -> Path:
    claim = lab.job_folder() / "claim"
    claim.touch()
    os.utime(claim, (time.time() - age_s,) * 2)
    return claim


def test_accounting_is_asked_for_jobs_that_vanished_and_not_again_and_again(lab: ScriptedSlurm) -> None:
    vanished(lab)
    lab.answers("sacct", f"{JOB}|7|TIMEOUT|0:0|100|200|n1\n")
    for _ in range(2):
        news = lab.scheduler.poll()[JOB]
        assert (news.state, news.scheduler_id, news.ends_at) == (JobState.TIMEOUT, "7", 200.0)
    assert lab.calls() == ["squeue", "sacct", "squeue"]


def test_without_accounting_a_missing_job_stays_missing(lab: ScriptedSlurm) -> None:
    vanished(lab)
    lab.answers("sacct", status=1, errors="Slurm accounting storage is disabled\n")
    for _ in range(2):
        assert lab.scheduler.poll() == {}
    assert lab.calls() == ["squeue", "sacct", "squeue"]
    asked = lab.job_folder() / "asked"
    os.utime(asked, (time.time() - slurm.ASK_AGAIN_S - 10,) * 2)
    lab.scheduler.poll()
    assert lab.calls() == ["squeue", "sacct"]


def test_a_job_that_is_being_submitted_is_not_asked_for(lab: ScriptedSlurm) -> None:
    vanished(lab, age_s=0)
    assert lab.scheduler.poll() == {}
    assert lab.calls() == ["squeue"]


def test_an_accounting_that_hangs_makes_the_poll_no_worse(lab: ScriptedSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "ACCOUNTING_LIMIT_S", 0.2)
    vanished(lab)
    lab.answers("sacct", script="sleep 100")
    assert lab.scheduler.poll() == {}


def test_folders_go_a_day_after_the_end(lab: ScriptedSlurm) -> None:
    folder = lab.job_folder()
    lab.has("COMPLETED")
    lab.scheduler.poll()
    lab.answers("squeue")
    old = time.time() - notes.KEEP_ENDED_S - 10
    os.utime(folder / "ended.json", (old, old))
    assert JOB in lab.scheduler.poll()
    assert not folder.exists()
    assert lab.scheduler.poll() == {}


def test_folders_of_jobs_that_slurm_shows_stay_however_old(lab: ScriptedSlurm) -> None:
    folders = [lab.job_folder(), lab.job_folder(OTHER)]
    for folder in folders:
        old = time.time() - notes.KEEP_UNKNOWN_S - 10
        os.utime(folder, (old, old))
    lab.has("RUNNING")
    lab.scheduler.poll()
    assert [folder.exists() for folder in folders] == [True, False]


def test_a_squeue_that_fails_is_silence(lab: ScriptedSlurm) -> None:
    lab.answers("squeue", status=1, errors="slurm_load_jobs error: Unable to contact slurm controller\n")
    with pytest.raises(SchedulerSilent, match="Unable to contact"):
        lab.scheduler.poll()


# -- estimate, settings ------------------------------------------------------------------------------------------------


def nodes(*states: str) -> str:
    widths = [width for _, width in slurm.commands.NODE_COLUMNS]
    rows = [(f"n{i}", "gpu*", state, "0/8/0/8", "100", "0", "gpu:4", "gpu:0") for i, state in enumerate(states)]
    lines = ["".join(field.ljust(width) for field, width in zip(row, widths, strict=True)) for row in rows]
    return "".join(f"{line}\n" for line in lines)


def test_estimates(lab: ScriptedSlurm) -> None:
    lab.answers("sbatch", errors="sbatch: Job 9 to start at 1795697503 using 1 processors on nodes n1\n")
    assert lab.scheduler.estimate(Resources()) == Estimate(1795697503.0)
    lab.answers("sbatch", status=1, errors="allocation failure: not available\n")
    lab.answers("sinfo", nodes("idle", "drained"))
    assert lab.scheduler.estimate(Resources()) == Estimate(
        None, "while nodes are out of service: allocation failure: not available"
    )
    lab.answers("sinfo", nodes("idle", "mixed"))
    with pytest.raises(SchedulerRefused, match="would not run such a job: allocation failure: not available"):
        lab.scheduler.estimate(Resources())
    lab.answers("scontrol", status=1)
    with pytest.raises(SchedulerSilent):
        lab.scheduler.estimate(Resources())


def test_capacity_is_that_of_the_default_partition_where_none_is_named(lab: ScriptedSlurm) -> None:
    other = nodes("idle").replace("n0 ", "x0 ").replace("gpu* ", "debug")
    lab.answers("sinfo", nodes("idle", "down") + other)
    capacity = lab.scheduler.capacity()
    assert (capacity.nodes, capacity.gpus, capacity.free_cpus) == (1, 4, 8)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"command_timeout": 0}, "scheduler.command_timeout: 0 is not allowed"),
        ({"command_timeout": True}, "scheduler.command_timeout: True is not allowed"),
        ({"env": {"A": 1}}, "scheduler.env: names with text are needed"),
        ({"qos": 1}, "scheduler.qos: 1 is not allowed"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SchedulerRefused, match=sentence):
        slurm_scheduler(str(tmp_path), settings, {})
