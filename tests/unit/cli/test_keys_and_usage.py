"""``first keys`` and ``first usage``, with a gateway that answers for the store and without one."""

from __future__ import annotations

import asyncio
import csv
import json
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from sqlalchemy import insert, select

from firstkit.auth import api_keys
from firstkit.auth.api_keys import parse_key
from firstkit.schedulers.scheduler import Resources
from firstkit.store import tables
from firstkit.store.database import Database
from firstkit.store.jobs import Charge, NewReplica, add_job, add_replicas, note_job
from unit.cli.installed import Installed, first
from usage_entries import usage_entry


def test_a_key_from_creation_to_revocation(either: None) -> None:
    made = json.loads(first("keys", "create", "k", "--user", "ada", "--expires", "90d", "--json").stdout)
    assert made["prefix"] == f"first-{parse_key(made['key'])}"
    (listed,) = json.loads(first("keys", "list", "--json").stdout)
    assert listed == {name: value for name, value in made.items() if name != "key"}
    assert (listed["user"], listed["project"], listed["scopes"]) == ("ada", "default", ["inference"])
    assert "first-" in first("keys", "revoke", "k").stdout
    assert json.loads(first("keys", "list", "--json").stdout) == []
    assert [key["status"] for key in json.loads(first("keys", "list", "--all", "--json").stdout)] == ["revoked"]


def test_only_the_key_is_printed_to_standard_output(either: None) -> None:
    result = first("keys", "create", "k", "--scope", "admin", "--scope", "metrics")
    assert parse_key(result.stdout.strip()) is not None
    assert "cannot be shown again" in result.stderr
    assert parse_key(first("keys", "list").stdout.split("\t")[0]) is None


FAULTS = (
    ("keys", "create", "k"),
    ("keys", "create", "x", "--expires", "90"),
    ("keys", "create", "a\nb"),
    ("keys", "revoke", "nobody"),
    ("usage", "--by", "colour"),
    ("usage", "--since", "tomorrow"),
    ("usage", "--since", "2026-11-02", "--until", "2026-11-01"),
    ("usage", "--month", "2026-13"),
    ("usage", "--month", "2026-11", "--until", "2026-12-01"),
    ("usage", "--project", "nothing"),
    ("usage", "--node-hours", "--by", "day"),
    ("usage", "--node-hours", "--project", "default"),
)


def test_faults_end_with_status_1_and_a_next_step(either: None) -> None:
    first("keys", "create", "k")
    for arguments in FAULTS:
        result = first(*arguments, status=1)
        assert result.stdout == "", arguments
        assert "Traceback" not in result.stderr, arguments
        assert len(result.stderr.split()) > 8, arguments


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
    assert json.loads(first(*by, "--json").stdout) == [{"model": "=cmd()", "day": "2026-11-24", **sums}]
    (row,) = csv.DictReader(StringIO(first(*by, "--csv").stdout))
    assert row["model"] == "'=cmd()"
    assert first(*by).stdout.splitlines()[1].split("\t")[:3] == ["=cmd()", "2026-11-24", "2"]
    assert json.loads(first("usage", "--json", "--since", "2026-11-25").stdout) == []
    assert json.loads(first(*by, "--json", "--month", "2026-11").stdout)[0]["requests"] == 2
    assert json.loads(first(*by, "--json", "--month", "2026-10").stdout) == []
    (total,) = json.loads(first("usage", "--by", "", "--json").stdout)
    assert total == sums


@pytest.fixture
def october(database_url: str) -> None:
    """A job of 2 nodes and 2 hours, in the first of which it served ada, in climate, and in the second nobody."""
    begin = datetime(2026, 10, 31, 22, tzinfo=UTC)

    async def fill() -> None:
        db = await Database.open(database_url)
        await api_keys.create(db, "k", user="ada", project="climate")
        async with db.begin() as conn:
            (row,) = (await conn.execute(select(tables.api_keys))).all()
            await add_job(conn, "job", "here", Resources(nodes=2), "sha", begin, Charge("alloc", "svc"))
            await add_replicas(conn, [NewReplica("rep", "job", "m", "m@here", "here", 1, Resources())], begin)
            await note_job(conn, "job", started_at=begin, ended_at=begin + timedelta(hours=2))
            for name, user_id in (("a", row.user_id), ("b", "somebody")):
                who = {"user_id": user_id, "project_id": row.project_id, "replica_id": "rep"}
                entry = usage_entry(name, at=begin, **who)
                await conn.execute(
                    insert(tables.usage).values({c.name: getattr(entry, c.name) for c in tables.usage.columns})
                )
        await db.close()

    asyncio.run(fill())


def test_node_hours(either: None, october: None) -> None:
    asked = ("usage", "--node-hours", "--month", "2026-10")
    answer = json.loads(first(*asked, "--json").stdout)
    assert [(row["project"], row["account"], row["node_hours"]) for row in answer["data"]] == [
        ("climate", "alloc", 2.0),
        ("idle", "alloc", 2.0),
    ]
    assert "FIRST's own attribution" in answer["note"]
    rows = list(csv.DictReader(StringIO(first(*asked, "--csv").stdout)))
    assert [(row["since"], row["submit_as"], row["node_hours"], row["tokens"]) for row in rows] == [
        ("2026-10-01T00:00:00Z", "svc", "2.000000", "30"),
        ("2026-10-01T00:00:00Z", "svc", "2.000000", "0"),
    ]
    table = first(*asked, "--by", "month,model")
    assert [line.split("\t")[5:8] for line in table.stdout.splitlines()] == [
        ["project", "model", "node_hours"],
        ["climate", "m", "2.000"],
        ["idle", "", "2.000"],
    ]
    assert "FIRST's own attribution" in table.stderr
    assert json.loads(first("usage", "--node-hours", "--month", "2026-11", "--json").stdout)["data"] == []


def test_usage_of_one_project(either: None, october: None) -> None:
    (row,) = json.loads(first("usage", "--project", "climate", "--by", "project", "--json").stdout)
    assert (row["project"], row["requests"]) == ("climate", 2)


@pytest.mark.parametrize("either", ["gateway"], indirect=True)
def test_who_is_logged_in_sees_their_own_usage(either: None, october: None, installed: Installed) -> None:
    token = json.loads(
        first("keys", "create", "l", "--user", "ada", "--project", "climate", "--scope", "account", "--json").stdout
    )["key"]
    installed.log_in(token)
    assert json.loads(first("usage", "--by", "user", "--json").stdout) == [
        {"user": "ada", "requests": 1, "prompt_tokens": 10, "completion_tokens": 5, "estimated": 0, "failed": 0}
    ]
    (row,) = json.loads(first("usage", "--by", "project", "--project", "climate", "--json").stdout)
    assert row["requests"] == 1
    assert "scope" in first("usage", "--node-hours", status=1).stderr
