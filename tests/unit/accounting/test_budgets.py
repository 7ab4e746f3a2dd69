"""Budgets with a store and a spool: what was used before is known, nothing is counted twice, and news comes soon."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, insert, select

from firstkit.accounting import budgets as module
from firstkit.accounting import ledger
from firstkit.accounting.attribution import hour_of
from firstkit.accounting.budgets import Budgets, rows_of_store
from firstkit.accounting.estimate import Estimate
from firstkit.accounting.filling import SETTLES_AFTER, Meter
from firstkit.accounting.ledger import Loader, TurnOver
from firstkit.accounting.spool import MOST_FULL, Spool
from firstkit.auth.permissions import Identity
from firstkit.clock import now
from firstkit.config import Config, parse_config
from firstkit.errors import BudgetSpent, StoreUnavailable
from firstkit.store.budgets import NewBudget, remove_budget, set_budget
from firstkit.store.database import Database
from firstkit.store.tables import jobs, projects, replicas, usage, users
from usage_entries import open_entry, usage_entry
from waiting import until

MODEL = "{deployments: [{cluster: here, engine: {kind: command, argv: [x]}}]}"
MODELS = f"models: {{m: {MODEL}, other: {MODEL}}}\nclusters: {{here: {{}}}}\n"
ADA = Identity("u1", "ada", "p1", "k" * 12, frozenset({"inference"}), "fusion")
BOB = Identity("u2", "bob", "p1", "l" * 12, frozenset({"inference"}), "fusion")


@pytest.fixture
def spool(folder: Path) -> Iterator[Spool]:
    made = Spool(folder / "spool")
    yield made
    made.close()


@pytest.fixture
async def people(db: Database) -> Database:
    """A store in which users and project are known."""
    await add(db, users, id="u1", name="ada", is_admin=False, created_at=now())
    await add(db, users, id="u2", name="bob", is_admin=False, created_at=now())
    await add(db, projects, id="p1", name="fusion", description="", created_at=now())
    return db


async def add(db: Database, table: Any, **values: Any) -> None:
    async with db.begin() as conn:
        await conn.execute(insert(table).values(**values))


def config_of(*budgets: str, more: str = "") -> Config:
    return parse_config(f"{MODELS}{more}budgets: [{', '.join(f'{{{budget}}}' for budget in budgets)}]")


async def prepared(db: Database, spool: Spool, *budgets: str) -> Budgets:
    made = Budgets(config_of(*budgets), db, TurnOver(spool))
    await made.prepare()
    return made


def asks(completion: int, given: bool = True) -> Estimate:
    return Estimate(10, 10, completion, given)


async def ends(spool: Spool, name: str, tokens: int = 15, **values: Any) -> None:
    """A line for the ledger, of a request that arrived just now."""
    spool.ended(usage_entry(name, **{"at": now(), "prompt_tokens": 0, "completion_tokens": tokens, **values}))


def used(budgets: Budgets, user_id: str = "u1") -> list[Any]:
    return [row["used"] for row in budgets.standing("p1", user_id)]


class Silent:
    """A store that does not answer, until it is told to."""

    dialect = "sqlite"

    def __init__(self, db: Database) -> None:
        self.db = db
        self.is_silent = True
        self.dialect = db.dialect
        self.text_of = db.text_of

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Any]:
        if self.is_silent:
            raise StoreUnavailable
        async with self.db.read() as conn:
            yield conn

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Any]:
        if self.is_silent:
            raise StoreUnavailable
        async with self.db.begin() as conn:
            yield conn


# -- which there are ---------------------------------------------------------------------------------------------------


async def test_without_budgets_nothing_is_reserved(people: Database, spool: Spool) -> None:
    budgets = await prepared(people, spool)
    reservation = budgets.reserve(ADA, "m", asks(5))
    assert reservation is None
    budgets.settle(reservation)
    await ends(spool, "a")
    assert budgets.standing("p1", "u1") == []


async def test_those_of_the_configuration_and_of_the_store_count_together(people: Database, spool: Spool) -> None:
    budgets = await prepared(people, spool, "project: fusion, tokens: 100", "user: bob, tokens: 1k, period: total")
    await set_budget(people, NewBudget("fusion", None, "m", None, 50, None, "day", "hard", 0.8), actor="grace")
    await budgets.refresh()
    assert len(budgets.standing("p1", "u1")) == 2
    assert len(budgets.standing("p1", "u2")) == 3
    with pytest.raises(StoreUnavailable, match="of 50 tokens a day of project 'fusion' for model 'm' is not known yet"):
        budgets.reserve(BOB, "m", asks(5))
    await budgets._look()
    reservation = budgets.reserve(BOB, "m", asks(1000, given=False))
    assert reservation is not None
    assert reservation.most_completion == 40


async def test_a_project_that_is_not_there_yet_covers_nobody_until_it_is(people: Database, spool: Spool) -> None:
    budgets = await prepared(people, spool, "project: climate, tokens: 0", "user: eve, tokens: 0")
    eve = Identity("u3", "eve", "p2", "n" * 12, frozenset(), "climate")
    assert budgets.reserve(eve, "m", asks(5)) is None
    assert [row["project"] for row in await budgets.rows()] == ["climate", None], "operators see them"
    await add(people, projects, id="p2", name="climate", description="", created_at=now())
    await budgets._look()
    with pytest.raises(BudgetSpent, match="of project 'climate'"):
        budgets.reserve(eve, "m", asks(5))


async def test_news_of_the_store_comes_by_itself_and_at_once_when_somebody_calls(
    people: Database, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READ_EVERY_S", 0.05)
    budgets = await prepared(people, spool)
    running = asyncio.ensure_future(budgets.run())
    made = await set_budget(people, NewBudget(None, None, None, "user", 5, None, "day", "hard", 0.8), actor="grace")
    await until(lambda: used(budgets) == [0], "the budget is read and filled")
    monkeypatch.setattr(module, "READ_EVERY_S", 3600.0)
    await remove_budget(people, made.id, actor="grace")
    await until(lambda: not used(budgets), "it is gone")
    await asyncio.sleep(0)
    await set_budget(people, NewBudget(None, None, None, "user", 6, None, "day", "hard", 0.8), actor="grace")
    await budgets.refresh()
    await until(lambda: used(budgets) == [0], "the budget is filled")
    running.cancel()


# -- what was used -----------------------------------------------------------------------------------------------------


async def test_a_gateway_that_starts_knows_what_was_used(people: Database, folder: Path) -> None:
    """What is in the ledger, in full files of the spool, in the newest one, and of requests that nobody saw end."""
    dead = Spool(folder / "spool")
    await ends(dead, "loaded", 1)
    dead.turn_over()
    await Loader(dead.folder, people).load_once()
    await ends(dead, "loaded and there again", 2)
    dead.turn_over()
    await Loader(dead.folder, people).load_once()
    await ends(dead, "loaded and there again", 2)
    await ends(dead, "full", 4)
    dead.turn_over()
    await ends(dead, "newest", 8)
    await ends(dead, "of yesterday", 1000, at=now() - timedelta(days=1))
    dead.opened(open_entry("lost", prompt_bytes=64, at=now()))
    dead.close()

    spool = Spool(folder / "spool")
    assert spool.close_lost() == 1
    budgets = await prepared(people, spool, "project: fusion, tokens: 100, period: day", "tokens: 2k, period: total")
    assert used(budgets) == [1 + 2 + 4 + 8 + 16, 1031]
    await ends(spool, "next", 32)
    assert used(budgets) == [63, 1063]
    spool.close()


async def test_as_many_full_files_as_there_may_be_are_in_nobodys_way(people: Database, spool: Spool) -> None:
    for number in range(MOST_FULL + 2):
        await ends(spool, str(number))
        spool.turn_over()
    assert used(await prepared(people, spool, "tokens: 100")) == [75]


async def test_lines_of_requests_that_began_before_a_budget_count_in_it(people: Database, spool: Spool) -> None:
    budgets = await prepared(people, spool)
    began = now()
    assert budgets.reserve(ADA, "m", asks(5)) is None
    await set_budget(people, NewBudget(None, "ada", None, None, 100, None, "month", "hard", 0.8), actor="grace")
    await budgets._look()
    await ends(spool, "late", 50, at=began)
    assert used(budgets) == [50]


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_happens_at_the_same_time_each_line_is_counted_once(
    people: Database, spool: Spool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests end, a loader runs beside, and budgets come and go: in the end their numbers are those of the ledger."""
    monkeypatch.setattr(ledger, "EVERY_S", 0.003)
    chance, turn_over = random.Random(seed), TurnOver(spool)
    budgets = Budgets(config_of("each: user, tokens: 1M", "project: fusion, tokens: 1M, stop: soft"), people, turn_over)
    chores = [asyncio.ensure_future(Loader(spool.folder, people).run()), asyncio.ensure_future(turn_over.run())]
    number = 0

    async def traffic() -> None:
        nonlocal number
        while True:
            number += 1
            await ends(spool, str(number), chance.randrange(100), user_id=chance.choice(["u1", "u2"]))
            await asyncio.sleep(chance.choice([0, 0, 0.001]))

    chores.append(asyncio.ensure_future(traffic()))
    await until(lambda: number > 20)
    await budgets.prepare()
    for tokens in range(4):
        new = NewBudget(None, chance.choice(["ada", "bob"]), None, None, tokens, None, "total", "hard", 0.8)
        made = await set_budget(people, new, actor="grace")
        await budgets._look()
        seen = number
        await until(lambda seen=seen: number > seen + 20)
        if tokens % 2:
            await remove_budget(people, made.id, actor="grace")
    await budgets._look()
    for chore in chores:
        chore.cancel()
    await asyncio.gather(*chores, return_exceptions=True)
    loader = Loader(spool.folder, people)
    await loader.load_once()
    spool.turn_over()
    await loader.load_once()
    async with people.read() as conn:
        tokens = func.sum(usage.c.prompt_tokens + usage.c.completion_tokens)
        by_user = dict((await conn.execute(select(usage.c.user_id, tokens).group_by(usage.c.user_id))).all())  # type: ignore[arg-type]
    for user_id in ("u1", "u2"):
        rows = budgets.standing("p1", user_id)
        found = {row["used"] for row in rows if row["each"] == "user" or row["user"]}
        assert found == {by_user[user_id]}
        assert [row["used"] for row in rows if row["project"]] == [sum(by_user.values())]


async def test_what_is_written_while_books_are_filled_waits_for_the_end_of_that(
    people: Database, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that went to the ledger before it is summed up would count twice: nobody turns the spool over then."""
    turn_over = TurnOver(spool)
    budgets = Budgets(config_of("tokens: 100"), people, turn_over)
    sum_up, is_summing, may_go_on = module.complete, asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any) -> None:
        is_summing.set()
        await may_go_on.wait()
        await sum_up(*arguments)

    monkeypatch.setattr(module, "complete", slow)
    preparing = asyncio.ensure_future(budgets.prepare())
    await is_summing.wait()
    await ends(spool, "meanwhile")
    turning = asyncio.ensure_future(turn_over._once())
    await asyncio.sleep(0.01)
    assert not turning.done()
    assert await Loader(spool.folder, people).load_once() == 0
    may_go_on.set()
    await preparing
    await turning
    assert used(budgets) == [15]
    assert await Loader(spool.folder, people).load_once() == 1
    assert used(budgets) == [15]


# -- a store that is silent --------------------------------------------------------------------------------------------


async def test_a_gateway_that_starts_without_its_store_refuses_all_until_it_knows_what_budgets_there_are(
    people: Database, spool: Spool
) -> None:
    store = Silent(people)
    budgets = Budgets(config_of("user: bob, tokens: 100"), store, TurnOver(spool))  # type: ignore[arg-type]
    await budgets.prepare()
    with pytest.raises(StoreUnavailable, match="Which budgets there are is not known yet") as refused:
        budgets.reserve(ADA, "m", asks(5))
    assert refused.value.retry_after_s == 1.0
    store.is_silent = False
    await budgets._look()
    assert budgets.reserve(ADA, "m", asks(5)) is None
    assert budgets.reserve(BOB, "m", asks(5)) is not None


async def test_budgets_that_are_known_stand_while_the_store_is_silent(people: Database, spool: Spool) -> None:
    store = Silent(people)
    store.is_silent = False
    budgets = Budgets(config_of("tokens: 100"), store, TurnOver(spool))  # type: ignore[arg-type]
    await budgets.prepare()
    store.is_silent = True
    assert not await budgets._look()
    await ends(spool, "a", 80)
    with pytest.raises(BudgetSpent, match="20 are left"):
        budgets.reserve(ADA, "m", asks(50))


async def test_a_ledger_that_cannot_be_summed_up_holds_up_hard_budgets_only(
    people: Database, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuses(*_: Any) -> None:
        raise StoreUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(module, "complete", refuses)
        budgets = await prepared(people, spool, "user: ada, tokens: 100", "user: bob, tokens: 1, stop: soft")
        await ends(spool, "a", user_id="u2")
        with pytest.raises(StoreUnavailable, match="of user 'ada' is not known yet"):
            budgets.reserve(ADA, "m", asks(5))
        soft = budgets.reserve(BOB, "m", asks(5))
        assert soft is not None
        assert soft.warning is None
        assert (used(budgets), used(budgets, "u2")) == ([None], [None])
    await budgets._look()
    assert (used(budgets), used(budgets, "u2")) == ([0], [15])
    assert "is used up" in str(getattr(budgets.reserve(BOB, "m", asks(5)), "warning", None))


async def test_a_gateway_does_not_wait_for_ever_to_know_what_was_used(
    people: Database, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PREPARED_WITHIN_S", 0.01)

    async def never(*_: Any) -> None:
        await asyncio.get_running_loop().create_future()

    with monkeypatch.context() as patch:
        patch.setattr(module, "complete", never)
        budgets = await prepared(people, spool, "tokens: 100")
        with pytest.raises(StoreUnavailable):
            budgets.reserve(ADA, "m", asks(5))
    running = asyncio.ensure_future(budgets.run())
    await until(lambda: used(budgets) == [0])
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


# -- node-hours --------------------------------------------------------------------------------------------------------


async def run_job(db: Database, name: str, started_at: datetime, ended_at: datetime | None, nodes: int = 2) -> None:
    state = "RUNNING" if ended_at is None else "COMPLETED"
    row = {"id": name, "cluster": "here", "state": state, "spec": {"nodes": nodes}, "token_sha256": "x"}
    await add(db, jobs, **row, created_at=started_at, started_at=started_at, ended_at=ended_at)
    row = {"id": f"of-{name}", "job_id": name, "model": "m", "deployment": "m@here", "cluster": "here"}
    await add(db, replicas, **row, state="READY", max_in_flight=1, needs={}, created_at=started_at)


async def serve(db: Database, name: str, at: datetime, project_id: str = "p1") -> None:
    """A request at the replica of a job, in the ledger."""
    entry = usage_entry(f"{name}-{project_id}-{at}", at=at, project_id=project_id, replica_id=f"of-{name}")
    await add(db, usage, **{column.name: getattr(entry, column.name) for column in usage.columns})


async def test_node_hours_are_those_of_the_jobs_that_served(
    people: Database, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = hour_of(now() - timedelta(hours=30))
    await run_job(people, "j", began, began + timedelta(minutes=30))
    await serve(people, "j", began)
    of_ever = "node_hours: 1, period: total, stop: soft"
    hard = "project: fusion, node_hours: 1.5, period: total"
    budgets = await prepared(
        people, spool, of_ever, hard, "each: project, model: other, node_hours: 0.5, period: total"
    )
    assert used(budgets) == [1.0, 1.0, 0]
    reservation = budgets.reserve(ADA, "m", asks(5))
    assert reservation is not None
    assert "The budget of 1 node-hours in all of everybody is used up" in str(reservation.warning)
    monkeypatch.setattr(budgets, "_node_hours_due", 0.0)
    await run_job(people, "k", began, began + timedelta(minutes=30))
    await serve(people, "k", began)
    await budgets._look()
    assert used(budgets) == [2.0, 2.0, 0]
    with pytest.raises(BudgetSpent, match=r"of 1\.50 node-hours in all of project 'fusion' is used up"):
        budgets.reserve(ADA, "m", asks(5))


async def test_node_hours_that_cannot_be_read_hold_up_hard_budgets(
    people: Database, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuses(*_: Any) -> None:
        raise StoreUnavailable

    monkeypatch.setattr(Meter, "read", refuses)
    budgets = await prepared(people, spool, "project: fusion, node_hours: 5", "tokens: 100")
    with pytest.raises(StoreUnavailable, match="of 5 node-hours a month of project 'fusion' is not known yet"):
        budgets.reserve(ADA, "m", asks(5))
    assert used(budgets) == [None, 0]


async def test_old_node_hours_are_asked_for_once(people: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    at = hour_of(now())
    meter = Meter(at - timedelta(days=30))
    for name, age in (("old", timedelta(days=20)), ("new", timedelta(hours=20))):
        await run_job(people, name, at - age, at - age + timedelta(hours=1))
        await serve(people, name, at - age)
    total = {("p1", "m"): pytest.approx(4.0)}
    assert _busy(await meter.read(people, at, "idle")) == total
    from firstkit.accounting import filling

    asked: list[datetime] = []
    ask = filling.node_hours

    async def remembered(db: Database, since: datetime, *others: Any) -> Any:
        asked.append(since)
        return await ask(db, since, *others)

    monkeypatch.setattr(filling, "node_hours", remembered)
    assert _busy(await meter.read(people, at, "idle")) == total
    [since] = asked
    assert timedelta() <= at - SETTLES_AFTER - since < timedelta(hours=1)


def _busy(sums: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    return {key: hours for key, hours in sums.items() if key[1]}


# -- what is told ------------------------------------------------------------------------------------------------------


async def test_who_belongs_to_a_project_sees_what_is_left_for_them(people: Database, spool: Spool) -> None:
    budgets = await prepared(
        people, spool, "project: fusion, tokens: 100", "each: user, tokens: 50, period: day", "user: bob, tokens: 9"
    )
    await ends(spool, "a", 20)
    await ends(spool, "b", 30, user_id="u2")
    assert budgets.reserve(ADA, "m", asks(15)) is not None
    rows = budgets.standing("p1", "u1")
    assert [(row["project"], row["each"]) for row in rows] == [("fusion", None), (None, "user")]
    assert [(row["used"], row["reserved"], row["left"]) for row in rows] == [(50, 25, 25), (20, 25, 5)]
    assert rows[0].keys() == {
        *("id", "project", "user", "model", "each", "tokens", "node_hours", "period", "stop", "warn_at"),
        *("begins_at", "ends_at", "used", "reserved", "left"),
    }
    assert [row["used"] for row in budgets.standing("p1")] == [50, None], "of nobody in particular"
    assert len(budgets.standing("p1", "u2")) == 3
    assert [row["each"] for row in budgets.standing("p9", "u1")] == ["user"]


async def test_who_runs_the_service_sees_all_budgets_and_who_used_the_most(people: Database, spool: Spool) -> None:
    budgets = await prepared(people, spool, "each: user, tokens: 50, period: total", "each: project, tokens: 1k")
    await ends(spool, "a", 20)
    await ends(spool, "b", 60, user_id="u2")
    await ends(spool, "c", 5, user_id="gone")
    each_user, each_project = await budgets.rows()
    assert (each_user["used"], each_user["left"], each_user["begins_at"], each_user["ends_at"]) == (60, 0, None, None)
    assert each_user["subjects"] == [
        {"name": "bob", "used": 60, "reserved": 0, "left": 0},
        {"name": "ada", "used": 20, "reserved": 0, "left": 30},
        {"name": "gone", "used": 5, "reserved": 0, "left": 45},
    ]
    assert [subject["name"] for subject in each_project["subjects"]] == ["fusion"]


async def test_where_no_gateway_runs_the_ledger_tells(people: Database, spool: Spool) -> None:
    began = now()
    await run_job(people, "j", began - timedelta(hours=2), None)
    await ends(spool, "a", 20)
    config = config_of("each: user, tokens: 50, period: total", "node_hours: 9, period: total", "user: bob, tokens: 1")
    assert [row["used"] for row in await rows_of_store(people, config)][::2] == [0, 0]
    spool.turn_over()
    await Loader(spool.folder, people).load_once()
    rows = await rows_of_store(people, config)
    assert [row["used"] for row in rows][::2] == [20, 0]
    assert rows[1]["used"] == pytest.approx(4.0, abs=0.1)
