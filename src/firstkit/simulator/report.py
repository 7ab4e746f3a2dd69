"""What came of a simulation, as figures for people and programs."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from statistics import fmean
from typing import Any

from firstkit.simulator.run import Simulation

HOUR_S = 3600.0
ROWS = (
    ("requests", "requests", "asked"),
    ("answered", "requests", "answered"),
    ("failed", "requests", "failed"),
    ("TTFT, half below", "ttft_s", "p50"),
    ("TTFT, nine of ten below", "ttft_s", "p90"),
    ("TTFT, 99 of 100 below", "ttft_s", "p99"),
    ("queue of jobs, half below", "queue_s", "p50"),
    ("queue of jobs, nine of ten below", "queue_s", "p90"),
    ("error of forecast waits", "forecast", "mean_error_s"),
    ("jobs submitted", "jobs", "submitted"),
    ("node-hours", "use", "node_hours"),
    ("answers for a node-hour", "use", "answers_per_node_hour"),
    ("GPU-hours held by jobs", "use", "gpu_hours_held"),
    ("GPU-hours of replicas", "use", "gpu_hours_of_replicas"),
    ("more than the best packing", "use", "waste"),
    ("hand-overs in time", "hand_overs", "in_time"),
    ("ended with their job", "hand_overs", "late"),
)
"""Label, section and key of each row of the table."""


def figures(simulation: Simulation) -> dict[str, Any]:
    """All figures of one run. Times in seconds; None: nothing was measured."""
    tallies = simulation.tallies
    usages = [side.hands.usage for side in simulation.sides.values()]
    node_hours = sum(usage.node_s for usage in usages) / HOUR_S
    held, least = sum(usage.held_s for usage in usages), sum(usage.least_s for usage in usages)
    return {
        "scenario": simulation.scenario.name,
        "policy": simulation.policy_name,
        "seed": simulation.scenario.seed,
        "requests": {
            "asked": tallies.asked,
            "answered": tallies.done,
            "failed": sum(tallies.failures.values()),
            "open": tallies.asked - tallies.done - sum(tallies.failures.values()),
            "retried": tallies.retried,
            "tokens": tallies.tokens,
        },
        "failures": dict(sorted(tallies.failures.items())),
        "ttft_s": _spread(tallies.ttft_s),
        "wait_in_line_s": _spread(tallies.waits_s),
        "queue_s": _spread(tallies.queue_s),
        "load_s": _spread(tallies.loads_s),
        "forecast": {
            "jobs": len(tallies.queue_error_s),
            "mean_error_s": _mean(abs(error) for error in tallies.queue_error_s),
        },
        "jobs": {"submitted": 0, **dict(sorted(tallies.jobs.items()))},
        "replicas": {**dict(sorted(tallies.replicas.items())), "most_at_a_time": tallies.most_replicas},
        "hand_overs": {"in_time": tallies.hand_overs, "late": tallies.late_ends},
        "use": {
            "node_hours": node_hours,
            "answers_per_node_hour": tallies.done / node_hours if node_hours else None,
            "gpu_hours_held": held / HOUR_S,
            "gpu_hours_of_replicas": sum(usage.used_s for usage in usages) / HOUR_S,
            "gpu_hours_least": least / HOUR_S,
            "waste": held / least - 1 if least else None,
        },
        "clusters": {
            name: {
                "node_hours": side.hands.usage.node_s / HOUR_S,
                "jobs_waited_s": _median_wait(side.hands.memory.seen_s),
            }
            for name, side in simulation.sides.items()
        },
    }


def cost(simulation: Simulation) -> dict[str, float]:
    """What the run itself took: the only figures that differ between two runs of the same seed."""
    tallies = simulation.tallies
    return {
        "cpu_s": simulation.cpu_s,
        "events": tallies.events,
        "passes": tallies.passes,
        "pass_ms": 1000 * tallies.plan_s / tallies.passes if tallies.passes else 0.0,
    }


def table(runs: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: a column for each policy."""
    rows = [[label, *(_shown(key, run[section].get(key)) for run in runs)] for label, section, key in ROWS]
    causes = sorted({cause for run in runs for cause in run["failures"]})
    rows += [[f"failed: {cause}", *(str(run["failures"].get(cause, 0)) for run in runs)] for cause in causes]
    return ["figure", *(str(run["policy"]) for run in runs)], rows


def _shown(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key == "waste":
        return f"{100 * value:.1f} %"
    if key in ("p50", "p90", "p99", "mean_error_s"):
        return _time(value)
    return f"{value:,.0f}" if isinstance(value, int) or value >= 100 else f"{value:.1f}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / HOUR_S:.1f} h"


def _spread(seconds: array[float]) -> dict[str, float | int | None]:
    ranked = sorted(seconds)
    if not ranked:
        return {"count": 0, "mean": None, "p50": None, "p90": None, "p99": None, "max": None}
    parts = {name: ranked[min(len(ranked) - 1, int(len(ranked) * part))] for name, part in QUANTILES}
    return {"count": len(ranked), "mean": fmean(ranked), **parts, "max": ranked[-1]}


QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))


def _median_wait(seconds: list[float]) -> float | None:
    return sorted(seconds)[len(seconds) // 2] if seconds else None


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return fmean(found) if found else None
