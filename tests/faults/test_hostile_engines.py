"""Engines of every temper behind a whole FIRST: as a service that others run, and behind a pilot.

Whatever they do, the client is told in one of the promised ways, nothing grows, and the next request is served.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from faults.support import (
    LONG_ANSWER,
    Answer,
    Asking,
    EngineProcess,
    Peak,
    Record,
    ask,
    external,
    in_flight,
    lab_of,
    outcomes,
    piloted,
    rows_of,
    waiting,
)
from firstkit.routing.breaker import FAILURES
from firstkit.testing.background import Background
from firstkit.testing.byte_scripts import BROKEN, ENDLESS, GOOD, POISON, TIRELESS
from firstkit.testing.fake_engine import GarbageEngine
from firstkit.testing.quick_engine import QuickEngine
from lab import Lab, fake_engine, wait_for

MIB = 1024**2
LONG: dict[str, Any] = {"tokens": LONG_ANSWER, "token_delay": 0.01}
WHERE = ["outside", "here"]
"""The same engine as a service that others run, and behind a pilot: two models."""


@dataclass
class World:
    """A lab and, by model, the records of its engines."""

    lab: Lab
    records: dict[str, Record]

    def ask(self, model: str, said: str = "hello", **options: Any) -> Answer:
        return ask(self.lab, model, said, **{"max_tokens": 2, **options})

    def long(self, model: str) -> Asking:
        """A stream that will not end by itself."""
        return Asking(self.lab, model)

    def watched(self) -> list[int]:
        """Gateway and pilots."""
        assert self.lab.gateway is not None
        return [self.lab.gateway.pid, *(pilot.pid for pilot in self.lab.pilots())]

    def assert_serves(self, model: str) -> None:
        answer = self.ask(model)
        assert (answer.status, answer.ending, answer.tokens) == (200, "done", 2), answer


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """One request at a time at each replica."""
    with Background() as background:
        engine, url = background.add("ByteEngine", **LONG)
        models = {
            "outside": [external(url, max_in_flight=1)],
            "here": [piloted(fake_engine("ByteEngine", **LONG), max_in_flight=1)],
        }
        with lab_of(models, idle_timeout=2, total_timeout=4, hold=60) as lab:
            [process] = lab.engines()
            yield World(lab, {"outside": Record(engine), "here": Record(process)})


# -- what is no answer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", WHERE)
@pytest.mark.parametrize("said", [*GarbageEngine.variants, *BROKEN])
def test_garbage_is_told_and_the_next_request_is_served(world: World, model: str, said: str) -> None:
    stream = world.ask(model, said)
    assert stream.ending in ("error", "whole")
    assert stream.code == "engine_failed"
    assert stream.status == (502 if stream.ending == "whole" else 200)
    world.assert_serves(model)
    plain = world.ask(model, said, stream=False)
    assert (plain.status, plain.code) == (502, "engine_failed")
    world.assert_serves(model)


@pytest.mark.parametrize("model", WHERE)
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("said", ENDLESS)
def test_what_never_ends_is_cut_off_early(world: World, model: str, stream: bool, said: str) -> None:
    """A gigabyte is on offer; only a part is taken, of that only a part is held at a time, and the engine hears it."""
    record = world.records[model]
    before, peak = record(), Peak(*world.watched())
    answer = world.ask(model, said, stream=stream)
    assert answer.ending == "reset" or answer.code in ("engine_failed", "engine_refused")
    wait_for("the engine was cut off", lambda: record()["aborted"] == before["aborted"] + 1, 10)
    assert record()["script_bytes"] - before["script_bytes"] < 96 * MIB
    assert max(peak.grown()) < 48 * MIB
    world.assert_serves(model)


@pytest.mark.parametrize("said", TIRELESS)
def test_what_is_never_silent_is_ended_by_the_longest_life_of_a_request(world: World, said: str) -> None:
    aborted = [world.records[model]()["aborted"] + 1 for model in WHERE]
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda model: world.ask(model, said), WHERE))
    assert [answer.code for answer in answers] == ["engine_timeout"] * 2
    assert {answer.status for answer in answers} == {504 if said == "tireless-head" else 200}
    wait_for("they were cut off", lambda: [world.records[model]()["aborted"] for model in WHERE] == aborted, 10)
    for model in WHERE:
        world.assert_serves(model)


@pytest.mark.parametrize("model", WHERE)
@pytest.mark.parametrize("said", GOOD)
def test_ten_strange_but_whole_streams_in_a_row(world: World, model: str, said: str) -> None:
    """Among them those of an engine that closes after each, though HTTP promised another request."""
    for _ in range(10):
        answer = world.ask(model, said)
        assert (answer.ending, answer.tokens) == ("done", 1)
        assert POISON.encode() not in answer.body
    assert POISON not in world.ask(model, stream=False).json["choices"][0]["message"]["content"]


@pytest.mark.parametrize("model", WHERE)
def test_broken_streams_cost_what_was_delivered(world: World, model: str) -> None:
    answers = [world.ask(model, said) for said in ("half-event", "no-done", "nothing")]
    ids = [answer.headers["x-request-id"] for answer in answers]
    wait_for("they are in the ledger", lambda: set(ids) <= {row["request_id"] for row in world.lab.usage()})
    rows = {row["request_id"]: row for row in world.lab.usage()}
    assert [rows[one]["outcome"] for one in ids] == ["failed"] * 3
    assert [rows[one]["completion_tokens"] for one in ids] == [answer.tokens for answer in answers[:2]] + [0]
    world.assert_serves(model)


# -- who hangs up ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", WHERE)
def test_fifty_clients_hang_up_in_mid_stream(world: World, model: str) -> None:
    """The engine hears of each, by its own record within two seconds, and nothing is left of them."""
    record, gone_at = world.records[model], []
    before, cancelled = record(), outcomes(world.lab, model).count("cancelled")
    for _ in range(50):
        with world.long(model) as asking:
            asking.read_tokens()
        gone_at.append(time.monotonic())
    wait_for("the engine heard of all", lambda: record()["aborted"] == before["aborted"] + 50, 10)
    heard_at = record()["aborted_at"][-50:]
    assert all(heard - gone <= 2 for gone, heard in zip(gone_at, heard_at, strict=True))
    assert record()["in_flight"] == 0
    wait_for("no request is left", lambda: in_flight(world.lab, model) == 0)
    wait_for("they are accounted", lambda: outcomes(world.lab, model).count("cancelled") == cancelled + 50)
    world.assert_serves(model)


@pytest.mark.parametrize("model", WHERE)
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_is_gone_before_the_first_token(world: World, model: str, stream: bool) -> None:
    lab, record = world.lab, world.records[model]
    before = record()

    def cancelled() -> list[Any]:
        return [row for row in rows_of(lab, model) if row["outcome"] == "cancelled"]

    known = len(cancelled())
    with Asking(lab, model, "silent", stream=stream):
        wait_for("the engine has it", lambda: record()["requests"] == before["requests"] + 1)
    wait_for("the engine heard", lambda: record()["aborted"] == before["aborted"] + 1, 2)
    wait_for("no request is left", lambda: in_flight(lab, model) == 0)
    wait_for("it is accounted", lambda: len(cancelled()) == known + 1)
    row = cancelled()[-1]
    assert (row["prompt_tokens"], row["completion_tokens"]) == (0, 0)
    world.assert_serves(model)


@pytest.mark.parametrize("model", WHERE)
def test_a_client_that_is_gone_while_it_waits_in_line(world: World, model: str) -> None:
    record = world.records[model]
    with world.long(model) as running:
        running.read_tokens()
        requests = record()["requests"]
        with Asking(world.lab, model):
            wait_for("it waits", lambda: waiting(world.lab, model) == 1)
        wait_for("it has left the line", lambda: waiting(world.lab, model) == 0)
    wait_for("no request is left", lambda: in_flight(world.lab, model) == 0)
    assert record()["requests"] == requests, "it was never given out"
    world.assert_serves(model)


# -- who stands still --------------------------------------------------------------------------------------------------


def assert_stopped_alone(world: World, stopped: str, pid: int, other: str) -> None:
    """A stream of ``stopped`` hangs with its engine and is told so in time; ``other`` is served all the while."""
    aborted = world.records[stopped]()["aborted"]
    with world.long(stopped) as asking:
        asking.read_tokens()
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(5):
                world.assert_serves(other)
            answer = asking.rest()
            world.assert_serves(other)
        finally:
            os.kill(pid, signal.SIGCONT)
    assert (answer.ending, answer.code) == ("error", "engine_timeout")
    wait_for("the engine hears it late", lambda: world.records[stopped]()["aborted"] == aborted + 1)
    world.assert_serves(stopped)


def test_an_engine_behind_a_pilot_stands_still(world: World) -> None:
    [engine] = world.lab.engines()
    assert_stopped_alone(world, "here", engine.pid, "outside")
    assert [engine] == world.lab.engines(), "it was not given up for one silence"


def test_a_service_stands_still(world: World) -> None:
    """Also of two replicas of one model: the other takes what comes while the first hangs."""
    with EngineProcess("QuickEngine", **LONG) as still, Background() as background:
        engine, url = background.add("QuickEngine")
        models = {"still": [external(still.url)], "pair": [external(still.url), external(url, "beyond")]}
        with lab_of(models, idle_timeout=2) as lab:
            two = World(lab, {})
            with two.long("still") as first, two.long("pair") as second:
                first.read_tokens()
                second.read_tokens()
                os.kill(still.process.pid, signal.SIGSTOP)
                for _ in range(5):
                    two.assert_serves("pair")
                endings = [(answer.ending, answer.code) for answer in (first.rest(), second.rest())]
                assert endings == [("error", "engine_timeout")] * 2
                assert engine.stats.completed == 5
            os.kill(still.process.pid, signal.SIGCONT)
            two.assert_serves("still")


# -- who fails, and who helps out --------------------------------------------------------------------------------------


@dataclass
class Pair:
    """Model ``m`` with a replica that may fail and one that does not; what each of them did."""

    lab: Lab
    failing: Callable[[], dict[str, Any]]
    good: QuickEngine
    trouble: Path
    """While this file is there, the first fails."""

    def sent(self) -> tuple[int, int]:
        """Requests that the replicas saw: the one that may fail, and the good one."""
        return self.failing()["requests"], self.good.stats.requests

    def ask(self, **options: Any) -> Answer:
        return ask(self.lab, max_tokens=2, **options)

    def ask_until(self, what: str, condition: Callable[[], bool], limit_s: float = 20) -> list[Answer]:
        """Ask one after the other until ``condition``; the answers."""
        answers: list[Answer] = []

        def asked_enough() -> bool:
            answers.append(self.ask())
            return condition()

        wait_for(what, asked_enough, limit_s)
        return answers


@pytest.fixture(scope="module", params=WHERE)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    path = tmp_path_factory.mktemp("pair") / "broken"
    with Background() as background:
        good, url = background.add("QuickEngine")
        if request.param == "here":
            failing = piloted(fake_engine("FlappingEngine", while_there=path))
        else:
            flapping, its_url = background.add("FlappingEngine", while_there=path)
            failing = external(its_url)
        with lab_of({"m": [failing, external(url, "beyond")]}, hold=60) as lab:
            engine: QuickEngine | psutil.Process = lab.engines()[0] if request.param == "here" else flapping
            yield Pair(lab, Record(engine), good, path)


def test_before_the_first_byte_another_replica_is_tried_once(pair: Pair) -> None:
    pair.trouble.touch()
    failing, good = pair.sent()
    answers = pair.ask_until("the first failed one", lambda: pair.sent()[0] == failing + 1)
    pair.trouble.unlink()
    assert {answer.ending for answer in answers} == {"done"}
    assert pair.sent() == (failing + 1, good + len(answers))


def test_a_replica_that_fails_gets_nothing_for_a_while_and_comes_back(pair: Pair) -> None:
    """Nobody notices: its requests are answered by the other."""
    completed = pair.failing()["completed"]
    answers = pair.ask_until("all is well", lambda: pair.failing()["completed"] > completed)
    pair.trouble.touch()
    failing = pair.sent()[0]
    answers += pair.ask_until("its circuit is open", lambda: pair.sent()[0] == failing + FAILURES)
    answers += [pair.ask() for _ in range(6)]
    assert pair.sent()[0] == failing + FAILURES
    pair.trouble.unlink()
    completed = pair.failing()["completed"]
    answers += pair.ask_until("it is back", lambda: pair.failing()["completed"] > completed + 1)
    assert {answer.ending for answer in answers} == {"done"}


def test_a_replica_that_never_answers_is_noticed_by_nobody() -> None:
    """One hangs up on everybody, one is not even there."""
    with Background() as background:
        refusing, url = background.add("RefusingEngine")
        good, other_url = background.add("QuickEngine")
        models = {
            "refused": [external(url), external(other_url, "beyond")],
            "nobody": [external("http://127.0.0.1:1/v1"), external(other_url, "beyond")],
        }
        with lab_of(models) as lab:
            for model in models:
                assert {ask(lab, model).ending for _ in range(4 * FAILURES)} == {"done"}
    assert refusing.stats.requests == FAILURES
    assert good.stats.completed == 8 * FAILURES


def test_nothing_is_replayed_after_the_first_byte() -> None:
    with Background() as background:
        byte, url = background.add("ByteEngine")
        good, other_url = background.add("QuickEngine")
        models = {"m": [external(url), external(other_url, "beyond")]}
        with lab_of(models) as lab:
            for said, stream in (("half-event", True), ("short-stream", True), ("short-body", False)):
                before = byte.stats.requests, good.stats.requests
                answers = []
                while byte.stats.requests == before[0]:
                    answers.append(ask(lab, said=said, stream=stream))
                assert [answer.code for answer in answers if answer.code] == ["engine_failed"]
                assert byte.stats.requests - before[0] == 1
                assert good.stats.requests - before[1] == len(answers) - 1


def test_retries_have_a_budget() -> None:
    """Three of four requests fail at each replica; beyond a tenth of all, and a few to begin with, they are not sent
    again."""
    many = 200
    with Background() as background:
        engines = [background.add("FlappingEngine", good_every=4) for _ in range(2)]
        clusters = ("outside", "beyond")
        with lab_of({"m": [external(url, where) for (_, url), where in zip(engines, clusters, strict=True)]}) as lab:
            answers = [ask(lab, stream=False) for _ in range(many)]
    requests = sum(engine.stats.requests for engine, _ in engines)
    completed = sum(engine.stats.completed for engine, _ in engines)
    assert requests - completed > many / 3
    assert many / 10 <= requests - many <= many / 10 + 11
    assert [answer.status for answer in answers].count(502) == many - completed
    assert {answer.status for answer in answers} == {200, 502}


def test_when_all_replicas_fail_the_refusal_comes_at_once(tmp_path: Path) -> None:
    """No engine is asked; after a while one request tries, and when it ends well all is as before."""
    broken = tmp_path / "broken"
    broken.touch()
    with Background() as background:
        engine, url = background.add("FlappingEngine", while_there=broken, tokens=60, token_delay=0.02)
        with lab_of({"m": [external(url)]}, hold=60) as lab:
            answers = [ask(lab) for _ in range(10)]
            failed = engine.stats.requests
            assert 2 <= failed < 10
            assert [a.code for a in answers] == ["engine_failed"] * failed + ["replicas_failing"] * (10 - failed)
            assert answers[-1].status == 503
            assert int(answers[-1].headers["retry-after"]) >= 1
            broken.unlink()
            trial = wait_for("one may try", lambda: _began(Asking(lab)), 20)
            assert engine.stats.requests == failed + 1, "one tries, alone"
            assert ask(lab).ending == "done", "it answers, so others need not wait for its end"
            assert trial.rest().ending == "done"
            with ThreadPoolExecutor(8) as pool:
                assert {answer.ending for answer in pool.map(lambda _: ask(lab, max_tokens=2), range(8))} == {"done"}


def _began(asking: Asking) -> Asking | None:
    """The request, if it is being answered."""
    if asking.head().status == 200:
        return asking
    asking.hang_up()
    return None
