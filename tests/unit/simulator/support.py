"""Scenarios with all that a test does not care about filled in."""

from __future__ import annotations

from typing import Any

from firstkit.simulator.run import Simulation
from firstkit.simulator.scenario import Scenario, parse_scenario

ALONE = {"others": {"load": 0}}
NEEDS = {"gpus_per_node": 4, "cpus_per_node": 8, "memory_gib": 64, "exclusive": True, "walltime": "6h"}


def data(**values: Any) -> dict[str, Any]:
    """A cluster without others, a model that may run there, some requests."""
    known: dict[str, Any] = {
        "name": "test",
        "duration": "2h",
        "clusters": {"here": {"nodes": 4, "scheduler": ALONE}},
        "models": {"m": {"resources": NEEDS, "scale": {"max": 2}, "engine": {"load": {"usual": 60, "late": 90}}}},
        "load": {"requests_per_hour": 60},
    }
    return {**known, **values}


def scenario(**values: Any) -> Scenario:
    return parse_scenario(data(**values))


def played(policy: str = "first", **values: Any) -> Simulation:
    return Simulation(scenario(**values), policy).run()
