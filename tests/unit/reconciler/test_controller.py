from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from firstkit.config import Config, parse_config
from firstkit.reconciler.books import Books
from firstkit.reconciler.controller import Controller
from firstkit.store import clusters as drains
from firstkit.store.database import Database
from firstkit.testing.fake_clusters import QuickCluster

ENGINE = {"kind": "command", "argv": ["x", "{socket}"]}
ELSEWHERE = {"kind": "external", "url": "https://api.example.org/v1"}


def config_of(folder: Path, *deployments: dict[str, Any]) -> Config:
    content = {
        "server": {"state_dir": str(folder)},
        "clusters": {"a": {}, "b": {}, "cloud": {"kind": "external"}},
        "models": {"m": {"deployments": list(deployments)}},
    }
    return parse_config(yaml.safe_dump(content))


def on(cluster: str, engine: dict[str, Any] = ENGINE, **scale: Any) -> dict[str, Any]:
    return {"cluster": cluster, "engine": engine, "scale": {"max_in_flight": 4, "max": 3, "sustain": 0, **scale}}


class Bench:
    """A controller whose loops have looked once, and do what they are told to."""

    def __init__(self, folder: Path, db: Database, *deployments: dict[str, Any]) -> None:
        self.at = 1000.0
        config = config_of(folder, *deployments)
        self.controller = Controller(config, lambda _: QuickCluster(), clock=lambda: self.at)
        self.controller._make_loops(lambda name: Books(db, name))
        self.controller.world.gateway_came()
        self.sent: list[dict[str, Any]] = []
        self.controller.teller._send = self.sent.append

    async def start(self) -> None:
        for loop in self.controller.loops.values():
            await loop.start()

    def ask(self, requests: int, clusters: list[str] | None = None) -> None:
        demand = [{"clusters": clusters, "waiting": requests, "in_flight": 0, "idle_s": 0.0}]
        self.controller._on_message({"kind": "demand", "models": {"m": demand}})
        self.at += 1.0

    def wanted(self) -> dict[str, int]:
        found = [shares for cluster in self.controller.loops for shares in self.controller.shares(cluster).items()]
        return {name: share.wanted for name, share in found if not name.endswith("@cloud")}


@pytest.fixture
async def make(tmp_path: Path, db: Database) -> Any:
    async def made(*deployments: dict[str, Any]) -> Bench:
        bench = Bench(tmp_path, db, *deployments)
        await bench.start()
        return bench

    return made


async def test_demand_goes_to_the_first_cluster_that_has_room(make: Any) -> None:
    bench = await make(on("a"), on("b"))
    bench.ask(13)
    assert bench.wanted() == {"m@a": 3, "m@b": 1}


async def test_what_others_serve_starts_nothing(make: Any) -> None:
    bench = await make(on("cloud", ELSEWHERE), on("a"))
    bench.ask(4)
    assert bench.wanted() == {"m@a": 0}
    bench.ask(5)
    assert bench.wanted() == {"m@a": 1}
    bench.ask(4, ["a"])
    assert bench.wanted() == {"m@a": 2}, "pinned ones beside what was asked a while ago"


async def test_until_every_cluster_was_looked_at_nothing_is_started_for_demand(tmp_path: Path, db: Database) -> None:
    bench = Bench(tmp_path, db, on("a"), on("b"))
    await bench.controller.loops["b"].start()
    bench.ask(1)
    assert bench.wanted() == {"m@b": 0}
    await bench.controller.loops["a"].start()
    assert bench.wanted() == {"m@a": 1, "m@b": 0}


async def test_only_the_clusters_that_news_is_about_are_woken(make: Any) -> None:
    bench = await make(on("a"))
    loops = bench.controller.loops

    def woken() -> set[str]:
        names = {name for name, loop in loops.items() if loop._wake.is_set()}
        for loop in loops.values():
            loop._wake.clear()
        return names

    bench.ask(1)
    assert woken() == {"a"}
    bench.controller._on_message({"kind": "clusters"})
    assert woken() == {"a", "b"}
    bench.controller.world.living["b"] = frozenset({"job-b"})
    report = {"job_id": "job-b", "replicas": []}
    bench.controller._on_message({"kind": "pilots", "pilots": {"job-b": report}})
    assert woken() == {"b"}
    bench.controller._on_message({"kind": "pilots", "pilots": {"job-x": {**report, "job_id": "job-x"}}})
    assert woken() == {"a", "b"}, "one of nobody may be of a job that was submitted a moment ago"


async def test_a_change_on_one_cluster_lets_the_others_look(make: Any) -> None:
    bench = await make(on("a", hot=1), on("b"))
    loops = bench.controller.loops
    await loops["a"].step()
    await asyncio.wait(loops["a"].hands.under_way.values())  # until the job is submitted, nothing of it counts
    loops["b"]._wake.clear()
    await loops["a"].step()
    assert loops["b"]._wake.is_set(), "a replica is on its way there"
    loops["b"]._wake.clear()
    await loops["b"].step()
    assert not loops["b"]._wake.is_set()
    for loop in loops.values():
        await loop.close()
    bench.controller.teller.close()


# -- what is told ------------------------------------------------------------------------------------------------------


async def test_the_forecast_of_a_service_of_others_is_live(make: Any) -> None:
    bench = await make(on("cloud", ELSEWHERE), on("a"))
    said = bench.controller.teller.model("m")
    assert said["status"] == "live"
    assert said["clusters"]["a"]["status"] == "offline"
    assert said["forecast_error_s"] is None


async def test_what_is_wanted_and_why_is_told_with_what_it_waits_for(make: Any, db: Database) -> None:
    bench = await make(on("a", hot=1), on("b"))
    async with db.begin() as conn:
        await drains.drain(conn, "b", "op", "new cooling")
    bench.controller._on_message({"kind": "clusters"})
    for loop in bench.controller.loops.values():
        await loop.step()
    said = bench.controller.teller.model("m")["clusters"]
    assert (said["a"]["wanted"], said["a"]["why"]) == (1, ["1 hot"])
    assert said["b"]["waits_for"] == ["the cluster is drained: new cooling"]
    bench.controller.teller._tell()
    (message,) = bench.sent
    assert message["clusters"]["b"]["drained"]
    assert message["clusters"]["b"]["message"] == "new cooling"
    assert message["clusters"]["a"]["spent"] == {"nodes": 0, "node_hours_today": 0.0}
    for loop in bench.controller.loops.values():
        await loop.close()
    bench.controller.teller.close()


async def test_only_what_is_new_is_told_again(make: Any) -> None:
    bench = await make(on("a"))
    teller = bench.controller.teller
    teller._tell()
    teller._tell()
    assert [list(message["models"]) for message in bench.sent] == [["m"], []]
    teller.everything()
    teller._tell()
    assert list(bench.sent[-1]["models"]) == ["m"]
    teller.close()
