"""Fuzz target for frames: any bytes, cut anywhere, then through the order rules; only FrameError may come out.

Under atheris (``python -m pip install atheris``) it is coverage guided; without, ``--seconds N`` feeds it random and
mutated input for N seconds. A failure prints the input that caused it.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time

from firstkit.links.frames import HEADER, MAX_PAYLOAD, Decoder, FrameError, FrameType, Stage, Streams, frame

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


def decode(data: bytes, step: int) -> tuple[list[tuple[FrameType, int, bytes]], bool]:
    decoder, frames = Decoder(), []
    try:
        for position in range(0, len(data), step):
            frames += decoder.feed(data[position : position + step])
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
    """Mostly true frames of a few streams, sometimes damaged: pure noise dies at its first header."""
    data = bytearray(chance.randbytes(1))
    for _ in range(chance.randrange(12)):
        kind = chance.choice(list(FrameType))
        data += frame(kind, chance.choice([0, 1, 2, 3, 2**31, 2**32 - 1]), chance.randbytes(chance.randrange(40)))
    for _ in range(chance.choice([0, 0, 1, 3])):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data[: chance.randrange(len(data) + 1)] if chance.random() < 0.2 else data)


def run_random(seconds: float) -> int:
    chance, runs = random.Random(), 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = random_input(chance)
        try:
            run_one(data)
        except Exception:
            print(f"input: {data.hex()}", file=sys.stderr)
            raise
        runs += 1
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, help="run without atheris for that long")
    options, rest = parser.parse_known_args()
    if options.seconds is not None:
        print(f"{run_random(options.seconds)} inputs, no fault")
        return
    try:
        import atheris  # type: ignore[import-not-found]
    except ImportError:
        parser.exit(2, f"atheris is not installed: use --seconds N{os.linesep}")
    atheris.Setup([sys.argv[0], *rest], run_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
