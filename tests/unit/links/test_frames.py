from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from firstkit.links.bodies import Bodies
from firstkit.links.frames import (
    ACKNOWLEDGED_BYTES,
    HEADER,
    LIMIT_BYTES,
    MAX_PAYLOAD,
    Decoder,
    FrameError,
    FrameType,
    Outbox,
    Stage,
    Streams,
    frame,
    header,
)

numbers = st.integers(0, 2**32 - 1)
frames = st.tuples(st.sampled_from(FrameType), numbers, st.binary(max_size=300))


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(edges)]


class Item:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage


def test_header_is_stream_then_type_and_length() -> None:
    assert frame(FrameType.DATA, 7, b"abc") == b"\x00\x00\x00\x07\x05\x00\x00\x03abc"
    assert Decoder().feed(frame(FrameType.DATA, 7, b"abc")) == [(FrameType.DATA, 7, b"abc")]


@given(st.lists(frames, max_size=20), st.lists(st.integers(0), max_size=40))
def test_any_split_of_the_bytes_gives_the_same_frames(sent: list, cuts: list[int]) -> None:
    decoder = Decoder()
    data = b"".join(frame(*each) for each in sent)
    got = [each for piece in pieces(data, cuts) for each in decoder.feed(piece)]
    assert got == sent
    assert decoder.kept_bytes == 0


def test_single_bytes_and_the_largest_payload() -> None:
    payload = bytes(range(256)) * (MAX_PAYLOAD // 256)
    data = frame(FrameType.BODY, 1, payload) + frame(FrameType.PING, 0)
    decoder, got = Decoder(), []
    for position in range(len(data)):
        got += decoder.feed(data[position : position + 1])
    assert got == [(FrameType.BODY, 1, payload), (FrameType.PING, 0, b"")]


@given(st.lists(st.binary(max_size=2000), max_size=20))
def test_any_bytes_raise_nothing_but_frame_error_and_little_is_kept(chunks: list[bytes]) -> None:
    decoder = Decoder()
    try:
        for chunk in chunks:
            for kind, number, payload in decoder.feed(chunk):
                assert isinstance(kind, FrameType)
                assert 0 <= number < 2**32
                assert len(payload) <= MAX_PAYLOAD
            assert decoder.kept_bytes < HEADER.size + MAX_PAYLOAD
    except FrameError:
        pass


@pytest.mark.parametrize("kind", [0, 13, 255])
def test_unknown_types_are_refused(kind: int) -> None:
    with pytest.raises(FrameError, match=f"unknown type {kind}"):
        Decoder().feed(HEADER.pack(1, kind << 24))


def test_oversize_is_refused_by_its_header_alone() -> None:
    with pytest.raises(FrameError, match="at most 262144"):
        Decoder().feed(HEADER.pack(1, FrameType.DATA << 24 | MAX_PAYLOAD + 1))
    small = Decoder(max_payload=10)
    with pytest.raises(FrameError, match="at most 10"):
        small.feed(HEADER.pack(1, FrameType.DATA << 24 | 11))


def test_what_does_not_fit_into_a_header_is_not_sent() -> None:
    with pytest.raises(FrameError, match="at most"):
        frame(FrameType.DATA, 1, bytes(MAX_PAYLOAD + 1))
    for number in (-1, 2**32):
        with pytest.raises(FrameError, match="a number from 0"):
            header(FrameType.DATA, number, 0)


@given(st.lists(frames, min_size=1, max_size=20))
def test_outbox_keeps_the_order_and_joins_what_is_small(sent: list) -> None:
    outbox = Outbox()
    for each in sent:
        outbox.put(*each)
    size = outbox.size_bytes
    (data,) = outbox.take()
    assert len(data) == size
    assert Decoder().feed(bytes(data)) == sent
    assert outbox.take() == []
    assert outbox.size_bytes == 0


def test_outbox_does_not_copy_what_is_large() -> None:
    outbox, large = Outbox(), memoryview(bytes(MAX_PAYLOAD))
    outbox.put(FrameType.BODY, 1, large)
    for number in range(3):
        outbox.put(FrameType.PAUSE, number)
    outbox.put(FrameType.BODY, 2, large)
    parts = outbox.take()
    assert [len(part) for part in parts] == [8, MAX_PAYLOAD, 4 * 8, MAX_PAYLOAD]
    assert parts[1] is parts[3] is large
    assert [number for _, number, _ in Decoder().feed(b"".join(parts))] == [1, 0, 1, 2, 2]
    with pytest.raises(FrameError, match="at most"):
        outbox.put(FrameType.BODY, 1, bytes(MAX_PAYLOAD + 1))


class Taker:
    """A stream that is being answered."""

    def __init__(self, log: list) -> None:
        self.stage = Stage.ANSWERING
        self.taken = 0
        self.log = log

    def on_data(self, data: bytes) -> None:
        assert type(data) is bytes
        self.log.append(data)

    def on_window(self) -> None:
        self.log.append(self.taken)
        if self.taken > LIMIT_BYTES:
            raise FrameError("too much")
        self.taken = 0


@given(st.lists(frames, max_size=20), st.lists(st.integers(0), max_size=40))
def test_frames_are_handed_over_in_order_whoever_takes_them(sent: list, cuts: list[int]) -> None:
    log: list = []
    taker, late = Taker(log), Taker(log)
    late.stage = Stage.FINISHED
    decoder = Decoder()
    for piece in pieces(b"".join(frame(*each) for each in sent), cuts):
        decoder.deliver(piece, {sent[0][1]: taker, sent[-1][1] ^ 1: late}, lambda *each: log.append(each))
    assert [each if isinstance(each, tuple) else (FrameType.DATA, sent[0][1], each) for each in log] == sent
    direct = sum(len(each) for each in log if isinstance(each, bytes))
    assert taker.taken == direct


def test_a_stream_hears_when_it_has_taken_half_a_window() -> None:
    log: list = []
    taker, decoder = Taker(log), Decoder()
    one = frame(FrameType.DATA, 1, bytes(ACKNOWLEDGED_BYTES // 2))
    decoder.deliver(one * 3, {1: taker}, lambda *_: None)
    assert [each if isinstance(each, int) else len(each) for each in log] == [131072, 131072, 262144, 131072]
    taker.taken = LIMIT_BYTES
    with pytest.raises(FrameError, match="too much"):
        decoder.deliver(one, {1: taker}, lambda *_: None)


@pytest.mark.parametrize("size", [7, 1000, 65_536, 256_000, MAX_PAYLOAD, 2**20])
def test_large_bodies_are_decoded_from_pieces_of_any_size(size: int) -> None:
    body = bytes(range(256)) * (MAX_PAYLOAD // 256) * (32 if size >= 1000 else 2)
    data = b"".join(frame(FrameType.BODY, 1, body[at : at + MAX_PAYLOAD]) for at in range(0, len(body), MAX_PAYLOAD))
    decoder = Decoder()
    got = [each for at in range(0, len(data), size) for each in decoder.feed(data[at : at + size])]
    assert b"".join(payload for _, _, payload in got) == body
    assert decoder.kept_bytes == 0


def test_bodies_take_turns_and_are_not_copied() -> None:
    bodies, large = Bodies(), bytes(3 * MAX_PAYLOAD + 1)
    bodies.put(1, large)
    bodies.put(2, large)
    bodies.put(3, b"small")
    bodies.put(4, b"")
    first = list(bodies.take(MAX_PAYLOAD + 1))
    assert [(number, len(piece)) for number, piece in first] == [(1, MAX_PAYLOAD), (2, 1)]
    assert all(piece.obj is large for _, piece in first)
    assert list(bodies.take(5)) == [(3, b"small")]
    bodies.drop(1)
    bodies.drop(7)
    assert [(number, len(piece)) for number, piece in bodies.take(2**30)] == [
        (2, MAX_PAYLOAD),
        (2, MAX_PAYLOAD),
        (2, MAX_PAYLOAD),
    ]
    assert list(bodies.take(2**30)) == []


def test_numbers_wrap_around_and_skip_those_in_use() -> None:
    ours: Streams[Item] = Streams()
    theirs: Streams[Item] = Streams()
    old = Item(Stage.ASKED)
    assert ours.open(old) == 1
    theirs.accept(1, Item(Stage.SERVING))
    for streams in (ours, theirs):
        streams._last = 2**32 - 2
        streams._travelled = 2**32 - 2
    for expected in (2**32 - 1, 2):
        assert ours.open(Item(Stage.ASKED)) == expected
        theirs.accept(expected, Item(Stage.SERVING))
    assert ours.live[1] is old
    assert theirs.step(FrameType.RESET, 2**32 - 5) is None
    with pytest.raises(FrameError, match="never opened"):
        theirs.step(FrameType.RESET, 3)


@pytest.mark.parametrize("number", [0, 1, 2**31 + 2])
def test_streams_open_in_rising_order_only(number: int) -> None:
    streams: Streams[Item] = Streams()
    streams.accept(1, Item(Stage.SERVING))
    streams.finish(1)
    with pytest.raises(FrameError, match="twice or out of order"):
        streams.accept(number, Item(Stage.SERVING))


@given(numbers, st.sampled_from([FrameType.HEAD, FrameType.DATA, FrameType.TAIL]))
def test_a_stream_that_never_was_is_an_error(number: int, kind: FrameType) -> None:
    with pytest.raises(FrameError, match="never opened"):
        Streams[Item]().step(kind, number)


@pytest.mark.parametrize(
    ("stage", "kind"),
    [
        (Stage.ASKED, FrameType.DATA),
        (Stage.ANSWERING, FrameType.HEAD),
        (Stage.SERVING, FrameType.BODY),
        (Stage.ENDING, FrameType.RESET),
        (Stage.ENDING, FrameType.PAUSE),
        (Stage.RECEIVING, FrameType.HEAD),
        (Stage.ASKED, FrameType.REPLY),
        (Stage.CALLED, FrameType.TAIL),
    ],
)
def test_frames_out_of_order_are_errors(stage: Stage, kind: FrameType) -> None:
    streams: Streams[Item] = Streams()
    number = streams.open(Item(stage))
    with pytest.raises(FrameError, match=stage.value):
        streams.step(kind, number)


def test_finish_all_leaves_nothing_live() -> None:
    streams: Streams[Item] = Streams()
    items = [Item(Stage.ASKED), Item(Stage.ANSWERING)]
    for item in items:
        streams.open(item)
    assert streams.finish_all() == items
    assert {item.stage for item in items} == {Stage.FINISHED}
    assert not streams.live
    assert streams.step(FrameType.DATA, 1) is None


class TwoEnds(RuleBasedStateMachine):
    """A gateway and a pilot that behave, over two byte streams that are cut anywhere and arrive at any time.

    Whatever is interleaved (bodies, answers, pauses, resets crossing tails), neither end ever sees a fault, and the
    payloads of each stream arrive whole and in order.
    """

    @initialize()
    def connect(self) -> None:
        self.gateway: Streams[Item] = Streams()
        self.pilot: Streams[Item] = Streams()
        self.to_pilot, self.to_gateway = bytearray(), bytearray()
        self.at_pilot, self.at_gateway = Decoder(), Decoder()
        self.sent: dict[tuple[str, int], list[bytes]] = {}
        self.got: dict[tuple[str, int], list[bytes]] = {}
        self.missing: dict[int, int] = {}
        self.was_reset: set[int] = set()
        self.lost: set[int] = set()

    def numbers(self, streams: Streams[Item], *stages: Stage) -> list[int]:
        return [number for number, item in streams.live.items() if item.stage in stages]

    @rule(parts=st.lists(st.binary(min_size=1, max_size=9), max_size=3))
    def ask(self, parts: list[bytes]) -> None:
        number = self.gateway.open(Item(Stage.ASKED))
        self.sent["body", number] = parts
        self.to_pilot += frame(FrameType.OPEN, number, bytes([len(parts)]))
        for part in parts:
            self.to_pilot += frame(FrameType.BODY, number, part)

    @rule(data=st.data(), kind=st.sampled_from([FrameType.PAUSE, FrameType.RESUME, FrameType.RESET]))
    def steer(self, data: st.DataObject, kind: FrameType) -> None:
        choice = [n for n in self.numbers(self.gateway, Stage.ASKED, Stage.ANSWERING) if n not in self.was_reset]
        if choice:
            number = data.draw(st.sampled_from(choice))
            self.to_pilot += frame(kind, number)
            if kind is FrameType.RESET:
                self.was_reset.add(number)

    @rule(data=st.data())
    def lose_patience(self, data: st.DataObject) -> None:
        choice = [n for n in self.was_reset if n in self.gateway.live]
        if choice:
            number = data.draw(st.sampled_from(choice))
            self.gateway.finish(number)
            self.lost.add(number)

    @rule(data=st.data(), payload=st.binary(min_size=1, max_size=9), ends=st.booleans())
    def answer(self, data: st.DataObject, payload: bytes, ends: bool) -> None:
        choice = self.numbers(self.pilot, Stage.SERVING, Stage.ENDING, Stage.RECEIVING)
        if not choice:
            return
        number = data.draw(st.sampled_from(choice))
        if ends:
            self.to_gateway += frame(FrameType.TAIL, number)
            self.pilot.finish(number)
        elif ("data", number) not in self.sent:
            self.sent["data", number] = []
            self.to_gateway += frame(FrameType.HEAD, number)
        else:
            self.sent["data", number].append(payload)
            self.to_gateway += frame(FrameType.DATA, number, payload)

    @rule(size=st.integers(1, 60))
    def arrive_at_pilot(self, size: int) -> None:
        data, self.to_pilot = bytes(self.to_pilot[:size]), self.to_pilot[size:]
        for kind, number, payload in self.at_pilot.feed(data):
            if kind is FrameType.OPEN:
                self.pilot.accept(number, Item(Stage.RECEIVING if payload[0] else Stage.SERVING))
                self.missing[number] = payload[0]
            elif (item := self.pilot.step(kind, number)) is not None and kind is FrameType.BODY:
                self.got.setdefault(("body", number), []).append(payload)
                self.missing[number] -= 1
                if not self.missing[number]:
                    item.stage = Stage.SERVING

    @rule(size=st.integers(1, 60))
    def arrive_at_gateway(self, size: int) -> None:
        data, self.to_gateway = bytes(self.to_gateway[:size]), self.to_gateway[size:]
        for kind, number, payload in self.at_gateway.feed(data):
            if self.gateway.step(kind, number) is not None and kind is FrameType.DATA:
                self.got.setdefault(("data", number), []).append(payload)

    @invariant()
    def arrived_is_a_beginning_of_sent(self) -> None:
        for key, got in getattr(self, "got", {}).items():
            assert self.sent[key][: len(got)] == got

    @precondition(lambda self: hasattr(self, "gateway"))
    @rule()
    def drain(self) -> None:
        while self.to_pilot:
            self.arrive_at_pilot(60)
        while self.to_gateway:
            self.arrive_at_gateway(60)
        for (what, number), sent in self.sent.items():
            if what == "data" and number not in self.lost:
                assert self.got.get((what, number), []) == sent
        assert set(self.pilot.live) <= set(self.gateway.live) | self.lost


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
