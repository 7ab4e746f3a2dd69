from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import uvloop


def pytest_asyncio_loop_factories(config, item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """A pilot runs on uvloop where its Python has it."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
