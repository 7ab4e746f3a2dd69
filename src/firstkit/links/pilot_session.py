"""What a gateway asks of a pilot, and the session in which it does: requests and calls, over one connection after
another."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

from firstkit.errors import CallFailed
from firstkit.links.connection import Connection, read_message
from firstkit.links.frames import MAX_PAYLOAD, FrameError, FrameType, Stage, Streams
from firstkit.links.messages import Call, Exchange, Open, PilotReport, Refusal, Reply, Sink
from firstkit.links.pilot_stream import BY_GATEWAY, BY_LINK, Answer
from firstkit.wire import encode

logger = logging.getLogger(__name__)


class PilotService(Protocol):
    """What a pilot does for the gateway. Called in the loop's thread; may not block."""

    def open(self, request: Open, body: bytes, sink: Sink) -> Exchange:
        """Start a request at a replica; never raises: what goes wrong reaches the sink as a tail."""

    async def call(self, call: Call) -> Any:
        """Do what the gateway asks; returns JSON types or dataclasses of them. Raises CallFailed with a sentence."""

    def report(self) -> PilotReport:
        """The pilot's whole state now."""

    def over(self) -> None:
        """The job is over in the gateway's books: nobody will ask for it again. May come more than once."""


class SessionOwner(Protocol):
    """The link that a session belongs to."""

    service: PilotService

    def heard(self) -> None:
        """The gateway is there."""

    def refused(self, refusal: Refusal) -> None:
        """The gateway has ended the session, and said why."""

    def note_trouble(self, sentence: str) -> None:
        """Why the session ends."""

    def keep(self, task: asyncio.Task[None]) -> None:
        """Hold on to a call under way: it goes on when the session ends, and nobody else refers to it."""


class _Served:
    """A call that is being answered."""

    __slots__ = ("stage",)

    def __init__(self) -> None:
        self.stage = Stage.CALLED


class PilotSession(Connection):
    """What gateway and pilot have to do with each other, from a welcome to its end. ``name`` is the gateway's for it,
    empty where it ends with its connection."""

    write_limit = 1024 * 1024
    """More than this waiting to be written pauses all exchanges, in bytes; and so does ``kept_limit``."""
    kept_limit = 16 * 1024 * 1024

    def __init__(self, link: SessionOwner, name: str, ping_s: float, silence_s: float, resume_s: float) -> None:
        super().__init__(ping_s, silence_s, resume_s)
        self.name = name
        self.service = link.service
        self.streams: Streams[Answer] = Streams()
        self.was_refused = False
        self._link = link
        self._calls: Streams[_Served] = Streams()
        self._holds = 0

    def leave(self) -> None:
        """End the session, and let the gateway know that it need not wait."""
        if self.name:
            self.send(FrameType.RESET, 0, encode(Refusal("closed", "the pilot ends the link")))
        self.hang_up()

    def data_received(self, data: bytes) -> None:
        try:
            for kind, number, payload in self.decoder.feed(data):
                if not self.has_ended:
                    self._on_frame(kind, number, payload)
        except FrameError as exc:
            self._give_up(f"the gateway broke the protocol: {exc}")
        self.quiet_ticks = 0
        self.received += len(data)
        if self.received >= self._tell_at:
            self.tell()
        if self.is_up:
            self._link.heard()

    def on_full(self) -> None:
        self._holds = BY_LINK
        for answer in list(self.streams.live.values()):
            answer.hold(BY_LINK)

    def on_room(self) -> None:
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
            self.was_refused = True
            self._link.refused(read_message(Refusal, payload))
            self.hang_up()
        elif kind is FrameType.PING:
            self.on_ping(payload)
        else:
            raise FrameError(f"a {kind.name} on stream 0")

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
