"""Both ends together over a UNIX socket, and the pilot's end against gateways that do not behave."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from pathlib import Path

import pytest

from firstkit.errors import CallFailed, LinkLost
from firstkit.links.frames import LIMIT_BYTES, MAX_PAYLOAD, TAKEN, WINDOW_BYTES, FrameType, frame
from firstkit.links.messages import (
    PROTOCOL,
    Call,
    Head,
    Hello,
    Open,
    Outcome,
    PilotReport,
    Refusal,
    ReplicaReport,
    Tail,
    Usage,
)
from firstkit.states import ReplicaState
from firstkit.wire import encode
from unit.links.support import JOB, Ends, ManualExchange, Peer, RememberingSink, request
from waiting import until

DONE = Tail(Outcome.COMPLETE, Usage(3, 4), None, 0.1, 0.2, 0.3)


def echo(exchange: ManualExchange) -> None:
    exchange.sink.on_head(Head(200, "text/plain"))
    exchange.sink.on_data(exchange.body)
    exchange.sink.on_tail(DONE)


async def gateway_peer(ends: Ends) -> Peer:
    """A gateway that a test plays by hand, with a pilot that has dialled it."""
    peers: list[Peer] = []

    def make() -> Peer:
        peers.append(Peer())
        return peers[-1]

    ends.server = await asyncio.get_running_loop().create_unix_server(make, str(ends.path))
    ends.dial()
    await until(lambda: peers and peers[0].got(FrameType.HELLO), "the pilot's hello")
    ends._peers = peers
    return peers[0]


async def test_hello_report_and_answer(ends: Ends) -> None:
    link = await ends.link()
    ends.service.answer = echo
    sink = RememberingSink()
    link.open(request(b"question"), b"question", sink)
    assert await sink.tail() == DONE
    assert sink.head == Head(200, "text/plain")
    assert sink.body == b"question"
    assert ends.owner.hellos[0].job_id == JOB
    assert ends.owner.reports == [PilotReport(JOB, free_cpus=1)]
    assert repr(link) == "<GatewayLink job-1 up, 0 streams>"


async def test_token_goes_once_the_secret_always(ends: Ends) -> None:
    await ends.link()
    ends.made[0].close()
    await until(lambda: len(ends.owner.up) == 2)
    first, second = ends.owner.hellos
    assert (first.token, second.token) == ("token-1", "")
    assert first.secret == second.secret
    assert len(first.secret) == 52


async def test_a_refused_pilot_goes_on_trying_and_is_orphaned_meanwhile(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    await ends.listen()
    ends.owner.reason = "not this job"
    pilot = ends.dial()
    await until(lambda: len(ends.owner.hellos) >= 3)
    assert not pilot.is_up
    assert pilot.silent_s() > 0.05
    assert ends.owner.hellos[-1].token == "token-1"
    refusals = [each for each in caplog.records if "refused this pilot: not this job" in each.getMessage()]
    assert len(refusals) == 1
    ends.owner.reason = None
    await until(lambda: pilot.is_up)
    assert pilot.silent_s() < 1.0


async def test_reports_are_joined_in_one_turn(ends: Ends) -> None:
    await ends.listen()
    pilot = ends.dial()
    pilot.push_report()
    await until(lambda: ends.owner.reports)
    for _ in range(5):
        pilot.push_report()
    await until(lambda: len(ends.owner.reports) == 2)
    pilot.push_report()
    await until(lambda: len(ends.owner.reports) == 3)
    assert ends.service.reports == 3


async def test_a_report_that_is_too_long_goes_without_its_logs(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    replicas = tuple(ReplicaReport(f"rep-{n}", ReplicaState.FAILED, log_tail="x" * 50_000) for n in range(8))
    monkeypatch.setattr(ends.service, "report", lambda: PilotReport(JOB, replicas))
    await ends.link()
    assert [each.replica_id for each in ends.owner.reports[0].replicas] == [f"rep-{n}" for n in range(8)]
    assert {each.log_tail for each in ends.owner.reports[0].replicas} == {""}


async def test_a_report_for_another_job_ends_the_link(ends: Ends) -> None:
    ends.service.job_id = "job-2"
    await ends.listen()
    ends.dial()
    await until(lambda: ends.owner.lost)
    assert ends.owner.reports == []


async def test_calls(ends: Ends) -> None:
    link = await ends.link()
    assert await link.call("drain", {"replica_id": "rep-1"}) == {"verb": "drain", "replica_id": "rep-1"}
    with pytest.raises(CallFailed, match="No such replica"):
        await link.call("fail")
    with pytest.raises(CallFailed, match="KeyError") as failure:
        await link.call("break")
    assert "canary" not in str(failure.value)
    with pytest.raises(CallFailed, match="at most"):
        await link.call("large")
    with pytest.raises(LinkLost, match="within"):
        await link.call("hang", timeout_s=0.05)
    assert await asyncio.gather(*(link.call(str(n)) for n in range(50))) == [{"verb": str(n)} for n in range(50)]


async def test_cancel_reaches_the_engine_and_its_tail_comes_back(ends: Ends) -> None:
    link = await ends.link()
    sink = RememberingSink()
    handle = link.open(request(), b"", sink)
    exchange = await ends.service.exchange()
    exchange.sink.on_head(Head(200))
    exchange.sink.on_data(b"x")
    await until(lambda: sink.data)
    handle.cancel()
    assert await sink.tail() == Tail(Outcome.CANCELLED, duration_s=1.0)
    assert exchange.news == ["cancel"]
    handle.cancel()
    handle.pause()
    assert await link.call("status")
    assert exchange.news == ["cancel"]


async def test_cancel_before_the_body_is_complete(ends: Ends) -> None:
    gateway = await gateway_peer(ends)
    gateway.send(FrameType.HELLO, 0, Hello(PROTOCOL, "1.0"))
    gateway.send(FrameType.OPEN, 1, request(b"12345"))
    gateway.send(FrameType.BODY, 1, b"123")
    gateway.send(FrameType.RESET, 1)
    gateway.send(FrameType.BODY, 1, b"45")
    await until(lambda: gateway.got(FrameType.TAIL))
    assert gateway.message(Tail, FrameType.TAIL) == Tail(Outcome.CANCELLED)
    assert ends.service.exchanges == []
    assert not gateway.is_gone


async def test_pause_and_resume_reach_their_stream_only(ends: Ends) -> None:
    link = await ends.link()
    handles = [link.open(request(), b"", RememberingSink()) for _ in range(2)]
    other, exchange = await ends.service.exchange(0), await ends.service.exchange(1)
    for _ in range(2):
        handles[1].pause()
    handles[1].resume()
    handles[1].resume()
    handles[1].pause()
    await until(lambda: len(exchange.news) == 3)
    assert exchange.news == ["pause", "resume", "pause"]
    assert other.news == []


async def test_a_pause_right_after_the_open_holds_before_the_first_data(ends: Ends) -> None:
    link = await ends.link()
    body = bytes(3 * MAX_PAYLOAD)
    handle = link.open(request(body), body, RememberingSink())
    handle.pause()
    exchange = await ends.service.exchange()
    await until(lambda: exchange.news == ["pause"])


async def test_a_lost_link_ends_every_stream_at_both_ends(ends: Ends) -> None:
    link = await ends.link()
    sinks = [RememberingSink() for _ in range(20)]
    for sink in sinks:
        link.open(request(), b"", sink)
    last = await ends.service.exchange(19)
    link.close()
    for sink in sinks:
        assert await sink.tail() == Tail(Outcome.LOST, error="link lost")
    await until(lambda: all(exchange.news == ["cancel"] for exchange in ends.service.exchanges))
    last.sink.on_data(b"too late")
    last.sink.on_tail(DONE)
    await until(lambda: len(ends.owner.up) == 2)
    assert ends.owner.lost == [link]
    assert all(len(sink.tails) == 1 for sink in sinks)


async def test_a_body_of_32_mib_there_and_back(ends: Ends) -> None:
    link = await ends.link()
    ends.service.answer = echo
    block = b"".join(hashlib.sha256(n.to_bytes(4, "big")).digest() for n in range(1 << 15))
    body = block * 32
    sink, small = RememberingSink(), RememberingSink()
    link.open(request(body), body, sink)
    link.open(request(b"small"), b"small", small)
    assert (await sink.tail()).outcome is Outcome.COMPLETE
    assert sink.body == body
    assert max(map(len, sink.data)) <= MAX_PAYLOAD
    assert (await small.tail()).outcome is Outcome.COMPLETE


async def test_a_slow_client_holds_its_own_stream_only_and_loses_nothing(ends: Ends) -> None:
    """The whole way: a client that does not read, an engine that would never stop, and others beside it."""
    link = await ends.link()
    slow, quick = RememberingSink(), RememberingSink()
    handle = link.open(request(), b"", slow)
    link.open(request(), b"", quick)
    exchange, other = await ends.service.exchange(0), await ends.service.exchange(1)
    for each in (exchange, other):
        each.sink.on_head(Head(200))
    handle.pause()
    sent = 0
    while exchange.news[-1:] != ["pause"] or sent < WINDOW_BYTES:
        exchange.sink.on_data(b"%07d " % (sent // 8) * 512)
        sent += 4096
        await asyncio.sleep(0)
    for count in range(1, 41):
        other.sink.on_data(bytes(50_000))
        await until(lambda count=count: sum(map(len, quick.data)) == count * 50_000)
    await until(lambda: len(slow.body) == sent)
    assert other.news == []
    assert sent == WINDOW_BYTES
    handle.resume()
    await until(lambda: exchange.news[-1:] == ["resume"])
    exchange.sink.on_tail(DONE)
    assert await slow.tail() == DONE


async def test_many_streams_side_by_side(ends: Ends) -> None:
    link = await ends.link()
    sinks = [RememberingSink() for _ in range(200)]
    for n, sink in enumerate(sinks):
        link.open(request(b"%d" % n), b"%d" % n, sink)
    await ends.service.exchange(199)
    for exchange in ends.service.exchanges:
        exchange.sink.on_head(Head(200))
    for turn in range(50):
        for exchange in ends.service.exchanges:
            exchange.sink.on_data(b"%s:%d " % (exchange.body, turn))
        await asyncio.sleep(0)
    for exchange in ends.service.exchanges:
        exchange.sink.on_tail(DONE)
    for n, sink in enumerate(sinks):
        assert await sink.tail() == DONE
        assert sink.body == b"".join(b"%d:%d " % (n, turn) for turn in range(50))


async def test_a_gateway_that_does_not_read_pauses_all_exchanges(ends: Ends) -> None:
    gateway = await gateway_peer(ends)
    gateway.send(FrameType.HELLO, 0, Hello(PROTOCOL, "1.0"))
    for number in range(1, 9):
        gateway.send(FrameType.OPEN, number, request())
    exchanges = [await ends.service.exchange(n) for n in range(8)]
    idle, held = exchanges[0], exchanges[1]
    gateway.send(FrameType.PAUSE, 2)
    await until(lambda: held.news == ["pause"])
    gateway.transport.pause_reading()
    for exchange in exchanges[2:]:
        exchange.sink.on_head(Head(200))
        exchange.sink.on_data(bytes(LIMIT_BYTES))
    await until(lambda: idle.news == ["pause"], "the pause")
    gateway.send(FrameType.OPEN, 9, request())
    late = await ends.service.exchange(8)
    await until(lambda: late.news == ["pause"])
    gateway.transport.resume_reading()
    await until(lambda: idle.news == ["pause", "resume"], "the resume")
    await until(lambda: late.news == ["pause", "resume"])
    assert all(exchange.news == ["pause"] for exchange in exchanges[1:])


async def test_an_answer_that_nobody_acknowledges_is_held(ends: Ends) -> None:
    gateway = await gateway_peer(ends)
    gateway.send(FrameType.HELLO, 0, Hello(PROTOCOL, "1.0"))
    for number in (1, 2):
        gateway.send(FrameType.OPEN, number, request())
    exchange, other = await ends.service.exchange(0), await ends.service.exchange(1)
    exchange.sink.on_head(Head(200))
    exchange.sink.on_data(bytes(WINDOW_BYTES))
    assert exchange.news == ["pause"]
    exchange.sink.on_data(bytes(2 * MAX_PAYLOAD))
    await until(lambda: sum(map(len, gateway.got(FrameType.DATA))) == LIMIT_BYTES)
    gateway.send(FrameType.RESUME, 1, TAKEN.pack(MAX_PAYLOAD))
    await until(lambda: sum(map(len, gateway.got(FrameType.DATA))) == WINDOW_BYTES + 2 * MAX_PAYLOAD)
    assert exchange.news == ["pause"]
    gateway.send(FrameType.RESUME, 1, TAKEN.pack(MAX_PAYLOAD + 1))
    await until(lambda: exchange.news == ["pause", "resume"])
    assert other.news == []


async def test_redials_after_the_gateway_was_away(ends: Ends) -> None:
    pilot = ends.dial()
    await asyncio.sleep(0.05)
    assert not pilot.is_up
    await ends.listen()
    await until(lambda: pilot.is_up and len(ends.owner.up) == 1)  # its report comes a turn after its welcome
    await ends.stop_gateway()
    await until(lambda: not pilot.is_up)
    await ends.listen()
    await until(lambda: len(ends.owner.up) == 2)
    assert len(ends.owner.reports) == 2


async def test_a_gateway_that_greets_before_the_dial_is_over_gets_its_report(ends: Ends) -> None:
    class Hasty(Peer):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.send(FrameType.HELLO, 0, Hello(PROTOCOL, "1.0"))

    peer = Hasty()
    ends._peers.append(peer)
    ends.server = await asyncio.get_running_loop().create_unix_server(lambda: peer, str(ends.path))
    ends.dial()
    await until(lambda: peer.got(FrameType.CALL), "the report")


async def test_a_silent_gateway_is_given_up(ends: Ends) -> None:
    gateway = await gateway_peer(ends)
    pilot = ends.dial(ping_s=0.05, silence_s=0.2)
    await until(lambda: len(ends._peers) >= 3, "a second dial of a pilot that nobody answered")
    assert pilot.silent_s() >= 0.2
    assert not gateway.is_gone


async def test_pings_keep_an_idle_link_up(ends: Ends) -> None:
    await ends.listen(ping_s=0.05, silence_s=0.2)
    pilot = ends.dial(ping_s=0.05, silence_s=0.2)
    await until(lambda: pilot.is_up)
    await asyncio.sleep(0.6)
    assert len(ends.made) == 1
    assert pilot.is_up
    assert pilot.silent_s() < 0.2


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        frame(FrameType.OPEN, 1, encode(request())),
        frame(FrameType.PING, 0),
        frame(FrameType.HELLO, 0, encode(Hello(PROTOCOL + 2, "1.0"))),
        frame(FrameType.HELLO, 0, b"{}"),
    ],
)
async def test_a_gateway_that_does_not_greet_is_left(ends: Ends, data: bytes) -> None:
    gateway = await gateway_peer(ends)
    gateway.transport.write(data)
    await until(lambda: gateway.is_gone)
    assert ends.service.exchanges == []


@pytest.mark.parametrize(
    "data",
    [
        frame(FrameType.HELLO, 0, encode(Hello(PROTOCOL, "1.0"))),
        frame(FrameType.BODY, 2, b"x"),
        frame(FrameType.BODY, 1, b"more than announced"),
        frame(FrameType.OPEN, 2, encode(request(b"12"))) + frame(FrameType.BODY, 2, b"123"),
        frame(FrameType.OPEN, 1, encode(request())),
        frame(FrameType.OPEN, 2, encode(Open("rep-1", "POST", "/", -1))),
        frame(FrameType.DATA, 1, b"x"),
        frame(FrameType.RESUME, 1),
        frame(FrameType.RESUME, 1, TAKEN.pack(1)),
        frame(FrameType.CALL, 0, encode(Call("status"))),
        frame(FrameType.CALL, 1, b"[]"),
        frame(FrameType.RESET, 0, encode(Refusal("refused", "enough"))),
    ],
)
async def test_a_gateway_that_breaks_the_rules_is_left(ends: Ends, data: bytes) -> None:
    gateway = await gateway_peer(ends)
    gateway.send(FrameType.HELLO, 0, Hello(PROTOCOL, "1.0"))
    gateway.send(FrameType.OPEN, 1, request())
    exchange = await ends.service.exchange()
    gateway.transport.write(data)
    await until(lambda: gateway.is_gone)
    assert exchange.news == ["cancel"]


async def test_close_ends_run_and_delivers_what_was_sent(ends: Ends) -> None:
    link = await ends.link()
    pilot, task = ends._pilots[0]
    sink = RememberingSink()
    link.open(request(), b"", sink)
    (await ends.service.exchange()).sink.on_tail(DONE)
    pilot.close()
    assert await sink.tail() == DONE
    await asyncio.wait_for(task, 5)
    await until(lambda: not link.is_up)
    assert not pilot.is_up


async def test_close_while_nobody_listens(folder: Path) -> None:
    ends = Ends(folder / "nobody.sock")
    ends.dial(redial_s=(60.0, 60.0))
    await asyncio.sleep(0.02)
    await ends.close()


async def test_secrets_stay_out_of_the_logs(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    ends.owner.reason = "no"
    await ends.listen()
    ends.dial()
    await until(lambda: len(ends.owner.hellos) == 2)
    text = "\n".join(str(vars(record)) for record in caplog.records)
    assert "token-1" not in text
    assert ends.owner.hellos[0].secret not in text
