"""The double of PBS against the recordings of a real one: the same letters, the same exit statuses, the same course."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firstkit.testing import pbs_layout as layout
from firstkit.testing.pbs_lab import LabError, PbsLab
from firstkit.testing.pbs_layout import Attribute, Raw
from lab import wait_for

RECORDED = Path(__file__).parents[1] / "unit" / "schedulers" / "pbs"
FOREVER = ("--", "/bin/sleep", "300")
JSON_CLIENTS = {"master": "master", "v23_06_06": "v23"}


def recorded(case: str, kind: str = "out") -> bytes:
    return (RECORDED / f"{case}.{kind}").read_bytes()


def exit_code(case: str) -> int:
    return int(json.loads(recorded(case, "meta.json"))["exit_code"])


def cases(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(RECORDED))[: -len(".cmd")] for path in RECORDED.glob(f"{pattern}.cmd"))


@pytest.fixture(scope="module", params=["master", "v23"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PbsLab]:
    """Has what the recorded cluster had, as far as the recordings below need it."""
    queues = {
        "workq": {}, "gpu": {"max_walltime": "01:00:00", "min_walltime": "00:00:10", "max_gpus": 8},
        "closed": {"enabled": False}, "stopped": {"started": False}, "small": {"max_queued": 1},
        "priv": {"users": []},
    }  # fmt: skip
    made = PbsLab(
        tmp_path_factory.mktemp("pbs"), clients=request.param, vnodes=2, cpus=32, gpus_per_node=8, queues=queues,
        kill_delay_s=1.0,
    )  # fmt: skip
    made.start()
    yield made
    made.stop()
    assert made.left_behind() == []


@pytest.fixture
def own_lab(folder: Path) -> Iterator[PbsLab]:
    made = PbsLab(folder / "pbs", kill_delay_s=0.5, node_fail_requeue_s=5.0)
    made.start()
    yield made
    made.stop()
    assert made.left_behind() == []


def job(lab: PbsLab, job_id: str) -> dict[str, Any]:
    return next(known for known in lab.jobs(history=True) if known["id"] == job_id)


def until(lab: PbsLab, job_id: str, *states: str) -> dict[str, Any]:
    """The job once it is in one of these states, as ``R/42``."""

    def found() -> list[dict[str, Any]]:
        return [j for j in lab.jobs(history=True) if j["id"] == job_id and _state(j) in states]

    return wait_for(f"{job_id} is {states}", found)[0]


def _state(known: dict[str, Any]) -> str:
    return f"{known['state']}/{known['substate']}"


# -- letters -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["qstat/one_running_dsv", "qstat/several_all_known_x_dsv", "qstat/one_dsv_delim"])
def test_jobs_with_delimiters_are_printed_as_recorded(case: str) -> None:
    argv = shlex.split(recorded(case, "cmd").decode())
    delimiter = argv[argv.index("-D") + 1] if "-D" in argv else "|"
    text = recorded(case).decode()
    printed = ""
    for line in text.splitlines():
        head, *fields = line.split(delimiter)
        attributes = [_attribute(*field.partition("=")[::2]) for field in fields]
        printed += layout.dsv(head.removeprefix("Job Id: "), attributes, delimiter)
    assert printed == text


@pytest.mark.parametrize("case", [case for case in cases("json/*.plain") if not re.search("comment|ctrl|dup", case)])
@pytest.mark.parametrize("clients", JSON_CLIENTS)
def test_odd_jobs_are_printed_in_json_as_recorded(case: str, clients: str) -> None:
    """Also where the recording is no JSON. Left out: a variable twice, and what plain text does not show as it is."""
    expected = recorded(case.removesuffix("plain") + clients)
    job_id, attributes = _plain_job(recorded(case).decode(errors="surrogateescape"))
    tree = {"Jobs": {job_id: layout.job_tree(attributes, JSON_CLIENTS[clients])}}
    printed = layout.print_tree({"timestamp": Raw("0"), "pbs_version": "x", **tree}, JSON_CLIENTS[clients])
    assert _jobs_of(printed) == _jobs_of(expected)


def _jobs_of(text: bytes) -> bytes:
    return text[text.index(b'"Jobs"') :]


def _plain_job(text: str) -> tuple[str, list[Attribute]]:
    """Out of ``qstat -f``, whose long lines are cut and go on after a tab."""
    head, *lines = text.rstrip("\n").replace("\n\t", "").split("\n")
    joined: list[str] = []
    for line in lines:
        if line.startswith("    ") and " = " in line:
            joined.append(line)
        else:
            joined[-1] += "\n" + line
    return head.removeprefix("Job Id: "), [_attribute(*line.strip(" ").split(" = ", 1)) for line in joined]


def _attribute(name: str, value: str) -> Attribute:
    first, _, part = name.partition(".")
    return Attribute(first, part, value)


def in_json(pattern: str) -> list[str]:
    return [case for case in cases(pattern) if recorded(case).startswith(b"{")]


@pytest.mark.parametrize("case", in_json("nodes/pbsnodes_av_json*") + in_json("qstat/one_*") + in_json("finished/*"))
def test_json_has_the_layout_of_the_recording(case: str) -> None:
    text = recorded(case).replace(b"\\\\", b"BACKSLASH")
    clients = "v23" if case.endswith("_v23") else "master"
    tree = json.loads(text, parse_int=Raw, parse_float=Raw)
    assert layout.print_tree(tree, clients) == text


# -- what is said no to ------------------------------------------------------------------------------------------------

NOT_OF_THE_DOUBLE = {
    "err_W": "the words of the failure before", "err_unknown_server": "another server", "err_hook": "see below",
    "err_hook_f": "see below", "err_queue_limit_first": "no error",
}  # fmt: skip


@pytest.mark.parametrize("case", [c for c in cases("submit/err_*") if c.split("/")[1] not in NOT_OF_THE_DOUBLE])
def test_qsub_says_no_as_recorded(lab: PbsLab, case: str) -> None:
    (lab.home / "job_ok.sh").write_text("exit 0\n")
    if case.endswith("queue_limit"):
        lab.run("qsub", "-q", "small", "-h", "--", "/bin/true")
    done = lab.call(*shlex.split(recorded(case, "cmd").decode()))
    assert (done.returncode, done.stdout, done.stderr) == (exit_code(case), "", recorded(case, "err").decode())
    lab.end_jobs()


@pytest.mark.parametrize("case", cases("submit/name_*"))
def test_names_are_taken_or_not_as_recorded(lab: PbsLab, case: str) -> None:
    done = lab.call(*shlex.split(recorded(case, "cmd").decode()))
    assert (done.returncode, done.stderr) == (exit_code(case), recorded(case, "err").decode())


def test_a_hook_of_the_site_says_no_in_its_own_words(folder: Path) -> None:
    words = recorded("submit/err_hook_f", "err").decode().removeprefix("qsub: ").rstrip("\n")
    lab = PbsLab(folder / "pbs", nodes=1, hook={"needs": "account", "words": words})
    lab.start()
    try:
        done = lab.call("qsub", "-f", *FOREVER)
        assert (done.returncode, done.stderr) == (exit_code("submit/err_hook_f"), f"qsub: {words}\n")
        assert lab.run("qsub", "-f", "-A", "p", *FOREVER) == "1.hpc-head"
    finally:
        lab.stop()


UNKNOWN_OR_WRONG = """
    qdel/unknown qdel/malformed qdel/unknown_server qdel/no_args qselect/u_N_none qselect/bad_state qselect/unknown_user
    qstat/unknown_id qstat/unknown_id_x qstat/malformed_id qstat/id_other_server qstat/json_without_f qstat/user_json
    nodes/offline_denied server/qstat_version
"""


@pytest.mark.parametrize("case", UNKNOWN_OR_WRONG.split())
def test_what_is_unknown_or_wrong_is_answered_as_recorded(lab: PbsLab, case: str) -> None:
    done = lab.call(*shlex.split(recorded(case, "cmd").decode()))
    assert (done.returncode, done.stderr) == (exit_code(case), recorded(case, "err").decode())
    if not done.stdout.lstrip().startswith("{"):
        assert done.stdout == recorded(case).decode()


def test_what_was_never_recorded_is_refused(lab: PbsLab) -> None:
    for command in (["qstat"], ["qsub", "-J", "0-3", *FOREVER], ["qdel", "-x", "1"], ["qselect", "-l", "ngpus.gt.0"]):
        done = lab.call(*command)
        assert done.returncode == 99
        assert "has no script for" in done.stderr


# -- jobs --------------------------------------------------------------------------------------------------------------


def keys(tree: Any, prefix: str = "") -> list[str]:
    if not isinstance(tree, dict):
        return [prefix]
    return [key for name, below in tree.items() for key in keys(below, f"{prefix}.{name}")]


def shown(lab: PbsLab, job_id: str) -> dict[str, Any]:
    return dict(json.loads(lab.run("qstat", "-x", "-f", "-F", "json", job_id))["Jobs"][job_id])


def recorded_job(case: str) -> dict[str, Any]:
    [only] = json.loads(recorded(case))["Jobs"].values()
    return dict(only)


def assert_keys(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """But for another job that waited for this one, and a variable that v23 takes for a part of another one's value."""
    not_here = {".depend", ".Variable_List.PBS_O_WORKDIR"}
    assert [key for key in keys(ours) if key not in not_here] == [key for key in keys(theirs) if key not in not_here]


COURSE = ("job_state", "substate", "Exit_status", "Hold_Types", "Rerunable", "run_count", "Stageout_status", "umask")


def assert_alike(lab: PbsLab, job_id: str, case: str) -> None:
    """The same attributes in the same order, the same course, and comments that differ in places and times alone."""
    ours, theirs = shown(lab, job_id), recorded_job(case)
    if "session_id" not in theirs:  # its processes had ended before anybody looked
        ours.pop("session_id", None)
    assert_keys(ours, theirs)
    assert {name: ours.get(name) for name in COURSE} == {name: theirs.get(name) for name in COURSE}
    assert ours["Resource_List"] == theirs["Resource_List"]
    assert _without_places(ours.get("comment", "")) == _without_places(theirs.get("comment", ""))


def _without_places(comment: str) -> str:
    return re.sub(r"by \S+", "by SOMEBODY", re.sub(r"at \w+ \w+ \d+ at \d+:\d+ on \S+", "THEN AND THERE", comment))


def again(lab: PbsLab, case: str) -> str:
    """Submit once more what was submitted for the recording ``case``; the id."""
    done = lab.call(*shlex.split(recorded(case, "cmd").decode()))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_jobs_that_wait_and_end_look_as_recorded(lab: PbsLab) -> None:
    held = again(lab, "submit/ok_held")
    assert_alike(lab, held, "qstat/one_held")
    never = lab.run("qsub", "-q", "gpu", "-N", "nofit", "-l", "select=1:ncpus=1:ngpus=8", "-h", "--", "/bin/true")
    lab.run("qdel", held, never)
    assert shown(lab, held)["substate"] == recorded_job("finished/heldjob")["substate"]
    inq = again(lab, "submit/ok_stopped_queue")
    until(lab, inq, "Q/10")
    wait_for("it is said why", lambda: job(lab, inq)["comment"])
    assert_alike(lab, inq, "qstat/one_queued_stopped_queue")
    lab.run("qdel", inq)
    assert_alike(lab, inq, "qstat/one_deleted_while_queued_x")


def test_jobs_that_run_and_end_look_as_recorded(lab: PbsLab) -> None:
    sleeping = again(lab, "signals/submit_del_sleep")
    nothing = again(lab, "finished/submit_crlf")
    until(lab, sleeping, "R/42")
    lab.run("qdel", sleeping)
    until(lab, sleeping, "F/91")
    assert_alike(lab, sleeping, "finished/del-sleep")
    until(lab, nothing, "F/93")
    assert_alike(lab, nothing, "finished/nocommand")


def test_how_commands_and_scripts_end(lab: PbsLab) -> None:
    ends = {"exit 0": ("F/92", 0), "exit 3": ("F/93", 3), "kill -USR1 $$": ("F/93", 266)}
    for text, (state, status) in ends.items():
        ended = until(lab, lab.run("qsub", "--", "/bin/sh", "-c", text), state)
        assert ended["exit_status"] == status
    output = lab.home / "traps"
    shell = ("-k", "doe", "-j", "oe", "-o", str(output), "--", "/bin/sh", "-c")
    kind = lab.run("qsub", *shell, "trap 'exit 0' TERM; echo set; while :; do sleep 0.1; done")
    stubborn = lab.run("qsub", *shell, "trap '' TERM; echo set; while :; do sleep 0.1; done")
    forced = lab.run("qsub", *FOREVER)
    until(lab, forced, "R/42")
    wait_for("both have set their traps", lambda: output.exists() and output.read_text() == "set\nset\n")
    lab.run("qdel", kind, stubborn)
    lab.run("qdel", "-W", "force", forced)
    assert until(lab, kind, "F/91")["exit_status"] == 0
    assert until(lab, stubborn, "F/91")["exit_status"] == 265
    assert until(lab, forced, "F/91")["exit_status"] == 265
    output.unlink()


def test_a_job_that_passes_its_walltime(lab: PbsLab) -> None:
    job_id = lab.run("qsub", "-N", "wall-sleep", "-l", "walltime=1", *FOREVER)
    assert until(lab, job_id, "F/93")["exit_status"] == -29
    assert job(lab, job_id)["comment"].endswith("and exceeded resource walltime")
    assert_keys(shown(lab, job_id), recorded_job("finished/wall-sleep"))


def test_jobs_that_end_are_asked_for_as_recorded(lab: PbsLab) -> None:
    ended = lab.run("qsub", "--", "/bin/true")
    until(lab, ended, "F/92")
    alive = lab.run("qsub", *FOREVER)
    other = lab.run("qsub", *FOREVER, user="hpc2")
    for case, command in {
        "qstat/one_finished_without_x": ["qstat", "-f", "-F", "json", ended],
        "qdel/finished": ["qdel", ended],
        "qdel/other_user": ["qdel", other],
        "qdel/several": ["qdel", "999999", ended],
    }.items():
        done = lab.call(*command)
        expected = recorded(case, "err").decode().replace("29.hpc-head", ended).replace("71.hpc-head", other)
        assert (done.returncode, done.stderr) == (exit_code(case), expected)
    several = lab.call("qstat", "-x", "-f", "-F", "json", ended, alive)
    is_first_only = lab.clients == "master"
    assert list(json.loads(several.stdout)["Jobs"]) == ([ended] if is_first_only else [ended, alive])
    assert lab.run("qstat", "-x", "-f", "-F", "dsv", ended, alive).count("Job Id: ") == 2
    lab.run("qdel", other, user="hpc2")
    lab.run("qdel", alive)


# -- what may go wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clients", ["master", "v23"])
def test_a_server_that_is_down_is_told_as_recorded(folder: Path, clients: str) -> None:
    lab = PbsLab(folder / "pbs", nodes=1, clients=clients)
    lab.start()
    lab.kill_server()
    try:
        for case in cases(f"serverdown_refused_{clients}/*"):
            command = shlex.split(recorded(case, "cmd").decode())
            if command[0] == "qsig" or {"-B", "-Q"} & set(command):
                continue
            command = [*command[:-1], "--", "/bin/true"] if command[0] == "qsub" else command
            done = lab.call(*command)
            assert (done.returncode, done.stderr) == (exit_code(case), recorded(case, "err").decode()), case
            assert re.sub(r"\d{9,}", "N", done.stdout) == re.sub(r"\d{9,}", "N", recorded(case).decode()), case
    finally:
        lab.stop()


def test_a_killed_qsub_has_submitted_and_one_with_f_has_not(own_lab: PbsLab) -> None:
    own_lab.stop_answering()
    for option, name in (("-f", "direct"), ("-z", "background")):
        command = ["qsub", option, "-N", name, *FOREVER]
        waiting = subprocess.Popen(command, env={**own_lab.env}, cwd=own_lab.home, start_new_session=True)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1)
        waiting.send_signal(signal.SIGKILL)
        waiting.wait()
    own_lab.answer_again()
    wait_for("the job is there", lambda: own_lab.ids("background"))
    assert own_lab.ids("direct") == []


def test_ids_go_on_at_the_next_thousand_after_a_crash(own_lab: PbsLab) -> None:
    first = own_lab.run("qsub", *FOREVER)
    until(own_lab, first, "R/42")
    own_lab.kill_server()
    own_lab.start_server()
    assert set(own_lab.node_states().values()) <= {"state-unknown,down", "free"}
    assert [first, own_lab.run("qsub", "-h", *FOREVER)] == ["1.hpc-head", "1000.hpc-head"]
    wait_for("nodes are back", lambda: set(own_lab.node_states().values()) == {"free"})
    own_lab.kill_server()
    own_lab.start_server()
    assert own_lab.run("qsub", "-h", *FOREVER) == "2000.hpc-head"
    own_lab.run("qdel", first)
    assert until(own_lab, first, "F/91")["exit_status"] == 271


def test_a_lost_node_ends_its_job_and_leaves_its_processes(own_lab: PbsLab) -> None:
    (own_lab.home / "job.sh").write_text("exec sleep 300\n")
    once, again = [own_lab.run("qsub", "-r", r, "-l", "select=1:host=hpc-n1", "job.sh") for r in "ny"]
    for job_id in (once, again):
        until(own_lab, job_id, "R/42")
    left = own_lab.left_behind()
    own_lab.kill_node("hpc-n1")
    wait_for("it is missed", lambda: own_lab.node_states()["hpc-n1"] == "down")
    done = own_lab.call("qdel", once)
    assert (done.returncode, done.stderr) == (222, f"qdel: Server could not connect to MOM {once}\n")
    assert until(own_lab, once, "F/93")["exit_status"] == -20
    assert_keys(shown(own_lab, once), recorded_job("finished/lost-rn"))
    requeued = until(own_lab, again, "Q/10")
    assert (requeued["exit_status"], requeued["run_count"]) == (-20, 1)
    assert own_lab.left_behind() == left
    own_lab.start_node("hpc-n1")
    wait_for("they are killed", lambda: not own_lab.left_behind())
    assert until(own_lab, again, "Q/10")
    own_lab.run_scheduler()
    assert until(own_lab, again, "R/42")["run_count"] == 2


def test_a_qdel_hangs_as_long_as_the_node_does(own_lab: PbsLab) -> None:
    job_id = own_lab.run("qsub", "-l", "select=1:host=hpc-n1", *FOREVER)
    until(own_lab, job_id, "R/42")
    own_lab.hang_node("hpc-n1")
    with subprocess.Popen(["qdel", job_id], env=own_lab.env) as waiting:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1)
        assert own_lab.node_states()["hpc-n1"] == "free"
        own_lab.wake_node("hpc-n1")
        assert waiting.wait(10) == 0
    until(own_lab, job_id, "F/91")


def test_without_history_what_has_ended_is_forgotten(own_lab: PbsLab) -> None:
    ended, alive = own_lab.run("qsub", "--", "/bin/true"), own_lab.run("qsub", "-N", "alive", *FOREVER)
    until(own_lab, ended, "F/92")
    own_lab.set_history(False)
    done = own_lab.call("qstat", "-x", "-f", "-F", "json", ended)
    expected = recorded("qstat/history_off_one_x", "err").decode().replace("29.hpc-head", ended)
    assert (done.returncode, done.stderr) == (exit_code("qstat/history_off_one_x"), expected)
    assert "Jobs" not in done.stdout
    assert own_lab.call("qselect", "-x", "-N", "alive").returncode == 0
    assert own_lab.run("qselect", "-x", "-N", "alive") == ""
    assert own_lab.run("qselect", "-N", "alive") == alive


def test_jobs_that_wait_are_told_when_they_may_start(own_lab: PbsLab) -> None:
    whole = ("-l", "select=2:ncpus=16", "-l", "place=scatter", "-l", "walltime=600")
    first, second, third = [own_lab.run("qsub", *whole, *FOREVER) for _ in range(3)]
    began = until(own_lab, first, "R/42")["stime"]
    wait_for("both are told", lambda: all(job(own_lab, job_id)["estimated"] for job_id in (second, third)))
    waits = [job(own_lab, job_id)["estimated"]["start_time"] for job_id in (second, third)]
    assert waits == [began + 600, began + 1200]
    assert set(own_lab.node_states().values()) == {"job-busy"}


def test_a_command_that_fails_is_an_error_of_the_lab(own_lab: PbsLab) -> None:
    with pytest.raises(LabError, match="exit status 170: qsub: Unknown queue"):
        own_lab.run("qsub", "-q", "nosuch", *FOREVER)
