import json
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.errors import ClaimedBefore, SchedulerRefused, SchedulerSilent
from firstkit.onsite import command
from firstkit.onsite.command import REQUEST_LIMIT_BYTES, answer_to, submit
from firstkit.schedulers.scheduler import Capacity, Estimate, JobNews, JobSpec, Resources
from firstkit.states import JobState
from firstkit.wire import WireError, to_dict

JOB = "job-abcdefghijklmn23"
RUNNER = ["/usr/bin/python3", "-I", "/x/first.pyz"]


class WrittenScheduler:
    """A scheduler that only writes down what it is asked."""

    def __init__(self, trouble: Exception | None = None) -> None:
        self.trouble = trouble
        self.jobs: dict[str, tuple[list[str], str]] = {}
        self.submissions = 0
        self.state = JobState.PENDING

    def submit(self, spec: JobSpec, argv: list[str], folder: str) -> str:
        self.submissions += 1
        if self.trouble:
            raise self.trouble
        self.jobs[spec.job_id] = (argv, folder)
        return f"written-{spec.job_id}"

    def poll(self) -> dict[str, JobNews]:
        if self.trouble:
            raise self.trouble
        return {job_id: JobNews(job_id, f"written-{job_id}", self.state) for job_id in self.jobs}

    def cancel(self, job_id: str) -> None:
        self.jobs.pop(job_id, None)

    def capacity(self) -> Capacity:
        return Capacity(1, 2, 3, 4, 1, 2, 3, 4)

    def estimate(self, resources: Resources) -> Estimate:
        return Estimate(float(resources.nodes), "written")


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> WrittenScheduler:
    written = WrittenScheduler()
    monkeypatch.setattr(command, "make_scheduler", lambda request, runner: written)
    return written


def ask(verb: str, state_dir: Path, **more: Any) -> dict[str, Any]:
    return answer_to(verb, json.dumps({"state_dir": str(state_dir), "scheduler": {}, **more}).encode(), RUNNER)


def spec(job_id: str = JOB, **pilot: Any) -> dict[str, Any]:
    value: dict[str, Any] = to_dict(JobSpec(job_id, Resources(), pilot))
    return value


def test_submit_writes_the_secret_to_one_private_file_and_starts_the_pilot_there(
    scheduler: WrittenScheduler, tmp_path: Path
) -> None:
    assert ask("submit", tmp_path, job=spec(token="s3cret")) == {"ok": True, "result": f"written-{JOB}"}
    folder = tmp_path / "jobs" / JOB
    assert scheduler.jobs[JOB] == ([*RUNNER, "pilot", str(folder)], str(folder))
    assert json.loads((folder / "pilot.json").read_text()) == {"token": "s3cret"}
    assert stat.S_IMODE((folder / "pilot.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_submit_again_finds_the_job(scheduler: WrittenScheduler, tmp_path: Path) -> None:
    first, second = ask("submit", tmp_path, job=spec()), ask("submit", tmp_path, job=spec())
    assert first == second
    assert scheduler.submissions == 1


def test_a_claim_whose_submission_died_burns_the_id(scheduler: WrittenScheduler, tmp_path: Path) -> None:
    ask("submit", tmp_path, job=spec())
    scheduler.jobs.clear()
    answer = ask("submit", tmp_path, job=spec())
    assert (answer["error"], answer["code"]) == ("refused", "claimed")
    assert JOB in answer["message"]
    assert scheduler.submissions == 1


def test_silence_while_looking_for_a_claimed_job_is_silence(scheduler: WrittenScheduler, tmp_path: Path) -> None:
    ask("submit", tmp_path, job=spec())
    scheduler.trouble = SchedulerSilent("no answer")
    assert ask("submit", tmp_path, job=spec())["error"] == "silent"


def test_who_comes_second_waits_until_the_first_has_submitted(tmp_path: Path) -> None:
    class SlowScheduler(WrittenScheduler):
        def submit(self, spec: JobSpec, argv: list[str], folder: str) -> str:
            entered.set()
            assert go_on.wait(10)
            return super().submit(spec, argv, folder)

    entered, go_on = threading.Event(), threading.Event()
    slow, results = SlowScheduler(), []
    job = JobSpec(JOB, Resources())
    threads = [threading.Thread(target=lambda: results.append(submit(slow, str(tmp_path), job, RUNNER))) for _ in "ab"]
    for thread in threads:
        thread.start()
    assert entered.wait(10)
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert results == [f"written-{JOB}"] * 2
    assert slow.submissions == 1


def test_a_refused_job_leaves_no_secret(scheduler: WrittenScheduler, tmp_path: Path) -> None:
    scheduler.trouble = SchedulerRefused("too large")
    answer = ask("submit", tmp_path, job=spec(token="s3cret"))
    assert answer == {"ok": False, "error": "refused", "code": "refused", "message": "too large"}
    assert not (tmp_path / "jobs" / JOB / "pilot.json").exists()
    scheduler.trouble = None
    with pytest.raises(ClaimedBefore):
        submit(scheduler, str(tmp_path), JobSpec(JOB, Resources()), RUNNER)


def test_poll_cancel_and_capacity(scheduler: WrittenScheduler, tmp_path: Path) -> None:
    ask("submit", tmp_path, job=spec())
    news = ask("poll", tmp_path)["result"][JOB]
    assert (news["scheduler_id"], news["state"]) == (f"written-{JOB}", "PENDING")
    assert ask("cancel", tmp_path, job_id=JOB) == {"ok": True, "result": None}
    assert ask("poll", tmp_path)["result"] == {}
    assert ask("capacity", tmp_path)["result"]["free_cpus"] == 2


def test_estimate(scheduler: WrittenScheduler, tmp_path: Path) -> None:
    answer = ask("estimate", tmp_path, resources=to_dict(Resources(nodes=3)))
    assert answer == {"ok": True, "result": {"starts_at": 3.0, "reason": "written"}}
    assert "resources: missing" in ask("estimate", tmp_path)["message"]


def test_running_jobs_tell_where_they_can_be_dialled(scheduler: WrittenScheduler, tmp_path: Path) -> None:
    ask("submit", tmp_path, job=spec())
    (tmp_path / "jobs" / JOB / "address").write_text("n1:7777\n")
    assert ask("poll", tmp_path)["result"][JOB]["address"] is None
    scheduler.state = JobState.RUNNING
    assert ask("poll", tmp_path)["result"][JOB]["address"] == "n1:7777"


def test_a_trial_is_another_program(scheduler: WrittenScheduler, tmp_path: Path) -> None:
    ask("submit", tmp_path, job=spec(trial={}))
    assert scheduler.jobs[JOB][0] == [*RUNNER, "trial", str(tmp_path / "jobs" / JOB)]


def test_the_list_of_the_cluster_is_honoured_where_there_is_one(scheduler: WrittenScheduler, tmp_path: Path) -> None:
    (tmp_path / "allowed.json").write_text('{"engines": [], "partitions": ["small"]}')
    (tmp_path / "allowed.json").chmod(0o600)
    replica = {"replica_id": "r", "model": "m", "deployment": "d", "engine": {"kind": "command", "name": "x"}}
    allowed = {"job_id": JOB, "resources": {"partition": "small"}}
    for job, words in (
        ({**allowed, "pilot": {"replicas": [replica]}}, 'the engine "x" is not in'),
        ({**allowed, "pilot": {"trial": {"replicas": [replica]}}}, 'the engine "x" is not in'),
        ({**allowed, "resources": {"partition": "big"}}, 'the partition "big" is not in'),
        ({**allowed, "resources": {}}, "a job without partition"),
    ):
        answer = ask("submit", tmp_path, job=job)
        assert (answer["error"], answer["code"]) == ("refused", "refused")
        assert words in answer["message"]
    for pilot in ({"replicas": 7}, {"replicas": [7]}, {"trial": {"replicas": {}}}):
        assert ask("submit", tmp_path, job={**allowed, "pilot": pilot})["error"] == "invalid"
    assert ask("estimate", tmp_path, resources={"partition": "big"})["error"] == "refused"
    assert scheduler.submissions == 0
    assert ask("submit", tmp_path, job=allowed)["ok"]


@pytest.mark.parametrize(
    "job_id",
    ["", "job-", "../../etc/passwd", "job-ABCDEFGHIJKLMNOP", JOB + "\n", JOB + "x", "job-abcdefghijklmn/.", "🦊"],
)
def test_ids_that_are_not_ours_go_nowhere(scheduler: WrittenScheduler, tmp_path: Path, job_id: str) -> None:
    assert ask("submit", tmp_path, job=spec(job_id))["error"] == "invalid"
    assert ask("cancel", tmp_path, job_id=job_id)["error"] == "invalid"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(WireError):
        submit(scheduler, str(tmp_path), JobSpec(job_id, Resources()), RUNNER)


@pytest.mark.parametrize(
    ("verb", "data", "words"),
    [
        ("explode", b"{}", "one of submit, poll, cancel, capacity"),
        ("poll", b"", "not JSON"),
        ("poll", b"[]", "an object is needed"),
        ("poll", b"{}", "state_dir: missing"),
        ("poll", b'{"state_dir":"relative"}', "an absolute path"),
        ("poll", b'{"state_dir":"/tmp/x\\u0000y"}', "an absolute path"),
        ("poll", b'{"state_dir":"/tmp","scheduler":{"kind":"crystal ball"}}', "scheduler.kind"),
        ("poll", b'{"state_dir":"/tmp","scheduler":[]}', "scheduler: dict"),
        ("submit", b'{"state_dir":"/tmp","scheduler":{"kind":"local"},"job":{"job_id":7}}', "job.job_id: str"),
        ("poll", b" " * (REQUEST_LIMIT_BYTES + 1), "longer than"),
        ("poll", b"[" * 100_000, "not JSON"),
    ],
)
def test_what_cannot_be_understood_is_invalid_in_words(verb: str, data: bytes, words: str) -> None:
    answer = answer_to(verb, data, RUNNER)
    assert (answer["ok"], answer["error"]) == (False, "invalid")
    assert words in answer["message"]


@given(st.sampled_from(["submit", "poll", "cancel", "capacity", ""]), st.binary(max_size=200))
def test_any_bytes_get_an_answer(verb: str, data: bytes) -> None:
    assert answer_to(verb, data, RUNNER)["ok"] is False


def test_disk_trouble_is_silence_that_names_the_file(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    answer = ask("poll", blocked, scheduler={"kind": "local"})
    assert answer["error"] == "silent"
    assert str(blocked) in answer["message"]


def test_an_unforeseen_error_is_silence_without_its_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def explode(request: Any, runner: Any) -> None:
        raise RuntimeError("s3cret")

    monkeypatch.setattr(command, "make_scheduler", explode)
    answer = ask("poll", tmp_path)
    assert answer["error"] == "silent"
    assert "s3cret" not in json.dumps(answer)


def test_the_program_reads_stdin_and_writes_one_line(tmp_path: Path) -> None:
    request = json.dumps({"state_dir": str(tmp_path), "scheduler": {"kind": "local", "cpus": 1}}).encode()
    result = subprocess.run(
        [sys.executable, "-m", "firstkit.onsite", "cluster", "capacity"],
        input=request,
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert json.loads(result.stdout)["result"]["cpus"] == 1


def test_the_program_says_how_it_is_used() -> None:
    result = subprocess.run([sys.executable, "-m", "firstkit.onsite"], capture_output=True, check=False, timeout=30)
    assert result.returncode == 2
    assert b"usage:" in result.stderr
