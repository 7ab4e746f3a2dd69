"""How much of a stream may be under way: both ends as they are, on a wire that delivers when it likes."""

from __future__ import annotations

from collections import deque
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from firstkit.links.frames import (
    ACKNOWLEDGED_BYTES,
    LIMIT_BYTES,
    MAX_PAYLOAD,
    TAKEN,
    WINDOW_BYTES,
    Decoder,
    FrameError,
    FrameType,
    Stage,
    Streams,
    frame,
)
from firstkit.links.gateway_end import Request
from firstkit.links.messages import Head, Open, Outcome, Tail
from firstkit.links.pilot_stream import Answer
from firstkit.wire import decode


class Wire:
    """One direction of a link: what an end sends into it waits until the test delivers it."""

    def __init__(self) -> None:
        self.frames: deque[tuple[FrameType, int, bytes]] = deque()

    def send(self, kind: FrameType, number: int, payload: Any = b"") -> None:
        frame(kind, number, bytes(payload))  # raises where it would not fit
        self.frames.append((kind, number, bytes(payload)))

    gather = send

    def abandon(self, number: int) -> None:
        self.send(FrameType.RESET, number)


class Engine:
    """An exchange at the pilot: says what the test lets it say."""

    def __init__(self) -> None:
        self.is_paused = False
        self.is_over = False

    def open(self, request: Open, body: bytes, sink: Any) -> Engine:
        self.sink = sink
        return self

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    def cancel(self) -> None:
        if not self.is_over:
            self.is_over = True
            self.sink.on_tail(Tail(Outcome.CANCELLED))


class Client:
    """The sink at the gateway."""

    def __init__(self) -> None:
        self.got = 0
        self.tail: Tail | None = None

    def on_head(self, head: Head) -> None: ...

    def on_data(self, data: bytes) -> None:
        assert self.tail is None
        assert data == content(self.got, len(data))
        self.got += len(data)

    def on_tail(self, tail: Tail) -> None:
        assert self.tail is None
        self.tail = tail


_PATTERN = bytes(range(251)) * 20_000


def content(start: int, size: int) -> bytes:
    """What an engine says from its byte ``start`` on: every byte tells where it belongs."""
    return _PATTERN[start % 251 :][:size]


class OneStream:
    """A request that is being answered, between a real Request and a real Answer."""

    def __init__(self) -> None:
        self.to_gateway, self.to_pilot = Wire(), Wire()
        self.engine, self.client = Engine(), Client()
        self.at_gateway: Streams[Request] = Streams()
        self.at_pilot: Streams[Answer] = Streams()
        self.decoder = Decoder()
        self.request = Request(cast(Any, self.to_pilot), self.client)
        number = self.at_gateway.open(self.request)
        self.request.bind(number)
        opening = Open("rep-1", "POST", "/", 0)
        self.answer = Answer(cast(Any, self.to_gateway), self.at_pilot, self.engine, number, opening)
        self.at_pilot.accept(number, self.answer)
        self.answer.start_if_complete()
        self.answer.on_head(Head(200))
        self.said = 0

    def say(self, size: int) -> None:
        self.answer.on_data(content(self.said, size))
        self.said += size

    def end(self) -> None:
        self.engine.is_over = True
        self.answer.on_tail(Tail(Outcome.COMPLETE))

    def deliver_to_gateway(self) -> None:
        kind, number, payload = self.to_gateway.frames.popleft()
        self.decoder.deliver(frame(kind, number, payload), self.at_gateway.live, self._on_frame)

    def _on_frame(self, kind: FrameType, number: int, payload: bytes) -> None:
        stream = self.at_gateway.step(kind, number)
        if stream is not None and kind is FrameType.TAIL:
            stream.end(decode(Tail, payload))

    def deliver_to_pilot(self) -> None:
        kind, number, payload = self.to_pilot.frames.popleft()
        answer = self.at_pilot.step(kind, number)
        if answer is None:
            return
        if kind is FrameType.RESUME:
            answer.acknowledge(payload)
        elif kind is FrameType.PAUSE:
            answer.hold(1)
        else:
            answer.cancel()

    def drain(self) -> None:
        while self.to_gateway.frames or self.to_pilot.frames:
            while self.to_gateway.frames:
                self.deliver_to_gateway()
            while self.to_pilot.frames:
                self.deliver_to_pilot()

    @property
    def under_way(self) -> int:
        """Bytes of DATA on their way to the gateway."""
        return sum(len(payload) for kind, _, payload in self.to_gateway.frames if kind is FrameType.DATA)


sizes = st.one_of(
    st.integers(1, 2000),
    st.sampled_from([MAX_PAYLOAD - 1, MAX_PAYLOAD, MAX_PAYLOAD + 1, ACKNOWLEDGED_BYTES, WINDOW_BYTES, LIMIT_BYTES + 1]),
    st.integers(1, LIMIT_BYTES),
)


class Window(RuleBasedStateMachine):
    """Whatever is interleaved: the gateway never gets more than LIMIT_BYTES that it did not acknowledge (it would
    refuse the link: ``deliver`` would raise), nothing is lost or out of order, and nobody waits for nothing."""

    @initialize()
    def begin(self) -> None:
        self.stream = OneStream()
        self.is_paused = self.is_cancelled = False
        self.may_overrun = True

    @property
    def is_over(self) -> bool:
        return self.stream.engine.is_over

    @precondition(lambda self: not self.is_over and not self.stream.engine.is_paused)
    @rule(size=sizes)
    def engine_says(self, size: int) -> None:
        self.may_overrun = True
        self.stream.say(size)

    @precondition(lambda self: not self.is_over and self.stream.engine.is_paused and self.may_overrun)
    @rule(size=sizes)
    def engine_had_more_under_way(self, size: int) -> None:
        self.may_overrun = False
        self.stream.say(size)

    @precondition(lambda self: not self.is_over)
    @rule()
    def engine_ends(self) -> None:
        self.stream.end()

    @rule(count=st.integers(1, 5))
    def arrive_at_gateway(self, count: int) -> None:
        for _ in range(min(count, len(self.stream.to_gateway.frames))):
            self.stream.deliver_to_gateway()

    @rule(count=st.integers(1, 3))
    def arrive_at_pilot(self, count: int) -> None:
        for _ in range(min(count, len(self.stream.to_pilot.frames))):
            self.stream.deliver_to_pilot()

    @rule()
    def client_is_slow(self) -> None:
        self.is_paused = True
        self.stream.request.pause()

    @rule()
    def client_reads_again(self) -> None:
        self.is_paused = False
        self.stream.request.resume()

    @precondition(lambda self: not self.is_cancelled)
    @rule(chance=st.integers(0, 9))
    def client_leaves(self, chance: int) -> None:
        if chance == 0:
            self.is_cancelled = True
            self.stream.request.cancel()

    @rule()
    def all_arrives(self) -> None:
        stream = self.stream
        stream.drain()
        if self.is_cancelled:
            assert stream.client.tail is not None
            return
        if not self.is_paused:
            assert stream.client.got == stream.said
            assert self.is_over or not stream.engine.is_paused
        if stream.client.tail is not None:
            assert stream.client.got == stream.said
            assert stream.client.tail.outcome is Outcome.COMPLETE
        elif self.is_over:
            assert self.is_paused, "a tail waits only for a client"

    @invariant()
    def the_gateway_holds_little(self) -> None:
        if hasattr(self, "stream"):
            assert self.stream.request.taken <= LIMIT_BYTES
            assert self.stream.request.taken + self.stream.under_way <= LIMIT_BYTES + self._acknowledgements

    @property
    def _acknowledgements(self) -> int:
        """Bytes that the pilot will hear are acknowledged: until then they count for it."""
        return -sum(TAKEN.unpack(p)[0] for kind, _, p in self.stream.to_pilot.frames if kind is FrameType.RESUME)


TestWindow = Window.TestCase
TestWindow.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)


def test_a_stream_of_tokens_costs_no_frame() -> None:
    stream = OneStream()
    while stream.said + 200 < ACKNOWLEDGED_BYTES:
        stream.say(200)
    stream.end()
    while stream.to_gateway.frames:
        stream.deliver_to_gateway()
    assert stream.client.got == stream.said
    assert not stream.to_pilot.frames


def test_a_reader_that_keeps_up_never_stops_the_engine() -> None:
    stream = OneStream()
    for _ in range(100):
        stream.say(50_000)
        stream.drain()
        assert not stream.engine.is_paused
    assert stream.client.got == 5_000_000


def test_the_engine_is_held_at_the_window_and_goes_on_when_it_is_acknowledged() -> None:
    stream = OneStream()
    stream.request.pause()
    stream.deliver_to_pilot()
    stream.request.resume()
    stream.deliver_to_pilot()
    assert not stream.engine.is_paused
    stream.say(WINDOW_BYTES - 1)
    assert not stream.engine.is_paused
    stream.say(1)
    assert stream.engine.is_paused
    while stream.to_gateway.frames:
        stream.deliver_to_gateway()
    assert [kind for kind, _, _ in stream.to_pilot.frames] == [FrameType.RESUME] * 2
    stream.deliver_to_pilot()
    assert not stream.engine.is_paused


def test_what_is_more_than_the_limit_waits_at_the_pilot_and_its_tail_behind_it() -> None:
    stream = OneStream()
    stream.request.pause()
    stream.say(3 * LIMIT_BYTES)
    stream.end()
    assert stream.under_way == LIMIT_BYTES
    assert max(len(payload) for _, _, payload in stream.to_gateway.frames) == MAX_PAYLOAD
    stream.drain()
    assert stream.client.got == LIMIT_BYTES
    assert stream.client.tail is None
    stream.request.resume()
    stream.drain()
    assert stream.client.got == 3 * LIMIT_BYTES
    assert stream.client.tail == Tail(Outcome.COMPLETE)


def test_a_client_that_leaves_a_tail_waiting_is_no_success() -> None:
    stream = OneStream()
    stream.request.pause()
    stream.say(3 * LIMIT_BYTES)
    stream.end()
    stream.drain()
    stream.request.cancel()
    stream.drain()
    assert stream.client.tail == Tail(Outcome.CANCELLED)
    assert not stream.at_pilot.live


def test_a_cancelled_stream_sends_nothing_more_but_its_tail() -> None:
    stream = OneStream()
    stream.engine.cancel = lambda: None  # type: ignore[method-assign] # its tail comes later
    stream.request.cancel()
    stream.deliver_to_pilot()
    stream.to_gateway.frames.clear()
    stream.say(3 * LIMIT_BYTES)
    stream.answer.on_tail(Tail(Outcome.CANCELLED))
    assert [kind for kind, _, _ in stream.to_gateway.frames] == [FrameType.TAIL]


@pytest.mark.parametrize("payload", [b"", b"\0", TAKEN.pack(1001), TAKEN.pack(2**32 - 1), bytes(5)])
def test_only_what_was_sent_can_be_acknowledged(payload: bytes) -> None:
    stream = OneStream()
    stream.say(1000)
    stream.to_pilot.send(FrameType.RESUME, 1, payload)
    with pytest.raises(FrameError):
        stream.deliver_to_pilot()


def test_a_link_that_is_gone_keeps_nothing() -> None:
    stream = OneStream()
    stream.request.pause()
    stream.say(3 * LIMIT_BYTES)
    for answer in stream.at_pilot.finish_all():
        answer.cancel()
    sent = len(stream.to_gateway.frames)
    stream.say(1000)
    assert len(stream.to_gateway.frames) == sent
    assert stream.answer.stage is Stage.FINISHED
    assert not stream.answer._waiting
