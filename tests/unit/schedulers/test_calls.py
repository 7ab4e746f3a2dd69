import os
import time
from pathlib import Path

import pytest

from firstkit.errors import SchedulerSilent
from firstkit.schedulers.calls import Calls, last_words
from firstkit.schedulers.processes import is_alive, process_id

ENV = {"PATH": "/usr/bin:/bin"}


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


def test_an_answer_with_its_status_and_words() -> None:
    done = Calls(ENV, 10).ask(sh("cat; echo no >&2; exit 3"), "input")
    assert (done.status, done.output, done.errors) == (3, "input", "no\n")


def test_questions_are_asked_without_language_and_time_zone() -> None:
    output = Calls({**ENV, "TZ": "Asia/Tokyo", "LC_ALL": "de_DE.UTF-8"}, 10, {"MORE": "1"}).answer(["env"])
    assert {"TZ=UTC", "LC_ALL=C", "MORE=1"} <= set(output.split())


def test_what_a_job_inherits_is_not_touched() -> None:
    calls = Calls({**ENV, "TZ": "Asia/Tokyo"}, 10, {"MORE": "1"})
    output = calls.submit(sh("env; umask"), {"FIRST_JOB_WALLTIME": "60"}).output
    assert {"TZ=Asia/Tokyo", "FIRST_JOB_WALLTIME=60", "0077"} <= set(output.split())
    assert "LC_ALL" not in output
    assert "HOME" not in output
    assert "MORE" not in output


def test_a_failure_where_an_answer_is_needed_is_silence_with_its_words() -> None:
    with pytest.raises(SchedulerSilent, match=r"sh failed \(exit status 1\): the last line"):
        Calls(ENV, 10).answer(sh("echo first >&2; echo the last line >&2; exit 1"))


def test_a_program_that_is_not_there_is_silence() -> None:
    with pytest.raises(SchedulerSilent, match="squeue could not be run: No such file"):
        Calls({"PATH": "/nowhere"}, 10).answer(["squeue"])


def test_bytes_that_are_no_text_are_no_error() -> None:
    assert Calls(ENV, 10).answer(["printf", r"\377"]) == "\ufffd"


def test_who_does_not_answer_in_time_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    started = time.monotonic()
    with pytest.raises(SchedulerSilent, match=r"sh did not answer within 0\.5 s"):
        Calls(ENV, 0.5).ask(sh(f"sleep 100 & echo $! $$ > {pids}; wait"))
    assert time.monotonic() - started < 50, "and not after the 100 s that it would take"
    for pid in map(int, pids.read_text().split()):
        deadline = time.monotonic() + 5
        while os.path.exists(f"/proc/{pid}") and is_alive(process_id(pid)):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_all_commands_of_a_verb_share_its_time() -> None:
    calls = Calls(ENV, 0.5)
    calls.ask(["sleep", "0.3"])
    with pytest.raises(SchedulerSilent):
        calls.ask(["sleep", "0.3"])
    with pytest.raises(SchedulerSilent):
        calls.ask(["true"])


def test_a_command_may_have_less_time_than_the_verb() -> None:
    calls = Calls(ENV, 10)
    with pytest.raises(SchedulerSilent):
        calls.ask(["sleep", "100"], limit_s=0.1)
    assert calls.ask(["true"]).status == 0


def test_no_last_words() -> None:
    assert last_words(" \n") == "it gave no reason"
