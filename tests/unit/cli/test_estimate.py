"""``first estimate``: what is asked of the gateway, and what people read."""

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
from firstkit.cli.estimate import sentences
from unit.cli.servers import answer, on_socket

NAME = "meta-llama/Llama-3.3-70B-Instruct"
TODAY = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
UNKNOWN = {"live_in_s": None, "late_s": None, "live_at": None, "late_at": None, "why": []}


def on(cluster: str, status: str = "offline", **more: Any) -> dict[str, Any]:
    known = {"cluster": cluster, "status": status, "wait_s": None, "load_s": None, "obstacle": "", "maintenance": None}
    known |= {"availability": {"day": None, "week": None}, **UNKNOWN}
    known["queue"] = {"wait_s": None, "late_wait_s": None, "error_s": None, "coverage": None, "waits": 0}
    return {**known, **more}


def estimate(*clusters: dict[str, Any], **more: Any) -> dict[str, Any]:
    known = {"object": "estimate", "model": NAME, "status": "offline", "cluster": None, "controller": "connected"}
    return {**known, **UNKNOWN, "clusters": list(clusters), **more}


def when(live_in_s: float, late_s: float, at: datetime = TODAY) -> dict[str, Any]:
    moments = {"live_at": at.isoformat(), "late_at": at.isoformat()}
    return {"live_in_s": live_in_s, "late_s": late_s, **moments}


def test_where_when_how_long_and_why() -> None:
    window = {"start": "2030-12-01T06:00:00Z", "end": "2030-12-01T18:00:00Z", "message": ""}
    polaris = on(
        "polaris",
        wait_s=660.0,
        load_s=125.0,
        why=["the wait is that of jobs before it", "it is so"],
        maintenance=window,
        availability={"day": 1.0, "week": 0.998},
        queue={"wait_s": 600.0, "late_wait_s": 900.0, "error_s": 180.0, "coverage": 0.91, "waits": 40},
        **when(785, 2400),
    )
    lines = list(sentences(estimate(polaris, on("sophia"), cluster="polaris", **when(785, 2400))))
    assert lines == [
        f"{NAME} would run on polaris; live in 13 min, at 12:00 UTC (nine times of ten within 40 min).",
        "",
        "polaris: offline; live in 13 min, at 12:00 UTC (nine times of ten within 40 min).",
        "  It waits 11 min and loads 2 min; the wait is that of jobs before it; it is so.",
        "  Maintenance from 2030-12-01 06:00 UTC to 2030-12-01 18:00 UTC.",
        "  Forecasts of its queue were off by 3 min on average; 91% of the waits ended within what nine of ten should.",
        "  Its scheduler answered in 99.8% of the minutes of the last week in which it was asked.",
        "",
        "sophia: offline; nobody can say when it would be live.",
    ]


def test_what_is_live_and_what_is_on_its_way() -> None:
    live = estimate(on("polaris", "live", **when(0, 0)), cluster="polaris", status="live")
    assert list(sentences(live)) == [f"{NAME} is live on polaris.", "", "polaris: live."]
    tomorrow = TODAY + timedelta(days=1)
    queued = estimate(cluster="polaris", status="queued", **when(90000, 90000, tomorrow))
    (line,) = sentences(queued)
    assert line.startswith(f"{NAME} is queued on polaris; live in 25 h, at {tomorrow:%Y-%m-%d} 12:00 UTC")


def test_that_nobody_knows_and_that_the_controller_is_silent() -> None:
    first, second = sentences(estimate(controller="silent"))
    assert first == f"{NAME} is offline; nobody can say when it would be live."
    assert second.startswith("The controller is silent")


def test_an_unknown_load_is_no_date() -> None:
    first, *_ = sentences(estimate(cluster="polaris"))
    assert first == f"{NAME} would run on polaris; nobody can say when it would be live."


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def socket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="first-", dir="/tmp") as folder:
        config = Path(folder) / "first.yaml"
        config.write_text(yaml.safe_dump({"server": {"state_dir": folder}}))
        monkeypatch.setenv("FIRST_CONFIG", str(config))
        yield Path(folder) / "admin.sock"


def first(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(build(("estimate", "models")), arguments)
    assert result.exit_code == status, result.output
    return result


def test_for_people_and_programs(socket: Path) -> None:
    body = json.dumps(estimate(on("polaris"), cluster="polaris")).encode()
    with on_socket(socket, {f"/v1/estimate/{NAME}": answer("200 OK", body)}):
        assert first("estimate", NAME).stdout.startswith(f"{NAME} would run on polaris")
        assert json.loads(first("estimate", NAME, "--json").stdout)["model"] == NAME


def test_of_a_model_that_is_not_there(socket: Path) -> None:
    body = json.dumps({"error": {"message": "no such model"}}).encode()
    with on_socket(socket, {"/v1/estimate/x%3Fy": answer("404 Not Found", body)}):
        result = first("estimate", "x?y", status=1)
    assert "no such model" in result.stderr
    assert "'first models'" in result.stderr


def test_with_nobody_to_ask(socket: Path) -> None:
    assert "not running" in first("estimate", "m", status=1).stderr
