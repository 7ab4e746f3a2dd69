"""The pilot's end of the link: dials the gateway for ever, carries requests and calls to the service it is given."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
from typing import Any, Optional, Protocol

from firstkit import __version__
from firstkit.clock import monotonic
from firstkit.errors import CallFailed
from firstkit.ids import new_secret
from firstkit.links.connection import PING_S, SILENCE_S, Connection, read_message
from firstkit.links.dial import Dial, Unreachable
from firstkit.links.frames import MAX_PAYLOAD, FrameError, FrameType, Stage, Streams
from firstkit.links.messages import (
    PROTOCOL,
    Call,
    Exchange,
    Hello,
    Open,
    PilotReport,
    PilotSpec,
    Refusal,
    Reply,
    Sink,
    speaks,
)
from firstkit.links.pilot_stream import BY_GATEWAY, BY_LINK, Answer
from firstkit.wire import encode, to_dict

logger = logging.getLogger(__name__)

REDIAL_S = (0.1, 1.0)
REFUSED_S = 5.0
"""Wait after a refusal: a gateway may be wrong for a while."""
_WRITE_LIMIT = 1024 * 1024
"""More than this waiting to be written pauses all exchanges, in bytes."""


class PilotService(Protocol):
    """What a pilot does for the gateway. Called in the loop's thread; may not block."""

    def open(self, request: Open, body: bytes, sink: Sink) -> Exchange:
        """Start a request at a replica; never raises: what goes wrong reaches the sink as a tail."""

    async def call(self, call: Call) -> Any:
        """Do what the gateway asks; returns JSON types or dataclasses of them. Raises CallFailed with a sentence."""

    def report(self) -> PilotReport:
        """The pilot's whole state now."""


class PilotLink:
    """The pilot's link. ``run`` it as a task; times in seconds.

    The secret of the job is made here and lives in this process only. It goes with the enrolment token until a gateway
    has welcomed us once, then alone.
    """

    def __init__(
        self,
        spec: PilotSpec,
        service: PilotService,
        *,
        ping_s: float = PING_S,
        silence_s: float = SILENCE_S,
        redial_s: tuple[float, float] = REDIAL_S,
        refused_s: float = REFUSED_S,
    ) -> None:
        self.service = service
        self._spec = spec
        self._dial = Dial(spec.link)
        self._times = ping_s, silence_s
        self._redial_s = redial_s
        self._refused_s = refused_s
        self._secret = new_secret()
        self._token = spec.enrolment_token
        self._heard = monotonic()
        self._connection: Optional[_PilotConnection] = None
        self._is_closed = False
        self._wake: Optional[asyncio.Future[None]] = None
        self._is_report_due = False
        self._troubles: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_up(self) -> bool:
        return self._connection is not None and self._connection.is_up

    def silent_s(self) -> float:
        """Seconds since a gateway that welcomed us was last heard, or since the start."""
        return monotonic() - self._heard

    async def run(self) -> None:
        """Dial, serve, dial again; returns after ``close``."""
        self._wake = asyncio.get_running_loop().create_future()
        while not self._is_closed:
            wait_s = await self._serve_once()
            if not self._is_closed:
                await asyncio.wait({self._wake}, timeout=wait_s)

    def push_report(self) -> None:
        """Tell the gateway our state at the end of this turn of the loop, however often this was called in it. Nothing
        happens while the link is down: a report follows every welcome."""
        if self.is_up and not self._is_report_due:
            self._is_report_due = True
            asyncio.get_running_loop().call_soon(self._send_report)

    def close(self) -> None:
        """End the link for good; ``run`` returns soon after."""
        self._is_closed = True
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
        if self._connection is not None:
            self._connection.hang_up()

    # -- for the connection ------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        return Hello(PROTOCOL, __version__, self._spec.job_id, self._secret, self._token)

    def welcomed(self) -> None:
        """The gateway has taken the token: from now on the secret is enough."""
        self._token = ""
        self._troubles.clear()
        self.heard()
        logger.info("the gateway welcomed this pilot", extra={"action": "link_up"})
        self.push_report()

    def heard(self) -> None:
        self._heard = monotonic()

    def note_trouble(self, sentence: str) -> None:
        """Log what keeps the link down, once for each reason until it is up again: dialling goes on for hours."""
        if sentence not in self._troubles:
            self._troubles.add(sentence)
            logger.warning(sentence, extra={"action": "link_down"})

    def keep(self, task: asyncio.Task[None]) -> None:
        """Hold on to a call under way: it goes on when the link drops, and nobody else refers to it."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- inside ------------------------------------------------------------------------------------------------

    async def _serve_once(self) -> float:
        """One connection from dial to end; returns how long to wait before the next."""
        connection = _PilotConnection(self, *self._times, ended=asyncio.get_running_loop().create_future())
        self._connection = connection  # before the dial returns to us, a gateway may have welcomed it
        try:
            await self._dial.connect(lambda: connection)
            if self._is_closed:
                connection.hang_up()
            await connection.ended
        except Unreachable as exc:
            self._dial.turn()
            self.note_trouble(str(exc))
            return self._redial_wait()
        finally:
            connection.hang_up()
            self._connection = None
        if not connection.was_welcome:
            self._dial.turn()
        if connection.was_refused:
            return self._refused_s
        self.note_trouble("the link to the gateway was lost")
        return self._redial_wait()

    def _redial_wait(self) -> float:
        return random.uniform(*self._redial_s)  # noqa: S311 - spreads load, guards nothing

    def _send_report(self) -> None:
        self._is_report_due = False
        if self._connection is None or not self._connection.is_up:
            return
        report = self.service.report()
        payload = _report_call(report)
        if len(payload) > MAX_PAYLOAD:
            bare = tuple(dataclasses.replace(replica, log_tail="") for replica in report.replicas)
            payload = _report_call(dataclasses.replace(report, replicas=bare))
        self._connection.send(FrameType.CALL, 0, payload)


class _Served:
    """A call that is being answered."""

    __slots__ = ("stage",)

    def __init__(self) -> None:
        self.stage = Stage.CALLED


class _PilotConnection(Connection):
    """One dial, from connect to loss."""

    def __init__(self, link: PilotLink, ping_s: float, silence_s: float, ended: asyncio.Future[None]) -> None:
        super().__init__(ping_s, silence_s)
        self.service = link.service
        self.streams: Streams[Answer] = Streams()
        self.ended = ended
        self.was_welcome = False
        self.was_refused = False
        self._link = link
        self._calls: Streams[_Served] = Streams()
        self._holds = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.set_write_limit(_WRITE_LIMIT)
        self.send(FrameType.HELLO, 0, encode(self._link.hello()))

    def data_received(self, data: bytes) -> None:
        self.quiet_ticks = 0
        try:
            for kind, number, payload in self.decoder.feed(data):
                if not self.has_ended:
                    self._on_frame(kind, number, payload)
        except FrameError as exc:
            self._give_up(f"the gateway broke the protocol: {exc}")
        if self.is_up:
            self._link.heard()

    def connection_lost(self, exc: Optional[Exception]) -> None:
        super().connection_lost(exc)
        if not self.ended.done():
            self.ended.set_result(None)

    def pause_writing(self) -> None:
        self._holds = BY_LINK
        for answer in list(self.streams.live.values()):
            answer.hold(BY_LINK)

    def resume_writing(self) -> None:
        self._holds = 0
        for answer in list(self.streams.live.values()):
            answer.release(BY_LINK)

    def on_end(self) -> None:
        # Finished first: the tails that the exchanges now give have nowhere to go.
        for answer in self.streams.finish_all():
            answer.cancel()

    # -- what comes in -----------------------------------------------------------------------------------------

    def _on_frame(self, kind: FrameType, number: int, payload: bytes) -> None:
        if number == 0:
            self._on_link_frame(kind, payload)
        elif not self.is_up:
            raise FrameError(f"a {kind.name} before the hellos were exchanged")
        elif kind is FrameType.OPEN:
            self._on_open(number, read_message(Open, payload))
        elif kind is FrameType.CALL:
            self._on_call(number, read_message(Call, payload))
        elif kind in _TO_STREAM:
            self._on_stream(kind, number, payload)
        else:
            raise FrameError(f"a {kind.name}, which a gateway may not send")

    def _on_link_frame(self, kind: FrameType, payload: bytes) -> None:
        if kind is FrameType.RESET:
            refusal = read_message(Refusal, payload)
            self._give_up(f"the gateway refused this pilot: {refusal.message} ({refusal.code})")
        elif kind is FrameType.HELLO and not self.is_up:
            self._on_hello(read_message(Hello, payload))
        elif kind is not FrameType.PING or not self.is_up:
            raise FrameError(f"a {kind.name} on stream 0")

    def _on_hello(self, hello: Hello) -> None:
        if not speaks(hello.protocol):
            raise FrameError(f"version {hello.protocol} of the protocol; this pilot has {PROTOCOL}")
        self.is_up = self.was_welcome = True
        self._link.welcomed()

    def _on_open(self, number: int, request: Open) -> None:
        if request.body_bytes < 0:
            raise FrameError(f"a body of {request.body_bytes} bytes for stream {number}")
        answer = Answer(self, self.streams, self.service, number, request)
        self.streams.accept(number, answer)
        answer.hold(self._holds)
        answer.start_if_complete()

    def _on_stream(self, kind: FrameType, number: int, payload: bytes) -> None:
        answer = self.streams.step(kind, number)
        if answer is None:
            return
        if kind is FrameType.BODY:
            answer.take(payload)
        elif kind is FrameType.PAUSE:
            answer.hold(BY_GATEWAY)
        elif kind is FrameType.RESUME:
            answer.acknowledge(payload)
        else:
            answer.cancel()

    def _on_call(self, number: int, call: Call) -> None:
        self._calls.accept(number, _Served())
        self._link.keep(self.loop.create_task(self._serve_call(number, call)))

    async def _serve_call(self, number: int, call: Call) -> None:
        payload = await self._result(call)
        if len(payload) > MAX_PAYLOAD:
            payload = encode(Reply(error=f"The answer has {len(payload)} bytes; at most {MAX_PAYLOAD} fit."))
        self.send(FrameType.REPLY, number, payload)
        self._calls.finish(number)

    async def _result(self, call: Call) -> bytes:
        """The reply to ``call``, encoded."""
        try:
            return encode(Reply(result=await self.service.call(call)))
        except CallFailed as exc:
            return encode(Reply(error=exc.message))
        except Exception as exc:  # a boundary: the caller must hear of it, and the link must live
            logger.exception("a call failed", extra={"action": "call_failed", "verb": call.verb})
            return encode(Reply(error=f"The pilot failed at '{call.verb}': {type(exc).__name__}."))

    def _give_up(self, sentence: str) -> None:
        self.was_refused = True
        self._link.note_trouble(sentence)
        self.hang_up()


_TO_STREAM = frozenset({FrameType.BODY, FrameType.PAUSE, FrameType.RESUME, FrameType.RESET})


def _report_call(report: PilotReport) -> bytes:
    return encode(Call("report", to_dict(report)))
