from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, select

from firstkit.accounting import ledger
from firstkit.accounting.ledger import Loader, TurnOver, plausible
from firstkit.accounting.spool import BAD_LINES, MOST_FULL, Spool, full_segments
from firstkit.errors import StoreUnavailable
from firstkit.links.messages import Usage
from firstkit.store.database import Database
from firstkit.store.sql import stored_time
from firstkit.store.tables import usage
from usage_entries import AT, open_entry, usage_entry
from waiting import until


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path)
    yield made
    made.close()


@pytest.fixture
def loader(spool: Spool, db: Database) -> Loader:
    return Loader(spool.folder, db)


async def load(spool: Spool, loader: Loader) -> int:
    spool.turn_over()
    return await loader.load_once()


async def _rows(db: Database) -> list[Any]:
    async with db.read() as conn:
        return list((await conn.execute(select(usage).order_by(usage.c.request_id))).all())


async def test_moves_every_value(spool: Spool, loader: Loader, db: Database) -> None:
    spool.opened(open_entry("a"))
    spool.ended(usage_entry("a", outcome="failed", estimated=True, ttft_s=None))
    assert await load(spool, loader) == 1
    (row,) = await _rows(db)
    assert row._asdict() == {
        **{"request_id": "a", "at": AT, "user_id": "u1", "project_id": "p1", "key_prefix": "abcdefghijkl"},
        **{"model": "m", "endpoint": "chat", "cluster": "here", "replica_id": "r1", "outcome": "failed"},
        **{"prompt_tokens": 10, "completion_tokens": 5, "estimated": True},
        **{"queue_s": 0.1, "ttft_s": None, "duration_s": 1.0, "engine": None, "revision": None},
    }
    assert full_segments(spool.folder) == []


async def test_does_nothing_when_nothing_ended(spool: Spool, loader: Loader) -> None:
    spool.opened(open_entry("a"))
    before = sorted(spool.folder.iterdir())
    assert await load(spool, loader) == 0
    assert sorted(spool.folder.iterdir()) == before


async def test_many_lines(spool: Spool, loader: Loader, db: Database) -> None:
    for number in range(1234):
        spool.ended(usage_entry(f"{number:04}"))
    assert await load(spool, loader) == 1234
    assert [row.request_id for row in await _rows(db)] == [f"{number:04}" for number in range(1234)]


async def test_what_is_there_already_is_not_counted_twice(spool: Spool, loader: Loader, db: Database) -> None:
    spool.ended(usage_entry("a"))
    await load(spool, loader)
    spool.ended(usage_entry("a", completion_tokens=99))
    spool.ended(usage_entry("b"))
    await load(spool, loader)
    assert [(row.request_id, row.completion_tokens) for row in await _rows(db)] == [("a", 5), ("b", 5)]


async def test_malformed_lines_are_put_aside_and_block_nothing(spool: Spool, loader: Loader, db: Database) -> None:
    spool.ended(usage_entry("a"))
    spool.ended(usage_entry("b", prompt_tokens=-1))
    segment = spool.folder / "usage-1.jsonl"
    segment.write_bytes(segment.read_bytes() + b'{"kind":"usage","request_id":"torn\n\xff\xfe\n\n')
    spool.ended(usage_entry("c"))
    assert await load(spool, loader) == 2
    assert [row.request_id for row in await _rows(db)] == ["a", "c"]
    assert loader.malformed == 3
    assert len((spool.folder / BAD_LINES).read_bytes().splitlines()) == 3
    assert full_segments(spool.folder) == []


async def test_a_row_that_the_database_refuses_is_put_aside(
    spool: Spool, loader: Loader, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "_values", lambda entry, dialect: _named(entry, dialect, entry.request_id))
    for name in ("complete", "splendid", "lost"):
        spool.ended(usage_entry(name))
    await load(spool, loader)
    assert [row.request_id for row in await _rows(db)] == ["complete", "lost"]
    assert loader.malformed == 1
    assert b"splendid" in (spool.folder / BAD_LINES).read_bytes()


def _named(entry: Any, dialect: str, outcome: str) -> tuple[Any, ...]:
    """The values of ``entry`` but for its outcome, in the order of the table."""
    return tuple(
        outcome if column.name == "outcome" else stored_time(entry.at, dialect) if column.name == "at"
        else getattr(entry, column.name)
        for column in usage.columns
    )  # fmt: skip


class _SilentDatabase:
    dialect = "sqlite"

    def text_of(self, statement: Any) -> str:
        return str(statement)

    @asynccontextmanager
    async def begin(self) -> Any:
        raise StoreUnavailable
        yield


async def test_a_silent_store_loses_nothing_and_piles_up_no_files(spool: Spool, db: Database) -> None:
    silent = Loader(spool.folder, _SilentDatabase())  # type: ignore[arg-type]
    for number in range(2 * MOST_FULL):
        spool.ended(usage_entry(str(number)))
        with pytest.raises(StoreUnavailable):
            await load(spool, silent)
    assert len(full_segments(spool.folder)) == MOST_FULL
    loader = Loader(spool.folder, db)
    assert await load(spool, loader) + await load(spool, loader) == 2 * MOST_FULL
    assert len(await _rows(db)) == 2 * MOST_FULL


async def test_runs_by_itself_and_survives_silence(
    spool: Spool, loader: Loader, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "EVERY_S", 0.01)
    refusals = iter([True, True, False])
    load = Loader.load_once

    async def moody(self: Loader) -> int:
        if next(refusals, False):
            raise StoreUnavailable
        return await load(self)

    monkeypatch.setattr(Loader, "load_once", moody)
    running = asyncio.ensure_future(loader.run())
    spool.ended(usage_entry("a"))
    spool.turn_over()
    async with asyncio.timeout(10):
        while not await _rows(db):
            await asyncio.sleep(0.01)
    running.cancel()


async def test_nothing_reaches_the_ledger_while_the_spool_is_held(
    spool: Spool, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "EVERY_S", 0.001)
    turn_over = TurnOver(spool)
    async with turn_over.held() as held:
        running = asyncio.ensure_future(turn_over.run())
        assert held is spool
        spool.ended(usage_entry("a"))
        await asyncio.sleep(0.02)
        assert full_segments(spool.folder) == []
    await until(lambda: full_segments(spool.folder), "it is turned over")
    assert await loader.load_once() == 1
    running.cancel()


async def test_a_spool_that_was_held_in_vain_is_let_go(spool: Spool) -> None:
    turn_over = TurnOver(spool)
    with pytest.raises(StoreUnavailable):
        async with turn_over.held():
            raise StoreUnavailable
    async with asyncio.timeout(5), turn_over.held():
        pass


# -- recovery ------------------------------------------------------------------------------------------------------


async def test_open_requests_of_a_dead_gateway_are_closed_as_lost(tmp_path: Path, db: Database) -> None:
    dead = Spool(tmp_path)
    for name in ("ended", "open", "carried"):
        dead.opened(open_entry(name))
    dead.ended(usage_entry("ended"))
    dead.turn_over()
    dead.opened(open_entry("late"))
    dead.ended(usage_entry("open"))
    dead.close()

    spool = Spool(tmp_path)
    loader = Loader(spool.folder, db)
    assert spool.close_lost() == 2
    assert await load(spool, loader) == 4
    rows = {row.request_id: row for row in await _rows(db)}
    assert {name: row.outcome for name, row in rows.items()} == {
        "ended": "complete",
        "open": "complete",
        "carried": "lost",
        "late": "lost",
    }
    lost = rows["late"]
    assert (lost.prompt_tokens, lost.completion_tokens, lost.estimated) == (26, 0, True)
    assert full_segments(spool.folder) == []
    spool.close()


async def test_a_recovery_that_dies_is_done_again(tmp_path: Path, db: Database) -> None:
    dead = Spool(tmp_path)
    dead.opened(open_entry("a"))
    dead.close()
    for wanted in (1, 0, 0):
        spool = Spool(tmp_path)
        assert spool.close_lost() == wanted
        spool.close()
    spool = Spool(tmp_path)
    assert await load(spool, Loader(spool.folder, db)) == 1
    spool.close()


async def test_a_crash_between_commit_and_removal(spool: Spool, loader: Loader, db: Database) -> None:
    async with db.begin() as conn:
        await conn.execute(
            insert(usage).values(**{column.name: getattr(usage_entry("a"), column.name) for column in usage.columns})
        )
    spool.ended(usage_entry("a"))
    await load(spool, loader)
    assert len(await _rows(db)) == 1


async def test_a_file_that_another_loader_has_taken_stops_nothing(
    spool: Spool, loader: Loader, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = full_segments

    def with_one_that_is_gone(folder: Path) -> list[Path]:
        return [folder / "usage-0.jsonl", *found(folder)]

    spool.ended(usage_entry("a"))
    spool.turn_over()
    monkeypatch.setattr(ledger, "full_segments", with_one_that_is_gone)
    assert await loader.load_once() == 1
    assert [row.request_id for row in await _rows(db)] == ["a"]


# -- plausible -----------------------------------------------------------------------------------------------------


@given(st.integers(-5, 10**6), st.integers(-5, 10**6), st.integers(0, 10**6), st.integers(0, 10**4))
def test_plausible(prompt: int, completion: int, relayed: int, events: int) -> None:
    claimed = Usage(prompt, completion)
    found = plausible(claimed, relayed, events)
    assert 0 <= found.completion_tokens <= relayed
    assert found.prompt_tokens == max(0, prompt)
    assert found == claimed or found.estimated
    assert plausible(found, relayed, events) == found or found.completion_tokens == 0


@pytest.mark.parametrize(
    ("claimed", "relayed", "events", "found"),
    [
        (Usage(10, 5), 4000, 8, Usage(10, 5)),
        (Usage(10, 0), 4000, 3, Usage(10, 0)),  # embeddings; a stream of framing alone
        (Usage(0, 0), 200, 0, Usage(0, 0)),  # a refusal
        (Usage(10, 0), 4000, 20, Usage(10, 20, estimated=True)),
        (Usage(10, 5000), 4000, 20, Usage(10, 20, estimated=True)),
        (Usage(10, 5000), 4001, 0, Usage(10, 1001, estimated=True)),
        (Usage(10, 5), 0, 0, Usage(10, 0, estimated=True)),
        (Usage(10, 5, estimated=True), 4000, 8, Usage(10, 5, estimated=True)),
    ],
)
def test_plausible_by_example(claimed: Usage, relayed: int, events: int, found: Usage) -> None:
    assert plausible(claimed, relayed, events) == found
