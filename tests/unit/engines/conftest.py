from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import uvloop


def pytest_asyncio_loop_factories(config, item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """A gateway runs on uvloop, a pilot on whatever its Python has."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
