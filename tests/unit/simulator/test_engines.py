"""The model engine and the model of jobs of others."""

from __future__ import annotations

import random

import pytest

from firstkit.routing.admission import NOBODY
from firstkit.simulator.batch import BatchSystem
from firstkit.simulator.engines import Request, SimEngine
from firstkit.simulator.events import Events, drawn, mean_of
from firstkit.simulator.nodes import Nodes
from firstkit.simulator.others import Others
from firstkit.simulator.scenario import Background, EngineSection, Spread

KIND = EngineSection(tokens_per_s=10, full_tokens_per_s=5, prompt_tokens_per_s=100, first_token=0)


def served(*requests: tuple[float, int, int]) -> dict[int, float]:
    """When each request (when it comes, prompt, answer) is done, at an engine that takes two."""
    events, done = Events(0.0), dict[int, float]()
    asked = [Request("m", NOBODY, prompt, answer, at) for at, prompt, answer in requests]
    engine = SimEngine(events, KIND, 2, lambda _, request: done.update({asked.index(request): events.now}))
    for request in asked:
        events.at(request.came_at, engine.begin, request)
    events.run(1000.0)
    assert not engine.requests
    return done


def test_one_request_alone_has_all_the_speed() -> None:
    assert served((0, 0, 100))[0] == pytest.approx(10.0, abs=0.01)


def test_a_prompt_is_read_before_the_answer_is_written() -> None:
    assert served((0, 500, 100))[0] == pytest.approx(15.0, abs=0.01)


def test_two_requests_slow_each_other_down_while_both_are_there() -> None:
    done = served((0, 0, 100), (0, 0, 50))
    assert done[1] == pytest.approx(10.0, abs=0.01)
    assert done[0] == pytest.approx(15.0, abs=0.01)


def test_one_that_comes_later_delays_one_that_is_there() -> None:
    done = served((0, 0, 100), (5, 0, 100))
    assert done[0] == pytest.approx(15.0, abs=0.01)
    assert done[1] == pytest.approx(20.0, abs=0.01)


def test_draws_are_below_usual_half_the_time_and_below_late_nine_times_of_ten() -> None:
    chance = random.Random(1)
    found = [drawn(chance, 10, 100) for _ in range(20_000)]
    assert sum(one < 10 for one in found) / len(found) == pytest.approx(0.5, abs=0.02)
    assert sum(one < 100 for one in found) / len(found) == pytest.approx(0.9, abs=0.02)
    assert sum(found) / len(found) == pytest.approx(mean_of(10, 100), rel=0.2)


def test_others_take_the_share_of_the_cluster_that_is_wanted() -> None:
    events = Events(0.0)
    batch = BatchSystem(events, Nodes(100, 16, 4, 64), random.Random(1))
    wanted = Background(load=0.6, swing=0, runs=Spread(usual=1800, late=3600))
    Others(events, batch, wanted, random.Random(2)).begin()
    busy = []
    for hour in range(1, 24 * 14):
        events.run(hour * 3600.0)
        busy.append(100 - len(batch.nodes.idle))
    assert sum(busy) / len(busy) == pytest.approx(60, abs=8)
