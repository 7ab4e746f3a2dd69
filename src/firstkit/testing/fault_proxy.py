"""A TCP proxy with faults, to stand between two ends: a pilot and its gateway, a client, a database.

It can cut connections, refuse new ones, hold or swallow what goes either way, delay it, cap its rate, and cut after so
many bytes. Use ``FaultProxy`` in a running loop, or as a process of its own:

    python -m firstkit.testing.fault_proxy TARGET [LISTEN]

It prints the address at which it listens, then obeys lines on stdin: ``cut``, ``refuse on|off``, ``hold|swallow
up|down|both|none``, ``delay SECONDS``, ``rate BYTES_PER_SECOND``, ``cut-after BYTES``. Up is towards the target.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import inf

READ_BYTES = 64 * 1024
_WAYS = {"up": (True, False), "down": (False, True), "both": (True, True), "none": (False, False)}


@dataclass
class Way:
    """What happens to bytes in one direction. All may be changed at any time."""

    passes: asyncio.Event = field(default_factory=asyncio.Event)
    """While it is not set, nothing passes and nothing is lost: a partition that heals."""
    swallows: bool = False
    """What comes is lost, and with it the connection, once it would be missed."""
    passed: int = 0
    """Bytes that went through."""
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    """Nothing is swallowed any more."""


@dataclass
class FaultProxy:
    """A proxy to ``target`` (``host:port``). What is read at once, up to READ_BYTES, waits for ``delay_s``; ``rate`` is
    in bytes a second. Both count for each direction of each connection."""

    target: str
    delay_s: float = 0.0
    rate: float = inf
    cut_after: float = inf
    """When so many bytes more have passed, in both directions, all connections are cut; once."""
    refuses: bool = False
    up: Way = field(default_factory=Way)
    down: Way = field(default_factory=Way)
    address: str = ""
    accepted: int = 0
    _open: set[_Pair] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _server: asyncio.Server | None = None

    @asynccontextmanager
    async def listening(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[FaultProxy]:
        """Serve for as long as the context lasts; ``address`` is where."""
        self.hold(False, False)
        self._server = await asyncio.start_server(self._begin, host, port)
        self.address = f"{host}:{self._server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            self._server.close()
            self.hold(False, False)
            self.swallow(False, False)
            self.cut()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset all connections, both ends of each."""
        for pair in list(self._open):
            pair.cut()

    def hold(self, up: bool, down: bool) -> None:
        """Let nothing pass in these directions until this is called again; then all of it does."""
        for way, holds in ((self.up, up), (self.down, down)):
            if holds:
                way.passes.clear()
            else:
                way.passes.set()

    def swallow(self, up: bool, down: bool) -> None:
        """Lose all that goes in these directions. Connections that have lost something are cut when this ends."""
        for way, swallows, is_up in ((self.up, up, True), (self.down, down, False)):
            if way.swallows and not swallows:
                for pair in list(self._open):
                    pair.miss(is_up)
            way.swallows = swallows
            if not swallows:
                way.heard.set()

    def count(self, way: Way, size: int) -> None:
        """So much has passed."""
        way.passed += size
        self.cut_after -= size
        if self.cut_after <= 0:
            self.cut_after = inf
            self.cut()

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._accept(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.refuses:
            writer.transport.abort()
            return
        host, _, port = self.target.rpartition(":")
        try:
            there, back = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(writer, back)
        self._open.add(pair)
        try:
            await asyncio.gather(
                self._pump(pair, reader, back, self.up, True), self._pump(pair, there, writer, self.down, False)
            )
        finally:
            self._open.discard(pair)
            pair.cut()

    async def _pump(
        self, pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way, is_up: bool
    ) -> None:
        """Pass on what ``reader`` brings, until its end, which is passed on too."""
        with contextlib.suppress(OSError):
            data = b"-"
            while data and not writer.is_closing():
                data = await reader.read(READ_BYTES)
                await asyncio.sleep(self.delay_s)
                await way.passes.wait()
                if way.swallows:
                    pair.has_lost.add(is_up)
                    await self._not_heard(way, data)
                elif data and not writer.is_closing():
                    writer.write(data)
                    await writer.drain()
                    self.count(way, len(data))
                    await asyncio.sleep(len(data) / self.rate)
            writer.close()

    async def _not_heard(self, way: Way, data: bytes) -> None:
        """The end of a connection is swallowed too: the other side does not hear of it while this lasts."""
        if not data:
            way.heard.clear()
            await way.heard.wait()


@dataclass(eq=False)
class _Pair:
    """One connection: to whoever dialled, and to the target."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    has_lost: set[bool] = field(default_factory=set)

    def cut(self) -> None:
        for writer in (self.near, self.far):
            writer.transport.abort()

    def miss(self, is_up: bool) -> None:
        if is_up in self.has_lost:
            self.cut()


def obey(proxy: FaultProxy, line: str) -> None:
    """Do what one line says; raises ValueError with what is wrong."""
    match line.split():
        case ["cut"]:
            proxy.cut()
        case ["refuse", ("on" | "off") as answer]:
            proxy.refuses = answer == "on"
        case ["hold", way] if way in _WAYS:
            proxy.hold(*_WAYS[way])
        case ["swallow", way] if way in _WAYS:
            proxy.swallow(*_WAYS[way])
        case ["delay", seconds]:
            proxy.delay_s = float(seconds)
        case ["rate", rate]:
            proxy.rate = float(rate)
        case ["cut-after", size]:
            proxy.cut_after = float(size)
        case _:
            raise ValueError(f"'{line.strip()}' is no command of a fault proxy")


async def _serve(target: str, listen: str) -> None:
    host, _, port = listen.rpartition(":")
    loop = asyncio.get_running_loop()
    async with FaultProxy(target).listening(host, int(port)) as proxy:
        print(proxy.address, flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            try:
                obey(proxy, line)
            except ValueError as exc:
                print(exc, file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> int:
    if not 1 <= len(argv) <= 2:
        print("usage: python -m firstkit.testing.fault_proxy TARGET [LISTEN]", file=sys.stderr)
        return 2
    asyncio.run(_serve(argv[0], argv[1] if len(argv) == 2 else "127.0.0.1:0"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
