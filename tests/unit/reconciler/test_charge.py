from __future__ import annotations

import getpass
import os
import pwd
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select

from firstkit.config import Cluster
from firstkit.reconciler.books import Books
from firstkit.reconciler.charge import charge_of, user_name
from firstkit.schedulers.scheduler import Resources
from firstkit.store.database import Database
from firstkit.store.jobs import Charge
from firstkit.store.tables import jobs

SSH = {"kind": "ssh", "host": "login", "user": "svc-first", "key_file": "/k", "known_hosts": "/h"}


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({}, Charge(None, user_name())),
        ({"scheduler": {"kind": "slurm", "account": "astro"}}, Charge("astro", user_name())),
        ({"scheduler": {"kind": "slurm"}, "carrier": SSH, "state_dir": "/s"}, Charge(None, "svc-first")),
    ],
)
def test_the_user_is_the_one_that_the_carrier_runs_commands_as(section: dict[str, Any], expected: Charge) -> None:
    assert charge_of(Cluster.model_validate(section)) == expected


def test_the_environment_does_not_say_who_runs_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "somebody-else")
    assert getpass.getuser() == "somebody-else"
    assert user_name() == pwd.getpwuid(os.geteuid()).pw_name


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_123)
    assert user_name() == "4000123"


@pytest.mark.parametrize(("own", "charged"), [("climate", "climate"), (None, "astro")])
async def test_the_row_of_a_job_keeps_whom_the_scheduler_charges(db: Database, own: str | None, charged: str) -> None:
    books = Books(db, "here", lambda: datetime(2026, 11, 24, tzinfo=UTC))
    await books.add_job("job-a", "here", Resources(account=own), "digest", [], Charge("astro", "svc-first"))
    async with db.read() as conn:
        row = (await conn.execute(select(jobs.c.account, jobs.c.submit_as))).one()
    assert tuple(row) == (charged, "svc-first")
