"""What a pilot makes of its engine's own numbers, and when it tells."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.engines.load import Load
from firstkit.onsite.loadwatch import CACHE_STEP, LoadWatch, Told, is_news

NAMES = {"running": "r", "waiting": "w", "cache_use": "c"}


class Engine:
    """Says ``running``, ``waiting`` and ``cache``; ``in_flight`` requests of the pilot are at it, then ``after``."""

    def __init__(self) -> None:
        self.running = self.waiting = self.in_flight = 0
        self.after: int | None = None
        self.cache = 0.0
        self.status = 200
        self.paths: list[str] = []
        self.news = 0
        self.watch = LoadWatch(self.get, NAMES, lambda: self.in_flight, self.hear)

    async def get(self, path: str) -> tuple[int, bytes]:
        self.paths.append(path)
        if self.after is not None:
            self.in_flight = self.after
        return self.status, b"r %d\nw %d\nc %f\n" % (self.running, self.waiting, self.cache)

    def hear(self) -> None:
        self.news += 1

    async def look(self, running: int = 0, waiting: int = 0, cache: float = 0.0, in_flight: int = 0) -> Told:
        self.running, self.waiting, self.cache, self.in_flight = running, waiting, cache, in_flight
        await self.watch.look()
        return self.watch.told


async def test_requests_of_the_pilot_are_no_others() -> None:
    engine = Engine()
    for count in (0, 5, 8, 3):
        assert await engine.look(running=count, in_flight=count) == Told(Load(count, 0, 0.0), 0)
    assert engine.news == 0, "it is known without asking"
    assert set(engine.paths) == {"/metrics"}


async def test_others_count_when_they_were_seen_twice() -> None:
    """Once may be a request that has just ended here and not yet there."""
    engine = Engine()
    assert (await engine.look(running=9, in_flight=2)).others == 0
    assert (await engine.look(running=2, in_flight=2)).others == 0
    assert (await engine.look(running=6, waiting=1, in_flight=2)).others == 0
    assert (await engine.look(running=8, waiting=0, in_flight=2)).others == 5
    assert (await engine.look(running=2, in_flight=2)).others == 0


@pytest.mark.parametrize(("before", "after"), [(5, 0), (0, 5)])
async def test_a_request_that_comes_or_goes_meanwhile_is_no_other(before: int, after: int) -> None:
    engine = Engine()
    for _ in range(3):
        engine.after = after
        assert (await engine.look(running=5, in_flight=before)).others == 0


async def test_an_engine_that_does_not_answer_is_as_it_was() -> None:
    engine = Engine()
    told = await engine.look(waiting=3, cache=0.9, in_flight=3)
    engine.status = 0
    assert await engine.look() == told == Told(Load(0, 3, 0.9), 0)
    assert engine.news == 1


async def test_news_is_told_once() -> None:
    engine = Engine()
    for waiting, news in ((0, 0), (1, 1), (1, 1), (10, 2), (9, 2), (8, 2), (7, 3), (0, 4), (0, 4)):
        await engine.look(waiting=waiting, in_flight=waiting)
        assert engine.news == news, waiting


async def test_an_engine_without_numbers_is_not_asked() -> None:
    engine = Engine()
    await LoadWatch(engine.get, {}, lambda: 0, engine.hear).run(0.0)
    assert engine.paths == []


counts = st.none() | st.integers(0, 50)
loads = st.builds(Load, counts, counts, st.none() | st.floats(0, 1))
tolds = st.builds(Told, loads, st.integers(0, 50))


@given(tolds, tolds)
def test_what_is_no_news_is_near(one: Told, other: Told) -> None:
    assert is_news(one, other) == is_news(other, one)
    assert not is_news(one, one)
    if not is_news(one, other):
        assert abs((one.load.cache_use or 0) - (other.load.cache_use or 0)) < CACHE_STEP
        for before, now in ((one.others, other.others), (one.load.waiting or 0, other.load.waiting or 0)):
            assert bool(before) == bool(now)
            assert abs(before - now) <= max(before, now) / 4


@given(loads, counts)
def test_how_many_run_is_no_news_by_itself(load: Load, running: int | None) -> None:
    assert not is_news(Told(load), Told(Load(running, load.waiting, load.cache_use)))
