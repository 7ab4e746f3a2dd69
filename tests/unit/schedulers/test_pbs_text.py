"""What recorded jobs mean. The recordings are those of ``pbs/``."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.errors import ParseError
from firstkit.schedulers.pbs_layouts import SEPARATOR
from firstkit.schedulers.pbs_text import ENDS, STATES, Seen, parse_duration, parse_jobs, parse_time, telling
from firstkit.schedulers.scheduler import JobNews
from firstkit.states import JobState
from unit.schedulers.pbs_recorded import FOLDER, case

NOV_23 = 1795392000.0


def recorded(name: str, at: int = 0) -> Seen:
    if name.startswith("states/") and "submit" not in name:
        return parse_jobs((FOLDER / f"{name}.extracted.json").read_text())[at]
    return parse_jobs(case(name).output)[at]


def dsv(**attributes: Any) -> str:
    fields = {"Job_Name": "job-x", "job_state": "R", **attributes}
    return SEPARATOR.join(["Job Id: 7.s", *(f"{name}={value}" for name, value in fields.items())]) + "\n"


def seen(**attributes: Any) -> Seen:
    [one] = parse_jobs(dsv(**attributes))
    return one


# -- recorded ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "state", "code", "reason"),
    [
        ("finished/badout", JobState.COMPLETED, 0, "and finished"),
        ("finished/rc3_v23", JobState.FAILED, 3, "and failed"),
        ("finished/badshell", JobState.FAILED, 254, "and failed"),
        ("finished/nocommand", JobState.FAILED, 254, "and failed"),
        ("finished/nohome", JobState.FAILED, None, "Exit_status -2: PBS could not start it: has its user a home"),
        ("finished/sig-notrap", JobState.FAILED, 138, "and failed"),
        ("finished/del-notrap", JobState.CANCELLED, None, "and terminated by hpc@hpc-head"),
        ("finished/del-trap", JobState.CANCELLED, None, "and terminated by hpc@hpc-head"),
        ("finished/del-exec0", JobState.CANCELLED, None, "and terminated by hpc@hpc-head"),
        ("finished/del-force", JobState.CANCELLED, None, "and terminated by hpc@hpc-head"),
        ("finished/del-sleep_v23", JobState.CANCELLED, None, "and terminated by hpc@hpc-head"),
        ("qstat/one_deleted_cmd-exit0_x", JobState.CANCELLED, None, "and terminated by hpc@hpc-head"),
        ("finished/heldjob", JobState.CANCELLED, None, ""),
        ("finished/waitjob", JobState.CANCELLED, None, ""),
        ("nodelost/qdel_forced_x", JobState.CANCELLED, None, "and terminated"),
        ("finished/wall-trap", JobState.TIMEOUT, None, "and exceeded resource walltime"),
        ("finished/wall-exec0", JobState.TIMEOUT, None, "and exceeded resource walltime"),
        ("finished/wall-sleep_v23", JobState.TIMEOUT, None, "and exceeded resource walltime"),
        ("finished/lost-rn", JobState.NODE_FAIL, None, "Exit_status -20: its first node was lost"),
        ("finished/lost-rn_v23", JobState.NODE_FAIL, None, "Exit_status -20: its first node was lost"),
        ("nodelost/mom_restart_plain_n_x", JobState.NODE_FAIL, None, "Exit_status -4: PBS was started anew"),
    ],
)
def test_each_recorded_end(name: str, state: JobState, code: int | None, reason: str) -> None:
    news = recorded(name).news
    assert (news.state, news.exit_code) == (state, code)
    assert reason in news.reason
    assert (news.reason == "") == (reason == "")


@pytest.mark.parametrize(
    ("name", "state", "reason"),
    [
        ("qstat/one_queued_never_fits", JobState.PENDING, "Not Running: Insufficient amount of resource: ngpus"),
        ("qstat/one_queued_scheduling_off", JobState.PENDING, ""),
        ("qstat/one_queued_stopped_queue", JobState.PENDING, "Not Running: Queue not started."),
        ("qstat/one_held", JobState.PENDING, ""),
        ("qstat/one_held_depend", JobState.PENDING, ""),
        ("qstat/one_waiting", JobState.PENDING, ""),
        ("json/comment_nl.master", JobState.PENDING, "line1 line2"),
        (
            "states/S-exec0_R_41",
            JobState.PENDING,
            "Job was sent for execution at Mon Nov 23 at 21:57 on (hpc-n1[0]:ncpus=1)",
        ),
        ("states/fill1_R_41", JobState.RUNNING, ""),
        ("qstat/one_running", JobState.RUNNING, ""),
        ("qstat/one_running_v23", JobState.RUNNING, ""),
        ("qstat/one_running_after_qdel", JobState.RUNNING, ""),
        ("qstat/one_running_on_offline_node", JobState.RUNNING, ""),
        ("qstat/one_exiting", JobState.ENDING, ""),
        ("states/w15_E_53", JobState.ENDING, ""),
        ("states/del-sleep_E_51", JobState.ENDING, ""),
    ],
)
def test_each_recorded_state_of_a_job_that_lives(name: str, state: JobState, reason: str) -> None:
    one = recorded(name)
    assert (one.news.state, one.news.reason, one.is_again) == (state, reason, False)
    assert one.news.exit_code is None


@pytest.mark.parametrize(
    "name",
    [
        "nodelost/jobs_after_requeue_x", "nodelost/requeued_running", "states/lost-ry_E_60", "states/momp-y_E_60",
        "states/w47_R_60", "states/w47_E_63", "states/momi-y_R_41", "states/momt-y_R_41",
    ],
)  # fmt: skip
def test_a_job_that_pbs_runs_once_more_is_over(name: str) -> None:
    one = recorded(name)
    assert (one.news.state, one.is_again) == (JobState.ENDING, True)


@pytest.mark.parametrize(
    "attributes",
    [
        {"job_state": "Q", "run_count": 1},
        {"job_state": "Q", "run_count": 3, "Exit_status": -3},
        {"job_state": "E", "substate": 60, "Exit_status": -3},
        {"job_state": "R", "substate": 71},
    ],
)
def test_a_job_that_could_not_be_started_waits_for_the_next_try(attributes: dict[str, Any]) -> None:
    one = seen(Rerunable="False", **attributes)
    assert (one.news.state, one.is_again) == (JobState.PENDING, False)


def test_the_second_try_to_start_a_job_that_runs_once_is_its_first_run() -> None:
    one = seen(Rerunable="False", job_state="R", substate=42, run_count=2)
    assert (one.news.state, one.is_again) == (JobState.RUNNING, False)
    assert seen(Rerunable="True", job_state="R", substate=42, run_count=2).is_again
    assert seen(Rerunable="False", job_state="Q", Exit_status=-20).is_again


def test_every_recorded_job_has_a_state() -> None:
    for path in sorted(FOLDER.glob("states/*.extracted.json")):
        [(pbs_id, job)] = json.loads(path.read_text())["Jobs"].items()
        [one] = parse_jobs(path.read_text())
        assert (one.news.scheduler_id, one.news.job_id) == (pbs_id, job["Job_Name"])
        assert one.news.state.is_final == (job["job_state"] == "F")
        if job.get("comment", "").startswith("Job was sent for execution"):
            assert one.is_again or one.news.state is JobState.PENDING


def test_times_and_node_of_a_recorded_job_that_runs() -> None:
    news = recorded("qstat/one_running").news
    started_at = NOV_23 + 21 * 3600 + 53 * 60 + 48
    assert news == JobNews(
        "kiosk-7f3a2c", "25.hpc-head", JobState.RUNNING, node="hpc-n1", started_at=started_at, ends_at=started_at + 600
    )


def test_when_pbs_means_to_start_a_job() -> None:
    news = recorded("estimate/qstat_wait1").news
    assert news.starts_at == NOV_23 + 22 * 3600 + 26 * 60 + 16
    assert (news.node, news.started_at, news.ends_at) == (None, None, None)
    assert recorded("estimate/nostrict_wait1_json").news.starts_at is None


def test_when_a_recorded_job_ended() -> None:
    assert recorded("qstat/one_finished_rc3_x").news.ends_at == NOV_23 + 21 * 3600 + 53 * 60 + 48
    assert recorded("states/hooked_F_91").news.ends_at == 1795471995.0


def test_the_pilot_is_on_the_first_of_several_nodes() -> None:
    assert recorded("qstat/two_chunks_x").news.node == "hpc-n1"


# -- made by hand ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("letter", "state"), STATES.items())
def test_every_letter_has_its_state(letter: str, state: JobState) -> None:
    assert seen(job_state=letter).news.state is state


def test_a_letter_that_nobody_knows_is_alive() -> None:
    assert seen(job_state="Y").news.state is JobState.PENDING
    assert seen(job_state="M").news.reason == "moved to another server"


@pytest.mark.parametrize(("status", "end"), ENDS.items())
def test_every_end_that_pbs_makes_has_its_state(status: int, end: tuple[JobState, str]) -> None:
    news = seen(job_state="F", substate=93, Exit_status=status).news
    assert (news.state, news.exit_code) == (end[0], None)
    assert seen(job_state="F", substate=91, Exit_status=status).news.state is JobState.CANCELLED


def test_ends_that_are_not_in_the_list() -> None:
    assert seen(job_state="F", Exit_status=-99).news == JobNews(
        "job-x", "7.s", JobState.FAILED, "Exit_status -99: PBS ended it"
    )
    assert seen(job_state="F", substate=93).news.reason == "PBS does not say how it ended"
    assert seen(job_state="F", Exit_status=265).news.exit_code == 128 + 9
    assert seen(job_state="F", Exit_status=256).news.exit_code == 256
    assert seen(job_state="F", Exit_status="many").news.state is JobState.FAILED


@pytest.mark.parametrize("missing", ["Job_Name", "job_state"])
def test_a_job_that_lacks_what_tells_it_apart_is_no_answer(missing: str) -> None:
    with pytest.raises(ParseError):
        parse_jobs(dsv(**{missing: ""}))


def test_of_two_jobs_of_one_name_the_one_that_lives() -> None:
    def job(number: int, state: JobState) -> JobNews:
        return JobNews("job-x", f"{number}.s", state)

    lives, ended, later = job(8, JobState.RUNNING), job(9, JobState.FAILED), job(10, JobState.CANCELLED)
    assert telling(None, ended) is ended
    assert telling(ended, lives) is lives
    assert telling(lives, ended) is lives
    assert telling(ended, later) is later
    assert telling(later, ended) is later


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("01:00:00", 3600.0), ("30:05", 1805.0), ("90", 90.0), ("100:00:00", 360000.0), ("", None), ("1h", None)],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("Mon Nov 23 21:53:48 2026", NOV_23 + 78828),
        ("1795470828", 1795470828.0),
        ("0", None),
        ("-5", None),
        ("soon", None),
        ("Mon Nov 31 21:53:48 2026", None),
    ],
)
def test_times(text: str, at: float | None) -> None:
    assert parse_time(text) == at


VALUES = st.one_of(st.text(), st.integers().map(str), st.sampled_from(["F", "91", "Mon Nov 23 21:53:48 2026", "1:2"]))
ENDED = ["substate", "Exit_status", "run_count", "obittime"]
NAMES = st.sampled_from(["Job_Name", "job_state", *ENDED, "stime", "exec_host", "comment", "Resource_List.walltime"])


@given(st.dictionaries(NAMES, VALUES))
def test_any_job_raises_nothing_but_parse_error(attributes: dict[str, str]) -> None:
    with suppress(ParseError):
        parse_jobs(SEPARATOR.join(["Job Id: 7.s", *(f"{name}={value}" for name, value in attributes.items())]) + "\n")
    with suppress(ParseError):
        parse_jobs(json.dumps({"Jobs": {"7.s": attributes}}))


@given(st.text())
def test_any_text_raises_nothing_but_parse_error(text: str) -> None:
    parse_time(text)
    parse_duration(text)
    with suppress(ParseError):
        parse_jobs(text)
