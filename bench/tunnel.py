"""What a tunnel costs: a burst of 1,000 streams on a fresh one, and CPU time per token at both ends.

    python bench/tunnel.py [--seconds 3]         # prints a table; needs make install

Gateway's end and pilot's end are two processes with TLS between them on the loopback interface. The pilot plays its
engines: each stream gets a token every 20 ms. Each load is measured with links that can resume and with links that
cannot, turn by turn: what resuming costs is the difference.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

from figures import report
from firstkit.links.entrance import Entrance
from firstkit.links.gateway_end import GatewayLink
from firstkit.links.messages import (
    Call,
    Exchange,
    Head,
    Hello,
    LinkSpec,
    Open,
    Outcome,
    PilotReport,
    PilotSpec,
    Sink,
    Tail,
    Usage,
)
from firstkit.links.pilot_end import PilotLink
from firstkit.links.private_ca import PrivateCa
from firstkit.wire import decode, encode

TOKEN = b"data: " + bytes(200 - 8) + b"\n\n"
TOKEN_S = 0.02
BURST = 1000
ROUNDS = 3
RESUME_S = 10.0


# -- the pilot's process -----------------------------------------------------------------------------------------------


class Played(Exchange):
    """One request at a played engine; its path says how many tokens it gets."""

    def __init__(self, request: Open, sink: Sink) -> None:
        self.sink = sink
        self.left = int(request.path[1:])
        self.is_paused = False

    def cancel(self) -> None:
        self.left = 0

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False


class PlayedEngines:
    """The service of the pilot: all streams get their tokens in the same turns of the loop."""

    def __init__(self) -> None:
        self._under_way: list[Played] = []

    def open(self, request: Open, body: bytes, sink: Sink) -> Exchange:  # noqa: ARG002 - a service's
        played = Played(request, sink)
        self._under_way.append(played)
        sink.on_head(Head(200))
        return played

    async def call(self, call: Call) -> float:  # noqa: ARG002 - a service's
        """CPU seconds of this process so far."""
        return time.process_time()

    def report(self) -> PilotReport:
        return PilotReport("job-1")

    def over(self) -> None: ...

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + TOKEN_S, loop.time())
            await asyncio.sleep(due - loop.time())
            for played in self._under_way:
                if played.left and not played.is_paused:
                    played.left -= 1
                    played.sink.on_data(TOKEN)
                    if not played.left:
                        played.sink.on_tail(Tail(Outcome.COMPLETE, Usage(1, 1)))
            self._under_way = [played for played in self._under_way if played.left]


async def be_pilot() -> None:
    spec = decode(PilotSpec, sys.stdin.buffer.read())
    engines = PlayedEngines()
    await asyncio.gather(engines.run(), PilotLink(spec, engines).run())


# -- the gateway's process ---------------------------------------------------------------------------------------------


class Owner:
    """Admits everybody; counts."""

    def __init__(self) -> None:
        self.links: asyncio.Queue[GatewayLink] = asyncio.Queue()
        self.connections = 0

    async def admit(self, hello: Hello) -> None:  # noqa: ARG002 - an owner's
        self.connections += 1

    def on_up(self, link: GatewayLink) -> None: ...

    on_down = on_lost = on_up

    def on_report(self, link: GatewayLink, report: PilotReport) -> None:  # noqa: ARG002 - an owner's
        self.links.put_nowait(link)


class Counting:
    """The sink of one stream."""

    def __init__(self, over: asyncio.Semaphore) -> None:
        self.tokens = 0
        self.first_at = 0.0
        self.outcome: Outcome | None = None
        self._over = over

    def on_head(self, head: Head) -> None: ...

    def on_data(self, data: bytes) -> None:
        self.tokens += data.count(b"\n\n")
        if not self.first_at:
            self.first_at = time.monotonic()

    def on_tail(self, tail: Tail) -> None:
        self.outcome = tail.outcome
        self._over.release()


def start_pilot(spec: PilotSpec) -> subprocess.Popen[bytes]:
    pilot = subprocess.Popen([sys.executable, __file__, "--pilot"], stdin=subprocess.PIPE)
    assert pilot.stdin is not None
    pilot.stdin.write(encode(spec))
    pilot.stdin.close()
    return pilot


@asynccontextmanager
async def tunnel(resume_s: float) -> AsyncIterator[tuple[GatewayLink, Owner]]:
    """A pilot in a process of its own, and the fresh link to it."""
    with tempfile.TemporaryDirectory() as folder:
        ca, owner = PrivateCa(Path(folder)), Owner()
        entrance = Entrance(owner)
        listener = socket.create_server(("127.0.0.1", 0))
        context: ssl.SSLContext = ca.server_context()
        server = await entrance.listen(listener, context, 5.0)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        link = LinkSpec("tunnel", addresses=(address,), ca_pem=ca.certificate_pem, resume_s=resume_s)
        pilot = start_pilot(PilotSpec("job-1", "here", link, "token"))
        try:
            yield await owner.links.get(), owner
        finally:
            pilot.kill()
            pilot.wait()
            entrance.close()
            server.close()


async def ask(link: GatewayLink, streams: int, tokens: int) -> list[Counting]:
    """Open so many streams in one turn of the loop; returns when all are over."""
    over = asyncio.Semaphore(0)
    sinks = [Counting(over) for _ in range(streams)]
    body = bytes(500)
    for sink in sinks:
        link.open(Open("rep-1", "POST", f"/{tokens}", len(body), stream=True), body, sink)
    for _ in sinks:
        await over.acquire()
    return sinks


async def burst() -> None:
    async with tunnel(RESUME_S) as (link, owner):
        started = time.monotonic()
        sinks = await ask(link, BURST, 5)
        failed = sum(sink.outcome is not Outcome.COMPLETE or sink.tokens != 5 for sink in sinks)
        last_s = max(sink.first_at for sink in sinks) - started
        report("1,000 streams at once: failed", failed, "", 0)
        report("1,000 streams at once: connections", owner.connections, "", 1)
        report("1,000 streams at once: last first token", 1e3 * last_s, "ms", 1000)


async def cpu_us(streams: int, seconds: float, resume_s: float) -> tuple[float, float]:
    """CPU microseconds per token of the gateway's end and of the pilot's."""
    async with tunnel(resume_s) as (link, _):
        await ask(link, streams, 10)
        ours, theirs = time.process_time(), await link.call("cpu")
        sinks = await ask(link, streams, int(seconds / TOKEN_S))
        tokens = sum(sink.tokens for sink in sinks)
        return (
            1e6 * (time.process_time() - ours) / tokens,
            1e6 * (await link.call("cpu") - theirs) / tokens,
        )


async def main(seconds: float) -> None:
    await burst()
    for streams, limits in ((256, (3.0, 5.0)), (1000, (2.0, 4.0))):
        best: dict[float, tuple[float, float]] = {}
        for _ in range(ROUNDS):
            for resume_s in (0.0, RESUME_S):
                found: tuple[Any, ...] = await cpu_us(streams, seconds, resume_s)
                best[resume_s] = tuple(map(min, found, best.get(resume_s, found)))  # type: ignore[assignment]
        for resume_s, kind in ((0.0, "cannot resume"), (RESUME_S, "can resume")):
            for end, value, limit in zip(("gateway", "pilot"), best[resume_s], limits, strict=True):
                report(f"{end}: a token, {streams} streams, {kind}", value, "us", limit)


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--pilot", action="store_true", help=argparse.SUPPRESS)
    options.add_argument("--seconds", type=float, default=3.0)
    given = options.parse_args()
    uvloop.run(be_pilot() if given.pilot else main(given.seconds))
