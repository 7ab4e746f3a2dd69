"""Plots of simulations, where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from firstkit.simulator.report import figures
from firstkit.simulator.run import Simulation

COLOURS = ("#1b6ca8", "#c8553d", "#4f8a5b", "#7a5195", "#8a8a8a")
POINTS = 400
"""Of a curve: more cannot be seen."""


def can_plot() -> bool:
    return find_spec("matplotlib") is not None


def plot(runs: Sequence[Simulation], folder: Path, ending: str = "svg") -> list[Path]:
    """One file for each plot, in ``folder``, which has to exist: a curve or a bar for each run. The same runs give the
    same bytes."""
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("svg")
    settings = {"svg.hashsalt": "first", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    matplotlib.rcParams.update(settings)
    pyplot: Any = import_module("matplotlib.pyplot")
    made = []
    for name, draw in (
        ("ttft", _ttft),
        ("queue", _queue),
        ("replicas", _replicas),
        ("waiting", _waiting),
        ("use", _use),
        ("node-hours", _node_hours),
        ("hand-overs", _hand_overs),
        ("failures", _failures),
    ):
        figure, axes = pyplot.subplots(figsize=(5.2, 3.1), layout="constrained")
        draw(axes, runs)
        path = folder / f"{runs[0].scenario.name}-{name}.{ending}"
        figure.savefig(path, metadata={"Date": None} if ending == "svg" else None)
        pyplot.close(figure)
        made.append(path)
    return made


def _ttft(axes: Any, runs: Sequence[Simulation]) -> None:
    _shares(axes, runs, [run.tallies.ttft_s for run in runs], "time to first token, s")


def _queue(axes: Any, runs: Sequence[Simulation]) -> None:
    _shares(axes, runs, [run.tallies.queue_s for run in runs], "wait of a job in its queue, s")


def _shares(axes: Any, runs: Sequence[Simulation], times: Sequence[Sequence[float]], label: str) -> None:
    """For each run, the share of its times that are below each time."""
    for run, seconds, colour in zip(runs, times, COLOURS, strict=False):
        ranked = sorted(max(0.01, one) for one in seconds)
        if ranked:
            at = sorted({round(i * (len(ranked) - 1) / POINTS) for i in range(POINTS + 1)})
            axes.plot([ranked[i] for i in at], [(i + 1) / len(ranked) for i in at], color=colour, label=run.policy_name)
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    axes.set_xlabel(label)
    axes.set_ylabel("share that is below")
    axes.legend(frameon=False)


def _replicas(axes: Any, runs: Sequence[Simulation]) -> None:
    _over_time(axes, runs, "ready", "replicas that serve")


def _waiting(axes: Any, runs: Sequence[Simulation]) -> None:
    _over_time(axes, runs, "waiting", "requests that wait")


def _over_time(axes: Any, runs: Sequence[Simulation], what: str, label: str) -> None:
    for run, colour in zip(runs, COLOURS, strict=False):
        moments = run.tallies.moments
        axes.plot(
            [one.at_h for one in moments], [getattr(one, what) for one in moments], color=colour, label=run.policy_name,
            linewidth=1,
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_xlabel("hours")
    axes.set_ylabel(label)
    axes.legend(frameon=False)


def _use(axes: Any, runs: Sequence[Simulation]) -> None:
    """GPU-hours: what jobs held, what replicas had, what would have been least."""
    keys = (("held by jobs", "gpu_hours_held"), ("of replicas", "gpu_hours_of_replicas"), ("least", "gpu_hours_least"))
    _bars(axes, runs, {label: [figures(run)["use"][key] for run in runs] for label, key in keys}, "GPU-hours")


def _node_hours(axes: Any, runs: Sequence[Simulation]) -> None:
    """Of each cluster; where there are more than colours, of all together."""
    found = [figures(run) for run in runs]
    names = list(found[0]["clusters"])
    bars = {name: [one["clusters"][name]["node_hours"] for one in found] for name in names}
    if len(names) > len(COLOURS):
        bars = {"all clusters": [one["use"]["node_hours"] for one in found]}
    _bars(axes, runs, bars, "node-hours")


def _hand_overs(axes: Any, runs: Sequence[Simulation]) -> None:
    bars = {
        "a successor served": [float(run.tallies.hand_overs) for run in runs],
        "ended with their job": [float(run.tallies.late_ends) for run in runs],
    }
    _bars(axes, runs, bars, "replicas near the end of their job")


def _failures(axes: Any, runs: Sequence[Simulation]) -> None:
    causes = sorted({cause for run in runs for cause in run.tallies.failures})
    bars = {cause: [float(run.tallies.failures[cause]) for run in runs] for cause in causes}
    _bars(axes, runs, bars or {"none": [0.0] * len(runs)}, "requests that failed")


def _bars(axes: Any, runs: Sequence[Simulation], bars: dict[str, list[float]], label: str) -> None:
    width = 0.8 / len(bars)
    for i, ((name, values), colour) in enumerate(zip(bars.items(), COLOURS, strict=False)):
        places = [j - 0.4 + width * (i + 0.5) for j in range(len(runs))]
        axes.bar(places, values, width, color=colour, label=name)
    axes.set_xticks(range(len(runs)), [run.policy_name for run in runs])
    axes.set_ylabel(label)
    axes.legend(frameon=False)
