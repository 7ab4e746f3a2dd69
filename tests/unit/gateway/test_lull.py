"""Rests of a loop that is busy with tokens: how long, and when there are none."""

import asyncio

import pytest

from firstkit.gateway.lull import BUSY_PER_S, LULL_S, WINDOW_S, Lull


class Time:
    """A clock that moves when somebody sleeps, or when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        self.lull = Lull(self.sleep, lambda: self.now)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def turn(self, pieces: int, seconds: float = 0.0) -> None:
        """A turn of the loop in which so many pieces of streams are passed on, and which takes so long."""
        for _ in range(pieces):
            self.lull.after()
        self.now += seconds
        await asyncio.sleep(0)

    async def turns(self, count: int, pieces: int, seconds: float) -> None:
        for _ in range(count):
            await self.turn(pieces, seconds)


@pytest.fixture
def time() -> Time:
    return Time()


async def test_with_few_tokens_nothing_waits(time: Time) -> None:
    await time.turns(count=1000, pieces=1, seconds=2 / BUSY_PER_S)
    assert time.slept == []


async def test_with_many_tokens_turns_are_so_far_apart(time: Time) -> None:
    await time.turns(count=100, pieces=8, seconds=LULL_S / 4)
    time.slept.clear()
    began = time.now
    await time.turns(count=20, pieces=8, seconds=LULL_S / 4)
    assert len(time.slept) == 20
    assert time.now - began == pytest.approx(20 * LULL_S, abs=LULL_S)
    assert 0 < max(time.slept) < LULL_S


async def test_a_turn_that_takes_as_long_is_followed_by_none(time: Time) -> None:
    await time.turns(count=100, pieces=20, seconds=LULL_S * 1.01)
    assert time.slept == []


async def test_it_ends_with_the_first_token_after_a_calm_while(time: Time) -> None:
    await time.turns(count=100, pieces=8, seconds=LULL_S / 4)
    assert time.slept
    time.slept.clear()
    time.now += WINDOW_S
    await time.turns(count=5, pieces=1, seconds=LULL_S / 4)
    assert time.slept == []


async def test_a_turn_without_tokens_is_followed_by_none(time: Time) -> None:
    await time.turns(count=100, pieces=8, seconds=LULL_S / 4)
    time.slept.clear()
    await time.turns(count=100, pieces=0, seconds=LULL_S / 4)
    assert time.slept == []
