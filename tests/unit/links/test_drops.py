"""Connections that drop, fall silent or are replaced, over real sockets: what goes on, what ends, who may go on."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from firstkit.links.connection import HEARD_BYTES
from firstkit.links.frames import MAX_PAYLOAD, FrameType, frame
from firstkit.links.gateway_end import REPORT_EVERY_S, GatewayLink
from firstkit.links.kept import COUNT
from firstkit.links.messages import Call, Head, Hello, LinkSpec, Open, Outcome, PilotReport, Refusal, Tail
from firstkit.links.private_ca import PrivateCa
from firstkit.testing.fault_proxy import FaultProxy
from firstkit.wire import encode, to_dict
from unit.links.support import JOB, Ends, ManualExchange, RememberingSink, request
from waiting import until

LONG_S = 30.0
DONE = Tail(Outcome.COMPLETE)


class Tunnel:
    """Both ends of a tunnel, with a proxy between them that fails when it is told to."""

    def __init__(self, ends: Ends, ca: PrivateCa, proxy: FaultProxy) -> None:
        self.ends = ends
        self.ca = ca
        self.proxy = proxy

    async def begin(self, resume_s: float = LONG_S, **times: Any) -> GatewayLink:
        self.proxy.target = await self.ends.listen_tunnel(self.ca.server_context(), **times)
        spec = LinkSpec("tunnel", addresses=(self.proxy.address,), ca_pem=self.ca.certificate_pem, resume_s=resume_s)
        self.ends.dial(spec, **times)
        await until(lambda: self.ends.owner.up, "the link")
        return self.ends.owner.up[0]


@pytest.fixture
async def tunnel(ends: Ends, folder: Any) -> AsyncIterator[Tunnel]:
    async with FaultProxy("").listening() as proxy:
        yield Tunnel(ends, PrivateCa(folder), proxy)
        await ends.close()


def blocks(seed: int, count: int) -> list[bytes]:
    """Pieces of an answer, each like no other."""
    return [hashlib.sha256(b"%d.%d" % (seed, n)).digest() * (1 + n % 40) for n in range(count)]


async def test_streams_go_on_byte_by_byte_however_often_the_connection_is_cut(ends: Ends, tunnel: Tunnel) -> None:
    link = await tunnel.begin()
    chance = random.Random(7)

    async def answer(exchange: ManualExchange) -> None:
        exchange.sink.on_head(Head(200))
        for block in blocks(len(exchange.body), 300):
            exchange.sink.on_data(block)
            await asyncio.sleep(0.001 * chance.random())
        exchange.sink.on_tail(DONE)

    tasks: list[asyncio.Task[None]] = []
    ends.service.answer = lambda exchange: tasks.append(asyncio.ensure_future(answer(exchange)))
    sinks = [RememberingSink() for _ in range(40)]
    for n, sink in enumerate(sinks):
        body = bytes(1 + n * 20_000)
        link.open(request(body), body, sink)
    cuts = 0
    while not all(sink.tails for sink in sinks):
        if tunnel.proxy.cut_after == float("inf") and link.is_up and cuts < 8:
            tunnel.proxy.cut_after = chance.randint(1, 600_000)
            cuts += 1
        await asyncio.sleep(0.01)
    for n, sink in enumerate(sinks):
        assert sink.tails == [DONE]
        assert sink.body == b"".join(blocks(1 + n * 20_000, 300))
    assert sorted(len(exchange.body) for exchange in ends.service.exchanges) == [1 + n * 20_000 for n in range(40)]
    assert ends.owner.made == [link]
    assert ends.owner.news.count("down") >= 5


async def test_after_its_time_a_link_that_is_down_is_lost_at_both_ends(ends: Ends, tunnel: Tunnel) -> None:
    link = await tunnel.begin(resume_s=0.2)
    sink = RememberingSink()
    link.open(request(), b"", sink)
    exchange = await ends.service.exchange()
    waiting = asyncio.ensure_future(link.call("hang"))
    tunnel.proxy.refuses = True
    tunnel.proxy.cut()
    await until(lambda: ends.owner.news == ["up", "down"])
    assert sink.tails == []
    assert not link.is_up
    refused = RememberingSink()
    link.open(request(), b"", refused)
    assert (await refused.tail()).outcome is Outcome.LOST
    assert (await sink.tail()).outcome is Outcome.LOST
    with pytest.raises(Exception, match="link"):
        await waiting
    await until(lambda: exchange.news == ["cancel"])
    assert ends.owner.lost == [link]
    tunnel.proxy.refuses = False
    await until(lambda: len(ends.owner.up) == 2, "a new link")
    assert ends.owner.hellos[-1].session == ""


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_connection_that_is_half_open_is_replaced(ends: Ends, tunnel: Tunnel, way: str) -> None:
    """One direction goes nowhere, and nobody is told: heartbeats notice, at the end that hears nothing."""
    link = await tunnel.begin(ping_s=0.05, silence_s=0.3)
    sink = RememberingSink()
    link.open(request(), b"", sink)
    exchange = await ends.service.exchange()
    exchange.sink.on_head(Head(200))
    await until(lambda: sink.head)
    tunnel.proxy.swallow(way == "up", way == "down")
    exchange.sink.on_data(b"into the void")
    calling = asyncio.ensure_future(link.call("status"))
    await until(lambda: not link.is_up, "silence to be noticed")
    tunnel.proxy.swallow(False, False)
    exchange.sink.on_tail(DONE)
    assert await sink.tail() == DONE
    assert sink.body == b"into the void"
    assert (await calling)["verb"] == "status"
    assert ends.owner.made == [link]


async def test_a_partition_that_heals_costs_nothing(ends: Ends, tunnel: Tunnel) -> None:
    link = await tunnel.begin(ping_s=0.1, silence_s=5.0)
    sink = RememberingSink()
    link.open(request(), b"", sink)
    exchange = await ends.service.exchange()
    exchange.sink.on_head(Head(200))
    tunnel.proxy.hold(True, True)
    exchange.sink.on_data(b"waits")
    await asyncio.sleep(0.3)
    assert sink.data == []
    tunnel.proxy.hold(False, False)
    await until(lambda: sink.body == b"waits")
    assert tunnel.proxy.accepted == 1


async def test_what_is_not_acknowledged_is_bounded_and_holds_the_engines(ends: Ends, tunnel: Tunnel) -> None:
    link = await tunnel.begin()
    sinks = [RememberingSink() for _ in range(40)]
    for sink in sinks:
        link.open(request(), b"", sink)
    await ends.service.exchange(39)
    tunnel.proxy.refuses = True
    tunnel.proxy.cut()
    session = ends._pilots[0][0]._session
    assert session is not None
    await until(lambda: not session.is_up)
    said = 0
    for exchange in ends.service.exchanges:
        exchange.sink.on_head(Head(200))
        while not exchange.news:
            exchange.sink.on_data(bytes(MAX_PAYLOAD // 4))
            said += MAX_PAYLOAD // 4
            session._flush()
    assert session.kept_limit <= said < session.kept_limit + 2 * MAX_PAYLOAD
    assert session._kept is not None
    assert session._kept.size_bytes < said + 100_000
    tunnel.proxy.refuses = False
    await until(lambda: sum(len(sink.body) for sink in sinks) == said, "the rest")
    await until(lambda: all(exchange.news == ["pause", "resume"] for exchange in ends.service.exchanges), "the resume")
    assert session._kept.size_bytes < 2 * HEARD_BYTES


async def test_a_pilot_that_leaves_is_not_waited_for(ends: Ends, tunnel: Tunnel) -> None:
    link = await tunnel.begin()
    ends._pilots[0][0].close()
    await until(lambda: ends.owner.lost == [link], "the end")
    assert ends.owner.news == ["up", "lost"]


async def test_a_gateway_that_was_restarted_gets_a_new_session(ends: Ends, tunnel: Tunnel) -> None:
    link = await tunnel.begin()
    sink = RememberingSink()
    link.open(request(), b"", sink)
    exchange = await ends.service.exchange()
    server = ends.server
    await ends.stop_gateway()
    assert server is not None
    assert (await sink.tail()).outcome is Outcome.LOST
    tunnel.proxy.target = await ends.listen_tunnel(tunnel.ca.server_context())
    await until(lambda: len(ends.owner.up) == 2, "a new link")
    await until(lambda: exchange.news == ["cancel"], "the end of what nobody waits for")
    assert ends.owner.hellos[-1].session == link.session != ends.made[1].session


async def test_a_fault_of_ours_ends_the_session(ends: Ends, tunnel: Tunnel) -> None:
    """Nobody knows which frames were dealt with: to go on might lose some without a word."""

    class Broken(RememberingSink):
        def on_data(self, data: bytes) -> None:
            raise KeyError("a fault")

    faults: list[Any] = []
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: faults.append(context))
    link = await tunnel.begin()
    sink = Broken()
    link.open(request(), b"", sink)
    exchange = await ends.service.exchange()
    exchange.sink.on_head(Head(200))
    exchange.sink.on_data(b"x")
    assert (await sink.tail()).outcome is Outcome.LOST
    assert ends.owner.lost == [link]
    loop.set_exception_handler(handler)
    assert faults


# -- who may go on: peers of all kinds ---------------------------------------------------------------------------------


async def resumable(ends: Ends, **hello: Any) -> Any:
    return await ends.admitted_peer(**{"resume_s": LONG_S, "dial": 1, **hello})


async def refused(ends: Ends, words: str, **hello: Any) -> None:
    peer = await ends.peer()
    peer.send(FrameType.HELLO, 0, Hello(2, "1.0", JOB, "s", **hello))
    await until(lambda: peer.is_gone, "the refusal")
    assert words in peer.message(Refusal, FrameType.RESET).message


async def test_only_a_younger_connection_of_a_pilot_counts(ends: Ends) -> None:
    await ends.listen()
    first = await resumable(ends, dial=5)
    link = ends.made[0]
    for dial in (0, 4, 5):
        await refused(ends, "comes after its connection 5", dial=dial, resume_s=LONG_S, session=link.session)
    assert link.is_up
    assert not first.is_gone
    second = await resumable(ends, dial=6, session=link.session)
    assert second.message(Hello, FrameType.HELLO).session == link.session
    await until(lambda: first.is_gone, "the end of the older connection")
    assert ends.made == [link]
    link.close()
    await refused(ends, "comes after its connection 6", dial=6)
    assert len(ends.made) == 1


async def test_what_an_older_connection_still_brings_is_nobodys(ends: Ends) -> None:
    await ends.listen()
    first = await resumable(ends)
    link, sink = ends.made[0], RememberingSink()
    link.open(request(), b"", sink)
    first.send(FrameType.HEAD, 1, Head(200))
    await until(lambda: sink.head)
    older = link._transport
    assert older is not None
    second = await resumable(ends, dial=2, session=link.session)
    assert older.get_protocol() is not link
    second.send(FrameType.DATA, 1, b"of the new one")
    second.send(FrameType.TAIL, 1, DONE)
    assert await sink.tail() == DONE
    assert sink.body == b"of the new one"


async def test_nobody_goes_on_with_the_session_of_another_job(ends: Ends) -> None:
    await ends.listen()
    await resumable(ends)
    victim, sink = ends.made[0], RememberingSink()
    victim.open(request(), b"", sink)
    thief = await resumable(ends, job_id="job-2", session=victim.session)
    assert thief.message(Hello, FrameType.HELLO).session not in ("", victim.session)
    thief.send(FrameType.CALL, 0, Call("report", to_dict(PilotReport(JOB))))
    await until(lambda: thief.is_gone, "the end of the thief")
    assert victim.is_up
    assert sink.tails == []
    assert ends.owner.reports == []


@pytest.mark.parametrize("received", [-1, 10_000, 2**63])
async def test_whoever_cannot_go_on_begins_anew(ends: Ends, received: int) -> None:
    await ends.listen()
    await resumable(ends)
    link, sink = ends.made[0], RememberingSink()
    link.open(request(), b"", sink)
    peer = await resumable(ends, dial=2, session=link.session, received=received)
    assert peer.message(Hello, FrameType.HELLO).session != link.session
    assert (await sink.tail()).outcome is Outcome.LOST
    assert ends.owner.lost == [link]


async def test_what_was_acknowledged_cannot_be_asked_for_again(ends: Ends) -> None:
    await ends.listen()
    first = await resumable(ends)
    link = ends.made[0]
    link.open(request(), b"", RememberingSink())
    await until(lambda: first.got(FrameType.OPEN))
    assert link._kept is not None
    first.send(FrameType.PING, 0, COUNT.pack(link._kept.sent))
    await until(lambda: link._kept is not None and not link._kept.size_bytes)
    second = await resumable(ends, dial=2, session=link.session, received=0)
    assert second.message(Hello, FrameType.HELLO).session != link.session


@pytest.mark.parametrize("payload", [b"", b"1234567", COUNT.pack(2**40)])
async def test_an_acknowledgement_that_cannot_be_ends_the_link(ends: Ends, payload: bytes) -> None:
    await ends.listen()
    peer = await resumable(ends)
    peer.send(FrameType.PING, 0, payload)
    await until(lambda: peer.is_gone)
    assert peer.message(Refusal, FrameType.RESET).code == "protocol"
    assert ends.owner.news == ["up", "lost"]


async def test_a_pilot_that_acknowledges_nothing_is_left(ends: Ends) -> None:
    """It reads all, so nothing waits in the transport; what would be kept for it is bounded all the same."""
    await ends.listen()
    peer = await resumable(ends)
    link, body = ends.made[0], bytes(32 * 1024 * 1024)
    link.open(request(body), body, RememberingSink())
    await until(lambda: link.is_full, "the limit")
    assert link._kept is not None
    assert link._kept.size_bytes < link.kept_limit + 2 * 1024 * 1024
    large = Open("rep-1", "POST", "/", 0, {"x": "y" * 200_000})
    for _ in range(100):
        link.open(large, b"", RememberingSink())
        await asyncio.sleep(0)
    await until(lambda: link.has_ended, "the end")
    await until(lambda: peer.is_gone)
    assert sum(map(len, peer.got(FrameType.OPEN))) < link.kept_most


async def test_nobody_is_waited_for_longer_than_a_minute(ends: Ends) -> None:
    await ends.listen()
    for dial, resume_s in enumerate([float("nan"), float("inf"), -1.0], 1):
        await resumable(ends, dial=dial, resume_s=resume_s)
    assert [link._resume_s for link in ends.made] == [0.0, 60.0, 0.0]
    assert [bool(link.session) for link in ends.made] == [False, True, False]


async def test_a_pilot_of_the_version_before_has_links_as_they_were(ends: Ends) -> None:
    await ends.listen(ping_s=0.02)
    peer = await ends.admitted_peer(protocol=1)
    sink = RememberingSink()
    ends.made[0].open(request(), b"", sink)
    await until(lambda: peer.got(FrameType.PING))
    assert peer.got(FrameType.PING)[0] == b""
    peer.send(FrameType.PING, 0)
    peer.send(FrameType.CALL, 0, Call("report", to_dict(PilotReport(JOB))))
    await until(lambda: ends.owner.reports)
    peer.transport.abort()
    assert (await sink.tail()).outcome is Outcome.LOST
    assert ends.owner.news == ["up", "lost"]


async def test_a_pilot_whose_job_is_over_is_told(ends: Ends) -> None:
    await ends.listen()
    ends.owner.reason, ends.owner.code = "this job is over", "over"
    pilot = ends.dial()
    await until(lambda: ends.service.overs >= 2, "the news, again and again")
    assert not pilot.is_up


async def test_a_flood_of_reports_is_read_now_and_then(ends: Ends) -> None:
    await ends.listen()
    peer = await resumable(ends)
    started = asyncio.get_running_loop().time()
    for count in range(1, 2001):
        peer.send(FrameType.CALL, 0, Call("report", to_dict(PilotReport(JOB, free_cpus=count))))
    await until(lambda: ends.owner.reports and ends.owner.reports[-1].free_cpus == 2000, "the last report")
    took_s = asyncio.get_running_loop().time() - started
    assert ends.owner.reports[0].free_cpus == 1
    assert len(ends.owner.reports) <= 2 + took_s / REPORT_EVERY_S


async def test_a_late_report_of_the_wrong_shape_ends_the_link_too(ends: Ends) -> None:
    await ends.listen()
    peer = await resumable(ends)
    peer.send(FrameType.CALL, 0, Call("report", to_dict(PilotReport(JOB))))
    peer.send(FrameType.CALL, 0, Call("report", {"job_id": 3}))
    await until(lambda: peer.is_gone)
    assert peer.message(Refusal, FrameType.RESET).code == "protocol"


async def test_an_error_of_a_megabyte_is_cut(ends: Ends) -> None:
    await ends.listen()
    peer = await resumable(ends)
    sink = RememberingSink()
    ends.made[0].open(request(), b"", sink)
    peer.send(FrameType.TAIL, 1, Tail(Outcome.FAILED, error="x" * 200_000))
    assert await sink.tail() == Tail(Outcome.FAILED, error="x" * 1000)


async def test_a_thousand_streams_at_once_take_one_connection(ends: Ends, tunnel: Tunnel) -> None:
    link = await tunnel.begin()

    def answer(exchange: ManualExchange) -> None:
        exchange.sink.on_head(Head(200))
        exchange.sink.on_data(exchange.body)
        exchange.sink.on_tail(DONE)

    ends.service.answer = answer
    sinks = [RememberingSink() for _ in range(1000)]
    for n, sink in enumerate(sinks):
        link.open(request(b"%d" % n), b"%d" % n, sink)
    await until(lambda: all(sink.tails for sink in sinks), "a thousand answers")
    assert [sink.body for sink in sinks] == [b"%d" % n for n in range(1000)]
    assert tunnel.proxy.accepted == 1


async def test_frames_cut_in_two_by_a_new_connection_are_whole(ends: Ends) -> None:
    """The second half of a frame comes over another connection than the first."""
    await ends.listen()
    first = await resumable(ends)
    link, sink = ends.made[0], RememberingSink()
    link.open(request(), b"", sink)
    data = frame(FrameType.HEAD, 1, encode(Head(200))) + frame(FrameType.DATA, 1, b"abcdef")
    first.transport.write(data[:-3])
    await until(lambda: link.received == len(data) - 3)
    first.transport.abort()
    await until(lambda: not link.is_up)
    second = await resumable(ends, dial=2, session=link.session)
    assert second.message(Hello, FrameType.HELLO).received == len(data) - 3
    assert second.got(FrameType.OPEN), "what was not acknowledged comes again"
    second.transport.write(data[-3:])
    await until(lambda: sink.body == b"abcdef")
