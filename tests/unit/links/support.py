"""Both ends of a link over a real UNIX socket, with what they talk to replaced by things that remember."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from firstkit.errors import CallFailed, FirstError
from firstkit.links.entrance import Arrival, Entrance
from firstkit.links.frames import Decoder, Frame, FrameType, frame
from firstkit.links.gateway_end import GatewayLink
from firstkit.links.messages import (
    Call,
    Head,
    Hello,
    LinkSpec,
    Open,
    Outcome,
    PilotReport,
    PilotSpec,
    Refusal,
    Sink,
    Tail,
)
from firstkit.links.pilot_end import PilotLink
from firstkit.wire import decode, encode
from waiting import LIMIT_S, until

JOB = "job-1"


def request(body: bytes = b"") -> Open:
    return Open("rep-1", "POST", "/v1/chat/completions", len(body))


class RememberingSink:
    def __init__(self) -> None:
        self.head: Head | None = None
        self.data: list[bytes] = []
        self.tails: list[Tail] = []

    def on_head(self, head: Head) -> None:
        assert self.head is None
        assert not self.data
        assert not self.tails
        self.head = head

    def on_data(self, data: bytes) -> None:
        assert self.head is not None
        assert not self.tails
        self.data.append(data)

    def on_tail(self, tail: Tail) -> None:
        self.tails.append(tail)

    @property
    def body(self) -> bytes:
        return b"".join(self.data)

    async def tail(self) -> Tail:
        await until(lambda: self.tails, "a tail")
        assert len(self.tails) == 1
        return self.tails[0]


class ManualExchange:
    """A request at the pilot that the test answers by hand. ``answers_cancel``: gives a tail when cancelled."""

    def __init__(self, request: Open, body: bytes, sink: Sink, answers_cancel: bool) -> None:
        self.request = request
        self.body = body
        self.sink = sink
        self.answers_cancel = answers_cancel
        self.news: list[str] = []

    def cancel(self) -> None:
        self.news.append("cancel")
        if self.answers_cancel:
            self.sink.on_tail(Tail(Outcome.CANCELLED, duration_s=1.0))

    def pause(self) -> None:
        self.news.append("pause")

    def resume(self) -> None:
        self.news.append("resume")


class RememberingService:
    """A pilot's service. ``answer`` is called with each new exchange; without it the test answers by hand."""

    def __init__(self) -> None:
        self.exchanges: list[ManualExchange] = []
        self.answer: Callable[[ManualExchange], None] | None = None
        self.answers_cancel = True
        self.reports = 0
        self.overs = 0
        self.job_id = JOB

    def open(self, request: Open, body: bytes, sink: Sink) -> ManualExchange:
        exchange = ManualExchange(request, body, sink, self.answers_cancel)
        self.exchanges.append(exchange)
        if self.answer is not None:
            asyncio.get_running_loop().call_soon(self.answer, exchange)
        return exchange

    async def call(self, call: Call) -> Any:
        if call.verb == "fail":
            raise CallFailed("No such replica.")
        if call.verb == "break":
            raise KeyError("a canary")
        if call.verb == "hang":
            await asyncio.sleep(LIMIT_S * 2)
        if call.verb == "large":
            return "x" * 300_000
        return {"verb": call.verb, **call.args}

    def report(self) -> PilotReport:
        self.reports += 1
        return PilotReport(self.job_id, free_cpus=self.reports)

    def over(self) -> None:
        self.overs += 1

    async def exchange(self, index: int = 0) -> ManualExchange:
        await until(lambda: len(self.exchanges) > index, "an exchange")
        return self.exchanges[index]


class RememberingOwner:
    """Owner of the gateway's links. ``reason``: why everybody is refused, or the error that admission raises."""

    def __init__(self) -> None:
        self.reason: str | Exception | None = None
        self.code = "refused"
        self.hellos: list[Hello] = []
        self.reports: list[PilotReport] = []
        self.made: list[GatewayLink] = []
        self.news: list[str] = []
        self.up: list[GatewayLink] = []
        self.lost: list[GatewayLink] = []
        self.may_admit = asyncio.Event()
        self.may_admit.set()

    async def admit(self, hello: Hello) -> Refusal | None:
        self.hellos.append(hello)
        await self.may_admit.wait()
        if isinstance(self.reason, Exception):
            raise self.reason
        return None if self.reason is None else Refusal(self.code, self.reason)

    def on_up(self, link: GatewayLink) -> None:
        assert link.is_up
        self.news.append("up")
        if link not in self.made:
            self.made.append(link)

    def on_down(self, link: GatewayLink) -> None:
        assert not link.is_up
        assert not link.has_ended
        self.news.append("down")

    def on_report(self, link: GatewayLink, report: PilotReport) -> None:
        assert link.is_up
        self.reports.append(report)
        if link not in self.up:
            self.up.append(link)

    def on_lost(self, link: GatewayLink) -> None:
        assert not link.is_up
        assert link not in self.lost
        self.news.append("lost")
        self.lost.append(link)


class Peer(asyncio.Protocol):
    """Somebody who dials the gateway and sends what the test wants."""

    def __init__(self) -> None:
        self.decoder = Decoder()
        self.frames: list[Frame] = []
        self.is_gone = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.frames += self.decoder.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_gone = True

    def send(self, kind: FrameType, number: int, message: Any = b"") -> None:
        self.transport.write(frame(kind, number, message if isinstance(message, bytes) else encode(message)))

    def got(self, kind: FrameType) -> list[bytes]:
        return [payload for each, _, payload in self.frames if each is kind]

    def message(self, cls: type, kind: FrameType) -> Any:
        return decode(cls, self.got(kind)[-1])


class Ends:
    """A gateway that listens, pilots that dial it, and peers of any kind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owner = RememberingOwner()
        self.service = RememberingService()
        self.entrance = Entrance(self.owner)
        self.arrivals: list[Arrival] = []
        self.server: asyncio.AbstractServer | None = None
        self._pilots: list[tuple[PilotLink, asyncio.Task[None]]] = []
        self._peers: list[Peer] = []

    @property
    def made(self) -> list[GatewayLink]:
        """All links that ever were, oldest first."""
        return self.owner.made

    async def listen(self, **times: float) -> None:
        self.path.unlink(missing_ok=True)
        self.enter(**times)
        self.server = await asyncio.get_running_loop().create_unix_server(self.entrance.arrive, str(self.path))

    async def listen_tunnel(self, context: ssl.SSLContext, handshake_s: float = LIMIT_S, **times: float) -> str:
        """Where the door is, for pilots that dial through TLS."""
        self.enter(**times)
        listener = socket.create_server(("127.0.0.1", 0))
        self.server = await self.entrance.listen(listener, context, handshake_s)
        return f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    def enter(self, **times: float) -> None:
        """A new gateway, which remembers who arrives."""
        self.entrance = Entrance(self.owner, **times)
        arrive = self.entrance.arrive

        def remember() -> Arrival:
            self.arrivals.append(arrive())
            return self.arrivals[-1]

        self.entrance.arrive = remember  # type: ignore[method-assign]

    def dial(self, link: LinkSpec | None = None, resume_s: float = 0.0, **times: Any) -> PilotLink:
        link = link or LinkSpec("socket", str(self.path), resume_s=resume_s)
        spec = PilotSpec(JOB, "local", link, enrolment_token="token-1")
        pilot = PilotLink(spec, self.service, **{"redial_s": (0.01, 0.02), "refused_s": 0.05, **times})
        self._pilots.append((pilot, asyncio.get_running_loop().create_task(pilot.run())))
        return pilot

    async def link(self, resume_s: float = 0.0, **times: Any) -> GatewayLink:
        """Both ends, up."""
        await self.listen(**times)
        self.dial(resume_s=resume_s)
        await until(lambda: self.owner.up, "the link")
        return self.owner.up[0]

    async def peer(self) -> Peer:
        _, peer = await asyncio.get_running_loop().create_unix_connection(Peer, str(self.path))
        self._peers.append(peer)
        return peer

    async def admitted_peer(self, **hello: Any) -> Peer:
        peer = await self.peer()
        peer.send(FrameType.HELLO, 0, Hello(**{"protocol": 2, "version": "1.0", "job_id": JOB, "secret": "s", **hello}))
        await until(lambda: peer.got(FrameType.HELLO), "the gateway's hello")
        return peer

    async def stop_gateway(self) -> None:
        assert self.server is not None
        self.server.close()
        self.entrance.close()
        for arrival in self.arrivals:
            arrival.leave()
        self.server = None

    async def close(self) -> None:
        for pilot, _ in self._pilots:
            pilot.close()
        for _, task in self._pilots:
            await asyncio.wait_for(task, LIMIT_S)
        for peer in self._peers:
            peer.transport.abort()
        if self.server is not None:
            await self.stop_gateway()
        await until(lambda: all(peer.is_gone for peer in self._peers))
        await asyncio.sleep(0)


class AdmissionError(FirstError):
    """The database is away."""
