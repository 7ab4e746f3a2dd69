"""Waiting for what comes: never for luck, and never for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

LIMIT_S = 45.0
"""Far more than anything takes: where it comes the limit costs nothing, and a machine may be slow."""


async def until(condition: Callable[[], Any], what: str = "the condition") -> None:
    """Wait until ``condition`` holds; fails after LIMIT_S."""
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"waited too long for {what}"
        await asyncio.sleep(0.002)
