from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from firstkit.gateway.state import Gateway
from unit.gateway.support import made


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: the names of UNIX sockets are limited."""
    path = tempfile.mkdtemp(prefix="first-", dir="/tmp")
    yield Path(path)
    shutil.rmtree(path)


@pytest.fixture
async def gateway(folder: Path) -> AsyncIterator[Gateway]:
    async for gateway in made(folder):
        yield gateway
