"""``first keys`` and ``first usage``, with a gateway that answers for the store and without one."""

from __future__ import annotations

import asyncio
import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
import yaml
from sqlalchemy import insert
from typer.testing import CliRunner, Result

from firstkit.auth.api_keys import parse_key
from firstkit.cli.admin import GatewayAway, fetch
from firstkit.cli.commands import build
from firstkit.store import tables
from firstkit.store.database import Database
from lab import free_port, wait_for
from usage_entries import usage_entry


@pytest.fixture
def config(folder: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration of a FIRST that does not run."""
    path = folder / "first.yaml"
    engine = {"kind": "command", "argv": ["x"]}
    content = {
        "server": {"state_dir": str(folder), "database": database_url, "listen": f"127.0.0.1:{free_port()}"},
        "clusters": {"here": {}},
        "models": {"m": {"deployments": [{"cluster": "here", "engine": engine}]}},
    }
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setenv("FIRST_CONFIG", str(path))
    return path


@pytest.fixture(params=["gateway", "no gateway"])
def either(request: pytest.FixtureRequest, config: Path) -> Iterator[None]:
    """That FIRST, with its gateway running and without."""
    if request.param == "no gateway":
        yield
        return
    command = [sys.executable, "-m", "firstkit.gateway", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as gateway:
        try:
            wait_for("the gateway answers", lambda: _answers(config.parent))
            yield
        finally:
            gateway.terminate()


def _answers(state_dir: Path) -> bool:
    try:
        return fetch(state_dir, "/health") != b""
    except GatewayAway:
        return False


def _first(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(build(("keys", "usage")), arguments)
    assert result.exit_code == status, result.output
    return result


def test_a_key_from_creation_to_revocation(either: None) -> None:
    made = json.loads(_first("keys", "create", "k", "--user", "ada", "--expires", "90d", "--json").stdout)
    assert made["prefix"] == f"first-{parse_key(made['key'])}"
    (listed,) = json.loads(_first("keys", "list", "--json").stdout)
    assert listed == {name: value for name, value in made.items() if name != "key"}
    assert (listed["user"], listed["project"], listed["scopes"]) == ("ada", "default", ["inference"])
    assert "first-" in _first("keys", "revoke", "k").stdout
    assert json.loads(_first("keys", "list", "--json").stdout) == []
    assert [key["status"] for key in json.loads(_first("keys", "list", "--all", "--json").stdout)] == ["revoked"]


def test_only_the_key_is_printed_to_standard_output(either: None) -> None:
    result = _first("keys", "create", "k", "--scope", "admin", "--scope", "metrics")
    assert parse_key(result.stdout.strip()) is not None
    assert "cannot be shown again" in result.stderr
    assert parse_key(_first("keys", "list").stdout.split("\t")[0]) is None


@pytest.mark.parametrize(
    "arguments",
    [
        ("keys", "create", "k"),
        ("keys", "create", "x", "--expires", "90"),
        ("keys", "create", "a\nb"),
        ("keys", "revoke", "nobody"),
        ("usage", "--by", "colour"),
        ("usage", "--since", "tomorrow"),
    ],
)
def test_faults_end_with_status_1_and_a_next_step(either: None, arguments: tuple[str, ...]) -> None:
    _first("keys", "create", "k")
    result = _first(*arguments, status=1)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert len(result.stderr.split()) > 8


def test_usage(either: None, database_url: str) -> None:
    async def fill() -> None:
        db = await Database.open(database_url)
        async with db.begin() as conn:
            for name in ("a", "b"):
                entry = usage_entry(name, model="=cmd()")
                await conn.execute(
                    insert(tables.usage).values({c.name: getattr(entry, c.name) for c in tables.usage.columns})
                )
        await db.close()

    asyncio.run(fill())
    sums = {"requests": 2, "prompt_tokens": 20, "completion_tokens": 10, "estimated": 0, "failed": 0}
    by = ("usage", "--by", "model,day")
    assert json.loads(_first(*by, "--json").stdout) == [{"model": "=cmd()", "day": "2026-11-24", **sums}]
    (row,) = csv.DictReader(StringIO(_first(*by, "--csv").stdout))
    assert row["model"] == "'=cmd()"
    assert _first(*by).stdout.splitlines()[1].split("\t")[:3] == ["=cmd()", "2026-11-24", "2"]
    assert json.loads(_first("usage", "--json", "--since", "2026-11-25").stdout) == []
