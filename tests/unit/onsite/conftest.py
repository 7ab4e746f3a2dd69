from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop


def pytest_asyncio_loop_factories(config, item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """A pilot runs on uvloop where its Python has it."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: the names of UNIX sockets are limited."""
    path = tempfile.mkdtemp(prefix="first-", dir="/tmp")
    yield Path(path)
    shutil.rmtree(path)
