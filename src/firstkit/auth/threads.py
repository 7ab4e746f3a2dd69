"""Threads for libraries that hold up whoever calls them: few, and never more waiting for them than is said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from firstkit.errors import ProviderUnavailable

T = TypeVar("T")


class Threads:
    """At most ``threads`` calls run at a time, and at most ``most`` run or wait. For one event loop.

    A call that takes too long keeps its thread until it ends, so that calls which hang for ever would use up all
    threads: whoever uses these gives each call a limit of its own.
    """

    def __init__(self, name: str, threads: int, most: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._free = asyncio.Semaphore(threads)
        self._most = most
        self._running: set[asyncio.Future[Any]] = set()
        self.under_way = 0
        """Calls that run or wait, of callers that are still there."""

    async def run(self, work: Callable[[], T], limit_s: float) -> T:
        """What ``work`` returns or raises. Raises ProviderUnavailable: at once where too many wait, else after
        ``limit_s``, or when the threads are closed."""
        if self.under_way >= self._most:
            raise ProviderUnavailable
        self.under_way += 1
        try:
            async with asyncio.timeout(limit_s):
                await self._free.acquire()
                call = self._start(work)
                await asyncio.wait((call,))
        except TimeoutError:
            raise ProviderUnavailable from None
        finally:
            self.under_way -= 1
        if call.cancelled():
            raise ProviderUnavailable
        return call.result()

    def close(self) -> None:
        """Start nothing more, and wait for nothing."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for call in list(self._running):
            call.cancel()

    def _start(self, work: Callable[[], T]) -> asyncio.Future[T]:
        try:
            call = asyncio.get_running_loop().run_in_executor(self._pool, work)
        except RuntimeError:  # closed meanwhile
            self._free.release()
            raise ProviderUnavailable from None
        self._running.add(call)
        call.add_done_callback(self._ended)
        return call

    def _ended(self, call: asyncio.Future[Any]) -> None:
        self._running.discard(call)
        self._free.release()
        if not call.cancelled():
            call.exception()  # its caller may have left: then nobody else would look at it
