"""Fake engines on ports of their own, in one thread of this process: tests look at what they remember."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from firstkit.testing.fake_engine import BEHAVIOURS, parse
from firstkit.testing.quick_engine import QuickEngine
from firstkit.testing.tiny_http import Connection, Request, serve

T = TypeVar("T")


class Background:
    """Use as a context manager; all engines end with it.

    Their numbers may be read from any thread. Nothing else of them may be touched while requests are under way.
    """

    def __init__(self) -> None:
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake engines")

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def add(self, behaviour: str = "QuickEngine", **options: object) -> tuple[QuickEngine, str]:
        """Start an engine; returns it and its base URL. Options as of ``firstkit.testing.fake_engine``."""
        argv = ["--behaviour", behaviour, "--port", "0", "--load-delay", "0"]
        for name, value in options.items():
            argv += [f"--{name.replace('_', '-')}", str(value)]
        engine = BEHAVIOURS[behaviour](parse(argv))
        return engine, self.serve(engine.handle)

    def serve(self, handle: Callable[[Request, Connection], Awaitable[None]]) -> str:
        """Have ``handle`` answer on a port of its own; returns the base URL."""
        server = self._run(serve(handle, None, 0))
        self._servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        own = asyncio.current_task()
        left = [task for task in asyncio.all_tasks() if task is not own]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
