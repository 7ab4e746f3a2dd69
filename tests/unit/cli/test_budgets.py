"""``first budgets``, with a gateway that answers for the store, without one, and as somebody who is logged in."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert
from typer.testing import Result

from firstkit.accounting.terms import terms_of
from firstkit.cli import budgets as module
from firstkit.clock import now
from firstkit.store import tables
from firstkit.store.database import Database
from lab import wait_for
from unit.cli.installed import Installed, first
from usage_entries import usage_entry


@pytest.fixture
def installed(folder: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Installed:
    """It has a budget in its configuration, and its store knows ada and her project."""
    engine = {"kind": "command", "argv": ["x"]}
    models = {"m": {"aliases": ["mini"], "deployments": [{"cluster": "here", "engine": engine}]}}
    budgets = [{"each": "user", "tokens": 1000, "period": "total"}]
    asyncio.run(_fill(database_url))
    return Installed(folder, database_url, monkeypatch, models=models, budgets=budgets)


async def _fill(database_url: str) -> None:
    db = await Database.open(database_url)
    async with db.begin() as conn:
        user = {"id": "u1", "name": "ada", "is_admin": False, "created_at": now()}
        await conn.execute(insert(tables.users).values(**user))
        await conn.execute(insert(tables.projects).values(id="p1", name="fusion", description="", created_at=now()))
        entry = usage_entry("a", at=now())
        values = {column.name: getattr(entry, column.name) for column in tables.usage.columns}
        await conn.execute(insert(tables.usage).values(values))
    await db.close()


def _first(*arguments: str, status: int = 0) -> Result:
    return first("budgets", *arguments, status=status)


def _listed() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(_first("list", "--json").stdout)
    return rows


def test_a_budget_from_the_beginning_to_the_end(either: None) -> None:
    said = _first("set", "--project", "fusion", "--model", "mini", "--tokens", "1k").stdout
    found = re.fullmatch(
        r"Set (budget-\w+): 1000 tokens a month of project 'fusion' for model 'm'\. It stops whoever is beyond\.\n",
        said,
    )
    assert found, said
    wait_for("the gateway has looked", lambda: [row["used"] for row in _listed()] == [15, 15])
    configured, stored = _listed()
    assert (configured["id"], configured["subjects"][0]["name"]) == (None, "ada")
    assert (stored["id"], stored["left"]) == (found[1], 985)
    terms = ("--project", "fusion", "--model", "m", "--tokens", "10", "--soft", "--warn-at", "0.5")
    assert "It warns whoever is beyond." in _first("set", *terms).stdout
    assert [(row["tokens"], row["stop"], row["warn_at"]) for row in _listed()[1:]] == [(10, "soft", 0.5)]
    assert json.loads(_first("remove", found[1], "--json").stdout)["id"] == found[1]
    assert len(_listed()) == 1
    made = json.loads(_first("set", "--node-hours", "2.5", "--each", "project", "--period", "year", "--json").stdout)
    assert (made["node_hours"], made["each"], made["period"]) == (2.5, "project", "year")
    assert "2.50 node-hours a year of each project" in _first("remove", made["id"]).stdout


def test_the_list_is_for_people_too(either: None) -> None:
    heading, line = _first("list").stdout.splitlines()
    assert heading.split("\t") == ["id", "whose", "budget", "stop", "used", "reserved", "left", "until"]
    assert line.split("\t") == [
        *("configuration", "each user", "1000 tokens in all", "hard", "15", "0", "985", "for ever"),
    ]


FAULTS: dict[tuple[str, ...], str] = {
    ("set",): "one of tokens and node_hours is needed",
    ("set", "--tokens", "many"): "whole number such as 5000, 50M or 2G",
    ("set", "--tokens", "5", "--period", "century"): "'total'",
    ("set", "--tokens", "5", "--each", "model"): "'user' or 'project'",
    ("set", "--tokens", "5", "--warn-at", "2"): "warn_at",
    ("set", "--tokens", "5", "--project", "climate"): "no project 'climate'",
    ("set", "--tokens", "5", "--user", "eve"): "no user 'eve'",
    ("set", "--tokens", "5", "--model", "gpt"): "'gpt'",
    ("remove", "budget-x"): "no such budget",
}
"""What somebody may say, and what they are told."""


def test_faults_end_with_status_1_and_a_next_step(either: None) -> None:
    for arguments, says in FAULTS.items():
        result = _first(*arguments, status=1)
        assert result.stdout == ""
        assert says in result.stderr, arguments
        assert "first budgets list" in result.stderr
        assert "Traceback" not in result.stderr
    assert len(_listed()) == 1


def test_who_is_logged_in_sees_the_budgets_of_their_projects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, though one of each user is about all of their projects."""
    of_ada = _row(each="user", used=900, left=100)
    answers: dict[str, Any] = {
        "/v1/projects": {"data": [{"name": "fusion"}, {"name": "a/b c"}]},
        "/v1/projects/fusion": {"budgets": [_row(project="fusion"), of_ada]},
        "/v1/projects/a%2Fb%20c": {"budgets": [of_ada, _row(project="a/b c", used=None, left=None, reserved=None)]},
    }
    monkeypatch.setattr(module, "has_config", lambda _: False)
    monkeypatch.setattr(module, "ask", lambda config, path, body, directly, mine: answers[mine])
    assert [terms_of(row).whose() for row in _listed()] == ["project 'fusion'", "each user", "project 'a/b c'"]
    lines = [line.split("\t") for line in _first("list").stdout.splitlines()[1:]]
    assert [line[4:7] for line in lines] == [["0", "0", "5"], ["900", "0", "100"], ["unknown"] * 3]


def _row(**values: Any) -> dict[str, Any]:
    whose = {"id": "budget-1", "project": None, "user": None, "model": None, "each": None, "node_hours": None}
    terms = {"tokens": 5, "period": "month", "stop": "hard", "warn_at": 0.8}
    span = {"begins_at": "2026-11-01T00:00:00+00:00", "ends_at": "2026-12-01T00:00:00+00:00"}
    return {**whose, **terms, **span, "used": 0, "reserved": 0, "left": 5, **values}
