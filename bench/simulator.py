"""What a simulated day costs: 100 clusters, 10,000 replicas; how well small replicas are packed. CPU time of one core.

python bench/simulator.py [--hours H] [--keep]  # prints a table; needs make install. --keep: dated, in results/
"""

from __future__ import annotations

import argparse
import gc
from pathlib import Path

from figures import keep_reported, report
from firstkit.simulator.report import cost, figures
from firstkit.simulator.run import Simulation
from firstkit.simulator.scenario import load_scenario

SCENARIOS = Path(__file__).parent.parent / "examples" / "scenarios"
LIMIT_MIN, REPLICAS, WASTE = 10.0, 10_000, 10.0
PACKED = ("packing", "federation", "outage", "small")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hours", type=float, default=24.0, help="of the large scenario")
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    gc.set_threshold(100_000, 50, 50)  # nearly all that is made lives on
    for name in PACKED:
        found = figures(Simulation(load_scenario(SCENARIOS / f"{name}.yaml")).run())
        report(f"{name}: more than the best packing", 100 * (found["use"]["waste"] or 0.0), "%", WASTE)
    scenario = load_scenario(SCENARIOS / "hundred.yaml")
    run = Simulation(scenario.model_copy(update={"duration": given.hours * 3600})).run()
    took, found = cost(run), figures(run)
    report(f"{given.hours:g} h of 100 clusters", took["cpu_s"] / 60, "min", LIMIT_MIN * given.hours / 24)
    report("replicas at a time", run.tallies.most_replicas, "", REPLICAS, at_least=True)
    print(
        f"{took['events']:,.0f} events, {took['passes']:,.0f} passes of {took['pass_ms']:.1f} ms (wall time), ", end=""
    )
    print(f"{found['requests']['asked']:,} requests, {found['hand_overs']['in_time']:,} hand-overs")
    if given.keep:
        print(keep_reported("simulator"))


if __name__ == "__main__":
    main()
