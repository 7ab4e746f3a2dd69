"""The adapter over programs that answer as the test says. Exit statuses and words are recorded ones (``pbs/``)."""

import json
import os
import pwd
import time
from pathlib import Path
from typing import Any

import pytest

from firstkit.errors import SchedulerRefused, SchedulerSilent
from firstkit.schedulers import notes, pbs
from firstkit.schedulers.pbs_layouts import SEPARATOR
from firstkit.schedulers.scheduler import Estimate, JobSpec, Resources
from firstkit.states import JobState
from unit.schedulers.pbs_recorded import case

JOB, OTHER = "job-" + "a" * 16, "job-" + "b" * 16
USER = pwd.getpwuid(os.geteuid()).pw_name
DOWN = {"status": 162, "errors": "Connection refused\nqselect: cannot connect to server hpc-head (errno=15010)\n"}
NODE = {
    "state": "free",
    "resources_available": {"host": "n1", "ncpus": 8, "ngpus": 4, "mem": "32gb"},
    "resources_assigned": {},
}


class ScriptedPbs:
    """Programs in a folder of their own; each writes its call down and answers as it was told last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.calls_path = folder / "calls"
        for name in ("qsub", "qstat", "qselect", "qdel", "pbsnodes"):
            self.answers(name)
        self.scheduler = self.make()

    def make(self, **settings: Any) -> pbs.PbsScheduler:
        env = {"PATH": f"{self.bin}:/usr/bin:/bin"}
        return pbs.pbs_scheduler(str(self.folder), {"kind": "pbs", "command_timeout": 5, "env": env, **settings}, {})

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

    def is_down(self) -> None:
        for name in ("qsub", "qselect", "qdel"):
            self.answers(name, status=162, errors="Connection refused\n")
        self.answers("qstat", status=255, errors="Connection refused\n")
        self.answers("pbsnodes", status=1)

    def has(self, state: str = "R", job_id: str = JOB, number: int = 7, status: int = 0, **more: Any) -> None:
        """PBS shows one job, whose id we have."""
        self.knows(job_id, number)
        self.answers("qstat", shown(state, job_id, number, **more), status)

    def knows(self, job_id: str = JOB, number: int | None = 7, age_s: float = 100) -> Path:
        """A job that was submitted, with the id that qsub said unless its answer was lost."""
        folder = self.job_folder(job_id)
        (folder / "claim").touch()
        made_older(folder / "claim", age_s)
        if number is not None:
            (folder / "pbs_ids").write_text(f"{number}.head")
        return folder

    def calls(self) -> list[str]:
        """The calls since the last question, without what is always the same."""
        lines = self.calls_path.read_text().splitlines() if self.calls_path.exists() else []
        self.calls_path.unlink(missing_ok=True)
        usual = (f" -u {USER}", f" -f -F dsv -D {SEPARATOR}")
        for text in usual:
            lines = [line.replace(text, "") for line in lines]
        return ["qsub" if line.startswith("qsub") else line for line in lines]

    def job_folder(self, job_id: str = JOB) -> Path:
        folder = self.folder / "jobs" / job_id
        folder.mkdir(exist_ok=True)
        return folder

    def submit(self, job_id: str = JOB, **needs: Any) -> str:
        folder = self.job_folder(job_id)
        (folder / "claim").touch()
        return self.scheduler.submit(JobSpec(job_id, Resources(**needs)), ["/bin/true"], str(folder))


def shown(state: str = "R", job_id: str = JOB, number: int = 7, **more: Any) -> str:
    fields = {"Job_Name": job_id, "job_state": state, **more}
    return SEPARATOR.join([f"Job Id: {number}.head", *(f"{name}={value}" for name, value in fields.items())]) + "\n"


def made_older(path: Path, age_s: float) -> None:
    os.utime(path, (time.time() - age_s,) * 2)


@pytest.fixture
def lab(tmp_path: Path) -> ScriptedPbs:
    return ScriptedPbs(tmp_path)


# -- submit ------------------------------------------------------------------------------------------------------------


def test_submit_is_one_command(lab: ScriptedPbs) -> None:
    lab.answers("qsub", "Welcome\n7.head\n")
    assert lab.submit() == "7.head"
    [call] = lab.calls_path.read_text().splitlines()
    assert call.startswith(f"qsub -f -N {JOB} -r n ")
    assert call.endswith(" -- /bin/true")
    assert (lab.job_folder() / "pbs_ids").read_text() == "7.head"


@pytest.mark.parametrize(
    "name",
    [
        "err_unknown_queue", "err_closed_queue", "err_walltime_max", "err_walltime_syntax", "err_select_negative",
        "err_select_unknown_resource", "err_unknown_resource", "err_select_and_nodes", "err_bad_option", "err_acl",
        "err_queue_limit", "err_hook", "err_hook_f", "err_W", "err_ngpus_max", "name_unicode",
    ],
)  # fmt: skip
def test_each_recorded_refusal_is_one(lab: ScriptedPbs, name: str) -> None:
    recorded = case(f"submit/{name}")
    lab.answers("qsub", recorded.output, recorded.exit_code or 0, recorded.errors)
    with pytest.raises(SchedulerRefused, match="PBS has refused the job: "):
        lab.submit()
    assert lab.calls() == ["qsub", f"qselect -x -N {JOB}", f"qselect -N {JOB}"]


@pytest.mark.parametrize("name", ["err_unknown_server", "err_no_such_script"])
def test_a_failure_that_is_no_refusal_is_silence(lab: ScriptedPbs, name: str) -> None:
    recorded = case(f"submit/{name}")
    lab.answers("qsub", recorded.output, recorded.exit_code or 0, recorded.errors)
    with pytest.raises(SchedulerSilent, match="qsub failed"):
        lab.submit()


def test_a_refusal_of_a_server_that_answers_nothing_more_is_silence(lab: ScriptedPbs) -> None:
    lab.is_down()
    lab.answers("qsub", status=170, errors="qsub: Unknown queue\n")
    with pytest.raises(SchedulerSilent, match="qselect failed"):
        lab.submit()


def test_a_server_that_is_down_is_silence(lab: ScriptedPbs) -> None:
    lab.is_down()
    with pytest.raises(SchedulerSilent):
        lab.submit()
    with pytest.raises(SchedulerSilent):
        lab.scheduler.poll()
    with pytest.raises(SchedulerSilent):
        lab.scheduler.cancel(JOB)
    with pytest.raises(SchedulerSilent):
        lab.scheduler.capacity()


def test_a_job_that_was_made_in_spite_of_an_error_is_found(lab: ScriptedPbs) -> None:
    lab.answers("qsub", status=163, errors="qsub: End of File\n", script=f"echo 9.head > {lab.folder}/qselect.out")
    assert lab.submit() == "9.head"
    assert (lab.job_folder() / "pbs_ids").read_text() == "9.head"


def test_success_without_an_id_is_looked_up(lab: ScriptedPbs) -> None:
    lab.answers("qsub", "done\n")
    with pytest.raises(SchedulerSilent, match="exit status 0"):
        lab.submit()


def test_a_qsub_that_hangs_is_silence(lab: ScriptedPbs) -> None:
    lab.scheduler = lab.make(command_timeout=0.5)
    lab.answers("qsub", script="sleep 100")
    with pytest.raises(SchedulerSilent, match=r"qsub did not answer within 0\.5 s"):
        lab.submit()


def test_gpus_that_nobody_would_tell_apart_are_refused(lab: ScriptedPbs) -> None:
    with pytest.raises(SchedulerRefused, match="assigns_gpus: true"):
        lab.submit(gpus_per_node=1)
    assert lab.calls() == []


def test_a_job_that_was_cancelled_is_not_let_in_later(lab: ScriptedPbs) -> None:
    (lab.job_folder() / "claim").touch()
    lab.scheduler.cancel(JOB)
    with pytest.raises(SchedulerRefused, match="was cancelled before it was submitted"):
        lab.submit()
    assert "qsub" not in lab.calls()
    assert lab.scheduler.poll()[JOB].state is JobState.CANCELLED


def test_a_cancel_during_the_submission_reaches_the_job(lab: ScriptedPbs) -> None:
    lab.answers("qsub", "7.head\n", script=f"touch {lab.job_folder()}/cancelled")
    assert lab.submit() == "7.head"
    assert lab.calls() == ["qsub", "qdel 7.head"]


# -- cancel ------------------------------------------------------------------------------------------------------------


def test_cancel_finds_the_job_by_its_name(lab: ScriptedPbs) -> None:
    lab.answers("qselect", "7.head\n8.head\n")
    lab.knows()
    lab.scheduler.cancel(JOB)
    assert lab.calls() == [f"qselect -N {JOB}", "qdel 7.head 8.head"]


def test_cancel_of_what_never_came_is_its_end(lab: ScriptedPbs) -> None:
    lab.scheduler.cancel(JOB)
    lab.scheduler.cancel(JOB)
    assert lab.scheduler.poll()[JOB].state is JobState.CANCELLED


@pytest.mark.parametrize("name", ["finished", "unknown", "exiting", "several"])
def test_what_is_gone_or_ending_needs_no_cancel(lab: ScriptedPbs, name: str) -> None:
    recorded = case(f"qdel/{name}")
    lab.answers("qselect", "7.head\n")
    lab.answers("qdel", recorded.output, recorded.exit_code or 0, recorded.errors)
    lab.knows()
    lab.scheduler.cancel(JOB)


def test_a_cancel_that_fails_otherwise_is_silence(lab: ScriptedPbs) -> None:
    recorded = case("qdel/other_user")
    lab.answers("qselect", "7.head\n")
    lab.answers("qdel", recorded.output, recorded.exit_code or 0, recorded.errors)
    with pytest.raises(SchedulerSilent, match=r"qdel failed \(exit status 159\)"):
        lab.scheduler.cancel(JOB)


def test_polls_repeat_a_cancel_that_came_to_nothing_and_then_force_it(lab: ScriptedPbs) -> None:
    lab.has()
    folder = lab.job_folder()
    lab.answers("qselect", "7.head\n")
    lab.scheduler.cancel(JOB)
    lab.calls()
    lab.scheduler.poll()
    assert lab.calls() == ["qstat -x 7.head"], "not at once"
    made_older(folder / "deleted", pbs.DELETE_AGAIN_S + 1)
    lab.scheduler.poll()
    assert lab.calls() == ["qstat -x 7.head", "qdel 7.head"]
    made_older(folder / "deleted", pbs.DELETE_AGAIN_S + 1)
    made_older(folder / "cancelled", pbs.FORCE_AFTER_S + 1)
    lab.scheduler.poll()
    assert lab.calls() == ["qstat -x 7.head", "qdel -W force 7.head"]


def test_a_job_that_is_ending_is_left_to_end(lab: ScriptedPbs) -> None:
    lab.has("E")
    (lab.job_folder() / "cancelled").touch()
    assert lab.scheduler.poll()[JOB].state is JobState.ENDING
    assert lab.calls() == ["qstat -x 7.head"]


def test_a_job_that_pbs_would_start_again_is_deleted(lab: ScriptedPbs) -> None:
    lab.has("Q", Exit_status=-20, run_count=1)
    assert lab.scheduler.poll()[JOB].state is JobState.ENDING
    assert lab.calls() == ["qstat -x 7.head", "qdel 7.head"]


def test_a_qdel_that_hangs_makes_the_poll_no_worse(lab: ScriptedPbs, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does for a job of a node that hangs."""
    monkeypatch.setattr(pbs, "DELETE_LIMIT_S", 0.2)
    lab.has()
    (lab.job_folder() / "cancelled").touch()
    lab.answers("qdel", script="sleep 100")
    assert lab.scheduler.poll()[JOB].state is JobState.RUNNING


def test_a_qdel_that_hangs_does_not_keep_others_from_their_turn(
    lab: ScriptedPbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pbs, "DELETE_LIMIT_S", 0.5)
    for job_id, number in ((JOB, 7), (OTHER, 8)):
        (lab.knows(job_id, number) / "cancelled").touch()
    lab.answers("qstat", shown() + shown(job_id=OTHER, number=8))
    lab.answers("qdel", script='case "$1" in 7.*) sleep 100;; esac')
    for _ in range(2):
        lab.scheduler.poll()
    deletes = [call for call in lab.calls() if call.startswith("qdel")]
    assert sorted(deletes) == ["qdel 7.head", "qdel 8.head"]


# -- poll --------------------------------------------------------------------------------------------------------------


def test_a_poll_is_one_qstat_for_our_jobs(lab: ScriptedPbs) -> None:
    lab.knows(OTHER, 8)
    lab.has()
    lab.answers("qstat", shown() + shown("Q", OTHER, 8, comment="Not Running: no room"))
    news = lab.scheduler.poll()
    assert {job_id: one.state.value for job_id, one in news.items()} == {JOB: "RUNNING", OTHER: "PENDING"}
    assert news[OTHER].reason == "Not Running: no room"
    assert lab.calls() == ["qstat -x 7.head 8.head"]


def test_without_jobs_a_poll_still_proves_that_pbs_answers(lab: ScriptedPbs) -> None:
    assert lab.scheduler.poll() == {}
    assert lab.calls() == ["qselect -N first-ping"]
    lab.is_down()
    with pytest.raises(SchedulerSilent):
        lab.scheduler.poll()


def test_many_jobs_are_asked_for_in_parts(lab: ScriptedPbs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pbs, "ASKED_AT_ONCE", 1)
    lab.knows(OTHER, 8)
    lab.has()
    by_id = f'case "$*" in *8.head) cat {lab.folder}/other; exit 0;; esac'
    (lab.folder / "other").write_text(shown("Q", OTHER, 8))
    lab.answers("qstat", shown(), script=by_id)
    assert lab.scheduler.poll().keys() == {JOB, OTHER}
    assert lab.calls() == ["qstat -x 7.head", "qstat -x 8.head"]


def test_jobs_that_pbs_says_it_does_not_know_are_absent(lab: ScriptedPbs) -> None:
    recorded = case("qstat/several_one_unknown")
    lab.knows(OTHER, 8)
    lab.has(status=recorded.exit_code or 0)
    assert list(lab.scheduler.poll()) == [JOB]


def test_jobs_that_are_left_out_without_a_word_are_no_answer(lab: ScriptedPbs) -> None:
    lab.knows(OTHER, 8)
    lab.has()
    with pytest.raises(SchedulerSilent, match="left out"):
        lab.scheduler.poll()


@pytest.mark.parametrize("name", ["serverdown_refused_master/qstat_x_one", "serverdown_refused_v23/qstat_x_one"])
def test_a_recorded_server_that_is_down_is_silence_though_it_prints_a_header(lab: ScriptedPbs, name: str) -> None:
    recorded = case(name)
    lab.knows()
    lab.answers("qstat", recorded.output, recorded.exit_code or 0, recorded.errors)
    with pytest.raises(SchedulerSilent, match=r"qstat failed \(exit status 255\)"):
        lab.scheduler.poll()


def test_a_server_that_keeps_no_history_is_asked_for_what_lives(lab: ScriptedPbs) -> None:
    """With ``-x`` it prints nothing, and its exit status is 0."""
    recorded = case("qstat/history_off_one_x")
    assert recorded.exit_code == 0
    lab.knows(OTHER, 8)
    no_history = f'case "$*" in -x*) cat {lab.folder}/words >&2; exit 0;; esac'
    (lab.folder / "words").write_text(recorded.errors)
    lab.knows()
    lab.answers("qstat", shown(), 153, "qstat: Unknown Job Id 8.head\n", no_history)
    lab.answers("qselect", script=no_history)
    assert list(lab.scheduler.poll()) == [JOB]
    assert lab.calls() == ["qstat -x 7.head 8.head", "qstat 7.head 8.head"]


def test_final_news_stay_when_pbs_has_forgotten_the_job(lab: ScriptedPbs) -> None:
    lab.has("F", substate=93, Exit_status=3, comment="and failed")
    assert lab.scheduler.poll()[JOB].exit_code == 3
    lab.answers("qstat", status=153)
    assert lab.scheduler.poll()[JOB].exit_code == 3
    assert lab.calls() == ["qstat -x 7.head", "qselect -N first-ping"]


def test_a_job_whose_submission_was_not_answered_is_found_by_its_name(lab: ScriptedPbs) -> None:
    lab.knows(number=None)
    lab.answers("qselect", "7.head\n")
    lab.answers("qstat", shown())
    assert lab.scheduler.poll()[JOB].scheduler_id == "7.head"
    assert lab.calls() == [f"qselect -x -N {JOB}", "qstat -x 7.head"]
    lab.scheduler.poll()
    assert lab.calls() == ["qstat -x 7.head"]


def test_of_two_jobs_of_one_name_the_one_that_lives_is_told(lab: ScriptedPbs) -> None:
    lab.knows(number=None)
    lab.answers("qselect", "7.head\n1000.head\n")
    lab.answers("qstat", shown("F", number=7, Exit_status=0) + shown(number=1000))
    assert lab.scheduler.poll()[JOB].scheduler_id == "1000.head"


def test_names_are_looked_up_for_a_few_a_poll_and_in_turns(lab: ScriptedPbs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pbs, "FOUND_AT_ONCE", 1)
    lab.knows(JOB, None)
    lab.knows(OTHER, None)
    asked = []
    for _ in range(2):
        assert lab.scheduler.poll() == {}
        asked.append(lab.calls()[0])
    assert set(asked) == {f"qselect -x -N {JOB}", f"qselect -x -N {OTHER}"}


@pytest.mark.parametrize("number", [7, None])
def test_what_pbs_does_not_know_for_long_is_asked_for_rarely(lab: ScriptedPbs, number: int | None) -> None:
    folder = lab.knows(number=number)
    lab.answers("qstat", status=153)
    lab.scheduler.poll()
    made_older(folder / "missing", pbs.KEEN_S + 1)
    lab.calls()
    lab.scheduler.poll()
    assert lab.calls() == ["qselect -N first-ping"]
    made_older(folder / "asked", pbs.ASK_AGAIN_S + 1)
    lab.scheduler.poll()
    assert lab.calls()[0] != "qselect -N first-ping"


def test_a_job_that_comes_back_counts_as_never_missing(lab: ScriptedPbs) -> None:
    folder = lab.knows()
    lab.answers("qstat", status=153)
    lab.scheduler.poll()
    assert (folder / "missing").exists()
    lab.has()
    lab.scheduler.poll()
    assert not (folder / "missing").exists()


def test_a_number_that_pbs_has_given_to_somebody_else_is_not_our_job(lab: ScriptedPbs) -> None:
    lab.knows()
    lab.answers("qstat", shown(job_id="their-job"))
    assert lab.scheduler.poll() == {}


def test_a_server_may_call_itself_by_its_long_name(lab: ScriptedPbs) -> None:
    lab.knows()
    lab.answers("qstat", shown().replace("7.head", "7.head.example.org"))
    assert lab.scheduler.poll()[JOB].state is JobState.RUNNING


def test_folders_of_jobs_that_are_not_submitted_are_not_asked_for(lab: ScriptedPbs) -> None:
    lab.job_folder()
    assert lab.scheduler.poll() == {}
    assert lab.calls() == ["qselect -N first-ping"]


def test_folders_go_a_day_after_the_end(lab: ScriptedPbs) -> None:
    lab.has("F", Exit_status=0)
    lab.scheduler.poll()
    made_older(lab.job_folder() / "ended.json", notes.KEEP_ENDED_S + 10)
    assert JOB in lab.scheduler.poll()
    assert lab.scheduler.poll() == {}


def test_folders_of_jobs_that_pbs_shows_stay_however_old(lab: ScriptedPbs) -> None:
    lab.has()
    made_older(lab.job_folder(), notes.KEEP_UNKNOWN_S + 10)
    lab.scheduler.poll()
    assert lab.job_folder().is_dir()
    assert (lab.job_folder() / "pbs_ids").exists()


# -- estimate, capacity, settings --------------------------------------------------------------------------------------


def cluster(*states: str, **more: Any) -> str:
    hosts = {f"n{i}": {**NODE, "state": state, "resources_available": {**NODE["resources_available"], "host": f"n{i}"}}  # type: ignore[dict-item]
             for i, state in enumerate(states)}  # fmt: skip
    return json.dumps({"nodes": {name: {**host, **more} for name, host in hosts.items()}})


def test_a_job_that_fits_now_would_start_now(lab: ScriptedPbs) -> None:
    lab.answers("pbsnodes", cluster("free", "free"))
    found = lab.scheduler.estimate(Resources(nodes=2, cpus_per_node=8, exclusive=True))
    assert found.starts_at is not None
    assert abs(found.starts_at - time.time()) < 60


def test_nobody_can_say_when_what_is_in_use_will_be_free(lab: ScriptedPbs) -> None:
    lab.answers("pbsnodes", cluster("job-exclusive", "free"))
    assert lab.scheduler.estimate(Resources(nodes=2)) == Estimate(None, "the hosts that can hold it are in use")
    lab.answers("pbsnodes", cluster("offline", "free"))
    words = "hosts that could hold it are out of service"
    assert lab.scheduler.estimate(Resources(nodes=2)) == Estimate(None, words)


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        (Resources(nodes=3), "2 hosts can hold it, 3 needed"),
        (Resources(cpus_per_node=9), "0 hosts can hold it"),
        (Resources(constraint="kind=h100"), "0 hosts can hold it"),
        (Resources(gpus_per_node=1), "assigns_gpus"),
        (Resources(qos="high"), "PBS has no QOS"),
    ],
)
def test_what_no_host_could_ever_hold_is_refused(lab: ScriptedPbs, needs: Resources, words: str) -> None:
    """PBS would take such a job, and let it wait for ever."""
    lab.answers("pbsnodes", cluster("free", "down"))
    with pytest.raises(SchedulerRefused, match=words):
        lab.scheduler.estimate(needs)


def test_capacity_is_what_jobs_of_our_queue_may_use(lab: ScriptedPbs) -> None:
    lab.answers("pbsnodes", cluster("free", "down"))
    assert lab.scheduler.capacity().gpus == 4
    lab.answers("pbsnodes", cluster("free", queue="debug"))
    assert lab.make(queue="prod").capacity().nodes == 0
    assert lab.make(queue="debug").capacity().nodes == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"command_timeout": 0}, "scheduler.command_timeout: 0 is not allowed"),
        ({"env": {"A": 1}}, "scheduler.env: names with text are needed"),
        ({"queue": 1}, "scheduler.queue: 1 is not allowed"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SchedulerRefused, match=sentence):
        pbs.pbs_scheduler(str(tmp_path), settings, {})
