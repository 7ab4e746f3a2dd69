"""The pilot's end of the link: dials the gateway for ever, or waits to be dialled; carries requests and calls to the
service it is given."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
from collections.abc import Callable
from typing import Optional, cast

from firstkit import __version__
from firstkit.clock import monotonic
from firstkit.ids import new_secret
from firstkit.links.connection import PING_S, SILENCE_S, read_message
from firstkit.links.dial import Dial, Unreachable
from firstkit.links.direct import is_gateway, listening
from firstkit.links.frames import MAX_PAYLOAD, FrameError, FrameType, first_frame, frame
from firstkit.links.messages import PROTOCOL, Call, Hello, PilotReport, PilotSpec, Refusal, speaks
from firstkit.links.pilot_session import PilotService, PilotSession
from firstkit.wire import encode, to_dict

logger = logging.getLogger(__name__)

REDIAL_S = (0.1, 1.0)
REFUSED_S = 5.0
"""Wait after a refusal: a gateway may be wrong for a while."""


class PilotLink:
    """The pilot's link. ``run`` it as a task; times in seconds.

    The secret of the job is made here and lives in this process only. It goes with the enrolment token until a gateway
    has welcomed us once, then alone. ``on_address``: where the gateway can dial us, if it has to.
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
        on_address: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.service = service
        self._spec = spec
        self._dial = None if spec.link.kind == "direct" else Dial(spec.link)
        self._times = ping_s, silence_s
        self._redial_s = redial_s
        self._refused_s = refused_s
        self._on_address = on_address
        self._secret = new_secret()
        self._token = spec.enrolment_token
        self._dials = 0
        self._heard = monotonic()
        self._session: Optional[PilotSession] = None
        self._greetings: set[_Greeting] = set()
        self._is_closed = False
        self._wake: Optional[asyncio.Future[None]] = None
        self._is_report_due = False
        self._troubles: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_up(self) -> bool:
        return self._session is not None and self._session.is_up

    def silent_s(self) -> float:
        """Seconds since a gateway that welcomed us was last heard, or since the start."""
        return monotonic() - self._heard

    async def run(self) -> None:
        """Dial, serve, dial again, or wait to be dialled; returns after ``close``. Raises OSError when we cannot be
        dialled."""
        self._wake = asyncio.get_running_loop().create_future()
        if self._dial is None:
            await self._be_dialled(self._wake)
            return
        while not self._is_closed:
            wait_s = await self._serve_once(self._dial)
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
        for greeting in self._greetings:
            greeting.leave()
        if self._session is not None:
            self._session.leave()

    # -- for connections ---------------------------------------------------------------------------------------

    def hello(self, greeting: _Greeting) -> Hello:
        """What to say first on the connection of ``greeting``. All others are over: what they still bring would not be
        counted."""
        self._dials += 1
        for other in self._greetings - {greeting}:
            other.leave()
        session, received = "", 0
        if self._session is not None:
            self._session.drop()
            if not self._session.has_ended:
                session, received = self._session.name, self._session.received
        return Hello(
            PROTOCOL,
            __version__,
            self._spec.job_id,
            self._secret,
            self._token,
            self._dials,
            session,
            received,
            self._spec.link.resume_s,
        )

    def trusts(self, transport: asyncio.BaseTransport) -> bool:
        """Whether the other end is the gateway, and may hear our secret: whom we dialled has shown it before."""
        if self._dial is not None or is_gateway(transport):
            return True
        self.note_trouble("somebody dialled who is not the gateway")
        return False

    def welcome(self, hello: Hello, transport: asyncio.Transport) -> PilotSession:
        """The gateway answered: the session goes on over this connection, or a new one begins."""
        session = self._session
        if session is not None and hello.session and hello.session == session.name:
            if not session.can_resume(hello.received):
                raise FrameError(f"{hello.received} bytes arrived, which cannot be")
        else:
            if session is not None:
                session.hang_up()
            resume_s = self._spec.link.resume_s if hello.session else 0.0
            session = self._session = PilotSession(self, hello.session, *self._times, resume_s)
        self._token = ""  # the gateway has taken it: from now on the secret is enough
        self._troubles.clear()
        self.heard()
        logger.info("the gateway welcomed this pilot", extra={"action": "link_up"})
        session.attach(transport, hello.received)
        self.push_report()
        return session

    def refused(self, refusal: Refusal) -> None:
        self.note_trouble(f"the gateway refused this pilot: {refusal.message} ({refusal.code})")
        if refusal.code == "over":
            self.service.over()

    def heard(self) -> None:
        self._heard = monotonic()

    def note_trouble(self, sentence: str) -> None:
        """Log what keeps the link down, once for each reason until it is up again: dialling goes on for hours."""
        if sentence not in self._troubles:
            self._troubles.add(sentence)
            logger.warning(sentence, extra={"action": "link_down"})

    def keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- inside ------------------------------------------------------------------------------------------------

    def _greet(self) -> _Greeting:
        greeting = _Greeting(self, self._times[1])
        self._greetings.add(greeting)
        greeting.outcome.add_done_callback(lambda _: self._greetings.discard(greeting))
        return greeting

    async def _serve_once(self, dial: Dial) -> float:
        """One connection from dial to end; returns how long to wait before the next."""
        greeting = self._greet()
        try:
            await dial.connect(lambda: greeting)
            session = await greeting.outcome
        except Unreachable as exc:
            dial.turn()
            self.note_trouble(str(exc))
            return self._redial_wait()
        finally:
            greeting.leave()
        if session is not None:
            await session.until_down()
        else:
            dial.turn()
        if greeting.was_refused or (session is not None and session.was_refused):
            return self._refused_s
        self.note_trouble("the link to the gateway was lost")
        return self._redial_wait()

    async def _be_dialled(self, closed: asyncio.Future[None]) -> None:
        async with listening(self._greet, self._spec.link) as address:
            logger.info("waiting for the gateway at %s", address, extra={"action": "link_listen"})
            self._on_address(address)
            await closed

    def _redial_wait(self) -> float:
        return random.uniform(*self._redial_s)  # noqa: S311 - spreads load, guards nothing

    def _send_report(self) -> None:
        self._is_report_due = False
        if self._session is None or not self._session.is_up:
            return
        report = self.service.report()
        payload = _report_call(report)
        if len(payload) > MAX_PAYLOAD:
            bare = tuple(dataclasses.replace(replica, log_tail="") for replica in report.replicas)
            payload = _report_call(dataclasses.replace(report, replicas=bare))
        self._session.send(FrameType.CALL, 0, payload)


def _report_call(report: PilotReport) -> bytes:
    return encode(Call("report", to_dict(report)))


class _Greeting(asyncio.Protocol):
    """One connection until the gateway has answered our hello."""

    def __init__(self, link: PilotLink, silence_s: float) -> None:
        self.outcome: asyncio.Future[Optional[PilotSession]] = asyncio.get_running_loop().create_future()
        """The session that goes on over this connection; None: it came to nothing."""
        self.was_refused = False
        self._link = link
        self._silence_s = silence_s
        self._got = b""
        self._timer: Optional[asyncio.TimerHandle] = None
        self._transport: Optional[asyncio.Transport] = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self.outcome.done():
            self._transport.abort()
            return
        if not self._link.trusts(transport):
            self.leave()
            return
        self._timer = asyncio.get_running_loop().call_later(self._silence_s, self.leave)
        self._transport.write(frame(FrameType.HELLO, 0, encode(self._link.hello(self))))

    def data_received(self, data: bytes) -> None:
        if self.outcome.done():
            return
        self._got += data
        try:
            self._read()
        except FrameError as exc:
            self._link.note_trouble(f"the gateway broke the protocol: {exc}")
            self.was_refused = True
            self.leave()

    def connection_lost(self, exc: Optional[Exception]) -> None:  # noqa: ARG002 - asyncio's signature
        self._over(None)

    def leave(self) -> None:
        """Nothing comes of this; nothing happens where something has."""
        if not self.outcome.done():
            if self._transport is not None:
                self._transport.abort()
            self._over(None)

    def _read(self) -> None:
        first = first_frame(self._got, MAX_PAYLOAD)
        if first is None or self._transport is None:
            return
        kind, number, payload, rest = first
        if number == 0 and kind is FrameType.RESET:
            self.was_refused = True
            self._link.refused(read_message(Refusal, payload))
            self.leave()
            return
        if number != 0 or kind is not FrameType.HELLO:
            raise FrameError(f"a {kind.name} before the hellos were exchanged")
        hello = read_message(Hello, payload)
        if not speaks(hello.protocol):
            raise FrameError(f"version {hello.protocol} of the protocol; this pilot has {PROTOCOL}")
        session = self._link.welcome(hello, self._transport)
        self._over(session)
        if rest:
            session.data_received(rest)

    def _over(self, session: Optional[PilotSession]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.outcome.done():
            self.outcome.set_result(session)
