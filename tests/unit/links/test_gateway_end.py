"""The gateway's end against peers that do not behave."""

from __future__ import annotations

import asyncio
import math

import pytest

from firstkit.errors import CallFailed, LinkLost
from firstkit.links.frames import ACKNOWLEDGED_BYTES, HEADER, LIMIT_BYTES, MAX_PAYLOAD, TAKEN, FrameType, frame
from firstkit.links.messages import (
    PROTOCOL,
    Call,
    Head,
    Hello,
    Outcome,
    PilotReport,
    Refusal,
    Reply,
    Tail,
    Usage,
)
from firstkit.wire import encode, to_dict
from unit.links.support import JOB, AdmissionError, Ends, Peer, RememberingSink, request
from waiting import until

HELLO = Hello(PROTOCOL, "1.0", JOB, "secret", "token")


async def refused(peer: Peer, code: str, words: str) -> None:
    await until(lambda: peer.is_gone, "the end of the link")
    refusal = peer.message(Refusal, FrameType.RESET)
    assert refusal.code == code
    assert words in refusal.message


@pytest.mark.parametrize("protocol", [PROTOCOL - 1, PROTOCOL, PROTOCOL + 1])
async def test_a_version_beside_ours_is_welcome(ends: Ends, protocol: int) -> None:
    await ends.listen()
    peer = await ends.peer()
    peer.send(FrameType.HELLO, 0, Hello(protocol, "9", JOB))
    await until(lambda: peer.got(FrameType.HELLO), "the hello")
    assert peer.message(Hello, FrameType.HELLO).protocol == PROTOCOL
    assert ends.made[0].is_up
    assert ends.made[0].job_id == JOB


@pytest.mark.parametrize("protocol", [PROTOCOL - 2, PROTOCOL + 2])
async def test_versions_further_away_are_refused(ends: Ends, protocol: int) -> None:
    await ends.listen()
    peer = await ends.peer()
    peer.send(FrameType.HELLO, 0, Hello(protocol, "9", JOB))
    await refused(peer, "protocol", f"version {protocol}")
    assert ends.owner.hellos == []


@pytest.mark.parametrize("reason", ["unknown job", AdmissionError(), ValueError("a canary")])
async def test_a_refused_hello_is_told_why(ends: Ends, reason: str | Exception) -> None:
    await ends.listen()
    ends.owner.reason = reason
    peer = await ends.peer()
    peer.send(FrameType.HELLO, 0, HELLO)
    words = {str: "unknown job", AdmissionError: "The database is away.", ValueError: "the gateway failed"}
    await refused(peer, "refused", words[type(reason)])
    assert ends.owner.lost == []


async def test_only_a_hello_comes_first(ends: Ends) -> None:
    await ends.listen()
    for kind in FrameType:
        if kind is not FrameType.HELLO:
            peer = await ends.peer()
            peer.send(kind, 0, b"{}")
            await refused(peer, "protocol", kind.name)
    assert ends.owner.hellos == []


@pytest.mark.parametrize(
    ("kind", "message"), [(FrameType.CALL, Call("report", to_dict(PilotReport(JOB)))), (FrameType.HELLO, HELLO)]
)
async def test_nothing_may_follow_the_hello_until_it_is_answered(ends: Ends, kind: FrameType, message: object) -> None:
    await ends.listen()
    ends.owner.may_admit.clear()
    peer = await ends.peer()
    peer.send(FrameType.HELLO, 0, HELLO)
    await until(lambda: ends.owner.hellos)
    peer.send(kind, 0, message)
    await refused(peer, "protocol", "before the hellos")
    assert ends.owner.hellos == [HELLO]
    ends.owner.may_admit.set()
    await asyncio.sleep(0)
    assert ends.made == []


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01" + bytes(200),
        HEADER.pack(0, FrameType.HELLO << 24 | 5000),
        frame(FrameType.HELLO, 0, b"not JSON"),
        frame(FrameType.HELLO, 0, b'{"protocol": "1"}'),
        frame(FrameType.HELLO, 0, b"[" * 4000),
        frame(FrameType.HELLO, 3, encode(HELLO)),
    ],
)
async def test_garbage_before_the_hello_ends_the_link(ends: Ends, data: bytes) -> None:
    await ends.listen()
    peer = await ends.peer()
    peer.transport.write(data)
    await refused(peer, "protocol", "")
    assert ends.owner.hellos == []


async def test_a_hello_has_to_come_in_time(ends: Ends) -> None:
    await ends.listen(hello_s=0.05)
    peer = await ends.peer()
    peer.transport.write(frame(FrameType.HELLO, 0, encode(HELLO))[:-1])
    await until(lambda: peer.is_gone, "the end of the link")


async def test_admission_may_take_longer_than_the_hello(ends: Ends) -> None:
    await ends.listen(hello_s=0.05)
    ends.owner.may_admit.clear()
    peer = await ends.peer()
    peer.send(FrameType.HELLO, 0, HELLO)
    await asyncio.sleep(0.15)
    ends.owner.may_admit.set()
    await until(lambda: peer.got(FrameType.HELLO), "the hello")


async def test_pauses_are_told_once(ends: Ends) -> None:
    await ends.listen()
    peer = await ends.admitted_peer()
    exchange = ends.made[0].open(request(), b"", RememberingSink())
    for step in (exchange.resume, exchange.pause, exchange.pause, exchange.resume, exchange.resume, exchange.cancel):
        step()
    await until(lambda: peer.got(FrameType.RESET))
    sent = [FrameType.OPEN, FrameType.PAUSE, FrameType.RESUME, FrameType.RESET]
    assert [kind for kind, number, _ in peer.frames if number == 1] == sent


async def test_what_was_taken_is_acknowledged_by_halves_of_the_window(ends: Ends) -> None:
    await ends.listen()
    peer = await ends.admitted_peer()
    sink = RememberingSink()
    exchange = ends.made[0].open(request(), b"", sink)
    peer.send(FrameType.HEAD, 1, Head(200))
    peer.send(FrameType.DATA, 1, bytes(ACKNOWLEDGED_BYTES - 1))
    peer.send(FrameType.DATA, 1, bytes(200))
    await until(lambda: peer.got(FrameType.RESUME))
    assert peer.got(FrameType.RESUME) == [TAKEN.pack(ACKNOWLEDGED_BYTES + 199)]
    exchange.pause()
    for _ in range(3):
        peer.send(FrameType.DATA, 1, bytes(ACKNOWLEDGED_BYTES))
    await until(lambda: len(sink.body) == 4 * ACKNOWLEDGED_BYTES + 199)
    assert len(peer.got(FrameType.RESUME)) == 1
    exchange.resume()
    await until(lambda: len(peer.got(FrameType.RESUME)) == 2)
    assert peer.got(FrameType.RESUME)[1] == TAKEN.pack(3 * ACKNOWLEDGED_BYTES)
    assert 3 * ACKNOWLEDGED_BYTES == LIMIT_BYTES


async def test_a_pilot_that_does_not_wait_for_acknowledgements_is_refused(ends: Ends) -> None:
    await ends.listen()
    peer = await ends.admitted_peer()
    slow, other = RememberingSink(), RememberingSink()
    ends.made[0].open(request(), b"", slow).pause()
    ends.made[0].open(request(), b"", other)
    peer.send(FrameType.HEAD, 1, Head(200))
    for _ in range(3):
        peer.send(FrameType.DATA, 1, bytes(MAX_PAYLOAD))
    await until(lambda: len(slow.body) == LIMIT_BYTES)
    assert ends.made[0].is_up
    peer.send(FrameType.DATA, 1, b"x")
    await refused(peer, "protocol", "without an acknowledgement")
    assert (await slow.tail()).outcome is Outcome.LOST
    assert (await other.tail()).outcome is Outcome.LOST


async def test_nothing_is_acknowledged_after_a_reset(ends: Ends) -> None:
    await ends.listen()
    peer = await ends.admitted_peer()
    sink = RememberingSink()
    exchange = ends.made[0].open(request(), b"", sink)
    peer.send(FrameType.HEAD, 1, Head(200))
    await until(lambda: sink.head)
    exchange.cancel()
    exchange.resume()
    peer.send(FrameType.DATA, 1, bytes(MAX_PAYLOAD))
    peer.send(FrameType.DATA, 1, bytes(MAX_PAYLOAD))
    peer.send(FrameType.TAIL, 1, Tail(Outcome.CANCELLED))
    assert await sink.tail() == Tail(Outcome.CANCELLED)
    assert peer.got(FrameType.RESUME) == []


@pytest.mark.parametrize(
    "data",
    [
        bytes([255]) * 64,
        HEADER.pack(1, FrameType.DATA << 24 | MAX_PAYLOAD + 1),
        frame(FrameType.DATA, 2, b"x"),
        frame(FrameType.TAIL, 2, encode(Tail(Outcome.COMPLETE))),
        frame(FrameType.DATA, 1, b"before the head"),
        frame(FrameType.HEAD, 1, encode(Head(200))) * 2,
        frame(FrameType.HEAD, 1, encode(Head(200))) + frame(FrameType.DATA, 1),
        frame(FrameType.TAIL, 1, b'{"outcome": "splendid"}'),
        frame(FrameType.TAIL, 1, b'{"outcome": "complete", "duration_s": 1' + b"0" * 400 + b"}"),
        frame(FrameType.REPLY, 1, encode(Reply())),
        frame(FrameType.OPEN, 5, b"{}"),
        frame(FrameType.RESET, 1),
        frame(FrameType.HELLO, 0, encode(HELLO)),
        frame(FrameType.PING, 1),
        frame(FrameType.CALL, 0, encode(Call("exit"))),
        frame(FrameType.CALL, 7, encode(Call("report", to_dict(PilotReport(JOB))))),
        frame(FrameType.CALL, 0, encode(Call("report", to_dict(PilotReport("job-2"))))),
        frame(FrameType.CALL, 0, encode(Call("report", {"job_id": 3}))),
    ],
)
async def test_a_breach_of_the_protocol_ends_the_link_and_its_streams(ends: Ends, data: bytes) -> None:
    await ends.listen()
    peer = await ends.admitted_peer()
    sink = RememberingSink()
    ends.made[0].open(request(), b"", sink)
    await until(lambda: peer.got(FrameType.OPEN))
    peer.transport.write(data)
    await refused(peer, "protocol", "")
    assert await sink.tail() == Tail(Outcome.LOST, error="link lost")
    assert ends.owner.lost == ends.made
    assert ends.owner.reports == []


async def test_frames_for_finished_streams_are_ignored(ends: Ends) -> None:
    await ends.listen()
    peer = await ends.admitted_peer()
    sink = RememberingSink()
    ends.made[0].open(request(), b"", sink)
    peer.send(FrameType.TAIL, 1, Tail(Outcome.FAILED))
    peer.send(FrameType.HEAD, 1, Head(200))
    peer.send(FrameType.DATA, 1, b"late")
    peer.send(FrameType.TAIL, 1, Tail(Outcome.COMPLETE))
    peer.send(FrameType.CALL, 0, Call("report", to_dict(PilotReport(JOB))))
    await until(lambda: ends.owner.reports)
    assert await sink.tail() == Tail(Outcome.FAILED)
    assert sink.data == []


async def test_a_pilot_that_does_not_read_leaves_large_bodies_where_they_are(ends: Ends) -> None:
    await ends.listen()
    peer = await ends.admitted_peer()
    link, body = ends.made[0], bytes(range(256)) * 65_536
    peer.transport.pause_reading()
    exchange = link.open(request(body), body, RememberingSink())
    await until(lambda: link.is_full, "a full transport")
    link.open(request(b"small"), b"small", RememberingSink())
    exchange.pause()
    for _ in range(20):
        await asyncio.sleep(0)
    assert link._transport is not None
    assert link._transport.get_write_buffer_size() < 1024 * 1024
    peer.transport.resume_reading()
    await until(lambda: sum(map(len, peer.got(FrameType.BODY))) == len(body) + 5, "the bodies")
    assert b"".join(payload for kind, number, payload in peer.frames if (kind, number) == (FrameType.BODY, 1)) == body
    order = [(kind, number) for kind, number, _ in peer.frames]
    assert order.index((FrameType.PAUSE, 1)) < len(order) - order[::-1].index((FrameType.BODY, 1)) - 1


async def test_impossible_numbers_and_heads_are_not_passed_on(ends: Ends) -> None:
    await ends.listen()
    peer = await ends.admitted_peer()
    sinks = [RememberingSink() for _ in range(3)]
    for sink in sinks:
        ends.made[0].open(request(), b"", sink)
    peer.send(FrameType.HEAD, 1, Head(99, "text/html\r\nset-cookie: x"))
    peer.send(FrameType.TAIL, 1, Tail(Outcome.COMPLETE, Usage(-1, 5), None, math.nan, -1.0, math.inf))
    peer.send(FrameType.TAIL, 2, Tail(Outcome.COMPLETE, Usage(1, 10**30)))
    peer.send(FrameType.TAIL, 3, Tail(Outcome.COMPLETE, Usage(1, 2), None, 0.5, 0.1, 2.0))
    assert await sinks[0].tail() == Tail(Outcome.COMPLETE)
    assert sinks[0].head == Head(502, "application/octet-stream")
    assert await sinks[1].tail() == Tail(Outcome.COMPLETE)
    assert await sinks[2].tail() == Tail(Outcome.COMPLETE, Usage(1, 2), None, 0.5, 0.1, 2.0)


async def test_cancel_without_an_answer_ends_by_itself(ends: Ends) -> None:
    await ends.listen(cancel_s=0.05)
    peer = await ends.admitted_peer()
    sink = RememberingSink()
    exchange = ends.made[0].open(request(), b"", sink)
    exchange.cancel()
    exchange.cancel()
    exchange.pause()
    assert await sink.tail() == Tail(Outcome.CANCELLED)
    assert len(peer.got(FrameType.RESET)) == 1
    assert peer.got(FrameType.PAUSE) == []
    peer.send(FrameType.TAIL, 1, Tail(Outcome.CANCELLED))
    peer.send(FrameType.CALL, 0, Call("report", to_dict(PilotReport(JOB))))
    await until(lambda: ends.owner.reports)
    assert len(sink.tails) == 1


async def test_an_open_on_a_lost_link_gives_a_tail_after_it_returned(ends: Ends) -> None:
    await ends.listen()
    peer = await ends.admitted_peer()
    link = ends.made[0]
    peer.transport.abort()
    await until(lambda: not link.is_up)
    sink = RememberingSink()
    exchange = link.open(request(), b"", sink)
    assert sink.tails == []
    exchange.cancel()
    assert await sink.tail() == Tail(Outcome.LOST, error="link lost")
    with pytest.raises(LinkLost):
        await link.call("status")


async def test_a_silent_peer_is_given_up(ends: Ends) -> None:
    await ends.listen(ping_s=0.05, silence_s=0.2)
    peer = await ends.admitted_peer()
    sink = RememberingSink()
    ends.made[0].open(request(), b"", sink)
    assert (await sink.tail()).outcome is Outcome.LOST
    assert peer.got(FrameType.PING)
    assert ends.owner.lost == ends.made


async def test_a_peer_that_pings_is_kept(ends: Ends) -> None:
    await ends.listen(ping_s=0.05, silence_s=0.2)
    peer = await ends.admitted_peer()
    for _ in range(20):
        peer.send(FrameType.PING, 0)
        await asyncio.sleep(0.03)
    assert ends.made[0].is_up


async def test_calls_that_nobody_answers(ends: Ends) -> None:
    await ends.listen()
    peer = await ends.admitted_peer()
    link = ends.made[0]
    with pytest.raises(LinkLost, match=r"did not answer 'status' within 0\.05 s"):
        await link.call("status", timeout_s=0.05)
    peer.send(FrameType.REPLY, 1, Reply("late"))
    waiting = asyncio.ensure_future(link.call("status"))
    await until(lambda: len(peer.got(FrameType.CALL)) == 2)
    peer.transport.abort()
    with pytest.raises(LinkLost):
        await waiting


async def test_what_does_not_fit_into_a_frame_fails_alone(ends: Ends) -> None:
    await ends.listen()
    await ends.admitted_peer()
    link, sink = ends.made[0], RememberingSink()
    with pytest.raises(CallFailed, match="too large"):
        await link.call("start", {"x": "y" * MAX_PAYLOAD})
    link.open(type(request())("rep-1", "POST", "/", 0, {"x": "y" * MAX_PAYLOAD}), b"", sink)
    assert (await sink.tail()).outcome is Outcome.FAILED
    assert link.is_up


async def test_a_sink_may_close_the_link_in_mid_stream(ends: Ends) -> None:
    class Closing(RememberingSink):
        def on_data(self, data: bytes) -> None:
            super().on_data(data)
            ends.made[0].close()

    await ends.listen()
    peer = await ends.admitted_peer()
    sink, other = Closing(), RememberingSink()
    for each in (sink, other):
        ends.made[0].open(request(), b"", each)
    head = frame(FrameType.HEAD, 1, encode(Head(200)))
    peer.transport.write(head + frame(FrameType.DATA, 1, b"x") + frame(FrameType.TAIL, 1, b"{}"))
    assert (await sink.tail()).outcome is Outcome.LOST
    assert (await other.tail()).outcome is Outcome.LOST
    await until(lambda: peer.is_gone)
    assert "gone" in repr(ends.made[0])
