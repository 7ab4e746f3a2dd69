from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from firstkit.gateway.state import Gateway
from firstkit.store.database import Database
from unit.gateway.support import Served, made, serving


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with all tables, to be copied: making one takes a third of a second."""
    path = tmp_path_factory.mktemp("database") / "first.db"

    async def make() -> None:
        await (await Database.open(f"sqlite:///{path}")).close()

    asyncio.run(make())
    return path


@pytest.fixture
async def gateway(folder: Path, empty_database: Path) -> AsyncIterator[Gateway]:
    shutil.copy(empty_database, folder / "first.db")
    async for gateway in made(folder):
        yield gateway


@pytest.fixture
async def served(folder: Path) -> Served:
    return serving(folder)
