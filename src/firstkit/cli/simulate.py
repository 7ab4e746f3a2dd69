"""``first simulate``: a scenario on a virtual clock, under one policy or several."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstkit.cli.common import JsonOption, fail
from firstkit.cli.showing import show, show_json
from firstkit.errors import ConfigError

if TYPE_CHECKING:
    from firstkit.simulator.run import Simulation

HOW_TO_PLOT = "No plots: matplotlib is missing. 'pip install firstkit[simulator]' installs it."


def simulate(
    scenario: Annotated[Path, typer.Argument(metavar="SCENARIO", help="The file that says what is simulated.")],
    policy: Annotated[
        list[str] | None, typer.Option("--policy", metavar="NAME", help="A rule; several may be given. Default: first.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Write JSON and plots there.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Another one than that of the scenario.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Play a scenario on a virtual clock and print what came of it."""
    from firstkit.simulator.report import cost, figures, table

    runs = _run(scenario, policy or ["first"], seed)
    found = [figures(run) for run in runs]
    if out is not None:
        _keep(out, runs, found)
    if as_json:
        show_json(found if len(found) > 1 else found[0])
        return
    columns, rows = table(found)
    show(columns, rows, columns[1:])
    for run in runs:
        took = cost(run)
        print(
            f"{run.policy_name}: {took['events']:,.0f} events and {took['passes']:,.0f} passes "
            f"({took['pass_ms']:.1f} ms each) in {took['cpu_s']:.1f} s",
            file=sys.stderr,
        )


def _run(path: Path, policies: list[str], seed: int | None) -> list[Simulation]:
    from firstkit.simulator.run import Simulation
    from firstkit.simulator.scenario import load_scenario

    try:
        scenario = load_scenario(path)
        if seed is not None:
            scenario = scenario.model_copy(update={"seed": seed})
        return [simulation.run() for simulation in [Simulation(scenario, name) for name in policies]]
    except ConfigError as exc:
        fail(exc.message, "Correct it and try again; docs/reference/simulator.md names every key.")


def _keep(folder: Path, runs: list[Simulation], found: list[dict[str, Any]]) -> None:
    import json

    from firstkit.simulator.plots import can_plot, plot

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for figures in found:
            path = folder / f"{figures['scenario']}-{figures['policy']}.json"
            path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        if can_plot():
            plot(runs, folder)
        else:
            print(HOW_TO_PLOT, file=sys.stderr)
    except OSError as exc:
        fail(f"{folder} cannot be written: {exc.strerror}.", "Name another folder with --out.")
