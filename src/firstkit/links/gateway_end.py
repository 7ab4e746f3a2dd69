"""The gateway's end of a link: requests and calls to one pilot, its reports, and what it may not do.

The other end is a process on a cluster that other people administer: nothing it sends is taken on trust, and the worst
that it can do is to lose its own link.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import re
from collections.abc import Callable
from typing import Any, Optional, Protocol

import msgspec

from firstkit.errors import CallFailed, LinkLost
from firstkit.links.bodies import Bodies
from firstkit.links.connection import PING_S, SILENCE_S, Connection, read_message
from firstkit.links.frames import (
    ACKNOWLEDGED_BYTES,
    LIMIT_BYTES,
    MAX_PAYLOAD,
    TAKEN,
    FrameError,
    FrameType,
    Stage,
    Streams,
)
from firstkit.links.messages import (
    Call,
    Exchange,
    Head,
    Hello,
    Open,
    Outcome,
    PilotReport,
    Refusal,
    Reply,
    Sink,
    Tail,
    Usage,
)
from firstkit.wire import WireError, encode, from_dict

logger = logging.getLogger(__name__)

CANCEL_S = 5.0
REPORT_EVERY_S = 0.05
SMALL_BODY_BYTES = 64 * 1024
"""A body up to this size goes along with its OPEN; others take turns."""
BODY_TURN_BYTES = 512 * 1024
"""Of all other bodies, what is handed to the transport in one turn of the loop."""
_MAX_TOKENS = 2**48
_MAX_ERROR = 1000
"""Characters of an error in a tail: whatever an engine says, it goes to a client and a log."""
_CONTENT_TYPE = re.compile(r"[\x20-\x7e]{1,200}")
_LOST = Tail(Outcome.LOST, error="link lost")


class LinkOwner(Protocol):
    """Who a gateway's links belong to."""

    async def admit(self, hello: Hello) -> Optional[Refusal]:
        """None: the pilot is welcome; else what it is told. A FirstError refuses with its message. The connection may
        be gone when this returns; ``on_up`` is the sign that there is a link."""

    def on_up(self, link: GatewayLink) -> None:
        """A link has a connection, its first or another one. May not block or raise, as all that follow."""

    def on_down(self, link: GatewayLink) -> None:
        """A link has none now: its streams wait. ``on_up`` or ``on_lost`` follows."""

    def on_report(self, link: GatewayLink, report: PilotReport) -> None:
        """A pilot's state: right after its link came up, and at each change; of many at once the last."""

    def on_lost(self, link: GatewayLink) -> None:
        """A link is gone for good; comes once, before the tails of its streams."""


class Request:
    """One request under way; the Exchange of its opener. Made by ``GatewayLink.open``."""

    __slots__ = ("_is_cancelled", "_is_paused", "_link", "_number", "_timer", "on_data", "sink", "stage", "taken")

    def __init__(self, link: GatewayLink, sink: Sink) -> None:
        self.stage = Stage.ASKED
        self.sink = sink
        self.on_data: Callable[[bytes], None] = sink.on_data
        self.taken = 0
        self._link = link
        self._timer: Optional[asyncio.TimerHandle] = None
        self._number = 0
        self._is_cancelled = False
        self._is_paused = False

    def bind(self, number: int) -> None:
        self._number = number

    # -- an Exchange -------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        if self._may_speak:
            self._is_cancelled = True
            self._timer = self._link.abandon(self._number)

    def pause(self) -> None:
        if self._may_speak and not self._is_paused:
            self._is_paused = True
            self._link.send(FrameType.PAUSE, self._number)

    def resume(self) -> None:
        if self._may_speak and self._is_paused:
            self._is_paused = False
            self._acknowledge()

    # -- for the link ------------------------------------------------------------------------------------------

    def on_window(self) -> None:
        if self.taken > LIMIT_BYTES:
            raise FrameError(f"{self.taken} bytes for stream {self._number} without an acknowledgement")
        if self._may_speak and not self._is_paused:
            self._acknowledge()

    def end(self, tail: Tail) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.sink.on_tail(tail)

    @property
    def _may_speak(self) -> bool:
        return self.stage is not Stage.FINISHED and not self._is_cancelled

    def _acknowledge(self) -> None:
        self._link.send(FrameType.RESUME, self._number, TAKEN.pack(self.taken))
        self.taken = 0


class _PendingCall:
    """A call whose reply is awaited."""

    __slots__ = ("reply", "stage")

    def __init__(self, reply: asyncio.Future[Reply]) -> None:
        self.stage = Stage.CALLED
        self.reply = reply


class GatewayLink(Connection):
    """A link to one pilot that was admitted; implements ``messages.Upstream``. ``job_id`` is the peer's identity.

    Made by ``links.entrance``. ``session``: its name, by which the pilot may go on with it over another connection;
    empty where it ends with its first. Times in seconds.
    """

    write_limit = 256 * 1024
    """With more than this waiting, bodies wait here, so that small frames need not wait long."""
    kept_most = 16 * 1024 * 1024

    def __init__(
        self,
        owner: LinkOwner,
        job_id: str,
        session: str = "",
        *,
        ping_s: float = PING_S,
        silence_s: float = SILENCE_S,
        resume_s: float = 0.0,
        cancel_s: float = CANCEL_S,
        on_over: Callable[[GatewayLink], None] = lambda _: None,
    ) -> None:
        super().__init__(ping_s, silence_s, resume_s)
        self.job_id = job_id
        self.session = session
        self._owner = owner
        self._on_over = on_over
        self._cancel_s = cancel_s
        self._bodies = Bodies()
        self._requests: Streams[Request] = Streams()
        self._calls: Streams[_PendingCall] = Streams()
        self._report = b""
        self._next_report: Optional[asyncio.TimerHandle] = None

    def __repr__(self) -> str:
        state = "up" if self.is_up else "gone" if self.has_ended else "down"
        return f"<GatewayLink {self.job_id} {state}, {len(self._requests.live)} streams>"

    # -- what the gateway does ---------------------------------------------------------------------------------

    def open(self, request: Open, body: bytes, sink: Sink) -> Exchange:
        """Start a request at the pilot; never raises. The tail never comes before this returned."""
        stream = Request(self, sink)
        head = _ENCODER.encode(request)
        if not self.is_up or len(head) > MAX_PAYLOAD:
            stream.stage = Stage.FINISHED
            too_large = Tail(Outcome.FAILED, error="the head of the request is too large")
            asyncio.get_running_loop().call_soon(sink.on_tail, too_large if self.is_up else _LOST)
            return stream
        number = self._requests.open(stream)
        stream.bind(number)
        self.send(FrameType.OPEN, number, head)
        if len(body) > SMALL_BODY_BYTES or self.is_full:
            self._bodies.put(number, body)
        elif body:
            self.send(FrameType.BODY, number, body)
        return stream

    async def call(self, verb: str, args: Optional[dict[str, Any]] = None, timeout_s: float = 10.0) -> Any:
        """Ask the pilot for something; returns the reply's result. Raises CallFailed when it says no, LinkLost
        when nobody knows whether it heard us."""
        if not self.is_up:
            raise LinkLost
        pending = _PendingCall(self.loop.create_future())
        number = self._calls.open(pending)
        try:
            self.send(FrameType.CALL, number, encode(Call(verb, args or {})))
            reply = await asyncio.wait_for(pending.reply, timeout_s)
        except FrameError as exc:
            raise CallFailed(f"The call '{verb}' is too large: {exc}.") from exc
        except asyncio.TimeoutError:
            raise LinkLost(f"The pilot did not answer '{verb}' within {timeout_s:g} s.") from None
        finally:
            self._calls.finish(number)
        if reply.error is not None:
            raise CallFailed(reply.error)
        return reply.result

    def close(self) -> None:
        """End the link. The pilot dials again, unless its job is over."""
        self.hang_up()

    def abandon(self, number: int) -> asyncio.TimerHandle:
        """Reset a stream, and end it ourselves if the pilot does not; for the stream's own Exchange."""
        self._bodies.drop(number)
        self.send(FrameType.RESET, number)
        return self.loop.call_later(self._cancel_s, self._give_up, number)

    def _give_up(self, number: int) -> None:
        stream = self._requests.live.get(number)
        if stream is not None:
            self._requests.finish(number)
            stream.end(Tail(Outcome.CANCELLED))

    # -- what comes in -----------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        try:
            self.decoder.deliver(data, self._requests.live, self._on_frame)
        except FrameError as exc:
            self._refuse("protocol", str(exc))
        self.quiet_ticks = 0
        self.received += len(data)
        if self.received >= self._tell_at:
            self.tell()

    def _on_frame(self, kind: FrameType, number: int, payload: bytes) -> None:
        """Everything but the data that the decoder hands to its stream."""
        if self.has_ended:
            return
        if kind is FrameType.HEAD or kind is FrameType.TAIL or kind is FrameType.DATA:
            self._on_answer(kind, number, payload)
        elif kind is FrameType.REPLY:
            self._on_reply(number, payload)
        elif kind is FrameType.CALL and number == 0:
            self._on_report(payload)
        elif kind is FrameType.PING and number == 0:
            self.on_ping(payload)
        elif kind is FrameType.RESET and number == 0:
            self.hang_up()
        else:
            raise FrameError(f"a {kind.name} on stream {number}, which a pilot may not send")

    def _on_answer(self, kind: FrameType, number: int, payload: bytes) -> None:
        if kind is FrameType.HEAD:
            head = _usual_head(payload) if len(payload) <= _USUAL_BYTES else _read_head(payload)
            if (stream := self._requests.step(kind, number)) is not None:
                stream.sink.on_head(head)
        elif kind is FrameType.TAIL:
            tail = _clean_tail(_read_tail(payload))
            if (stream := self._requests.step(kind, number)) is not None:
                self._bodies.drop(number)
                stream.end(tail)
        else:
            self._on_data(number, payload)

    def _on_data(self, number: int, payload: bytes) -> None:
        if not payload:
            raise FrameError(f"an empty DATA for stream {number}")
        if (stream := self._requests.step(FrameType.DATA, number)) is not None:
            stream.on_data(payload)
            stream.taken += len(payload)
            if stream.taken >= ACKNOWLEDGED_BYTES:
                stream.on_window()

    def _on_reply(self, number: int, payload: bytes) -> None:
        reply = read_message(Reply, payload)
        pending = self._calls.step(FrameType.REPLY, number)
        if pending is not None and not pending.reply.done():
            pending.reply.set_result(reply)

    def _on_report(self, payload: bytes) -> None:
        """Of many reports within REPORT_EVERY_S only the first and the last are read: they cost more than frames do."""
        if self._next_report is not None:
            self._report = payload
            return
        self._next_report = self.loop.call_later(REPORT_EVERY_S, self._read_last_report)
        self._read_report(payload)

    def _read_last_report(self) -> None:
        self._next_report = None
        payload, self._report = self._report, b""
        if payload and self.is_up:  # a pilot that comes back reports anyway
            try:
                self._on_report(payload)
            except FrameError as exc:
                self._refuse("protocol", str(exc))

    def _read_report(self, payload: bytes) -> None:
        call = read_message(Call, payload)
        if call.verb != "report":
            raise FrameError("a call other than report, which a pilot may not make")
        try:
            report = from_dict(PilotReport, call.args)
        except WireError as exc:
            raise FrameError(f"a report of the wrong shape: {exc}") from None
        if report.job_id != self.job_id:
            raise FrameError("a report for another job")
        self._owner.on_report(self, report)

    # -- from beginning to end ---------------------------------------------------------------------------------

    def fill(self) -> None:
        """Bodies go out a piece per turn, and only while there is room: nothing waits long behind them."""
        if not self.is_full:
            for number, piece in self._bodies.take(BODY_TURN_BYTES):
                self.send(FrameType.BODY, number, piece)

    def on_room(self) -> None:
        self.flush_soon()

    def on_up(self) -> None:
        self._owner.on_up(self)

    def on_down(self) -> None:
        self._owner.on_down(self)

    def _refuse(self, code: str, message: str) -> None:
        """Tell the peer why, and end."""
        logger.warning(
            "ending a link: %s", message, extra={"action": "link_refused", "job_id": self.job_id, "code": code}
        )
        self.send(FrameType.RESET, 0, encode(Refusal(code, message)))
        self.hang_up()

    def on_end(self) -> None:
        self._on_over(self)
        self._bodies = Bodies()
        if self._next_report is not None:
            self._next_report.cancel()
        # Each in a turn of its own: whatever one sink does, the others get their tails.
        for stream in self._requests.finish_all():
            self.loop.call_soon(stream.end, _LOST)
        for pending in self._calls.finish_all():
            if not pending.reply.done():
                pending.reply.set_exception(LinkLost())
        self._owner.on_lost(self)


def _read_head(payload: bytes) -> Head:
    """What may become an HTTP head: engines and pilots get no say in its syntax. Raises FrameError."""
    head = read_message(Head, payload)
    status = head.status if 200 <= head.status <= 599 else 502
    is_fine = _CONTENT_TYPE.fullmatch(head.content_type) is not None
    return Head(status, head.content_type if is_fine else "application/octet-stream")


def _read_tail(payload: bytes) -> Tail:
    """Raises FrameError. What msgspec does not take, the slower reader may, and else says where it is wrong."""
    try:
        return _TAILS.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return read_message(Tail, payload)


_ENCODER = msgspec.json.Encoder()
_TAILS = msgspec.json.Decoder(Tail)
"""Of the two messages that each request brings; others go the way of ``wire``, which clusters have."""
_USUAL_BYTES = 200
_usual_head = functools.lru_cache(64)(_read_head)
"""The heads of all answers are nearly always the same few bytes."""


def _clean_tail(tail: Tail) -> Tail:
    """``tail`` without numbers that cannot be: they would poison the ledger. Unknown is honest, wrong is not."""
    usage, ttft_s, gap_s = tail.usage, tail.ttft_s, tail.gap_s
    is_usage_fine = usage is None or _is_possible(usage)
    is_ttft_fine = ttft_s is None or _is_time(ttft_s)
    is_gap_fine = gap_s is None or _is_time(gap_s)
    is_duration_fine = _is_time(tail.duration_s)
    is_error_fine = tail.error is None or len(tail.error) <= _MAX_ERROR
    if is_usage_fine and is_ttft_fine and is_gap_fine and is_duration_fine and is_error_fine:
        return tail
    return Tail(
        tail.outcome,
        usage if is_usage_fine else None,
        tail.error if tail.error is None or is_error_fine else tail.error[:_MAX_ERROR],
        ttft_s if is_ttft_fine else None,
        gap_s if is_gap_fine else None,
        tail.duration_s if is_duration_fine else 0.0,
    )


def _is_possible(usage: Usage) -> bool:
    return 0 <= usage.prompt_tokens < _MAX_TOKENS and 0 <= usage.completion_tokens < _MAX_TOKENS


def _is_time(seconds: float) -> bool:
    return 0 <= seconds < math.inf  # also false for what is no number
