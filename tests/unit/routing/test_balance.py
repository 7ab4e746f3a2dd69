"""Four equal replicas on two clusters carry nearly four times what one does: a small model of engines, on a clock of
its own, with the real table and line."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from firstkit.links.messages import Outcome, Tail, Usage
from firstkit.routing.admission import Line
from firstkit.routing.table import Pool, Route, RoutingTable
from firstkit.routing.wish import Wish
from firstkit.states import ReplicaState

ROOM = 8
SHARED = 0.15
"""By how much each request slows down those beside it."""
SECONDS = 400.0


@dataclass(eq=False)
class Asked:
    """One request; ``tokens`` are still to come."""

    wish: Wish
    tokens: float
    all_tokens: float
    began_at: float = 0.0


@dataclass
class Engine:
    """Gives ``speed`` tokens a second to one request, and to each of several somewhat fewer."""

    route: Route
    speed: float = 50.0
    work: list[Asked] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.speed / (1 + SHARED * (len(self.work) - 1))

    @property
    def next_s(self) -> float:
        return min((asked.tokens for asked in self.work), default=float("inf")) / self.rate

    def go_on(self, seconds: float) -> list[Asked]:
        """Returns those that are finished."""
        rate = self.rate
        for asked in self.work:
            asked.tokens -= rate * seconds
        done = [asked for asked in self.work if asked.tokens < 1e-6]
        self.work = [asked for asked in self.work if asked.tokens >= 1e-6]
        return done


class World:
    """Clients each of which sends its next request when the one before is answered."""

    def __init__(self, speeds: list[float], clients: int, prefixes: int) -> None:
        self.chance = random.Random(7)
        self.now = 0.0
        self.carried = 0.0
        table = RoutingTable({"m": "m"}, lambda: self.now)
        self.engines: dict[Route, Engine] = {}
        for i, speed in enumerate(speeds):
            cluster = "here" if i % 2 == 0 else "there"
            route = Route(f"rep-{i}", "m", cluster, None, "m", ROOM, ReplicaState.READY)  # type: ignore[arg-type]
            table.add(route)
            self.engines[route] = Engine(route, speed)
        self.pool: Pool = table.pools["m"]
        self.line: Line[Asked] = Line(clients)
        self.prefixes = prefixes
        for _ in range(clients):
            self.line.join(self.ask())

    def ask(self) -> Asked:
        tokens = self.chance.expovariate(1 / 120) + 5
        names = (b"%d" % self.chance.randrange(self.prefixes),) if self.prefixes else ()
        return Asked(Wish(prefixes=names), tokens, tokens)

    def run(self) -> float:
        """Tokens a second."""
        while self.now < SECONDS:
            self.serve()
            step_s = min(engine.next_s for engine in self.engines.values())
            self.now += step_s
            for engine in self.engines.values():
                for asked in engine.go_on(step_s):
                    self.end(engine, asked)
        return self.carried / self.now

    def serve(self) -> None:
        while self.line:
            [asked] = self.line.heads()
            route = self.pool.take(asked.wish)
            if route is None:
                return
            self.line.leave(asked)
            asked.began_at = self.now
            self.engines[route].work.append(asked)

    def end(self, engine: Engine, asked: Asked) -> None:
        took_s = self.now - asked.began_at
        gap_s = took_s / asked.all_tokens
        usage = Usage(20, round(asked.all_tokens))
        self.pool.measure(engine.route, Tail(Outcome.COMPLETE, usage, None, gap_s, gap_s, took_s))
        self.pool.give_back(engine.route)
        self.carried += asked.all_tokens
        self.line.join(self.ask())


@pytest.mark.parametrize("prefixes", [0, 5, 100])
@pytest.mark.parametrize("clients", [4, 8, 12], ids=["half full", "full", "more than full"])
def test_four_carry_four_times_one(clients: int, prefixes: int) -> None:
    one = World([50.0], clients, prefixes).run()
    four = World([50.0] * 4, 4 * clients, prefixes).run()
    assert four / one >= 3.9


def test_a_slow_one_gets_what_it_can_do() -> None:
    """Half full, so that there is a choice; without measuring, the slow one would have as many as the others."""
    world = World([50.0, 50.0, 12.5], 12, 0)
    world.run()
    found = [len(engine.work) for engine in world.engines.values()]
    assert found[2] < min(found[:2])
    assert world.pool.routes[2].slowness > 1.5
