"""What frames cost at both ends of a link: CPU time per frame and per message, the best of several rounds.

python bench/frames.py              # prints a table; needs make install
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, cast

import uvloop

from figures import report
from firstkit.links.frames import MAX_PAYLOAD, TAKEN, Decoder, FrameType, frame
from firstkit.links.gateway_end import GatewayLink
from firstkit.links.kept import COUNT
from firstkit.links.messages import Head, LinkSpec, Open, Outcome, PilotSpec, Tail, Usage
from firstkit.links.pilot_end import PilotLink
from firstkit.links.pilot_session import PilotSession
from firstkit.wire import decode, encode

ROUNDS = 25
STREAMS = 50
TOKEN = b"data: " + bytes(200 - 8) + b"\n\n"
BODY = bytes(32 * 1024 * 1024)
READ_BYTES = 256_000
REQUEST = Open(
    "rep-0123456789abcdef",
    "POST",
    "/v1/chat/completions",
    0,
    {"content-type": "application/json", "x-request-id": "req-0123456789abcdef"},
    stream=True,
    hide_usage=True,
)
TAIL = Tail(Outcome.COMPLETE, Usage(123, 456), None, 0.1234567, 0.02345678, 4.56789)
HEAD, TAIL_BYTES = encode(Head(200)), encode(TAIL)


def cpu_us(work: Callable[[], object], times: int, per: int = 1) -> float:
    """CPU microseconds of one of the ``per`` things that ``work()`` does, the best of ROUNDS."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(times):
            work()
        best = min(best, (time.process_time() - started) / times / per)
    return best * 1e6


class Wire:
    """A transport that takes everything and keeps nothing."""

    def write(self, data: bytes) -> None: ...

    def writelines(self, parts: Any) -> None:
        for _ in parts:
            pass

    def close(self) -> None: ...

    abort = close

    def set_write_buffer_limits(self, high: int) -> None: ...

    def set_protocol(self, protocol: object) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0


class Owner:
    def on_report(self, *_: object) -> None: ...

    on_up = on_down = on_lost = on_report


class Ends:
    """Both sink and exchange and service: all that a link talks to."""

    def __init__(self) -> None:
        self.sinks: list[Any] = []

    def open(self, request: Open, body: bytes, sink: Any) -> Ends:  # noqa: ARG002 - a service's
        self.sinks.append(sink)
        return self

    def report(self) -> None: ...

    def pause(self) -> None: ...

    resume = cancel = pause

    def on_head(self, head: Head) -> None: ...

    def on_data(self, data: bytes) -> None: ...

    def on_tail(self, tail: Tail) -> None: ...


async def gateway(resume_s: float = 10.0) -> GatewayLink:
    """The gateway's end, with STREAMS requests that are being answered."""
    link, ends = GatewayLink(cast(Any, Owner()), "job-1", "session", resume_s=resume_s), Ends()
    link.attach(cast(Any, Wire()))
    for number in range(1, STREAMS + 1):
        link.open(REQUEST, b"", ends)
        link.data_received(frame(FrameType.HEAD, number, encode(Head(200))))
    return link


async def pilot(resume_s: float = 10.0) -> tuple[PilotSession, list[Any]]:
    """The pilot's end, and the sinks of STREAMS requests there."""
    ends = Ends()
    link = PilotLink(PilotSpec("job-1", "here", LinkSpec(path="-"), "token"), cast(Any, ends))
    session = PilotSession(link, "session", 5.0, 15.0, resume_s)
    session.attach(cast(Any, Wire()))
    for number in range(1, STREAMS + 1):
        session.data_received(frame(FrameType.OPEN, number, encode(REQUEST)))
        ends.sinks[-1].on_head(Head(200))
    return session, ends.sinks


async def receiving() -> None:
    link = await gateway()
    data = b"".join(frame(FrameType.DATA, number, TOKEN) for number in range(1, STREAMS + 1))
    one = frame(FrameType.DATA, 1, TOKEN)
    report("gateway: a frame in, 50 a read", cpu_us(lambda: link.data_received(data), 200, STREAMS), "us", 1.0)
    report("gateway: a frame in, 1 a read", cpu_us(lambda: link.data_received(one), 5000), "us", 2.0)
    link.hang_up()


async def sending(resume_s: float) -> None:
    connection, sinks = await pilot(resume_s)
    writes = 100
    taken = TAKEN.pack(writes * len(TOKEN))
    resumes = b"".join(frame(FrameType.RESUME, number, taken) for number in range(1, STREAMS + 1))

    def send() -> None:
        for _ in range(writes):
            for sink in sinks:
                sink.on_data(TOKEN)
            connection._flush()
        has = b"" if connection._kept is None else frame(FrameType.PING, 0, COUNT.pack(connection._kept.sent))
        connection.data_received(resumes + has)

    name = "50 a write" if resume_s else "50 a write, on a socket"
    report(f"pilot: a frame out, {name}", cpu_us(send, 2, writes * STREAMS), "us", 1.5)
    connection.hang_up()


async def requests() -> None:
    link, ends, body = await gateway(), Ends(), bytes(2000)
    request = dataclasses.replace(REQUEST, body_bytes=len(body))
    number = STREAMS

    def ask() -> None:
        nonlocal number
        number += 1
        link.open(request, body, ends)
        link.data_received(frame(FrameType.HEAD, number, HEAD) + frame(FrameType.TAIL, number, TAIL_BYTES))
        if number % STREAMS == 0:
            link._flush()

    report("gateway: a request, without its data", cpu_us(ask, 500), "us", 45)
    link.hang_up()


def messages() -> None:
    opening = encode(REQUEST)
    report("gateway: Open to bytes", cpu_us(lambda: encode(REQUEST), 2000), "us", 10)
    report("gateway: Head from bytes", cpu_us(lambda: decode(Head, HEAD), 2000), "us", 5)
    report("gateway: Tail from bytes", cpu_us(lambda: decode(Tail, TAIL_BYTES), 2000), "us", 12)
    report("pilot: Open from bytes", cpu_us(lambda: decode(Open, opening), 2000), "us", 12)
    report("pilot: Tail to bytes", cpu_us(lambda: encode(TAIL), 2000), "us", 12)


def bodies() -> None:
    frames = b"".join(frame(FrameType.BODY, 1, BODY[at : at + MAX_PAYLOAD]) for at in range(0, len(BODY), MAX_PAYLOAD))
    reads = [frames[at : at + READ_BYTES] for at in range(0, len(frames), READ_BYTES)]

    def read() -> list[object]:
        decoder = Decoder()
        return [payload for data in reads for payload in decoder.feed(data)]

    report("pilot: a MiB of a large body in", cpu_us(read, 1, len(BODY) >> 20), "us", 2000)


async def main() -> None:
    await receiving()
    await sending(10.0)
    await sending(0.0)
    await requests()
    messages()
    bodies()


if __name__ == "__main__":
    uvloop.run(main())
