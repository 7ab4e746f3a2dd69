"""What is asked: drawn by a seed, or read from a trace."""

from __future__ import annotations

import csv
import random
from bisect import bisect_left
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import accumulate
from math import cos, pi
from pathlib import Path
from typing import NamedTuple

from firstkit.errors import ConfigError
from firstkit.simulator.events import Events, drawn
from firstkit.simulator.scenario import Load, Scenario, SimModel

COLUMNS = ("at_s", "model", "user", "prompt_tokens", "answer_tokens")
LONGEST = 1_000_000
"""Tokens of a prompt or an answer."""
SATURDAY = 5


class Asked(NamedTuple):
    """One request as it comes."""

    model: str
    project: str
    user: str
    prompt: int
    answer: int


Ask = Callable[[Asked], None]


class Generator:
    """Requests in the manner of people: a Poisson process that goes with the hour and the day, and bursts."""

    def __init__(self, events: Events, load: Load, models: list[SimModel], chance: random.Random, ask: Ask) -> None:
        self._events = events
        self._load = load
        self._models = models
        self._bounds = list(accumulate(model.weight for model in models))
        self._chance = chance
        self._ask = ask
        self._most = load.requests_per_hour / 3600 * (1 + load.daily.swing) * max(1.0, load.weekend)
        self._users = [
            (f"project-{project}", f"user-{project}-{user}")
            for project in range(load.projects)
            for user in range(load.users_per_project)
        ]

    def begin(self) -> None:
        if self._most > 0 and self._bounds[-1] > 0:
            self._next()
        if self._load.bursts is not None:
            self._next_burst()

    def rate(self, at: float) -> float:
        """Requests a second that are asked in the mean at some time."""
        load = self._load
        daily = 1 + load.daily.swing * cos((at / 3600 % 24 - load.daily.peak_hour) * pi / 12)
        is_weekend = datetime.fromtimestamp(at, UTC).weekday() >= SATURDAY
        return load.requests_per_hour / 3600 * daily * (load.weekend if is_weekend else 1.0)

    def _next(self) -> None:
        self._events.after(self._chance.expovariate(self._most), self._come)

    def _come(self) -> None:
        if self._chance.random() * self._most < self.rate(self._events.now):
            self._ask(self._drawn(self._model(), self._chance.choice(self._users)))
        self._next()

    def _model(self) -> SimModel:
        at = self._chance.random() * self._bounds[-1]
        return self._models[min(bisect_left(self._bounds, at), len(self._models) - 1)]

    def _drawn(self, model: SimModel, who: tuple[str, str]) -> Asked:
        chance, prompt, answer = self._chance, model.prompt, model.answer
        return Asked(
            model.name,
            *who,
            max(1, min(LONGEST, round(drawn(chance, prompt.usual, prompt.late)))),
            max(1, min(LONGEST, round(drawn(chance, answer.usual, answer.late)))),
        )

    # -- bursts --------------------------------------------------------------------------------------------------------

    def _next_burst(self) -> None:
        bursts = self._load.bursts
        if bursts is not None:
            self._events.after(self._chance.expovariate(bursts.per_day / 86400), self._begin_burst)

    def _begin_burst(self) -> None:
        bursts = self._load.bursts
        if bursts is None:
            return
        model, who = self._model(), self._chance.choice(self._users)
        share = model.weight / self._bounds[-1]
        more = (bursts.factor - 1) * self._load.requests_per_hour / 3600 * share
        if more > 0:
            self._in_burst(model, who, more, self._events.now + bursts.lasts)
        self._next_burst()

    def _in_burst(self, model: SimModel, who: tuple[str, str], rate: float, until: float) -> None:
        at = self._events.now + self._chance.expovariate(rate)
        if at < until:
            self._events.at(at, self._come_in_burst, model, who, rate, until)

    def _come_in_burst(self, model: SimModel, who: tuple[str, str], rate: float, until: float) -> None:
        self._ask(self._drawn(model, who))
        self._in_burst(model, who, rate, until)


class Trace:
    """Requests as they came once."""

    def __init__(self, events: Events, path: Path, models: set[str], ask: Ask) -> None:
        self._events = events
        self._rows = read_trace(path, models)
        self._ask = ask
        self._began_at = events.now

    def begin(self) -> None:
        self._next()

    def _next(self) -> None:
        row = next(self._rows, None)
        if row is not None:
            self._events.at(self._began_at + row[0], self._come, row[1])

    def _come(self, asked: Asked) -> None:
        self._ask(asked)
        self._next()


def read_trace(path: Path, models: set[str]) -> Iterator[tuple[float, Asked]]:
    """The rows of a trace: seconds from the start, and what is asked then. Raises ConfigError that names the line."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise ConfigError(f"{path}: line 1: the column '{missing[0]}' is missing; needed: {', '.join(COLUMNS)}")
            last_s = 0.0
            for row in reader:
                at_s, asked = _row(row, models, f"{path}: line {reader.line_num}")
                if at_s < last_s:
                    raise ConfigError(f"{path}: line {reader.line_num}: at_s: rows must be in the order of time")
                last_s = at_s
                yield at_s, asked
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise ConfigError(f"{path}: cannot be read: {reason}") from exc


def _row(row: dict[str, str | None], models: set[str], where: str) -> tuple[float, Asked]:
    if row["model"] not in models:
        raise ConfigError(f"{where}: model: '{row['model']}' is not a model of the scenario")
    numbers = []
    for name in ("at_s", "prompt_tokens", "answer_tokens"):
        try:
            number = float(row[name] or "")
        except ValueError:
            number = -1.0
        if not 0 <= number < float("inf"):
            raise ConfigError(f"{where}: {name}: {row[name]!r} is not allowed: must be a number, 0 or more")
        numbers.append(number)
    user = row["user"] or "somebody"
    asked = Asked(str(row["model"]), row.get("project") or user, user, int(numbers[1]), max(1, int(numbers[2])))
    return numbers[0], asked


def load_of(
    events: Events, scenario: Scenario, models: list[SimModel], chance: random.Random, ask: Ask
) -> Generator | Trace:
    """The load of a scenario."""
    if scenario.load.trace is not None:
        return Trace(events, scenario.load.trace, {model.name for model in models}, ask)
    return Generator(events, scenario.load, models, chance, ask)
