"""Many at the last units of a budget: a hard one is never overrun and refuses nobody whom it could serve, a soft one
warns, and the books agree with what engines counted. With real gateways, one of which is killed in the middle."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import yaml

from faults.support import Answer, Asking, ask, external
from firstkit.testing.background import Background
from firstkit.testing.quick_engine import QuickEngine
from lab import Lab, wait_for

AT_ONCE = 50
SAID = 200
"""Tokens of an answer, where nobody wants it shorter; a prompt has one."""
AMOUNT = 6000
BROKEN: dict[str, dict[str, Any]] = {
    "refuses": {"behaviour": "RefusingEngine"},
    "stops": {"behaviour": "GarbageEngine", "variant": "half-event"},
    "says-html": {"behaviour": "GarbageEngine", "variant": "html"},
    "lies": {"behaviour": "LyingEngine"},
}
ENGINES: dict[str, dict[str, Any]] = {
    **{f"{name}-{way}": {} for name in ("named", "unnamed", "soft") for way in ("streams", "plain")},
    "several": {},
    "left": {"token_delay": 0.01},
    **BROKEN,
}
"""By model: what it does. Each has a budget of its own."""


def budget(model: str | None = None, tokens: int = AMOUNT, **values: Any) -> dict[str, Any]:
    return {"project": "lab", "model": model, "tokens": tokens, "period": "total", **values}


class Standing:
    """How the first budget of one model stands, by what the gateway says, the engines counted and the ledger has."""

    def __init__(self, lab: Lab, model: str, engine: QuickEngine) -> None:
        self.lab = lab
        self.model = model
        self._engine = engine

    @property
    def delivered(self) -> int:
        """Tokens that the engine read and wrote."""
        return self._engine.stats.tokens + self._engine.stats.requests

    def ledger(self) -> list[Any]:
        return [row for row in self.lab.usage() if row["model"] == self.model]

    def settled(self) -> dict[str, Any]:
        """The budget, once nothing is reserved of it and the ledger has what was used."""

        def is_settled() -> dict[str, Any] | None:
            row = next(row for row in budgets_of(self.lab) if row["model"] in (self.model, None))
            used = sum(entry["prompt_tokens"] + entry["completion_tokens"] for entry in self.ledger())
            return row if row["reserved"] == 0 and row["used"] == used else None

        return wait_for("what was used is settled and in the ledger", is_settled)

    def ask(self, **fields: Any) -> Answer:
        return ask(self.lab, self.model, **fields)

    def all_at_once(self, count: int = AT_ONCE, **fields: Any) -> list[Answer]:
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(lambda _: self.ask(**fields), range(count)))

    def spend(self, amount: int, **fields: Any) -> list[dict[str, Any]]:
        """Ask AT_ONCE, again and again, until nobody is served any more; returns the refusals of all."""
        found: list[dict[str, Any]] = []
        for _ in range(40):
            errors = refusals(self.all_at_once(**fields))
            found += errors
            assert self.delivered <= amount
            if len(errors) == AT_ONCE:
                return found
        raise AssertionError(f"a budget without an end: {budgets_of(self.lab)}")


def budgets_of(lab: Lab) -> list[dict[str, Any]]:
    status, body = lab.get("/admin/budgets", lab.config.server.path("admin.sock"))
    assert status == 200, body
    rows: list[dict[str, Any]] = json.loads(body)["data"]
    return rows


def refusals(answers: list[Answer]) -> list[dict[str, Any]]:
    """The errors of those that were refused for a budget; all others were answered."""
    refused = [answer for answer in answers if answer.status != 200]
    assert {answer.status for answer in refused} <= {429}, refused
    assert {answer.code for answer in refused} <= {"insufficient_quota"}
    assert all(answer.headers["x-should-retry"] == "false" for answer in refused)
    assert all(answer.ending in ("done", "whole") for answer in answers)
    return [answer.json["error"] for answer in refused]


Budgeted = Callable[[str], Standing]


@contextlib.contextmanager
def budgeted(budgets: list[dict[str, Any]], engines: dict[str, dict[str, Any]]) -> Iterator[Budgeted]:
    """A gateway and a controller, with these budgets, before engines by the names of their models."""
    with Background() as background:
        made = {name: background.add(**{"tokens": SAID, **options}) for name, options in engines.items()}
        models = {name: {"deployments": [external(url, max_in_flight=64)]} for name, (_, url) in made.items()}
        lab = Lab.make(models)
        try:
            config = yaml.safe_load(lab.config_path.read_text())
            lab.config_path.write_text(yaml.safe_dump({**config, "budgets": budgets}))
            lab.start()
            yield lambda model: Standing(lab, model, made[model][0])
        finally:
            lab.close()


@pytest.fixture(scope="module")
def of() -> Iterator[Budgeted]:
    soft = {"stop": "soft", "warn_at": 0.5, "tokens": 2000}
    budgets = [budget(model, **(soft if model.startswith("soft") else {})) for model in ENGINES]
    also = [budget("several", 3000, project=None, each="user", period="day"), budget(tokens=10**9, stop="soft")]
    with budgeted([*budgets, *also], ENGINES) as found:
        yield found


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_a_hard_budget_is_used_up_and_not_overrun(of: Budgeted, stream: bool, named: bool) -> None:
    m = of(f"{'named' if named else 'unnamed'}-{'streams' if stream else 'plain'}")
    errors = m.spend(AMOUNT, stream=stream, **({"max_tokens": SAID} if named else {}))
    assert all(error["needed"] > error["left"] for error in errors), "what they needed was not left"
    row = m.settled()
    assert row["used"] == m.delivered <= AMOUNT
    assert all(entry["outcome"] == "complete" for entry in m.ledger())
    most_prompt = errors[-1]["needed"] - (SAID if named else 1)
    if not named:
        assert row["left"] <= most_prompt, "who names no number gets all that there is"
        return
    rest = row["left"] - most_prompt
    assert rest < SAID
    assert refusals([m.ask(stream=stream, max_tokens=rest + 3)]), "the number itself has three digits at most"
    assert m.ask(stream=stream, max_tokens=rest).status == 200, "the rest fits"
    assert m.settled()["used"] == row["used"] + 1 + rest == m.delivered


def test_what_several_budgets_allow_is_what_the_tightest_does(of: Budgeted) -> None:
    m = of("several")
    errors = m.spend(3000, max_tokens=SAID)
    assert {error["message"].partition(" of user 'tester' ")[1] for error in errors} == {" of user 'tester' "}
    row = m.settled()
    assert 3000 - SAID - 500 < row["used"] == m.delivered <= 3000
    assert {each["used"] for each in budgets_of(m.lab) if each["model"] == "several"} == {row["used"]}


def test_clients_that_hang_up_give_back_what_they_did_not_use(of: Budgeted) -> None:
    m = of("left")

    def leave(number: int) -> None:
        with Asking(m.lab, m.model, max_tokens=SAID, stream=bool(number % 2)) as asking:
            if number % 2 and asking.head().status == 200:
                asking.read_tokens(1 + number % 3)

    for _ in range(3):
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(leave, range(AT_ONCE)))
        assert m.delivered <= AMOUNT
    assert 0 < m.settled()["used"] <= AMOUNT
    assert "cancelled" in {entry["outcome"] for entry in m.ledger()} <= {"cancelled", "complete"}
    assert m.ask(max_tokens=1, stream=False).status == 200, "what they did not use is there for others"


@pytest.mark.parametrize("model", BROKEN)
def test_engines_that_fail_cost_what_they_delivered(of: Budgeted, model: str) -> None:
    m = of(model)
    answers = [answer for stream in (True, False) for answer in m.all_at_once(8, max_tokens=SAID, stream=stream)]
    assert {answer.status for answer in answers} <= {200, 429, 502, 503}, answers
    given_out = {answer.headers["x-request-id"] for answer in answers if answer.status in (200, 502)}
    wait_for("the ledger has them", lambda: given_out <= {entry["request_id"] for entry in m.ledger()})
    row = m.settled()
    delivered = [entry for entry in m.ledger() if entry["completion_tokens"]]
    assert bool(row["used"]) == bool(delivered) == (model in ("stops", "lies"))
    assert m.delivered <= AMOUNT
    assert {entry["outcome"] for entry in m.ledger()} == {"complete" if model == "lies" else "failed"}


@pytest.mark.parametrize("stream", [True, False])
def test_soft_budgets_warn_and_stop_nobody(of: Budgeted, stream: bool) -> None:
    m = of("soft-streams" if stream else "soft-plain")
    assert "x-first-budget-warning" not in m.ask(stream=stream, max_tokens=SAID).headers
    assert refusals(m.all_at_once(stream=stream, max_tokens=SAID)) == []
    row = m.settled()
    assert row["used"] == m.delivered == (AT_ONCE + 1) * (SAID + 1)
    late = m.ask(stream=stream)
    assert late.status == 200
    assert late.headers["x-first-budget-warning"] == (
        f"The budget of 2000 tokens in all of project 'lab' for model '{m.model}' is used up, {row['used']} are used "
        "or reserved; it does not begin anew."
    )


class Crowd:
    """Threads that ask without end; ``finished``: by request id, the tokens of the answers that they have whole."""

    def __init__(self, m: Standing, size: int, **fields: Any) -> None:
        self.finished: dict[str, int] = {}
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(m, fields)) for _ in range(size)]
        for thread in self._threads:
            thread.start()

    def _ask(self, m: Standing, fields: dict[str, Any]) -> None:
        while not self._stopping.is_set():
            try:
                answer = m.ask(**fields)
            except OSError:  # there is no gateway now
                self._stopping.wait(0.05)
                continue
            if answer.status == 200 and answer.ending == "done":
                self.finished[answer.headers["x-request-id"]] = answer.tokens
            elif answer.status != 200:
                self._stopping.wait(0.02)

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)


@pytest.mark.timeout(240)
def test_a_gateway_that_is_killed_knows_afterwards_what_was_used() -> None:
    """After each kill -9 the budget is what the ledger says: every finished request with what its client got."""
    budgets = [budget(tokens=10**6), {"each": "user", "tokens": 10**9, "period": "day"}]
    with budgeted(budgets, {"m": {"tokens": 20, "token_delay": 0.002}}) as of:
        m = of("m")
        crowd = Crowd(m, 8)
        try:
            for _ in range(4):
                enough = len(crowd.finished) + 20
                wait_for("requests are answered", lambda enough=enough: len(crowd.finished) >= enough)
                m.lab.kill_gateway()
                m.lab.start_gateway()
        finally:
            crowd.stop()
        row = m.settled()
        rows = {entry["request_id"]: entry for entry in m.ledger()}
        assert {name: rows[name]["completion_tokens"] for name in crowd.finished} == crowd.finished
        assert {rows[name]["outcome"] for name in crowd.finished} == {"complete"}
        assert {entry["outcome"] for entry in rows.values()} <= {"complete", "lost", "cancelled"}
        assert row["used"] >= 21 * len(crowd.finished) > 0
        assert {each["used"] for each in budgets_of(m.lab)} == {row["used"]}


@pytest.mark.timeout(240)
def test_a_hard_budget_ends_where_it_did_though_the_gateway_was_killed() -> None:
    """What finished requests used before the kill is not there again after it."""
    with budgeted([budget()], {"m": {"token_delay": 0.0005}}) as of:
        m = of("m")
        crowd = Crowd(m, 20, max_tokens=SAID)
        try:
            wait_for("some are answered", lambda: len(crowd.finished) >= 8)
            m.lab.kill_gateway()
            m.lab.start_gateway()
            wait_for("nobody is served any more", lambda: m.ask(max_tokens=SAID).code == "insufficient_quota")
        finally:
            crowd.stop()
        row = m.settled()
        assert row["used"] <= AMOUNT
        assert sum(crowd.finished.values()) + len(crowd.finished) <= row["used"]
