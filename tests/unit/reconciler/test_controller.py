from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from firstkit.config import Config, parse_config
from firstkit.reconciler.controller import Controller
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
    return {"cluster": cluster, "engine": engine, "scale": {"max_in_flight": 4, "max": 3, **scale}}


@pytest.fixture
async def make(tmp_path: Path, db: Database) -> Any:
    def made(*deployments: dict[str, Any]) -> Controller:
        controller = Controller(config_of(tmp_path, *deployments), lambda _: QuickCluster())
        controller._make_loops(db)
        controller.world.gateway_came()
        return controller

    return made


def ask(controller: Controller, requests: int) -> None:
    demand = {"waiting": requests, "in_flight": 0, "idle_s": 0.0}
    controller._on_message({"kind": "demand", "models": {"m": demand}})


def wanted(controller: Controller) -> dict[str, int]:
    return {name: count for cluster in controller.loops for name, count in controller._wanted(cluster).items()}


async def test_demand_goes_to_the_first_cluster_that_has_room(make: Any) -> None:
    controller = make(on("a"), on("b"))
    ask(controller, 13)
    assert wanted(controller) == {"m@a": 3, "m@b": 1}


async def test_what_others_serve_starts_nothing(make: Any) -> None:
    controller = make(on("cloud", ELSEWHERE), on("a"))
    ask(controller, 4)
    assert wanted(controller) == {"m@a": 0}
    ask(controller, 5)
    assert wanted(controller) == {"m@a": 1}


async def test_a_cluster_in_back_off_keeps_what_it_has_and_others_start_the_rest(make: Any) -> None:
    controller = make(on("a"), on("b"))
    controller.loops["a"].blocked = {"m@a"}
    controller.loops["a"].alive["m@a"] = 1
    ask(controller, 12)
    assert wanted(controller) == {"m@a": 1, "m@b": 2}


async def test_the_forecast_of_a_service_of_others_is_live(make: Any) -> None:
    controller = make(on("cloud", ELSEWHERE), on("a"))
    said = controller._forecast("m")
    assert said["status"] == "live"
    assert said["clusters"]["a"]["status"] == "offline"
    assert said["forecast_error_s"] is None
