"""Fuzz target for frames: any bytes, cut anywhere, then through the order rules; only FrameError may come out."""

from __future__ import annotations

import random
from collections.abc import Callable

from firstkit.links.frames import HEADER, MAX_PAYLOAD, Decoder, FrameError, FrameType, Stage, Streams, frame
from fuzz.driver import Target, pieces

STAGES = [Stage.ASKED, Stage.ANSWERING, Stage.RECEIVING, Stage.SERVING]


class Item:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage


def run_one(data: bytes) -> None:
    """The first byte says how to cut the rest; the same bytes uncut must give the same frames."""
    if not data:
        return
    step, data = data[0] + 1, data[1:]
    cut, is_broken = decode(data, step)
    whole, is_broken_whole = decode(data, len(data) or 1)
    assert is_broken is is_broken_whole
    assert is_broken or cut == whole
    follow_order(cut)
    handed, is_broken_handed = hand_over(data, step)
    assert is_broken_handed is is_broken
    assert is_broken or handed == whole


class Answered:
    """A stream that is being answered: notes what it is given, among all else that comes."""

    stage = Stage.ANSWERING

    def __init__(self, number: int, noted: list[tuple[FrameType, int, bytes]]) -> None:
        self.taken = 0
        self.on_data: Callable[[bytes], None] = lambda data: noted.append((FrameType.DATA, number, data))

    def on_window(self) -> None:
        raise AssertionError("no input here is so long")


def hand_over(data: bytes, step: int) -> tuple[list[tuple[FrameType, int, bytes]], bool]:
    """The same frames, where the data of some streams goes its own, shorter way."""
    noted: list[tuple[FrameType, int, bytes]] = []
    live = {number: Answered(number, noted) for number in (1, 3)}
    decoder = Decoder()
    try:
        for piece in pieces(data, step):
            decoder.deliver(piece, live, lambda *frame: noted.append(frame))
    except FrameError:
        return noted, True
    return noted, False


def decode(data: bytes, step: int) -> tuple[list[tuple[FrameType, int, bytes]], bool]:
    decoder, frames = Decoder(), []
    try:
        for piece in pieces(data, step):
            frames += decoder.feed(piece)
            assert decoder.kept_bytes < HEADER.size + MAX_PAYLOAD
    except FrameError:
        return frames, True
    size = sum(HEADER.size + len(payload) for _, _, payload in frames)
    assert size + decoder.kept_bytes == len(data)
    assert b"".join(frame(*each) for each in frames) == data[:size]
    return frames, False


def follow_order(frames: list[tuple[FrameType, int, bytes]]) -> None:
    streams: Streams[Item] = Streams()
    try:
        for kind, number, payload in frames:
            if kind is FrameType.OPEN:
                streams.accept(number, Item(STAGES[len(payload) % len(STAGES)]))
            else:
                streams.step(kind, number)
            assert all(item.stage is not Stage.FINISHED for item in streams.live.values())
    except FrameError:
        pass


def random_input(chance: random.Random) -> bytes:
    """True frames of a few streams: pure noise dies at its first header."""
    data = bytearray(chance.randbytes(1))
    for _ in range(chance.randrange(12)):
        kind = chance.choice(list(FrameType))
        data += frame(kind, chance.choice([0, 1, 2, 3, 2**31, 2**32 - 1]), chance.randbytes(chance.randrange(40)))
    return bytes(data)


TARGET = Target(run_one, random_input)

if __name__ == "__main__":
    TARGET.main(__doc__)
