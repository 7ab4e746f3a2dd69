"""What all fuzz targets share: the command line, the loop without atheris, ways to damage an input.

    PYTHONPATH=tests python tests/fuzz/fuzz_sse.py --seconds 60

Without ``--seconds`` a target runs under atheris (``python -m pip install atheris``), guided by coverage. A failure
prints the input that caused it; ``--input HEX`` runs that again.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType

RunOne = Callable[[bytes], None]
RandomInput = Callable[[random.Random], bytes]


@dataclass(frozen=True)
class Target:
    """``run_one`` raises on a fault; ``random_input`` makes what is worth trying: pure noise rarely is."""

    run_one: RunOne
    random_input: RandomInput

    def run_random(self, seconds: float) -> int:
        """Try random and damaged inputs for so long; returns how many."""
        chance, runs = random.Random(), 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            data = damaged(self.random_input(chance), chance)
            try:
                self.run_one(data)
            except BaseException:
                sys.stderr.write(f"input: {data.hex()}\n")
                raise
            runs += 1
        return runs

    def main(self, doc: str | None) -> None:
        """The command line of a target."""
        parser = argparse.ArgumentParser(description=(doc or "").split("\n\n")[0])
        parser.add_argument("--seconds", type=float, help="run without atheris for that long")
        parser.add_argument("--input", type=bytes.fromhex, metavar="HEX", help="run this one input")
        options, rest = parser.parse_known_args()
        if options.input is not None:
            self.run_one(options.input)
        elif options.seconds is not None:
            print(f"{os.path.basename(sys.argv[0])}: {self.run_random(options.seconds)} inputs, no fault")
        else:
            self._run_guided(parser, rest)

    def _run_guided(self, parser: argparse.ArgumentParser, rest: list[str]) -> None:
        try:
            import atheris  # type: ignore[import-not-found]
        except ImportError:
            parser.exit(2, "atheris is not installed: use --seconds N\n")
        for function in [one for one in gc.get_objects() if isinstance(one, FunctionType)]:
            if str(function.__module__).startswith("firstkit."):  # to instrument all takes a minute
                atheris.instrument_func(function)

        def mutate(data: bytes, most: int, seed: int) -> bytes:
            chance = random.Random(seed)
            if not data or chance.random() < 0.2:
                data = self.random_input(chance)
            changed = damaged(data, chance) if chance.random() < 0.5 else bytes(atheris.Mutate(data, len(data) + 8))
            return changed[:most]

        atheris.Setup([sys.argv[0], *rest], self.run_one, custom_mutator=mutate)
        atheris.Fuzz()


def damaged(data: bytes, chance: random.Random) -> bytes:
    """``data`` as it is, or with a few bytes changed, cut out, doubled or put in."""
    changed = bytearray(data)
    for _ in range(chance.choice([0, 0, 1, 1, 2, 5])):
        at = chance.randrange(len(changed) + 1)
        length = chance.choice([0, 1, 1, 1, 2, 8])
        piece = chance.choice([chance.randbytes(length), bytes(changed[at : at + 8]), b"\r\n", b"\0", b"\xff"])
        changed[at : at + length] = piece
    return bytes(changed[: chance.randrange(len(changed) + 1)] if chance.random() < 0.1 else changed)


def pieces(data: bytes, step: int) -> list[bytes]:
    """``data`` cut every ``step`` bytes."""
    return [data[at : at + step] for at in range(0, len(data), step)]


def some(chance: random.Random, parts: list[bytes], most: int) -> bytes:
    """Up to ``most`` of ``parts``, one after the other."""
    return b"".join(chance.choices(parts, k=chance.randrange(most + 1)))
