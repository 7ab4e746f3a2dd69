"""The pilot: our one process in a job. It starts and stops engines and carries their traffic.

It needs nobody to start or to stop: its first replicas are in its file, and it leaves by itself when its job is about
to end or when no gateway was heard for long. Its engines die with it, whatever it dies of.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from firstkit.clock import monotonic
from firstkit.engines.engine import ReplicaSpec
from firstkit.errors import CallFailed
from firstkit.heap import bound_heap
from firstkit.links.messages import (
    END_MARGIN_S,
    Call,
    Exchange,
    Open,
    Outcome,
    PilotReport,
    PilotSpec,
    Sink,
    Tail,
    end_margin_s,
)
from firstkit.links.pilot_end import PilotLink
from firstkit.onsite import logfile
from firstkit.onsite.allotment import Share
from firstkit.onsite.job import ADDRESS_FILE, PILOT_FILE, read_job
from firstkit.onsite.nodes import hosts_of
from firstkit.onsite.replicas import Replicas
from firstkit.onsite.staging import Staging
from firstkit.onsite.supervise import Surroundings
from firstkit.schedulers.records import write_file
from firstkit.wire import WireError, decode, from_dict

logger = logging.getLogger("firstkit.pilot")

DRAIN_S = 7.0
"""How long requests may go on when we are told to leave. With STOP_S within the 10 s after which schedulers kill."""
STOP_S = 2.0
TRAFFIC_REPORT_S = 5.0
GRACE_S = 30.0
LOG_LINES, LOG_BYTES = 1000, 64 * 1024


class Pilot:
    """The service of one job; made in the running loop. ``ends_at``: seconds since 1970; None: no end is known."""

    def __init__(self, spec: PilotSpec, total: Share, env: Mapping[str, str], ends_at: Optional[float] = None) -> None:
        self._spec = spec
        self._set_end(ends_at)
        self._staging = Staging(spec.scratch, spec.job_id, env)
        around = Surroundings(
            os.path.abspath("replicas"), env, self._changed, self._traffic_changed,
            hosts=hosts_of(env), interface=spec.interface, staging=self._staging,
        )  # fmt: skip
        self._replicas = Replicas(total, around)
        self._link = PilotLink(spec, self, on_address=_write_address)
        self._leave = asyncio.Event()
        self._end_moved = asyncio.Event()
        self._drain_s = DRAIN_S
        self._traffic_timer: Optional[asyncio.TimerHandle] = None

    async def run(self) -> None:
        """Serve until it is time to leave; then finish what is under way, stop all engines, and return."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.leave, f"got {number.name}", DRAIN_S)
        for replica in self._spec.replicas:
            self._replicas.start_or_report(replica)
        dialling = loop.create_task(self._link.run())
        dialling.add_done_callback(lambda _: self.leave("the link ended", DRAIN_S))
        await self._until_leaving()
        await self._replicas.stop_all(self._drain_s, STOP_S)
        self._link.push_report()
        await asyncio.sleep(0)
        self._link.close()
        await dialling
        await self._staging.close()

    def leave(self, reason: str, drain_s: float) -> None:
        """Begin to end; requests under way may go on for ``drain_s`` seconds. Once is enough."""
        if not self._leave.is_set():
            logger.info("this pilot is leaving: %s", reason, extra={"action": "pilot_leaves"})
            self._drain_s = drain_s
            self._leave.set()

    # -- PilotService ------------------------------------------------------------------------------------------

    def open(self, request: Open, body: bytes, sink: Sink) -> Exchange:
        exchange = self._replicas.open(request, body, sink)
        if exchange is not None:
            return exchange
        tail = Tail(Outcome.FAILED, error="replica not ready")
        asyncio.get_running_loop().call_soon(sink.on_tail, tail)
        return _NoExchange()

    async def call(self, call: Call) -> Any:
        """Do what the gateway asks; raises CallFailed."""
        args = call.args
        if call.verb == "status":
            return self.report()
        if call.verb == "start":
            return self._start(args)
        if call.verb == "drain":
            return self._replicas.drain(_text(args, "replica_id"))
        if call.verb == "stop":
            return self._replicas.stop(_text(args, "replica_id"), _number(args, "grace_s", GRACE_S))
        if call.verb == "log":
            path = self._replicas.log_path(_text(args, "replica_id"))
            lines = min(LOG_LINES, max(1, int(_number(args, "lines", 100))))
            return logfile.read_end(path, lines, LOG_BYTES)
        if call.verb == "end":
            return self._ends_at_now(_number(args, "ends_at", 0.0, most=1e11))
        if call.verb == "exit":
            return self.leave("a gateway asked for it", DRAIN_S)
        raise CallFailed(f"A pilot has no verb '{call.verb}'.")

    def over(self) -> None:
        self.leave("its job is over in the gateway's books", DRAIN_S)

    def report(self) -> PilotReport:
        free = Share() if self._leave.is_set() else self._replicas.free
        return PilotReport(
            job_id=self._spec.job_id,
            replicas=self._replicas.reports(),
            free_cpus=len(free.cpus),
            free_gpus=len(free.gpus),
            free_memory_bytes=free.memory_bytes,
            ends_at=self._ends_at,
        )

    # -- inside ------------------------------------------------------------------------------------------------

    def _set_end(self, ends_at: Optional[float]) -> None:
        self._ends_at = ends_at
        self._margin_s = _margin(ends_at)
        # Monotonic: a step of the wall clock must not end a job.
        self._leave_at = None if ends_at is None else monotonic() + ends_at - time.time() - self._margin_s

    def _ends_at_now(self, ends_at: float) -> None:
        """The scheduler has moved the end of our job."""
        self._set_end(ends_at)
        self._end_moved.set()
        self._link.push_report()

    def _start(self, args: Mapping[str, Any]) -> None:
        if self._leave.is_set():
            raise CallFailed("This pilot is leaving; it starts nothing any more.")
        try:
            spec = from_dict(ReplicaSpec, args.get("replica"), "replica")
        except WireError as exc:
            raise CallFailed(str(exc)) from exc
        self._replicas.start(spec)

    def _changed(self) -> None:
        self._replicas.settle()
        self._link.push_report()
        if self._replicas.has_spread:
            self.leave("its replica of several nodes has ended", 0.0)

    def _traffic_changed(self) -> None:
        """Reports carry the number of requests; it alone is worth one every few seconds, not one per request."""
        if self._traffic_timer is None:
            loop = asyncio.get_running_loop()
            self._traffic_timer = loop.call_later(TRAFFIC_REPORT_S, self._report_traffic)

    def _report_traffic(self) -> None:
        self._traffic_timer = None
        self._link.push_report()

    async def _until_leaving(self) -> None:
        while not self._leave.is_set():
            serve_s, orphan_s = self._left_s()
            if serve_s <= 0:
                self.leave("its job is about to end", self._margin_s * 2 / 3)
            elif orphan_s <= 0:
                self.leave(f"no gateway for {self._link.silent_s():.0f} s", DRAIN_S)
            else:
                await self._wait(min(serve_s, orphan_s))

    async def _wait(self, timeout_s: float) -> None:
        """Until we shall leave, the end of our job has moved, or the time is over."""
        events = [asyncio.ensure_future(event.wait()) for event in (self._leave, self._end_moved)]
        await asyncio.wait(
            events, timeout=None if timeout_s == float("inf") else timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        for event in events:
            event.cancel()
        self._end_moved.clear()

    def _left_s(self) -> tuple[float, float]:
        """Seconds until the job is about to end, and until we count as forgotten."""
        serve_s = float("inf") if self._leave_at is None else self._leave_at - monotonic()
        silent_s = 0.0 if self._link.is_up else self._link.silent_s()
        return serve_s, self._spec.orphan_timeout_s - silent_s


class _NoExchange:
    """A request that was over before it began."""

    def cancel(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


def main(argv: Sequence[str]) -> int:
    """``FOLDER``: be the pilot of the job in this folder until it is over; returns the exit status."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    if len(argv) != 1:
        sys.stderr.write("usage: first-onsite pilot FOLDER\n")
        return 2
    try:
        os.chdir(argv[0])
        with open(PILOT_FILE, "rb") as file:
            spec = decode(PilotSpec, file.read())
    except (OSError, WireError) as exc:
        logger.error("this job cannot be served: %s", exc, extra={"action": "pilot_refused"})  # noqa: TRY400
        return 2
    os.umask(0o077)
    bound_heap()
    loop = _new_loop()
    try:
        loop.run_until_complete(_serve(spec, os.environ))
    finally:
        loop.close()
    return 0


async def _serve(spec: PilotSpec, env: Mapping[str, str]) -> None:
    job = read_job(env)
    await Pilot(spec, job.total, {**env, **job.env}, job.ends_at).run()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _margin(ends_at: Optional[float]) -> float:
    return END_MARGIN_S if ends_at is None else end_margin_s(ends_at - time.time())


def _write_address(address: str) -> None:
    write_file(ADDRESS_FILE, address.encode())


def _text(args: Mapping[str, Any], name: str) -> str:
    value = args.get(name)
    if not isinstance(value, str):
        raise CallFailed(f"{name}: text is needed.")
    return value


def _number(args: Mapping[str, Any], name: str, default: float, most: float = 1e9) -> float:
    value = args.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < most:
        raise CallFailed(f"{name}: a number from 0 on is needed.")
    return value
