from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

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
    assert pauses[0] <= 1.2 * HURRY_S + 0.1
    assert pauses[4] > pauses[1]
    assert max(pauses) <= SLOWEST_S * 1.2 + 0.1


def test_when_all_is_well_it_is_asked_seldom(clock: Clock) -> None:
    rhythm = Rhythm(clock)
    rhythm.note(has_jobs=True, is_calm=True)
    assert until_due(rhythm, clock) >= CALM_S - 0.1
    rhythm.heard()
    assert until_due(rhythm, clock) >= CALM_S - 0.1


def test_trouble_after_calm_is_looked_at_soon(clock: Clock) -> None:
    rhythm = Rhythm(clock)
    rhythm.note(has_jobs=True, is_calm=True)
    rhythm.note(has_jobs=True, is_calm=False)
    assert until_due(rhythm, clock) <= 1.2 * HURRY_S + 0.1


def test_what_was_just_asked_is_looked_at_soon(clock: Clock) -> None:
    rhythm = Rhythm(clock)
    rhythm.note(has_jobs=True, is_calm=True)
    rhythm.hurry()
    assert until_due(rhythm, clock) <= 1.2 * HURRY_S + 0.1


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
    assert max(pauses) <= LONGEST_SILENCE_S * 1.2 + 0.1
    rhythm.heard()
    rhythm.silence()
    assert until_due(rhythm, clock) <= SLOWEST_S * 1.2


def test_there_is_always_a_moment_between_passes(clock: Clock) -> None:
    rhythm = Rhythm(clock)
    rhythm.hurry()
    clock.at = 1e6
    assert rhythm.left_s > 0


def polls(rhythm: Rhythm, clock: Clock, seconds: float, *, trouble: bool = False) -> list[float]:
    """When polls were made, whatever else was asked of the scheduler in between."""
    made = []
    while clock.at < seconds:
        rhythm.note(has_jobs=True, is_calm=int(clock.at) % 7 < 3)
        if int(clock.at * 10) % 13 == 0:
            rhythm.hurry()
        if rhythm.is_due:
            rhythm.asked()
            made.append(clock.at)
            if trouble and len(made) % 3:
                rhythm.silence()
            else:
                rhythm.heard()
        clock.at += 0.1
    return made


@pytest.mark.parametrize("trouble", [False, True])
def test_an_interval_is_kept_whatever_happens(clock: Clock, trouble: bool) -> None:
    made = polls(Rhythm(clock, 10.0), clock, 600.0, trouble=trouble)
    assert len(made) > 6
    assert min(later - earlier for earlier, later in pairwise(made)) >= 10.0


def test_where_there_is_an_interval_nobody_polls_right_after_a_submission(clock: Clock) -> None:
    rhythm = Rhythm(clock, 10.0)
    rhythm.hurry()
    assert until_due(rhythm, clock) >= 10.0


def test_a_scheduler_that_fell_silent_is_asked_again_though_it_has_no_jobs(clock: Clock) -> None:
    rhythm = Rhythm(clock)
    rhythm.silence()
    clock.at += 3.0
    assert rhythm.silent_s == 3.0
    rhythm.note(has_jobs=False, is_calm=True)
    assert until_due(rhythm, clock) < 2.0
    rhythm.heard()
    rhythm.note(has_jobs=False, is_calm=True)
    assert rhythm.silent_s is None
    assert until_due(rhythm, clock) >= 200


def test_any_answer_ends_a_silence(clock: Clock) -> None:
    rhythm = Rhythm(clock)
    rhythm.silence()
    rhythm.answered()
    assert not rhythm.is_silent
    assert rhythm.silent_s is None


def test_it_counts_how_often_it_was_answered(clock: Clock) -> None:
    rhythm = Rhythm(clock)
    rhythm.heard()
    rhythm.answered()
    rhythm.silence()
    assert (rhythm.good, rhythm.failed) == (2, 1)
