from __future__ import annotations

from collections.abc import Iterator

import pytest

from firstkit.reconciler.rhythm import CALM_S, HURRY_S, LONGEST_SILENCE_S, SLOWEST_S, Rhythm


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Iterator[Clock]:
    return Clock()


def until_due(rhythm: Rhythm, clock: Clock, limit_s: float = 200.0) -> float:
    """Seconds until the next poll."""
    started = clock.at
    while not rhythm.is_due and clock.at - started < limit_s:
        clock.at += 0.05
    return clock.at - started


def test_without_jobs_nobody_is_asked(clock: Clock) -> None:
    rhythm = Rhythm(clock)
    rhythm.note(has_jobs=False, is_calm=True)
    assert until_due(rhythm, clock) >= 200


def test_what_is_on_its_way_is_looked_at_soon_and_then_ever_less_often(clock: Clock) -> None:
    rhythm = Rhythm(clock)
    pauses = []
    for _ in range(12):
        rhythm.note(has_jobs=True, is_calm=False)
        pauses.append(until_due(rhythm, clock))
        rhythm.heard()
    assert pauses[0] <= HURRY_S + 0.1
    assert pauses[4] > pauses[1]
    assert max(pauses) <= SLOWEST_S * 1.1 + 0.1


def test_when_all_is_well_it_is_asked_seldom(clock: Clock) -> None:
    rhythm = Rhythm(clock)
    rhythm.note(has_jobs=True, is_calm=True)
    assert until_due(rhythm, clock) >= CALM_S - 0.1
    rhythm.heard()
    assert until_due(rhythm, clock) >= 0.9 * CALM_S - 0.1


def test_trouble_after_calm_is_looked_at_soon(clock: Clock) -> None:
    rhythm = Rhythm(clock)
    rhythm.note(has_jobs=True, is_calm=True)
    rhythm.note(has_jobs=True, is_calm=False)
    assert until_due(rhythm, clock) <= HURRY_S + 0.1


def test_what_was_just_asked_is_looked_at_soon(clock: Clock) -> None:
    rhythm = Rhythm(clock)
    rhythm.note(has_jobs=True, is_calm=True)
    rhythm.hurry()
    assert until_due(rhythm, clock) <= HURRY_S + 0.1


def test_a_silent_scheduler_is_left_alone_longer_each_time(clock: Clock) -> None:
    rhythm = Rhythm(clock)
    rhythm.note(has_jobs=True, is_calm=False)
    pauses = []
    for _ in range(10):
        rhythm.silence()
        assert rhythm.is_silent
        assert not rhythm.is_due
        pauses.append(until_due(rhythm, clock))
    assert pauses[3] > pauses[1] > 0
    assert max(pauses) <= LONGEST_SILENCE_S * 1.1 + 0.1
    rhythm.heard()
    rhythm.silence()
    assert until_due(rhythm, clock) <= SLOWEST_S * 1.1


def test_there_is_always_a_moment_between_passes(clock: Clock) -> None:
    rhythm = Rhythm(clock)
    rhythm.hurry()
    clock.at = 1e6
    assert rhythm.left_s > 0
