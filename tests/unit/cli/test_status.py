from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from firstkit.cli.commands import build
from firstkit.cli.status import matching
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


def status(model: str = "live", *replicas: dict[str, Any], **more: Any) -> dict[str, Any]:
    row = {"id": "m", "aliases": ["n"], "status": model, "eta_s": 12.3, "reason": "", "ready": 1, "in_flight": 2}
    job = {"id": "job-x", "cluster": "here", "state": "RUNNING", "reason": "", "node": None, "link": "up"}
    times = {"created_at": START.isoformat(), "started_at": START.isoformat(), "ends_at": None, "observed_at": None}
    return {
        "version": "9.9",
        "started_at": START.isoformat(),
        "controller": "connected",
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
    assert "rep-abd\tm\there\tFAILED\t0/4\t\texit status 1" in lines
    assert json.loads(first("status", "--json").stdout)["version"] == "9.9"


def test_models(gateway: Answers) -> None:
    assert first("models").stdout.splitlines()[1].split("\t")[:5] == ["m", "n", "live", "chat", "2048"]
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
