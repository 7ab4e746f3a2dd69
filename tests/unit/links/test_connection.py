"""When frames are written, and how much at once: on a clock and a transport that the test holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from firstkit.links.connection import GATHER_BYTES, GATHER_S, Connection
from firstkit.links.frames import MAX_PAYLOAD, Decoder, FrameError, FrameType, frame
from firstkit.links.gateway_end import BODY_TURN_BYTES, SMALL_BODY_BYTES, GatewayLink
from firstkit.links.messages import Outcome, Tail
from firstkit.wire import encode
from unit.links.support import JOB, RememberingOwner, RememberingSink, request


class Clock:
    """What a connection needs of a loop; time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self._soon: list[Callable[[], Any]] = []
        self._timers: list[tuple[float, Callable[[], Any], Timer]] = []

    def time(self) -> float:
        return self.now

    def create_future(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    def call_soon(self, work: Callable[..., Any], *args: Any) -> None:
        self._soon.append(lambda: work(*args))

    def call_later(self, delay_s: float, work: Callable[..., Any], *args: Any) -> Timer:
        timer = Timer()
        self._timers.append((self.now + delay_s, lambda: work(*args), timer))
        return timer

    def turn(self) -> None:
        """One turn of the loop."""
        works, self._soon = self._soon, []
        due = [each for each in self._timers if each[0] <= self.now]
        self._timers = [each for each in self._timers if each[0] > self.now]
        for work in [work for _, work, timer in due if not timer.is_cancelled] + works:
            work()

    def pass_s(self, seconds: float) -> None:
        self.now += seconds
        self.turn()

    @property
    def is_idle(self) -> bool:
        return not self._soon


class Timer:
    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Transport:
    """Remembers writes. ``room``: how much it takes before it asks to stop, as a peer that does not read makes it."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.protocol: Any = None
        self.room = float("inf")

    def write(self, data: bytes) -> None:
        self.writes.append(bytes(data))
        self.room -= len(data)
        if self.room < 0:
            self.protocol.pause_writing()

    def writelines(self, parts: list[Any]) -> None:
        self.write(b"".join(parts))

    def frames(self) -> list[list[tuple[FrameType, int, bytes]]]:
        """The frames of each write since the last call."""
        writes, self.writes = self.writes, []
        return [Decoder().feed(data) for data in writes]

    def close(self) -> None: ...

    abort = close

    def set_write_buffer_limits(self, high: int) -> None: ...

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol


def on(connection: Connection) -> tuple[Clock, Transport]:
    """``connection``, on a clock and a transport of ours. Call it in a coroutine."""
    clock, transport = Clock(), Transport()
    connection.loop = cast(Any, clock)
    connection.attach(cast(Any, transport))
    cast(Timer, connection._timer).cancel()
    clock.turn()
    return clock, transport


def data(connection: Connection, *payloads: bytes) -> None:
    for payload in payloads:
        connection.gather(FrameType.DATA, 1, payload)


def payloads(transport: Transport) -> list[bytes]:
    return [b"".join(payload for _, _, payload in frames) for frames in transport.frames()]


async def test_after_a_pause_data_goes_at_the_end_of_the_turn() -> None:
    connection = Connection()
    clock, transport = on(connection)
    data(connection, b"a", b"b")
    assert transport.writes == []
    clock.turn()
    assert payloads(transport) == [b"ab"]
    clock.pass_s(GATHER_S)
    data(connection, b"c")
    clock.turn()
    assert payloads(transport) == [b"c"]


async def test_under_load_data_gathers_until_the_last_write_is_long_enough_ago() -> None:
    connection = Connection()
    clock, transport = on(connection)
    data(connection, b"a")
    clock.turn()
    for payload in (b"b", b"c", b"d"):
        data(connection, payload)
        clock.pass_s(GATHER_S / 4)
    assert payloads(transport) == [b"a"]
    clock.pass_s(GATHER_S / 4)
    assert payloads(transport) == [b"bcd"]
    data(connection, b"e")
    clock.pass_s(GATHER_S * 0.9)
    assert payloads(transport) == []
    clock.pass_s(GATHER_S * 0.2)
    assert payloads(transport) == [b"e"]


async def test_a_frame_that_is_sent_takes_along_what_gathered() -> None:
    connection = Connection()
    clock, transport = on(connection)
    data(connection, b"a")
    clock.turn()
    transport.frames()
    data(connection, b"b", b"c")
    connection.send(FrameType.TAIL, 1, b"{}")
    data(connection, b"d")
    clock.turn()
    assert payloads(transport) == [b"bc{}d"]
    clock.pass_s(10 * GATHER_S)
    assert transport.writes == []


async def test_much_data_does_not_wait() -> None:
    connection = Connection()
    clock, transport = on(connection)
    data(connection, b"a")
    clock.turn()
    data(connection, bytes(GATHER_BYTES // 2), bytes(GATHER_BYTES // 2))
    clock.turn()
    data(connection, bytes(GATHER_BYTES))
    clock.turn()
    assert [len(payload) for payload in payloads(transport)] == [1, GATHER_BYTES, GATHER_BYTES]


async def test_what_gathered_leaves_when_the_link_is_closed_and_nothing_after() -> None:
    connection = Connection()
    clock, transport = on(connection)
    data(connection, b"a")
    clock.turn()
    data(connection, b"b")
    connection.hang_up()
    assert payloads(transport) == [b"a", b"b"]
    data(connection, b"c")
    connection.send(FrameType.PING, 0)
    connection.flush_soon()
    clock.pass_s(10.0)
    assert transport.writes == []


async def test_a_payload_that_is_too_long_is_the_senders_error() -> None:
    connection = Connection()
    on(connection)
    for send in (connection.send, connection.gather):
        with pytest.raises(FrameError):
            send(FrameType.DATA, 1, bytes(MAX_PAYLOAD + 1))


# -- bodies at the gateway's end ---------------------------------------------------------------------------------------


async def admitted() -> tuple[GatewayLink, Clock, Transport]:
    link = GatewayLink(RememberingOwner(), JOB)
    clock, transport = on(link)
    return link, clock, transport


def ask(link: GatewayLink, size: int) -> tuple[Any, RememberingSink]:
    sink = RememberingSink()
    return link.open(request(bytes(size)), bytes(size), sink), sink


def sizes(frames: list[tuple[FrameType, int, bytes]], number: int) -> int:
    return sum(len(payload) for kind, stream, payload in frames if kind is FrameType.BODY and stream == number)


async def test_a_small_body_goes_with_its_open() -> None:
    link, clock, transport = await admitted()
    ask(link, SMALL_BODY_BYTES)
    ask(link, 0)
    clock.turn()
    (frames,) = transport.frames()
    assert [(kind, number) for kind, number, _ in frames] == [
        (FrameType.OPEN, 1),
        (FrameType.BODY, 1),
        (FrameType.OPEN, 2),
    ]
    assert clock.is_idle


async def test_a_huge_body_goes_in_turns_and_others_between() -> None:
    link, clock, transport = await admitted()
    ask(link, 10 * BODY_TURN_BYTES)
    clock.turn()
    (frames,) = transport.frames()
    assert sizes(frames, 1) == BODY_TURN_BYTES
    ask(link, 1000)
    ask(link, BODY_TURN_BYTES)
    clock.turn()
    (frames,) = transport.frames()
    assert sizes(frames, 2) == 1000
    assert sizes(frames, 1) == sizes(frames, 3) == MAX_PAYLOAD
    while not clock.is_idle:
        clock.turn()
    later = transport.frames()
    assert max(sizes(frames, 1) + sizes(frames, 3) for frames in later) == BODY_TURN_BYTES
    assert sum(sizes(frames, 1) for frames in later) == 10 * BODY_TURN_BYTES - BODY_TURN_BYTES - MAX_PAYLOAD


async def test_bodies_wait_while_the_transport_is_full_and_small_frames_do_not() -> None:
    link, clock, transport = await admitted()
    transport.room = 0
    exchange, _ = ask(link, 4 * BODY_TURN_BYTES)
    clock.turn()
    assert sizes(transport.frames()[0], 1) == BODY_TURN_BYTES
    ask(link, 10)
    exchange.pause()
    clock.turn()
    clock.turn()
    assert clock.is_idle
    assert [[(kind, number) for kind, number, _ in each] for each in transport.frames()] == [
        [(FrameType.OPEN, 2), (FrameType.PAUSE, 1)]
    ]
    transport.room = BODY_TURN_BYTES * 1.5
    link.resume_writing()
    clock.turn()
    clock.turn()
    clock.turn()
    frames = [each for write in transport.frames() for each in write]
    assert (sizes(frames, 1), sizes(frames, 2)) == (2 * BODY_TURN_BYTES - 10, 10)
    transport.room = float("inf")
    link.resume_writing()
    while not clock.is_idle:
        clock.turn()
    frames = [each for write in transport.frames() for each in write]
    assert sizes(frames, 1) == BODY_TURN_BYTES + 10


@pytest.mark.parametrize("how", ["cancel", "tail"])
async def test_the_rest_of_a_body_that_nobody_wants_is_not_sent(how: str) -> None:
    link, clock, transport = await admitted()
    exchange, sink = ask(link, 10 * BODY_TURN_BYTES)
    clock.turn()
    transport.frames()
    if how == "cancel":
        exchange.cancel()
    else:
        link.data_received(frame(FrameType.TAIL, 1, encode(Tail(Outcome.FAILED))))
        assert await sink.tail() == Tail(Outcome.FAILED)
    while not clock.is_idle:
        clock.turn()
    frames = [each for write in transport.frames() for each in write]
    assert [kind for kind, _, _ in frames] == ([FrameType.RESET] if how == "cancel" else [])


async def test_a_link_that_is_given_up_sends_no_body() -> None:
    link, clock, transport = await admitted()
    _, sink = ask(link, 10 * BODY_TURN_BYTES)
    link.data_received(b"no frame at all")
    clock.turn()
    frames = [each for write in transport.frames() for each in write]
    assert [(kind, number) for kind, number, _ in frames] == [(FrameType.OPEN, 1), (FrameType.RESET, 0)]
    assert (await sink.tail()).outcome is Outcome.LOST


async def test_a_loss_that_is_told_late_does_not_take_down_what_came_after() -> None:
    """With TLS it may be on its way already when another connection takes over."""
    session = Connection(resume_s=10.0)
    first, second = Transport(), Transport()
    session.attach(cast(asyncio.Transport, first))
    earlier = first.protocol
    session.attach(cast(asyncio.Transport, second))
    earlier.connection_lost(None)
    assert session.is_up
    second.protocol.connection_lost(None)
    assert not session.is_up
    session.hang_up()
