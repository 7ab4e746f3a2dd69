"""``first explain``, ``first cluster drain`` and ``resume``: what is asked of the gateway, and what people read."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from firstkit.cli.commands import build
from firstkit.cli.drain import drain, resume
from firstkit.cli.explain import sentences
from unit.cli.servers import answer, on_socket

NAME = "meta-llama/Llama-3.3-70B-Instruct"


def state(**more: Any) -> dict[str, Any]:
    capacity = {"nodes": 40, "free_nodes": 3, "gpus": 160, "free_gpus": 12}
    known = {"id": "polaris", "kind": "batch", "status": "open", "message": "", "maintenance": None}
    return {**known, "capacity": capacity, **more}


def on(cluster: str, status: str, **more: Any) -> dict[str, Any]:
    known = {"eta_s": None, "position": None, "reason": "", "wanted": 0, "why": [], "waits_for": [], "replicas": {}}
    known |= {"ready": 0, "in_flight": 0, "start_in_s": None, "state": state(id=cluster)}
    return {"cluster": cluster, "status": status, **known, **more}


def explanation(*clusters: dict[str, Any], **more: Any) -> dict[str, Any]:
    known = {"model": NAME, "status": "queued", "eta_s": 190.0, "reason": "the job waits: Resources", "ready": 0}
    known |= {"controller": "connected", "in_flight": 0, "waiting": 0, "demand": [], "clusters": list(clusters)}
    return {**known, **more}


def test_what_is_wanted_why_and_what_it_waits_for() -> None:
    queued = on(
        "polaris",
        "queued",
        eta_s=190.0,
        position=3,
        wanted=2,
        why=["1 hot", "demand: 12 requests, 4 wait"],
        waits_for=["queue: position 3, Resources"],
        replicas={"READY": 0, "QUEUED": 2},
        start_in_s=720.0,
    )
    lines = list(sentences(explanation(queued, in_flight=12, waiting=4)))
    assert lines == [
        f"{NAME} is queued, ETA 3 min. The job waits: Resources.",
        "12 requests at work, 4 requests waiting.",
        "",
        "polaris: queued, ETA 3 min, position 3.",
        "  The cluster is open; free: 3 of 40 nodes, 12 of 160 GPUs.",
        "  Wanted: 2 replicas: 1 hot; demand: 12 requests, 4 wait.",
        "  There: 2 QUEUED; no requests at work.",
        "  It waits for: queue: position 3, Resources.",
        "  One more replica would be live in 12 min.",
    ]


def test_a_cluster_that_is_drained_and_one_that_others_run() -> None:
    drained = on("polaris", "offline", state=state(status="drained", message="cooling.", capacity=None))
    cloud = on("cloud", "live", in_flight=1, state=state(kind="external", capacity=None))
    lines = list(sentences(explanation(drained, cloud, status="live", reason="", controller="silent")))
    assert lines[0] == f"{NAME} is live."
    assert lines[1] == "No requests are there now."
    assert "silent" in lines[2]
    assert lines[4:7] == [
        "polaris: offline.",
        "  The cluster is drained: cooling.",
        "  Wanted: no replicas.",
    ]
    assert lines[9:] == [
        "cloud: live.",
        "  The cluster is open.",
        "  Others run it: nothing is started or stopped here. 1 request at work.",
    ]


def test_requests_that_may_not_go_everywhere() -> None:
    demand = [
        {"clusters": None, "waiting": 2, "in_flight": 0, "idle_s": 0.0},
        {"clusters": ["polaris", "sophia"], "waiting": 1, "in_flight": 0, "idle_s": 0.0},
    ]
    lines = list(sentences(explanation(waiting=3, demand=demand, status="offline", eta_s=90.0)))
    assert lines[0].startswith(f"{NAME} is offline, would be live 90 s after a request.")
    assert lines[1] == "No requests at work, 3 requests waiting. Of them 1 may go only to: polaris, sophia."


# -- the commands ------------------------------------------------------------------------------------------------------


@pytest.fixture
def socket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the commands look for the admin socket of a gateway."""
    with tempfile.TemporaryDirectory(prefix="first-", dir="/tmp") as folder:
        path = Path(folder) / "first.yaml"
        path.write_text(yaml.safe_dump({"server": {"state_dir": folder}}))
        monkeypatch.setenv("FIRST_CONFIG", str(path))
        yield Path(folder) / "admin.sock"


def first(*arguments: str, expect: int = 0) -> Result:
    result = CliRunner().invoke(build(), arguments)
    assert result.exit_code == expect, result.output
    return result


def ok(value: Any) -> bytes:
    return answer("200 OK", json.dumps(value).encode())


def refused(status: str, message: str) -> bytes:
    return answer(status, json.dumps({"error": {"message": message}}).encode())


def test_explain_for_people_and_programs(socket: Path) -> None:
    with on_socket(socket, {f"/admin/explain/{NAME}": ok(explanation())}):
        assert first("explain", NAME).stdout.startswith(f"{NAME} is queued")
        assert json.loads(first("explain", NAME, "--json").stdout)["model"] == NAME


def test_explain_of_a_model_that_is_not_there(socket: Path) -> None:
    with on_socket(socket, {"/admin/explain/x%3Fy%20z": refused("404 Not Found", "no such model")}):
        result = first("explain", "x?y z", expect=1)
    assert "no such model" in result.stderr
    assert "'first models'" in result.stderr


def test_nobody_to_ask(socket: Path) -> None:
    for command in ("explain m", "cluster drain here --message x", "cluster resume here"):
        assert "not running" in first(*command.split(), expect=1).stderr


DRAIN, RESUME = "/admin/clusters/polaris/drain", "/admin/clusters/polaris/resume"


def test_drain_and_resume(socket: Path) -> None:
    drained = state(status="drained", message="cooling until 18:00")
    with on_socket(socket, {DRAIN: ok(drained), RESUME: ok(state())}) as gateway:
        said = first("cluster", "drain", "polaris", "--message", "cooling until 18:00").stdout
        assert said.startswith("polaris is drained: cooling until 18:00\n")
        assert "'first cluster resume polaris'" in said
        assert gateway.requests[0].endswith(b'{"message": "cooling until 18:00"}')
        assert b"x-first-actor: cli:" in gateway.requests[0]
        assert first("cluster", "resume", "polaris").stdout == "polaris takes requests and jobs.\n"
        assert json.loads(first("cluster", "resume", "polaris", "--json").stdout)["status"] == "open"


def test_resumed_into_its_maintenance(socket: Path) -> None:
    window = {"start": "2026-12-01T06:00:00Z", "end": "2026-12-01T18:00:00Z", "message": ""}
    with on_socket(socket, {RESUME: ok(state(status="maintenance", maintenance=window))}):
        assert "until 2026-12-01T18:00:00Z" in first("cluster", "resume", "polaris").stdout


@pytest.mark.parametrize(
    ("status", "next_step"),
    [("404 Not Found", "'first status'"), ("503 Service Unavailable", "database")],
)
def test_a_drain_that_cannot_be(socket: Path, status: str, next_step: str) -> None:
    with on_socket(socket, {DRAIN: refused(status, "It cannot be.")}):
        result = first("cluster", "drain", "polaris", "--message", "x", expect=1)
    assert "It cannot be." in result.stderr
    assert next_step in result.stderr


def test_a_drain_says_why() -> None:
    app = typer.Typer()
    app.command("drain")(drain)
    app.command("resume")(resume)
    result = CliRunner().invoke(app, ["drain", "polaris"])
    assert (result.exit_code, "--message" in result.output) == (2, True)
