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
import socket
import ssl
from collections.abc import Callable
from typing import Any, Optional, Protocol

import msgspec

from firstkit import __version__
from firstkit.errors import CallFailed, FirstError, LinkLost
from firstkit.links.bodies import Bodies
from firstkit.links.connection import LINGER_S, PING_S, SILENCE_S, Connection, read_message
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
    PROTOCOL,
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
    speaks,
)
from firstkit.wire import WireError, encode, from_dict

logger = logging.getLogger(__name__)

MAX_HELLO = 4096
"""Longest payload of a peer that was not admitted yet, in bytes."""
HELLO_S = 5.0
CANCEL_S = 5.0
SMALL_BODY_BYTES = 64 * 1024
"""A body up to this size goes along with its OPEN; others take turns."""
BODY_TURN_BYTES = 512 * 1024
"""Of all other bodies, what is handed to the transport in one turn of the loop."""
_WRITE_LIMIT = 256 * 1024
"""With more than this waiting to be written, in bytes, bodies wait here, so that small frames need not wait long."""
_MAX_TOKENS = 2**48
_CONTENT_TYPE = re.compile(r"[\x20-\x7e]{1,200}")
_LOST = Tail(Outcome.LOST, error="link lost")


async def listen_tunnel(
    make: Callable[[], GatewayLink], listener: socket.socket, context: ssl.SSLContext, handshake_s: float = HELLO_S
) -> asyncio.Server:
    """Open the door that pilots elsewhere dial, TLS over TCP, each connection a link of ``make``.
    Nobody stays who does not become a link: the handshake has its time, and then the hello."""
    return await asyncio.get_running_loop().create_server(
        make,
        sock=listener,
        ssl=context,
        ssl_handshake_timeout=handshake_s,
        ssl_shutdown_timeout=LINGER_S,
        backlog=1024,
    )


class LinkOwner(Protocol):
    """Who a gateway's links belong to."""

    async def admit(self, hello: Hello) -> Optional[str]:
        """None: the pilot is welcome; else the reason of the refusal, which the pilot is told. A FirstError refuses
        with its message. The link may be gone when this returns; ``on_report`` is the sign that it is up."""

    def on_report(self, link: GatewayLink, report: PilotReport) -> None:
        """A pilot's state: right after it was admitted, and at each change. May not block or raise."""

    def on_lost(self, link: GatewayLink) -> None:
        """An admitted link is gone; comes once, before the tails of its streams. May not block or raise."""


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
    """A link to one pilot; implements ``messages.Upstream``. ``job_id`` is the admitted hello's: the peer's identity.

    Made per incoming connection. Until ``owner.admit`` said yes, the peer may send one HELLO of at most MAX_HELLO
    bytes within ``hello_s``, and nothing else. Times in seconds.
    """

    def __init__(
        self,
        owner: LinkOwner,
        *,
        ping_s: float = PING_S,
        silence_s: float = SILENCE_S,
        hello_s: float = HELLO_S,
        cancel_s: float = CANCEL_S,
    ) -> None:
        super().__init__(ping_s, silence_s)
        self.job_id = ""
        self.decoder.max_payload = MAX_HELLO
        self._owner = owner
        self._hello_s = hello_s
        self._cancel_s = cancel_s
        self._hello_timer: Optional[asyncio.TimerHandle] = None
        self._admission: Optional[asyncio.Task[None]] = None
        self._was_admitted = False
        self._bodies = Bodies()
        self._is_held = False
        self._requests: Streams[Request] = Streams()
        self._calls: Streams[_PendingCall] = Streams()

    def __repr__(self) -> str:
        state = "up" if self.is_up else "gone" if self.has_ended else "greeting"
        return f"<GatewayLink {self.job_id or 'unknown'} {state}, {len(self._requests.live)} streams>"

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
        if len(body) > SMALL_BODY_BYTES or self._is_held:
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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.set_write_limit(_WRITE_LIMIT)
        self._hello_timer = self.loop.call_later(self._hello_s, self.hang_up)

    def pause_writing(self) -> None:
        self._is_held = True

    def resume_writing(self) -> None:
        self._is_held = False
        self.flush_soon()

    def fill(self) -> None:
        """Bodies go out a piece per turn, and only while the transport has room: nothing waits long behind them."""
        if not self._is_held:
            for number, piece in self._bodies.take(BODY_TURN_BYTES):
                self.send(FrameType.BODY, number, piece)

    def data_received(self, data: bytes) -> None:
        self.quiet_ticks = 0
        try:
            self.decoder.deliver(data, self._requests.live, self._on_frame)
        except FrameError as exc:
            self._refuse("protocol", str(exc))

    def _on_frame(self, kind: FrameType, number: int, payload: bytes) -> None:
        """Everything but the data that the decoder hands to its stream."""
        if self.has_ended:
            return
        if not self.is_up:
            self._on_greeting(kind, number, payload)
        elif kind is FrameType.HEAD or kind is FrameType.TAIL or kind is FrameType.DATA:
            self._on_answer(kind, number, payload)
        elif kind is FrameType.REPLY:
            self._on_reply(number, payload)
        elif kind is FrameType.CALL and number == 0:
            self._on_report(payload)
        elif kind is not FrameType.PING or number != 0:
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

    # -- the hello ---------------------------------------------------------------------------------------------

    def _on_greeting(self, kind: FrameType, number: int, payload: bytes) -> None:
        if kind is not FrameType.HELLO or number != 0 or self._admission is not None:
            raise FrameError(f"a {kind.name} before the hellos were exchanged")
        hello = read_message(Hello, payload)
        if not speaks(hello.protocol):
            raise FrameError(f"version {hello.protocol} of the protocol; this gateway has {PROTOCOL}")
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        self._admission = self.loop.create_task(self._admit(hello))

    async def _admit(self, hello: Hello) -> None:
        try:
            reason = await self._owner.admit(hello)
        except FirstError as exc:
            reason = exc.message
        except Exception:  # a boundary: a fault of the owner must not leave a peer half admitted
            logger.exception("a pilot could not be admitted", extra={"action": "link_refused"})
            reason = "the gateway failed"
        if self.has_ended:
            return
        if reason is not None:
            self._refuse("refused", reason)
            return
        self.job_id = hello.job_id
        self.is_up = self._was_admitted = True
        self.decoder.max_payload = MAX_PAYLOAD
        self.send(FrameType.HELLO, 0, encode(Hello(PROTOCOL, __version__)))

    def _refuse(self, code: str, message: str) -> None:
        """Tell the peer why, and end."""
        logger.warning(
            "ending a link: %s", message, extra={"action": "link_refused", "job_id": self.job_id, "code": code}
        )
        self.send(FrameType.RESET, 0, encode(Refusal(code, message)))
        self.hang_up()

    def on_end(self) -> None:
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        self._bodies = Bodies()
        # Each in a turn of its own: whatever one sink does, the others get their tails.
        for stream in self._requests.finish_all():
            self.loop.call_soon(stream.end, _LOST)
        for pending in self._calls.finish_all():
            if not pending.reply.done():
                pending.reply.set_exception(LinkLost())
        if self._was_admitted:
            logger.info("the link to a pilot is gone", extra={"action": "link_lost", "job_id": self.job_id})
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
    if is_usage_fine and is_ttft_fine and is_gap_fine and is_duration_fine:
        return tail
    return Tail(
        tail.outcome,
        usage if is_usage_fine else None,
        tail.error,
        ttft_s if is_ttft_fine else None,
        gap_s if is_gap_fine else None,
        tail.duration_s if is_duration_fine else 0.0,
    )


def _is_possible(usage: Usage) -> bool:
    return 0 <= usage.prompt_tokens < _MAX_TOKENS and 0 <= usage.completion_tokens < _MAX_TOKENS


def _is_time(seconds: float) -> bool:
    return 0 <= seconds < math.inf  # also false for what is no number
