"""Long mixed load: memory does not grow, nothing is left open when it pauses, and the books are right at the end.

``FIRST_SOAK_S`` is how long, in seconds. Run it with ``-s`` to see the samples.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from faults.support import LONG_ANSWER, Answer, Asking, Record, ask, external, in_flight, lab_of, piloted
from firstkit.testing.background import Background
from firstkit.testing.byte_scripts import BROKEN, ENDLESS, GOOD
from firstkit.testing.fake_engine import GarbageEngine
from lab import Lab, fake_engine, wait_for

SOAK_S = float(os.environ.get("FIRST_SOAK_S", "1200"))
LOAD_S, PAUSE_S = 10.0, 2.0
WARM_UP = 0.25
"""Share of the samples that are not looked at: caches fill, the allocator finds its size."""
MOST_GROWN = {"gateway": 2 * 2**20, "pilot": 8 * 2**20}
"""Bytes: some 70 and 500 for each request. The heap of a pilot differs by nearly as much from one pause to the next,
because its allocator gives large pieces back when it likes."""
LONG_S = 300.0
"""In less time memory says nothing: the allocator gives back when it likes."""
WORKERS = 8
MODELS = ["outside", "here"]
GARBAGE = [*GarbageEngine.variants, *(name for name in BROKEN if name != "nothing"), *GOOD]
"""Without ``nothing``: on a connection that was kept, it is asked twice."""
ENGINE: dict[str, Any] = {"tokens": LONG_ANSWER, "token_delay": 0.002}


# -- the load ----------------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """Workers that ask in all ways, until ``stop``; nothing is under way inside of ``paused``."""

    lab: Lab
    chance: random.Random
    asked: Counter[str] = field(default_factory=Counter)
    expected: dict[str, str] = field(default_factory=dict)
    """By request id: how it must have ended, as far as the client knows."""
    refused: set[str] = field(default_factory=set)
    """Ids of requests that were not given out."""
    faults: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._may_run = threading.Event()
        self._is_over = threading.Event()
        self._resting = threading.Semaphore(0)
        self._pause = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(random.Random(self.chance.random()),)) for _ in range(WORKERS)
        ]

    def start(self) -> None:
        self._may_run.set()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._may_run.set()
        for thread in self._threads:
            thread.join(60)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Everything that was begun has ended."""
        self._may_run.clear()
        self._pause.set()
        for _ in self._threads:
            assert self._resting.acquire(timeout=60), "a request does not end"
        yield
        self._pause.clear()
        self._may_run.set()

    def _work(self, chance: random.Random) -> None:
        kinds: dict[Callable[[random.Random, str], None], int] = {
            self.plain: 30, self.stream: 30, self.hang_up: 10, self.read_slowly: 2,
            self.garbage: 10, self.endless: 1, self.refusal: 8, self.large: 3,
        }  # fmt: skip
        while not self._is_over.is_set():
            if self._pause.is_set():
                self._resting.release()
                self._may_run.wait()
            [kind] = chance.choices(list(kinds), list(kinds.values()))
            self.asked[kind.__name__] += 1
            try:
                kind(chance, chance.choice(MODELS))
            except BaseException as fault:
                self.faults.append(fault)
                raise
            time.sleep(chance.uniform(0, 0.1))

    def note(self, answer: Answer, outcome: str) -> None:
        """``outcome``, unless the request was refused before it was given out."""
        if answer.code in ("replicas_failing", "overloaded"):
            self.refused.add(answer.headers["x-request-id"])
        else:
            self.expected[answer.headers["x-request-id"]] = outcome

    # -- ways to ask ---------------------------------------------------------------------------------------------------

    def plain(self, chance: random.Random, model: str) -> None:
        answer = ask(self.lab, model, stream=False, max_tokens=chance.randrange(1, 20))
        assert answer.ending == "whole"
        self.note(answer, "complete")

    def stream(self, chance: random.Random, model: str) -> None:
        answer = ask(self.lab, model, max_tokens=chance.randrange(1, 40))
        assert answer.ending == "done" or answer.status == 503
        self.note(answer, "complete")

    def hang_up(self, chance: random.Random, model: str) -> None:
        with Asking(self.lab, model) as asking:
            if asking.head().status == 200:
                asking.read_tokens()
        self._gone(asking)

    def read_slowly(self, chance: random.Random, model: str) -> None:
        with Asking(self.lab, model, n=20) as asking:  # that is megabytes a second
            response = asking.head()
            for _ in range(30):
                response.read1(1000)
                time.sleep(0.05)
        self._gone(asking)

    def _gone(self, asking: Asking) -> None:
        if asking.answer.status == 200:
            self.note(asking.answer, "cancelled")

    def garbage(self, chance: random.Random, model: str) -> None:
        said = chance.choice(GARBAGE)
        self.note(ask(self.lab, model, said), "complete" if said in GOOD else "failed")

    def endless(self, chance: random.Random, model: str) -> None:
        said = chance.choice(list(ENDLESS))
        answer = ask(self.lab, model, said)
        self.note(answer, "rejected" if answer.code == "engine_refused" else "failed")

    def refusal(self, chance: random.Random, model: str) -> None:
        kinds: list[dict[str, Any]] = [{"model": "nobody"}, {"key": "first-wrong"}, {"n": -1}, {"chat_template": "x"}]
        answer = ask(self.lab, **{"model": model, **chance.choice(kinds)})
        assert answer.status in (400, 401, 404)
        self.refused.add(answer.headers["x-request-id"])

    def large(self, chance: random.Random, model: str) -> None:
        answer = ask(self.lab, model, "hello " * chance.randrange(100_000, 500_000), max_tokens=1)
        assert answer.ending == "done" or answer.status == 503
        self.note(answer, "complete")


# -- what is measured --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """A process while nothing is asked of it.

    ``descriptors``: without those of the database, whose pool opens one more connection when two ask at once, and keeps
    it.
    """

    at: float
    rss: int
    descriptors: int
    threads: int
    tasks: int

    @classmethod
    def of(cls, process: psutil.Process, tasks: int) -> Sample:
        of_database = sum("first.db" in file.path for file in process.open_files())
        descriptors = process.num_fds() - of_database
        return cls(time.monotonic(), process.memory_info().rss, descriptors, process.num_threads(), tasks)


def tasks_of_gateway(lab: Lab) -> int:
    """The gauge ``first_tasks``."""
    text = lab.get("/metrics", lab.config.server.path("admin.sock"))[1].decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return int(families["first_tasks"].samples[0].value)


def growth(samples: list[Sample], what: str) -> float:
    """How much it grew from the first to the last: the median of all slopes, which single spikes do not move."""
    slopes = [
        (getattr(late, what) - getattr(early, what)) / (late.at - early.at)
        for early, late in itertools.combinations(samples, 2)
    ]
    return statistics.median(slopes) * (samples[-1].at - samples[0].at)


def floor(samples: list[Sample]) -> int:
    """The least memory that a process had."""
    return min(sample.rss for sample in samples)


def assert_flat(name: str, samples: list[Sample]) -> None:
    third, shown = len(samples) // 3, "\n".join(map(str, samples))
    if samples[-1].at - samples[0].at >= LONG_S:
        grown = floor(samples[-third:]) - floor(samples[:third])
        assert grown < MOST_GROWN[name], f"memory of the {name} grows\n{shown}"
    for what, spread in (("descriptors", WORKERS * 2), ("threads", 2), ("tasks", 2)):
        values = [getattr(sample, what) for sample in samples]
        assert growth(samples, what) < 1, f"{what} of the {name} grow\n{shown}"
        assert max(values) - min(values) <= spread, f"{what} of the {name} differ\n{shown}"


@pytest.mark.long
@pytest.mark.timeout(SOAK_S + 300)
def test_soak() -> None:
    seed = int(os.environ.get("FIRST_SOAK_SEED", str(random.randrange(10**6))))
    print(f"FIRST_SOAK_SEED={seed}")
    with Background() as background:
        engine, url = background.add("ByteEngine", **ENGINE)
        models = {
            "outside": [external(url, max_in_flight=WORKERS)],
            "here": [piloted(fake_engine("ByteEngine", **ENGINE), max_in_flight=WORKERS)],
        }
        with lab_of(models, idle_timeout=30) as lab:
            records = {"outside": Record(engine), "here": Record(lab.engines()[0])}
            load = Load(lab, random.Random(seed))
            samples = soak(lab, load)
            check_books(lab, load, records)
    for name, of_one in samples.items():
        assert_flat(name, of_one[int(len(of_one) * WARM_UP) :])


def soak(lab: Lab, load: Load) -> dict[str, list[Sample]]:
    """Load and pauses in turn; the samples of gateway and pilot."""
    assert lab.gateway is not None
    processes = {"gateway": psutil.Process(lab.gateway.pid), "pilot": lab.pilots()[0]}
    samples: dict[str, list[Sample]] = {name: [] for name in processes}
    end = time.monotonic() + SOAK_S
    load.start()
    try:
        while time.monotonic() < end and not load.faults:
            time.sleep(LOAD_S)
            with load.paused():
                time.sleep(PAUSE_S)
                wait_for("nothing is under way", lambda: not any(in_flight(lab, model) for model in MODELS), 10)
                for name, process in processes.items():
                    samples[name].append(Sample.of(process, tasks_of_gateway(lab) if name == "gateway" else 0))
                    print(name, samples[name][-1], sum(load.asked.values()))
    finally:
        load.stop()
    assert not load.faults, load.faults
    return samples


def check_books(lab: Lab, load: Load, records: dict[str, Record]) -> None:
    """A row for every request that an engine saw and for no other, each with the ending that its client saw."""
    given_out = {model: record()["requests"] for model, record in records.items()}
    wait_for("all are accounted", lambda: len(lab.usage()) >= sum(given_out.values()))
    rows = lab.usage()
    assert Counter(row["model"] for row in rows) == given_out
    ended = {row["request_id"]: row["outcome"] for row in rows}
    assert len(ended) == len(rows)
    assert not load.refused & ended.keys()
    wrong = {one: (outcome, ended.get(one)) for one, outcome in load.expected.items() if ended.get(one) != outcome}
    assert not wrong
    assert {record()["in_flight"] for record in records.values()} == {0}
