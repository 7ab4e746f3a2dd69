from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, CheckConstraint, Column, Connection, delete, func, insert, inspect, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import QueuePool

import postgresql
from firstkit.clock import now
from firstkit.errors import ConfigError, StoreUnavailable
from firstkit.store import database, schema
from firstkit.store.database import Database
from firstkit.store.tables import members, metadata, observations, projects, users


def _project(name: str) -> dict[str, object]:
    return {"id": f"project-{name}", "name": name, "created_at": now()}


async def _count(db: Database) -> int:
    async with db.read() as conn:
        return int(await conn.scalar(select(func.count()).select_from(projects)) or 0)


async def _run(code: str, database_url: str) -> str:
    """What ``code`` prints in a process of its own, ``run()`` being what it does with the database."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", f"{code}\nasyncio.run(run())", database_url, stdout=subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    return output.decode()


OPEN = """
import asyncio, sys
from firstkit.store.database import Database
async def run():
    await (await Database.open(sys.argv[1])).close()
    print("alembic" in sys.modules)
"""


async def test_whoever_leaves_while_a_connection_is_opened_leaves_it_to_the_others(tmp_path: Path) -> None:
    db = await Database.open(f"sqlite:///{tmp_path}/first.db")
    for turns in range(1, 6):
        await db._engine.dispose()
        pool = cast(QueuePool, db._engine.sync_engine.pool)
        counting = asyncio.ensure_future(_count(db))
        for _ in range(turns):
            await asyncio.sleep(0)
        counting.cancel()
        await asyncio.wait([counting])
        assert counting.cancelled()
        assert (pool.checkedin(), pool.checkedout()) == (1, 0), turns
    assert await _count(db) == 0
    await db.close()


async def test_a_writer_who_is_cancelled_keeps_no_lock(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    """Whenever it happens, and though somebody keeps the error, and by its traceback all that was in use."""

    async def write() -> None:
        for number in count():
            async with db.begin() as conn:
                await conn.execute(insert(projects), [_project(f"{number}-{row}") for row in range(3)])

    left, chance = [], random.Random(1)
    for _ in range(60):
        writing = asyncio.ensure_future(write())
        await asyncio.sleep(chance.random() / 50)
        writing.cancel()
        left.append(writing)
        await asyncio.wait([writing])
        async with db.begin() as conn:
            await conn.execute(delete(projects))
    assert all(writing.cancelled() for writing in left)
    assert not caplog.records


async def test_it_is_closed_after_the_transactions_that_are_under_way(db: Database) -> None:
    done = asyncio.Event()

    async def use() -> None:
        async with db.read() as conn:
            await conn.scalar(text("SELECT 1"))
            await done.wait()

    using = asyncio.ensure_future(use())
    pool = cast(QueuePool, db._engine.sync_engine.pool)
    while not pool.checkedout():
        await asyncio.sleep(0)
    closing = asyncio.ensure_future(db.close())
    await asyncio.sleep(0.05)
    assert not closing.done()
    done.set()
    await asyncio.gather(using, closing)
    assert (pool.checkedin(), pool.checkedout()) == (0, 0)


async def test_commits_at_the_end_and_rolls_back_on_errors(db: Database) -> None:
    async with db.begin() as conn:
        await conn.execute(insert(projects).values(_project("kept")))
    with pytest.raises(IntegrityError):
        async with db.begin() as conn:
            await conn.execute(insert(projects).values([_project("undone"), _project("kept")]))
    assert await _count(db) == 1


async def test_times_come_back_aware_and_equal(db: Database) -> None:
    row = _project("p")
    async with db.begin() as conn:
        await conn.execute(insert(projects).values(row))
    async with db.read() as conn:
        assert await conn.scalar(select(projects.c.created_at)) == row["created_at"]


async def test_breaches_of_the_rules_pass_through(db: Database) -> None:
    async with db.begin() as conn:
        await conn.execute(insert(projects).values(_project("p")))
    with pytest.raises(IntegrityError):
        async with db.begin() as conn:
            await conn.execute(insert(projects).values(_project("p")))


async def test_parameters_stay_out_of_errors(db: Database) -> None:
    async with db.begin() as conn:
        await conn.execute(insert(projects).values(_project("canary")))
    with pytest.raises(IntegrityError) as caught:
        async with db.begin() as conn:
            await conn.execute(insert(projects).values(_project("canary")))
    assert "canary" not in str(caught.value).replace("(name)=(canary)", "").replace("(id)=(project-canary)", "")


async def test_writers_wait_for_each_other(db: Database) -> None:
    async def write(number: int) -> None:
        async with db.begin() as conn:
            known = await conn.scalar(select(func.count()).select_from(projects))
            await conn.execute(insert(projects).values(_project(f"{number}-{known}")))

    await asyncio.gather(*(write(number) for number in range(40)))
    assert await _count(db) == 40


async def test_opens_again_without_alembic(database_url: str) -> None:
    await (await Database.open(database_url)).close()
    assert (await _run(OPEN, database_url)).strip() == "False"


async def test_many_first_opens_at_once(database_url: str) -> None:
    await asyncio.gather(*(_run(OPEN, database_url) for _ in range(4)))


async def test_a_newer_schema_is_refused(database_url: str) -> None:
    db = await Database.open(database_url)
    async with db.begin() as conn:
        await conn.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await db.close()
    with pytest.raises(ConfigError, match="newer"):
        await Database.open(database_url)


async def test_without_migration_an_empty_database_is_refused(database_url: str) -> None:
    with pytest.raises(ConfigError, match="first serve"):
        await Database.open(database_url, migrate=False)


async def test_migrated_schema_is_that_of_the_tables(db: Database) -> None:
    await _check_schema(db)


async def _check_schema(db: Database) -> None:
    async with db.begin() as conn:
        assert await conn.run_sync(_differences) == []
        assert await conn.run_sync(_checks) == {
            name: {
                f"ck_{name}_{str(rule.name).removeprefix(f'ck_{name}_')}"
                for rule in table.constraints
                if isinstance(rule, CheckConstraint)
            }
            for name, table in metadata.tables.items()
        }
        assert await conn.run_sync(_keys) == {
            name: [column.name for column in table.primary_key] for name, table in metadata.tables.items()
        }


async def test_the_last_version_can_be_left_and_reached_again(db: Database) -> None:
    """What was there before it is there afterwards, and so are the rules."""
    user = {"id": "u", "name": "ada", "is_admin": False, "created_at": now(), "roles": ["operator"]}
    member = {"user_id": "u", "project_id": "p", "role": "member", "created_at": now()}
    async with db.begin() as conn:
        await conn.execute(insert(users).values(user))
        await conn.execute(insert(projects).values(id="p", name="climate", description="", created_at=now()))
        await conn.execute(insert(members).values(member))
        wait = {"kind": "queue_wait", "subject": "here", "seconds": 60.0, "forecast_s": 50.0, "at": now()}
        await conn.execute(insert(observations).values(**wait, shape="nodes=1 gpus=0 walltime=any", late_s=90.0))
        for version in (schema.VERSIONS[-2], "0003"):
            await conn.run_sync(_downgrade, version)
            assert await schema.stored_version(conn) == version
            await schema.migrate(conn)
        seen = (await conn.execute(select(observations))).mappings().one()
        assert {key: seen[key] for key in (*wait, "shape", "late_s")} == {**wait, "shape": "", "late_s": None}
        found = (await conn.execute(select(users))).mappings().one()
        assert {key: found[key] for key in user} == {**user, "roles": []}
        assert (await conn.execute(select(members.c.role))).scalar_one() == "member"
    await _check_schema(db)


def _downgrade(connection: Connection, version: str) -> None:
    command.downgrade(schema.alembic_config(connection), version)


def _differences(connection: Connection) -> list[object]:
    options = {"compare_type": True, "compare_server_default": _is_json}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


def _is_json(_context: object, _inspected: object, column: Column[object], *_: object) -> bool | None:
    """PostgreSQL cannot compare the default of such a column with another: it is taken for the same."""
    return False if isinstance(column.type, JSON) else None


def _checks(connection: Connection) -> dict[str, set[str]]:
    """The names of the CHECKs of each table, which Alembic does not compare."""
    found = inspect(connection)
    return {name: {str(check["name"]) for check in found.get_check_constraints(name)} for name in metadata.tables}


def _keys(connection: Connection) -> dict[str, list[str]]:
    """The columns of the primary key of each table, which Alembic does not compare either."""
    found = inspect(connection)
    return {name: found.get_pk_constraint(name)["constrained_columns"] for name in metadata.tables}


def test_versions_are_those_of_the_files() -> None:
    scripts = ScriptDirectory.from_config(schema.alembic_config())
    assert [script.revision for script in scripts.walk_revisions()][::-1] == list(schema.VERSIONS)
    assert scripts.get_current_head() == schema.HEAD


# -- SQLite ------------------------------------------------------------------------------------------------------


@pytest.fixture
def sqlite_path(database_url: str) -> Path:
    if not database_url.startswith("sqlite"):
        pytest.skip("about SQLite")
    return Path(urlsplit(database_url).path)


async def test_only_the_owner_may_read_the_files(sqlite_path: Path, db: Database) -> None:
    async with db.begin() as conn:
        await conn.execute(insert(projects).values(_project("p")))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in sqlite_path.parent.iterdir()}
    assert {"first.db", "first.db-wal"} <= modes.keys()
    assert set(modes.values()) == {0o600}


async def test_every_commit_is_synced(sqlite_path: Path, db: Database) -> None:
    async with db.read() as conn:
        pragmas = [
            await conn.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert pragmas == ["wal", 2, 1]


async def test_a_lock_held_too_long_is_unavailability(
    sqlite_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "WAIT_S", 0.2)
    db = await Database.open(database_url)
    other = sqlite3.connect(sqlite_path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable):
        async with db.begin():
            pass
    assert await _count(db) == 0  # readers do not wait for writers
    other.rollback()
    other.close()
    async with db.begin() as conn:
        await conn.execute(insert(projects).values(_project("p")))
    await db.close()


async def test_a_nested_writer_does_not_hang(sqlite_path: Path, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WAIT_S", 0.1)
    async with db.begin():
        with pytest.raises(StoreUnavailable):
            async with db.begin():
                pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_folder_that_may_not_be_written(sqlite_path: Path) -> None:
    sqlite_path.parent.chmod(0o500)
    with pytest.raises(ConfigError, match="Permission denied"):
        await Database.open(f"sqlite:///{sqlite_path}")
    sqlite_path.parent.chmod(0o700)


async def test_a_full_disk_is_unavailability_and_loses_nothing(sqlite_path: Path, database_url: str) -> None:
    """In a process of its own, with a limit on the size of files for a disk that is full."""
    code = """
import asyncio, resource, signal, sys
from sqlalchemy import insert
from firstkit.clock import now
from firstkit.errors import StoreUnavailable
from firstkit.store.database import Database
from firstkit.store.tables import projects
async def run():
    db = await Database.open(sys.argv[1])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))
    done = 0
    while True:
        try:
            async with db.begin() as conn:
                row = {"id": str(done), "name": str(done), "description": "x" * 20_000, "created_at": now()}
                await conn.execute(insert(projects).values(row))
        except StoreUnavailable:
            break
        done += 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    async with db.begin() as conn:
        await conn.execute(insert(projects).values({"id": "z", "name": "z", "created_at": now()}))
    await db.close()
    print(done + 1)
"""
    done = int(await _run(code, database_url))
    db = await Database.open(database_url)
    assert await _count(db) == done > 1
    await db.close()


# -- PostgreSQL --------------------------------------------------------------------------------------------------


@pytest.fixture
def server(request: pytest.FixtureRequest) -> postgresql.Server:
    if request.config.getoption("--database") != "postgresql":
        pytest.skip("about PostgreSQL")
    found: postgresql.Server = request.getfixturevalue("postgresql_server")
    return found


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
async def test_a_server_that_goes_and_comes_back(server: postgresql.Server, db: Database, how: int) -> None:
    async with db.begin() as conn:
        await conn.execute(insert(projects).values(_project("before")))
    server.kill(how)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await _count(db)
    server.start()
    assert await _count(db) == 1


async def test_a_server_that_goes_in_the_middle(server: postgresql.Server, db: Database) -> None:
    async def write() -> None:
        async with db.begin() as conn:
            await conn.execute(insert(projects).values(_project("undone")))
            server.kill()
            await conn.execute(insert(projects).values(_project("never")))

    with pytest.raises(StoreUnavailable):
        await write()
    server.start()
    assert await _count(db) == 0


async def test_an_unknown_database_is_a_fault_of_the_configuration(server: postgresql.Server) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        await Database.open(f"postgresql://first:canary-pw@/nowhere?host={server.folder}")


async def test_nobody_answers() -> None:
    with pytest.raises(StoreUnavailable):
        await Database.open("postgresql://first@127.0.0.1:9/first")
