"""``first queue``, for operators and for whoever is logged in somewhere."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from firstkit.cli import saved_login
from firstkit.cli.commands import build
from firstkit.cli.saved_login import Login
from unit.cli.servers import Answers, answer, on_port, on_socket

USER = {"user": "ada", "factor": 0.5, "used": 700, "waiting": 3, "in_flight": 1}
PROJECT = {
    "project": "fusion", "share": 2.0, "factor": 0.77, "used": 1000, "waiting": 3, "in_flight": 1, "users": [USER]
}  # fmt: skip
MODEL = {"model": "m", "waiting": 3, "in_flight": 1, "projects": [PROJECT]}
OWN = {
    "request": "req-1", "model": "m", "position": 2, "waited_s": 150.0, "project": "fusion", "priority": "interactive"
}  # fmt: skip
FORBIDDEN = {"error": {"message": "You do not have the scope 'admin' that this route needs."}}


def first(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(build(("queue",)), ("queue", *arguments))
    assert result.exit_code == status, result.output
    return result


def listed(*rows: Any) -> bytes:
    return answer("200 OK", json.dumps({"object": "list", "data": rows}).encode())


def table(result: Result) -> list[list[str]]:
    return [line.split("\t") for line in result.stdout.splitlines()]


@pytest.fixture
def config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration of an operator."""
    path = folder / "first.yaml"
    path.write_text(yaml.safe_dump({"server": {"state_dir": str(folder)}}))
    monkeypatch.setenv("FIRST_CONFIG", str(path))
    return path


@pytest.fixture
def elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody without a configuration."""
    monkeypatch.delenv("FIRST_CONFIG", raising=False)
    monkeypatch.setenv("FIRST_STATE_DIR", str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))


def log_in(gateway: Answers) -> None:
    saved_login.save(Login(gateway.base_url, "oidc", "https://idp.example.org", "cli", "token", time.time() + 600, ""))


def test_operators_see_projects_and_users(config: Path, folder: Path) -> None:
    with on_socket(folder / "admin.sock", {"/admin/queue": listed(MODEL)}):
        assert json.loads(first("--json").stdout) == [MODEL]
        heading, *lines = table(first())
    assert heading == ["model", "project", "user", "share", "factor", "used", "waiting", "in flight"]
    assert lines == [
        ["m", "fusion", "", "2", "0.77", "1000", "3", "1"],
        ["m", "fusion", "ada", "", "0.50", "700", "3", "1"],
    ]


def test_where_nobody_waits_it_says_so(config: Path, folder: Path) -> None:
    with on_socket(folder / "admin.sock", {"/admin/queue": listed({**MODEL, "projects": []})}):
        result = first()
    assert (result.stdout, result.stderr) == ("", "Nobody waits, and nothing was used of late.\n")


def test_where_no_gateway_runs_nobody_can_say(config: Path, folder: Path) -> None:
    result = first(status=1)
    assert "the gateway is not running" in result.stderr
    assert [path.name for path in folder.iterdir()] == ["first.yaml"], "and no database was made"


def test_whoever_is_logged_in_sees_their_own(elsewhere: None) -> None:
    with on_port(
        {"/v1/queue": listed(OWN), "/admin/queue": answer("403 Forbidden", json.dumps(FORBIDDEN).encode())}
    ) as to:
        log_in(to)
        assert json.loads(first("--json").stdout) == [OWN]
        assert table(first()) == [
            ["request", "model", "place", "waited", "project", "priority"],
            ["req-1", "m", "2", "2 min", "fusion", "interactive"],
        ]
        refused = first("--all", status=1)
    assert "the scope 'admin'" in refused.stderr
    assert "first whoami" in refused.stderr
    assert b"authorization: bearer token" in to.requests[0].lower()


def test_whoever_has_nothing_waiting_hears_that(elsewhere: None) -> None:
    with on_port({"/v1/queue": listed(), "/admin/queue": listed(MODEL)}) as gateway:
        log_in(gateway)
        assert first().stderr == "None of your requests waits.\n"
        assert len(table(first("--all"))) == 3, "an auditor"


def test_without_configuration_and_login_it_says_how_to_get_one(elsewhere: None) -> None:
    assert "first login" in first(status=1).stderr
