"""Where pilots come in at the gateway: who is admitted, and which connection of a pilot counts.

Whoever connects is a stranger until its hello was admitted. Of each pilot the youngest connection counts: it goes on
with the session of the one before, or ends it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from typing import Optional, Union, cast

from firstkit import __version__
from firstkit.errors import FirstError
from firstkit.ids import new_secret
from firstkit.links.connection import LINGER_S, PING_S, SILENCE_S, read_message
from firstkit.links.frames import FrameError, FrameType, first_frame, frame
from firstkit.links.gateway_end import CANCEL_S, GatewayLink, LinkOwner
from firstkit.links.messages import PROTOCOL, Hello, Refusal, speaks
from firstkit.wire import encode

logger = logging.getLogger(__name__)

MAX_HELLO = 4096
"""Longest payload of a peer that was not admitted yet, in bytes."""
HELLO_S = 5.0
RESUME_MOST_S = 60.0
"""No pilot is waited for longer than this, whatever it asks for."""
REMEMBERED = 10_000
"""Pilots of which it is known how often they have dialled."""


class Entrance:
    """Makes the links of one gateway. Times in seconds."""

    def __init__(
        self,
        owner: LinkOwner,
        *,
        ping_s: float = PING_S,
        silence_s: float = SILENCE_S,
        hello_s: float = HELLO_S,
        cancel_s: float = CANCEL_S,
    ) -> None:
        self.owner = owner
        self.hello_s = hello_s
        self._times = ping_s, silence_s, cancel_s
        self._links: dict[str, GatewayLink] = {}
        self._dials: dict[str, int] = {}

    def arrive(self) -> Arrival:
        """The protocol for a connection that somebody opened."""
        return Arrival(self)

    async def listen(self, listener: socket.socket, context: ssl.SSLContext, handshake_s: float) -> asyncio.Server:
        """Open the door that pilots elsewhere dial, TLS over TCP. Nobody stays who does not become a link: the
        handshake has its time, and then the hello."""
        return await asyncio.get_running_loop().create_server(
            self.arrive,
            sock=listener,
            ssl=context,
            ssl_handshake_timeout=handshake_s,
            ssl_shutdown_timeout=LINGER_S,
            backlog=1024,
        )

    def enter(self, hello: Hello, transport: asyncio.Transport) -> Union[GatewayLink, Refusal]:
        """Give an admitted pilot its link: the one that it had, where both can go on with it, or a new one."""
        refusal = self._fence(hello)
        if refusal is not None:
            return refusal
        earlier = self._links.get(hello.job_id)
        if earlier is not None:
            if earlier.session == hello.session and earlier.can_resume(hello.received):
                _greet(transport, earlier.session, earlier.received)
                earlier.attach(transport, hello.received)
                return earlier
            earlier.close()
        link = self._links[hello.job_id] = self._new(hello)
        _greet(transport, link.session, 0)
        link.attach(transport)
        return link

    def close(self) -> None:
        """End all links."""
        for link in list(self._links.values()):
            link.close()

    def forget(self, link: GatewayLink) -> None:
        """A link has ended."""
        if self._links.get(link.job_id) is link:
            del self._links[link.job_id]

    def _fence(self, hello: Hello) -> Optional[Refusal]:
        """None when this connection is the youngest of its pilot so far. Numbers are kept after links end: what was
        delayed for long must not come back either."""
        last = self._dials.pop(hello.job_id, 0)
        self._dials[hello.job_id] = max(last, hello.dial)
        if len(self._dials) > REMEMBERED:
            del self._dials[next(iter(self._dials))]
        if 0 < last >= hello.dial:
            return Refusal("refused", f"connection {hello.dial} of this pilot comes after its connection {last}")
        return None

    def _new(self, hello: Hello) -> GatewayLink:
        can_resume = hello.protocol >= 2 and hello.resume_s > 0  # also false for what is no number
        ping_s, silence_s, cancel_s = self._times
        return GatewayLink(
            self.owner,
            hello.job_id,
            new_secret() if can_resume else "",
            ping_s=ping_s,
            silence_s=silence_s,
            resume_s=min(hello.resume_s, RESUME_MOST_S) if can_resume else 0.0,
            cancel_s=cancel_s,
            on_over=self.forget,
        )


class Arrival(asyncio.Protocol):
    """Somebody who connected: may send one HELLO of at most MAX_HELLO bytes within ``hello_s``, and nothing else until
    it was answered. ``job_id``: whose pilot it has to be, where that is known before."""

    def __init__(self, entrance: Entrance, job_id: str = "") -> None:
        self.link: asyncio.Future[Optional[GatewayLink]] = asyncio.get_running_loop().create_future()
        """What came of it; None: nothing."""
        self._entrance = entrance
        self._job_id = job_id
        self._got = b""
        self._admission: Optional[asyncio.Task[None]] = None
        self._timer: Optional[asyncio.TimerHandle] = None
        self._transport: Optional[asyncio.Transport] = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self.link.done():
            self._transport.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(self._entrance.hello_s, self.leave)

    def connection_lost(self, exc: Optional[Exception]) -> None:  # noqa: ARG002 - asyncio's signature
        self._over(None)

    def data_received(self, data: bytes) -> None:
        if self.link.done():
            return
        self._got += data
        try:
            self._read()
        except FrameError as exc:
            self._refuse(Refusal("protocol", str(exc)))

    def _read(self) -> None:
        first = first_frame(self._got, MAX_HELLO)
        if first is None:
            return
        kind, number, payload, rest = first
        if kind is not FrameType.HELLO or number != 0:
            raise FrameError(f"a {kind.name} before the hellos were exchanged")
        hello = read_message(Hello, payload)
        if rest or self._admission is not None:
            raise FrameError("more than a HELLO before the hellos were exchanged")
        if not speaks(hello.protocol):
            raise FrameError(f"version {hello.protocol} of the protocol; this gateway has {PROTOCOL}")
        if self._timer is not None:
            self._timer.cancel()
        self._admission = asyncio.get_running_loop().create_task(self._admit(hello))

    async def _admit(self, hello: Hello) -> None:
        refusal = await self._ask(hello)
        if self.link.done() or self._transport is None:
            return
        outcome = refusal or self._entrance.enter(hello, self._transport)
        if isinstance(outcome, Refusal):
            self._refuse(outcome)
        else:
            self._over(outcome)

    async def _ask(self, hello: Hello) -> Optional[Refusal]:
        if self._job_id not in ("", hello.job_id):
            return Refusal("refused", "this is the pilot of another job than the one that was dialled")
        try:
            return await self._entrance.owner.admit(hello)
        except FirstError as exc:
            return Refusal("refused", exc.message)
        except Exception:  # a boundary: a fault of the owner must not leave a peer half admitted
            logger.exception("a pilot could not be admitted", extra={"action": "link_refused"})
            return Refusal("refused", "the gateway failed")

    def _refuse(self, refusal: Refusal) -> None:
        """Tell the peer why, and end."""
        logger.warning(
            "refusing a connection: %s", refusal.message, extra={"action": "link_refused", "code": refusal.code}
        )
        if self._transport is not None:
            self._transport.write(frame(FrameType.RESET, 0, encode(refusal)))
        self.leave()

    def leave(self) -> None:
        """Nothing comes of this; nothing happens where something has. What was said still leaves, within LINGER_S."""
        if self.link.done():
            return
        if self._transport is not None:
            self._transport.close()
            asyncio.get_running_loop().call_later(LINGER_S, self._transport.abort)
        self._over(None)

    def _over(self, link: Optional[GatewayLink]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.link.done():
            self.link.set_result(link)


def _greet(transport: asyncio.Transport, session: str, received: int) -> None:
    transport.write(frame(FrameType.HELLO, 0, encode(Hello(PROTOCOL, __version__, session=session, received=received))))
