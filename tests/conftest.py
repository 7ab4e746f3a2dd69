"""The database of a test: a fresh SQLite file, or with ``--database postgresql`` a fresh PostgreSQL database."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import postgresql
from firstkit.store.database import Database


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--database",
        choices=["sqlite", "postgresql"],
        default=os.environ.get("FIRST_TEST_DATABASE", "sqlite"),
        help="what the tests that need a database run on (default: FIRST_TEST_DATABASE, else sqlite)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On PostgreSQL only what uses a database is run: the rest would be the same again."""
    if config.getoption("--database") != "postgresql":
        return
    others = [item for item in items if "database_url" not in getattr(item, "fixturenames", ())]
    items[:] = [item for item in items if "database_url" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=others)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[postgresql.Server]:
    try:
        server = postgresql.Server()
    except postgresql.Missing as exc:
        if os.environ.get("CI") == "true":
            pytest.fail(str(exc))
        pytest.skip(str(exc))
    yield server
    server.stop()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: the names of UNIX sockets are limited."""
    path = tempfile.mkdtemp(prefix="first-", dir="/tmp")
    yield Path(path)
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database with all tables, to be copied: making one takes a tenth of a second."""
    path = tmp_path_factory.mktemp("database") / "first.db"
    asyncio.run(_migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture(scope="session")
def empty_postgresql(postgresql_server: postgresql.Server) -> str:
    """The same of PostgreSQL, by its name."""
    url = postgresql_server.create()
    asyncio.run(_migrate(url))
    return postgresql.name_of(url)


async def _migrate(url: str) -> None:
    await (await Database.open(url)).close()


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a database that does not exist (SQLite) or is empty (PostgreSQL); with all tables for tests that have
    it as ``db``, too."""
    has_tables = "db" in request.fixturenames
    if request.config.getoption("--database") == "postgresql":
        server: postgresql.Server = request.getfixturevalue("postgresql_server")
        url = server.create(request.getfixturevalue("empty_postgresql") if has_tables else None)
        yield url
        server.drop(url)
        return
    path = request.getfixturevalue("folder") / "first.db"
    if has_tables:
        shutil.copy(request.getfixturevalue("empty_database"), path)
    yield f"sqlite:///{path}"


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    """An open database with all tables."""
    database = await Database.open(database_url)
    yield database
    await database.close()
