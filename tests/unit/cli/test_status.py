from __future__ import annotations

import io
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from firstkit.cli.commands import build
from firstkit.cli.status import matching, show_status
from firstkit.cli.watching import look
from unit.cli.servers import Answers, answer, on_socket

START = datetime(2026, 11, 24, 12, tzinfo=UTC)
LOG = "/admin/replicas/rep-abc/log?lines=7"


def replica(name: str, state: str, **more: Any) -> dict[str, Any]:
    made = {"created_at": START.isoformat(), "load_s": None, "reason": "", "log_tail": "", "job_id": "job-x"}
    return {
        "id": name,
        "model": "m",
        "cluster": "here",
        "state": state,
        "in_flight": 0,
        "max_in_flight": 4,
        **made,
        **more,
    }


def place(name: str, status: str, **more: Any) -> dict[str, Any]:
    """A model on one cluster."""
    known = {"eta_s": None, "position": None, "reason": "", "ready": 0, "in_flight": 0, "room": 0}
    return {"name": name, "status": status, **known, **more}


def cluster(name: str = "here", **more: Any) -> dict[str, Any]:
    capacity = {"nodes": 40, "free_nodes": 3, "gpus": 160, "free_gpus": 12}
    known = {"status": "open", "message": "", "capacity": capacity, "queue": {"running": 1, "pending": 2}}
    return {"id": name, **known, **more}


def status(model: str = "live", *replicas: dict[str, Any], **more: Any) -> dict[str, Any]:
    row = {"id": "m", "aliases": ["n"], "status": model, "eta_s": 12.3, "reason": "", "ready": 1, "in_flight": 2}
    row["clusters"] = [place("here", model, eta_s=12.3, ready=1, in_flight=2, room=4)]
    job = {"id": "job-x", "cluster": "here", "state": "RUNNING", "reason": "", "node": None, "link": "up"}
    job |= {"position": None, "starts_at": None, "exit_code": None}
    times = {"created_at": START.isoformat(), "started_at": START.isoformat(), "ends_at": None, "observed_at": None}
    return {
        "version": "9.9",
        "started_at": START.isoformat(),
        "controller": "connected",
        "clusters": [cluster()],
        "models": [{**row, "waiting": 0, "capabilities": ["chat"], "context_length": 2048}],
        "jobs": [{**job, **times}],
        "replicas": list(replicas),
        **more,
    }


@pytest.fixture
def state_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="first-", dir="/tmp") as folder:
        path = Path(folder) / "first.yaml"
        path.write_text(yaml.safe_dump({"server": {"state_dir": folder}}))
        monkeypatch.setenv("FIRST_CONFIG", str(path))
        yield Path(folder)


@pytest.fixture
def gateway(state_dir: Path) -> Iterator[Answers]:
    found = status("live", replica("rep-abc", "READY"), replica("rep-abd", "FAILED", reason="exit\nstatus 1"))
    answers = {"/admin/status": answer("200 OK", json.dumps(found).encode()), LOG: answer("200 OK", b"loading\nfailed")}
    with on_socket(state_dir / "admin.sock", answers) as server:
        yield server


def first(*arguments: str, expect: int = 0) -> Result:
    result = CliRunner().invoke(build(), arguments)
    assert result.exit_code == expect, result.output
    assert "Traceback" not in result.output
    return result


def test_status_for_people_and_programs(gateway: Answers) -> None:
    lines = first("status").stdout.splitlines()
    assert lines[0].startswith("FIRST 9.9")
    assert "here\topen\t3/40\t12/160\t1 running, 2 pending\t" in lines
    assert "m\there\tlive\t2/4\t\t\t" in lines
    assert "rep-abd\tm\there\tFAILED\t0/4\t\texit status 1" in lines
    assert json.loads(first("status", "--json").stdout)["version"] == "9.9"


FEDERATION = status(
    clusters=[
        cluster("polaris", status="drained", message="cooling until 18:00"),
        cluster("cloud", capacity=None, queue={"running": 0, "pending": 0}),
    ],
    models=[
        {
            **status()["models"][0],
            "id": "meta-llama/Llama-3.3-70B-Instruct",
            "waiting": 4,
            "clusters": [
                place("polaris", "live", in_flight=128, room=128),
                place("sophia", "queued", position=3, eta_s=190.0, reason="the job waits: Resources"),
            ],
        }
    ],
    replicas=[replica("rep-aaaaaaaaaaaaaaaa", "DRAINING", model="meta-llama/Llama-3.3-70B-Instruct")],
)


def job(state: str, **more: Any) -> dict[str, Any]:
    return {**status()["jobs"][0], "state": state, "started_at": None, **more}


def test_status_of_a_federation(state_dir: Path) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=330)).isoformat()
    jobs = [
        job("PENDING", position=3, starts_at=soon, reason="Resources"),
        job("RUNNING", started_at=START.isoformat(), ends_at=soon),
        job("FAILED", ends_at=soon, exit_code=9, reason="killed"),
    ]
    answers = {"/admin/status": answer("200 OK", json.dumps(FEDERATION | {"jobs": jobs}).encode())}
    with on_socket(state_dir / "admin.sock", answers):
        lines = first("status").stdout.splitlines()
    name = "meta-llama/Llama-3.3-70B-Instruct"
    for line in (
        "polaris\tdrained\t3/40\t12/160\t1 running, 2 pending\tcooling until 18:00",
        "cloud\topen\t\t\t\t",
        f"{name}\tpolaris\tlive\t128/128, 4 wait\t\t\t",
        f"{name}\tsophia\tqueued\t\t3\t3 min\tthe job waits: Resources",
        "job-x\there\tPENDING\tup\t3\tin 5 min\t\tResources",
        "job-x\there\tRUNNING\tup\t\t2026-11-24 12:00\t5 min\t",
        "job-x\there\tFAILED\tup\t\t\t\tkilled; exit status 9",
    ):
        assert line in lines


def test_it_fits_into_a_terminal_of_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    soon = (datetime.now(UTC) + timedelta(days=3)).isoformat()
    job_id = "job-aaaaaaaaaaaaaaaa"
    jobs = [job("PENDING", id=job_id, position=30, starts_at=soon, reason="the partition is full until tomorrow")]
    jobs += [job("RUNNING", id=job_id, started_at=START.isoformat(), ends_at=soon)]
    show_status(FEDERATION | {"jobs": jobs})
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).splitlines()
    assert len(lines) > 15
    assert [line for line in lines if len(line.rstrip()) > 100] == []


class Terminal(io.StringIO):
    """Takes what is printed as a terminal would."""

    def isatty(self) -> bool:
        return True


def test_models(gateway: Answers) -> None:
    line = first("models").stdout.splitlines()[1].split("\t")
    assert (line[:5], line[-1]) == (["m", "n", "live", "chat", "2048"], "here: live")
    assert json.loads(first("models", "--json").stdout)[0]["id"] == "m"


def test_a_log_by_the_beginning_of_an_id(gateway: Answers) -> None:
    for name in ("rep-abc", "abc"):
        assert first("logs", name, "--lines", "7").stdout == "loading\nfailed\n"
    assert "rep-abc, rep-abd" in first("logs", "ab", expect=1).stderr
    assert "'first status'" in first("logs", "nobody", expect=1).stderr


@pytest.mark.parametrize("arguments", [("status",), ("models", "--json"), ("logs", "x")])
def test_a_gateway_that_is_away(state_dir: Path, arguments: tuple[str, ...]) -> None:
    for _ in range(2):
        result = first(*arguments, expect=1)
        assert "not running" in result.stderr
        assert "'first up'" in result.stderr
        assert result.stdout == ""
        (state_dir / "admin.sock").touch()  # a socket that nobody listens on, or no socket at all


def test_a_gateway_without_its_store(state_dir: Path) -> None:
    body = b'{"error": {"message": "The database is away."}}'
    with on_socket(state_dir / "admin.sock", {"/admin/status": answer("503 Service Unavailable", body)}):
        assert "The database is away." in first("status", expect=1).stderr


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("rep-abc", ["rep-abc"]), ("rep-a", ["rep-abc", "rep-abcd"]), ("abcd", ["rep-abcd"]), ("", []), ("x", [])],
)
def test_matching(wanted: str, found: list[str]) -> None:
    assert matching(wanted, ["rep-abc", "rep-abcd"]) == found


# -- how far a model is, for first up ----------------------------------------------------------------------------------

LATER = (START + timedelta(seconds=5)).isoformat()


def test_a_live_model_is_live_whatever_died() -> None:
    assert look(status("live", replica("rep-a", "FAILED", created_at=LATER)), "m", START).is_live


def test_stages() -> None:
    assert "gateway" in look(None, "m", START).stage
    assert "controller" in look(status("offline", controller="silent"), "m", START).stage
    assert look(status("queued", replica("rep-a", "QUEUED")), "m", START).stage == "The job job-x is RUNNING"
    starting = look(status("starting", replica("rep-a", "STARTING")), "m", START)
    assert (starting.stage, starting.detail) == ("The replica rep-a is STARTING", "ETA 12 s")


def test_a_failed_engine_is_trouble_with_its_log() -> None:
    seen = look(
        status("offline", replica("rep-a", "FAILED", created_at=LATER, reason="no", log_tail="why")), "m", START
    )
    assert "failed: no" in seen.trouble
    assert seen.log == "why"


def test_a_replacement_that_is_on_its_way_gets_its_chance() -> None:
    dead = replica("rep-a", "FAILED", created_at=LATER)
    assert not look(status("starting", dead, replica("rep-b", "STARTING", created_at=LATER)), "m", START).trouble


def test_troubles_of_the_time_before_do_not_count() -> None:
    found = status("offline", replica("rep-a", "FAILED"))
    later = START + timedelta(seconds=1)
    assert not look(found, "m", later).trouble
    assert not look(found | {"started_at": later.isoformat()}, "m", None).trouble


def test_a_job_that_the_scheduler_refused_is_trouble() -> None:
    found = status("offline")
    found["jobs"][0] |= {"state": "REJECTED", "reason": "9 cores", "created_at": LATER}
    assert "REJECTED: 9 cores" in look(found, "m", START).trouble
    found["jobs"][0] |= {"state": "CANCELLED"}
    assert not look(found, "m", START).trouble


def test_a_model_that_the_gateway_does_not_know() -> None:
    assert look(status(), "other", START).trouble
