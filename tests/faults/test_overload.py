"""More than there is room for: whoever is refused hears it at once, and whoever was accepted is served to the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from faults.support import LONG_ANSWER, Answer, Asking, ask, external, in_flight, lab_of, outcomes, piloted, waiting
from firstkit.testing.background import Background
from firstkit.testing.quick_engine import QuickEngine
from lab import Lab, fake_engine, wait_for

ROOM, LINE = 2, 3
LIMIT, AT_A_TIME = 6, 2
TOKENS = 5
RATE_HEADERS = [f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset")]


@dataclass
class World:
    """A lab, the engine outside of it, and a file: while it is there, no answer gets beyond its first token."""

    lab: Lab
    engine: QuickEngine
    stop_sign: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Model ``narrow`` has little room and a short line, ``wide`` room for all; ``here`` is narrow behind a pilot."""
    held = {"tokens": TOKENS, "token_delay": 0.01, "while_there": tmp_path_factory.mktemp("world") / "held"}
    with Background() as background:
        engine, url = background.add("HeldEngine", **held)
        models = {
            "narrow": [external(url, max_in_flight=ROOM)],
            "wide": [external(background.add("QuickEngine")[1], max_in_flight=1000)],
            "here": [piloted(fake_engine("HeldEngine", **held), max_in_flight=ROOM)],
        }
        with lab_of(models, hold=60, max_waiting=LINE) as lab:
            yield World(lab, engine, held["while_there"])


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway with limits for each key."""
    path = tmp_path_factory.mktemp("limited") / "held"
    limits = {"requests_per_minute_per_key": LIMIT, "concurrency_per_key": AT_A_TIME}
    with Background() as background:
        engine, url = background.add("HeldEngine", tokens=TOKENS, while_there=path)
        with lab_of({"m": [external(url, max_in_flight=1000)]}, limits) as lab:
            yield World(lab, engine, path)


@contextmanager
def held(world: World) -> Iterator[ExitStack]:
    """While inside, no answer ends. What is entered into the stack is left before."""
    world.stop_sign.touch()
    try:
        with ExitStack() as stack:
            yield stack
    finally:
        world.stop_sign.unlink(missing_ok=True)


def assert_refused(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.code) == (status, code), answer
    assert int(answer.headers["retry-after"]) >= 1


# -- the line ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["narrow", "here"])
def test_a_full_line_refuses_at_once_and_serves_in_order(world: World, model: str) -> None:
    """The refusals come while not one of those who were accepted has been served."""
    lab = world.lab
    with held(world) as stack:
        running = [stack.enter_context(Asking(lab, model)) for _ in range(ROOM)]
        for one in running:
            one.read_tokens()
        waiting_in_line = []
        for place in range(1, LINE + 1):
            waiting_in_line.append(stack.enter_context(Asking(lab, model, f"number {place}")))
            wait_for("it stands in line", lambda place=place: waiting(lab, model) == place)
        refusals = [ask(lab, model) for _ in range(10)]
        assert (in_flight(lab, model), waiting(lab, model)) == (ROOM, LINE)
        for refusal in refusals:
            assert_refused(refusal, 429, "overloaded")
        world.stop_sign.unlink()
        answers = [one.rest() for one in (*running, *waiting_in_line)]
    assert {(answer.ending, answer.tokens) for answer in answers} == {("done", TOKENS)}
    ids = [answer.headers["x-request-id"] for answer in answers]
    wait_for("all are accounted", lambda: set(ids) <= {row["request_id"] for row in lab.usage()})
    began = {row["request_id"]: row["at"].timestamp() + row["queue_s"] for row in lab.usage()}
    assert sorted(ids[ROOM:], key=began.__getitem__) == ids[ROOM:], "first come, first served"


@pytest.mark.parametrize("model", ["narrow", "here"])
def test_a_flood_starves_nobody_who_was_accepted(world: World, model: str) -> None:
    """Forty at once where there is room for two and a line of three, again and again: all 200 are whole."""
    before = Counter(outcomes(world.lab, model))
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: ask(world.lab, model, max_tokens=4), range(160)))
    accepted = [answer for answer in answers if answer.status == 200]
    assert ROOM + LINE <= len(accepted) < len(answers)
    assert {(answer.ending, answer.tokens) for answer in accepted} == {("done", 4)}
    for answer in answers:
        if answer.status != 200:
            assert_refused(answer, 429, "overloaded")
    expected = before + Counter(complete=len(accepted))
    wait_for("the accepted are accounted, and only they", lambda: Counter(outcomes(world.lab, model)) == expected)
    assert (in_flight(world.lab, model), waiting(world.lab, model)) == (0, 0)


def test_a_full_line_is_no_matter_of_other_models(world: World) -> None:
    with held(world) as stack:
        crowd = [stack.enter_context(Asking(world.lab, "narrow")) for _ in range(ROOM + LINE)]
        wait_for("the line is full", lambda: waiting(world.lab, "narrow") == LINE)
        answer = ask(world.lab, "wide", max_tokens=1)
        assert (answer.ending, waiting(world.lab, "narrow")) == ("done", LINE)
        world.stop_sign.unlink()
        assert {one.rest().ending for one in crowd} == {"done"}


# -- what a key may do -------------------------------------------------------------------------------------------------


def test_requests_per_minute_of_a_key(limited: World) -> None:
    lab = limited.lab
    key = lab.make_key("minute", ("inference",))
    answers = [ask(lab, key=key, max_tokens=1, stream=i % 2 == 0) for i in range(LIMIT)]
    assert {answer.status for answer in answers} == {200}
    assert [answer.headers[RATE_HEADERS[0]] for answer in answers] == [str(LIMIT)] * LIMIT
    assert [int(answer.headers[RATE_HEADERS[1]]) for answer in answers] == list(reversed(range(LIMIT)))
    asked = limited.engine.stats.requests
    refusals = [ask(lab, key=key) for _ in range(5)]
    for refusal in refusals:
        assert_refused(refusal, 429, "rate_limit_exceeded")
        assert refusal.headers[RATE_HEADERS[1]] == "0"
        assert float(refusal.headers[RATE_HEADERS[2]].removesuffix("s")) <= 60
    assert limited.engine.stats.requests == asked, "no engine was asked"
    assert ask(lab, key=lab.make_key("another", ("inference",)), max_tokens=1).status == 200


@pytest.mark.parametrize("stream", [True, False])
def test_requests_at_a_time_of_a_key(limited: World, stream: bool) -> None:
    """Refused while the others run, and room again when one of them has ended, also by hanging up."""
    lab = limited.lab
    key = lab.make_key(f"at a time {stream}", ("inference",))
    asked = limited.engine.stats.requests
    with held(limited) as stack:
        running = [stack.enter_context(Asking(lab, key=key, stream=stream)) for _ in range(AT_A_TIME)]
        wait_for("both run", lambda: limited.engine.stats.requests == asked + AT_A_TIME)
        assert_refused(ask(lab, key=key), 429, "rate_limit_exceeded")
        running[0].hang_up()
        wait_for("it has ended", lambda: in_flight(lab, "m") == 1)
        third = stack.enter_context(Asking(lab, key=key, stream=stream))
        wait_for("it runs", lambda: limited.engine.stats.requests == asked + AT_A_TIME + 1)
        limited.stop_sign.unlink()
        assert [one.rest().ending for one in (running[1], third)] == ["done" if stream else "whole"] * 2


def test_what_is_refused_counts_for_nothing(limited: World) -> None:
    """A key that was refused for too many at a time has not lost requests of its minute by that."""
    lab = limited.lab
    key = lab.make_key("refused", ("inference",))
    with held(limited) as stack:
        for _ in range(AT_A_TIME):
            stack.enter_context(Asking(lab, key=key)).read_tokens()
        refusals = [ask(lab, key=key) for _ in range(LIMIT)]
        assert {refusal.status for refusal in refusals} == {429}
        assert {refusal.headers[RATE_HEADERS[1]] for refusal in refusals} == {str(LIMIT - AT_A_TIME)}
    wait_for("both have ended", lambda: in_flight(lab, "m") == 0)
    assert ask(lab, key=key, max_tokens=1).headers[RATE_HEADERS[1]] == str(LIMIT - AT_A_TIME - 1)


# -- replicas that fail ------------------------------------------------------------------------------------------------


def test_open_breakers_refuse_at_once_and_cut_nobody_off(tmp_path: Path) -> None:
    """Streams that run at the replica go on while new requests are refused because of it."""
    broken = tmp_path / "broken"
    with Background() as background:
        engine, url = background.add("FlappingEngine", while_there=broken, tokens=LONG_ANSWER, token_delay=0.02)
        with lab_of({"m": [external(url)]}, hold=60) as lab, ExitStack() as stack:
            running = [stack.enter_context(Asking(lab)) for _ in range(3)]
            for one in running:
                one.read_tokens()
            broken.touch()
            wait_for("it is refused without asking", lambda: ask(lab).code == "replicas_failing", 10)
            asked = engine.stats.requests
            for _ in range(10):
                assert_refused(ask(lab), 503, "replicas_failing")
            assert engine.stats.requests == asked, "no engine was asked"
            for one in running:
                one.read_tokens(10)
            assert engine.stats.in_flight == len(running)
