from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from firstkit.clock import now
from firstkit.reconciler.telling import cluster, is_news
from firstkit.store import jobs as stored
from firstkit.store.database import Database
from firstkit.store.jobs import Observation
from unit.reconciler.test_controller import Bench, on


def said(status: str = "queued", eta_s: float | None = 100.0, **values: Any) -> dict[str, Any]:
    part = {"status": status, "eta_s": eta_s, "reason": "", "start_in_s": None, **values}
    return {"status": status, "eta_s": eta_s, "reason": "", "forecast_error_s": None, "clusters": {"a": part}}


def test_a_forecast_that_comes_true_is_no_news() -> None:
    assert not is_news(said(), said(eta_s=70.0), 30.0)
    assert not is_news(said("offline"), said("offline"), 30.0), "counts from when somebody asks"


@pytest.mark.parametrize(
    "after",
    [
        said("starting"),
        said(eta_s=60.0),
        said(eta_s=None),
        said(reason="waits"),
        said(start_in_s=5.0),
        said(position=3),
        {**said(), "clusters": {}},
    ],
)
def test_what_changed_is_news(after: dict[str, Any]) -> None:
    assert is_news(said(), after, 0.0)


def test_an_offline_model_whose_start_would_take_longer_is_news() -> None:
    assert is_news(said("offline", 100.0), said("offline", 120.0), 30.0)


# -- starts and figures ------------------------------------------------------------------------------------------------


def start(wait_s: float | None = 100.0, **values: Any) -> dict[str, Any]:
    known = {"wait_s": wait_s, "late_wait_s": 200.0, "load_s": 10.0, "late_load_s": 20.0, "by": "waits"}
    return {**known, "after": None, "obstacle": "", "handicap_s": 0.0, **values}


@pytest.mark.parametrize(
    ("after", "is_new"),
    [(start(105.0), False), (start(150.0), True), (start(None), True), (start(obstacle="drained"), True), (None, True)],
)
def test_a_start_is_told_again_when_it_takes_another_time(after: Any, is_new: bool) -> None:
    assert is_news(said("offline", new=start()), said("offline", new=after), 0.0) == is_new


def test_what_nine_of_ten_do_not_exceed_falls_by_itself() -> None:
    assert not is_news(said(late_s=300.0), said(eta_s=70.0, late_s=270.0), 30.0)


async def learn(db: Database, *waits: Observation) -> None:
    async with db.begin() as conn:
        for wait in waits:
            await stored.add_observation(conn, "queue_wait", "a", wait, now())
        await stored.add_observation(conn, "load_time", "m@a", Observation(10.0, 12.0), now())


async def test_what_a_start_takes_is_told_with_what_it_is_known_by(tmp_path: Path, db: Database) -> None:
    began_at = now() - timedelta(hours=2)
    await learn(db, *(Observation(100.0, 90.0, late_s, "", began_at) for late_s in (95.0, 120.0)))
    bench = Bench(tmp_path, db, on("a"))
    assert bench.controller.teller.model("m")["clusters"]["a"]["new"] is None, "nobody has looked yet"
    await bench.start()
    new = bench.controller.teller.model("m")["clusters"]["a"]["new"]
    assert (new["wait_s"], new["late_wait_s"], new["load_s"], new["late_load_s"]) == (100, 100, 10, 20)
    assert (new["by"], new["after"], new["obstacle"]) == ("waits", None, "")
    bench.controller.teller.close()


async def test_how_good_forecasts_were_and_whether_it_answers_is_told(tmp_path: Path, db: Database) -> None:
    began_at = now() - timedelta(hours=2)
    await learn(db, *(Observation(100.0, 90.0, late_s, "", began_at) for late_s in (95.0, 120.0)))
    bench = Bench(tmp_path, db, on("a"), on("b"))
    await bench.start()
    loops = bench.controller.loops
    await loops["a"].books.note_polls(3, 0)
    told = cluster(loops["a"])
    assert (told["wait_s"], told["late_wait_s"], told["waits"]) == (100, 100, 2)
    assert (told["wait_error_s"], told["wait_coverage"]) == (10, 0.5)
    assert told["availability"] == {"day": 1.0, "week": 1.0}
    untold = cluster(loops["b"])
    assert (untold["wait_s"], untold["wait_coverage"], untold["waits"]) == (None, None, 0)
    assert untold["availability"] == {"day": None, "week": None}
    bench.controller.teller.close()
