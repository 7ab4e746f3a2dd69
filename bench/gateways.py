"""The whole gateway beside others: nginx, vllm-router and FIRST in one run, CPU per unit of work first.

python bench/gateways.py [--quick] [--rounds N] [--only NAME,NAME] [--no-lag]      # or: make bench-gateways

Every gateway is one process (nginx: one worker); all are on one core, and one of them has a load at a time. The engine
(load/mock_engine.c), the load generator (load/lg.c), pilots and controllers are on another core. In each round every
load goes to every gateway, in an order that rotates. FIRST has keys, limits, admission, metrics and ledger on; the
others have none of it. Two tables are printed: FIRST against its bars and aims, and all that was measured. A full run
leaves both, dated, in results/; a quick one, whose streams are shorter, in bin/results/, which git ignores.
"""

from __future__ import annotations

import argparse
import contextlib
import operator
import os
import signal
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import lag
from bars import LABELS, Figures, Judged, Values, judge, verdict_table, whole_table
from figures import RESULTS, environment, keep
from measure import BIN, HERE, Cores, Load, Run, speed_us, two_cores
from targets import BehindPilot, Engine, External, Nginx, Skip, Target, Tunnel, VllmRouter

KINDS: tuple[type[Target], ...] = (Nginx, VllmRouter, External, BehindPilot, Tunnel)
STREAMS = 1000
NOISY_SHARE = 0.05
BEGUN = time.monotonic()


@dataclass(frozen=True)
class Loads:
    """The loads of a run. ``pilot_rounds``: in how many rounds the loads that only external services are judged by go
    through pilots too, for the whole picture: a pilot shares its core with load generator and engine."""

    rounds: int
    pilot_rounds: int
    chat: Load
    s256: Load
    s1000: Load
    big: Load
    ttft: Load
    memory: Load

    def by_name(self) -> dict[str, Load]:
        """Those that make up a round, what costs CPU first."""
        return {"chat": self.chat, "s256": self.s256, "s1000": self.s1000, "big": self.big, "ttft": self.ttft}


def stream(connections: int, tokens: int, ramp_s: float, times: int = 2, gap_us: int = 20_000) -> Load:
    """So many streams at once, each ``times`` in a row."""
    again_s = (times - 1) * tokens * gap_us / 1e6
    return Load(connections, ramp_s + again_s + 0.05, tokens, gap_us, is_stream=True, ramp_s=ramp_s)


FULL = Loads(
    rounds=3,
    pilot_rounds=1,
    chat=Load(64, 3.0),
    s256=stream(256, 200, 1.0),
    s1000=stream(STREAMS, 200, 2.0),
    big=Load(16, 3.0, prompt_bytes=200_000),
    ttft=stream(64, 50, 1.0, times=4),
    memory=stream(STREAMS, 60, 2.0, times=1, gap_us=100_000),
)
QUICK = Loads(
    rounds=1,
    pilot_rounds=0,
    chat=Load(64, 1.0),
    s256=stream(256, 100, 0.5, times=1),
    s1000=stream(STREAMS, 100, 1.0, times=1),
    big=Load(16, 1.0, prompt_bytes=200_000),
    ttft=stream(64, 25, 0.5, times=2),
    memory=stream(STREAMS, 20, 1.0, times=1, gap_us=100_000),
)
WARM_UP = (Load(4, 0.3), Load(4, 0.1, tokens=10, gap_us=5000, is_stream=True))
"""Small: memory that it leaves free would hide what streams take."""
Runs = dict[str, dict[str, list[Run | None]]]
"""By load and by target, one a round; None where it was left out."""


# -- running ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(cores: Cores, only: Sequence[str]) -> Iterator[tuple[list[Target], dict[str, str]]]:
    """All gateways that can be measured here, with the engine first; and why the others cannot."""
    with contextlib.ExitStack() as stack:
        engine = Engine(cores)
        stack.callback(engine.close)
        engine.start()
        targets: list[Target] = [engine]
        skipped: dict[str, str] = {}
        for kind in KINDS:
            if only and kind.name not in only:
                continue
            target = kind(cores, engine.port)
            stack.callback(target.close)
            try:
                target.start()
            except Skip as words:
                skipped[kind.name] = str(words)
                say(f"{kind.name} is left out: {words}")
            else:
                targets.append(target)
        yield targets, skipped


def warm_up(targets: Sequence[Target]) -> None:
    for target in targets:
        for load in WARM_UP:
            run = target.run(load)
            if run.failed:
                raise SystemExit(f"{target.name} fails already when it is warmed up: {run.load}")


def measured(targets: Sequence[Target], loads: Loads) -> Runs:
    """Memory first, while no gateway has grown yet; then round after round."""
    runs: Runs = defaultdict(lambda: defaultdict(list))
    for target in targets[1:]:
        say(f"memory: {target.name}")
        runs["memory"][target.name].append(target.run(loads.memory, samples_memory=True))
    for number in range(loads.rounds):
        for name, load in loads.by_name().items():
            first = number % len(targets)
            for target in [*targets[first:], *targets[:first]]:
                is_wanted = name not in ("s1000", "big") or not target.is_behind_pilot or number < loads.pilot_rounds
                if is_wanted:
                    say(f"round {number + 1} of {loads.rounds}, {name}: {target.name}")
                runs[name][target.name].append(target.run(load) if is_wanted else None)
    return runs


def say(words: str) -> None:
    """What is being done, for those who wait."""
    print(f"  {time.monotonic() - BEGUN:4.0f} s  {words}", file=sys.stderr, flush=True)


# -- figures ---------------------------------------------------------------------------------------------------------


def _kib_per_stream(run: Run) -> float | None:
    """None where not all streams were open at once."""
    return (run.rss_peak - run.rss_before) / 1024 / STREAMS if run.load["most_open"] == STREAMS else None


OF_RUNS: tuple[tuple[str, str, Callable[[Run], float | None]], ...] = (
    ("chat_cpu_ms", "chat", Run.cpu_ms_per_request),
    ("chat_pilot_ms", "chat", lambda run: run.cpu_ms_per_request("pilot")),
    ("chat_rps", "chat", lambda run: run.requests_per_s),
    ("s256_cpu_s", "s256", Run.cpu_s_per_million_tokens),
    ("s256_pilot_s", "s256", lambda run: run.cpu_s_per_million_tokens("pilot")),
    ("chat_controller_ms", "chat", lambda run: run.cpu_ms_per_request("controller")),
    ("s256_controller_s", "s256", lambda run: run.cpu_s_per_million_tokens("controller")),
    ("s256_tps", "s256", lambda run: run.tokens_per_s),
    ("s256_delay_p99_ms", "s256", lambda run: run.ms("delay", "p99")),
    ("s1000_cpu_s", "s1000", Run.cpu_s_per_million_tokens),
    ("s1000_tps", "s1000", lambda run: run.tokens_per_s),
    ("big_cpu_ms", "big", Run.cpu_ms_per_request),
    ("big_rps", "big", lambda run: run.requests_per_s),
    ("first_token_p50_ms", "ttft", lambda run: run.ms("first_token", "p50")),
    ("first_token_p99_ms", "ttft", lambda run: run.ms("first_token", "p99")),
    ("stream_kib", "memory", _kib_per_stream),
    ("rss_mib", "memory", lambda run: run.rss_before / 2**20),
)
"""A figure, the load that it is of, and how one run yields it."""


def figures_of(runs: Runs) -> Figures:
    """Everything that the tables show, by figure, target and round."""
    found: Figures = {
        figure: {
            target: [None if run is None else value(run) for run in of_rounds]
            for target, of_rounds in runs[load].items()
            if target != Engine.name or "_cpu_" not in figure  # what the engine spends is not a gateway's cost
        }
        for figure, load, value in OF_RUNS
    }
    found["s1000_share"] = _beside_direct(found["s1000_tps"], operator.truediv)
    found["ttft_p50_ms"] = _beside_direct(found["first_token_p50_ms"], operator.sub)
    found["ttft_p99_ms"] = _beside_direct(found["first_token_p99_ms"], operator.sub)
    found["s1000_failed"] = {target: _failed(of_rounds) for target, of_rounds in runs["s1000"].items()}
    found["failed"] = {
        target: _failed([run for by_target in runs.values() for run in by_target.get(target, [])])
        for target in runs["chat"]
    }
    return found


def _failed(of_rounds: Sequence[Run | None]) -> list[float | None]:
    """All that failed, as one value: nothing where nothing was tried."""
    tried = [run.failed for run in of_rounds if run is not None]
    return [sum(tried)] if tried else []


def _beside_direct(values: dict[str, Values], compare: Callable[[float, float], float]) -> dict[str, Values]:
    """Round by round against what comes without a gateway in between."""
    direct = values[Engine.name]
    return {
        target: [None if a is None or not b else compare(a, b) for a, b in zip(ours, direct, strict=True)]
        for target, ours in values.items()
        if target != Engine.name
    }


# -- what is left of it ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """One run, as it is printed and kept. ``noise``: shares of the gateway's core that others took, by load."""

    made_at: str
    is_quick: bool
    rounds: int
    took_s: float
    machine: dict[str, str]
    versions: dict[str, str]
    skipped: dict[str, str]
    speed_us: tuple[float, float]
    noise: dict[str, dict[str, float]]
    figures: Figures
    lag: lag.Found | None

    def text(self) -> str:
        """Markdown: the verdicts, all figures, what they were measured on."""
        names = [Engine.name, *(kind.name for kind in KINDS)]
        targets = [name for name in names if name in self.figures["failed"]]
        parts = [
            f"# Gateways side by side, {self.made_at[:10]}",
            "A quick run: shorter streams, one round. It shows where things are, not figures to quote."
            if self.is_quick
            else "Ratios are medians of the rounds' ratios, with the lowest and highest round.",
            verdict_table(self.judged()),
            f"All that was measured, medians of {self.rounds} rounds; times to first token are what a gateway adds:",
            whole_table(self.figures, targets),
            *([f"Loop lag of the gateway:\n\n{self._lag_text()}"] if self.lag else []),
            self._surroundings(),
        ]
        return "\n\n".join(parts) + "\n"

    def judged(self) -> list[Judged]:
        return judge(self.figures)

    def data(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self) | {"verdicts": [_verdict(one) for one in self.judged()]}

    def _lag_text(self) -> str:
        assert self.lag is not None
        return (
            f"- without a controller: {self.lag.quiet}\n"
            f"- while {lag.REPLICAS:,} replicas start, {self.lag.bring_up_s:.0f} s: {self.lag.bring_up}\n"
            f"- while they run, {self.lag.plans} plans, the longest {self.lag.plan_ms:.1f} ms: {self.lag.planning}"
        )

    def _surroundings(self) -> str:
        """Machine, versions, and how quiet it was."""
        machine = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        versions = ", ".join(f"{name} {value}" for name, value in self.versions.items() if value)
        lines = [f"Machine: {machine}. Versions: {versions}. {self.took_s:.0f} s in all."]
        lines += [f"Left out: {LABELS.get(name, name)}, {words}." for name, words in self.skipped.items()]
        return "\n".join([*lines, *self._noise_lines()])

    def _noise_lines(self) -> list[str]:
        shares = [f"{load} {percent(noise['median'])} ({percent(noise['most'])})" for load, noise in self.noise.items()]
        stolen = max(noise["stolen"] for noise in self.noise.values())
        before, after = self.speed_us
        lines = [
            f"Noise: what others than the gateway took of its core, median (most): {', '.join(shares)}; the host took "
            f"{percent(stolen)} at most. `sum(range(1000))` took {before:.1f} us before and {after:.1f} us after."
        ]
        if any(noise["median"] > NOISY_SHARE for noise in self.noise.values()):
            lines.append(
                "The machine had other work: times and throughput say little then, ratios of CPU a little more."
            )
        return lines


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _verdict(one: Judged) -> dict[str, Any]:
    limits = {"bar": one.row.bar, "aim": one.row.aim}
    return {
        "figure": one.row.figure,
        "variant": one.variant,
        "value": one.value,
        "unit": one.row.unit,
        "ratios": one.ratios,
        **{name: limit and str(limit) for name, limit in limits.items()},
        "is_bar_met": one.is_bar_met,
        "is_aim_met": one.is_aim_met,
    }


def noise_of(runs: Runs) -> dict[str, dict[str, float]]:
    """By load: what others took of the gateway's core, as shares of the time."""
    found = {}
    for load, by_target in runs.items():
        ours = [run for target, of_rounds in by_target.items() if target != Engine.name for run in of_rounds if run]
        if ours:  # a load may be left out for all
            others, stolen = [run.others_share for run in ours], max(run.stolen_share for run in ours)
            found[load] = {"median": statistics.median(others), "most": max(others), "stolen": stolen}
    return found


def measure_all(cores: Cores, loads: Loads, only: Sequence[str], has_lag: bool) -> Report:
    made_at, speed = datetime.now(UTC).isoformat(), speed_us()
    with started(cores, only) as (targets, skipped):
        if len(targets) < 2:
            raise SystemExit("No gateway can be measured here.")
        warm_up(targets)
        runs = measured(targets, loads)
        versions = dict(target.version() for target in targets)
    figures = figures_of(runs)
    found_lag = None
    if has_lag:
        say("loop lag")
        try:
            found_lag = lag.measure(cores, 30.0)
        except AssertionError as words:  # what else was measured is worth keeping
            skipped["loop lag"] = str(words)
            say(f"loop lag is left out: {words}")
        else:
            figures["lag_p99_ms"] = {"gateway": [1e3 * found_lag.planning.p99_s]}
    return Report(
        made_at=made_at,
        is_quick=loads is QUICK,
        rounds=loads.rounds,
        took_s=time.monotonic() - BEGUN,
        machine=environment(),
        versions=versions,
        skipped=skipped,
        speed_us=(speed, speed_us()),
        noise=noise_of(runs),
        figures=figures,
        lag=found_lag,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="FIRST, nginx and vllm-router side by side.")
    parser.add_argument("--quick", action="store_true", help="about a minute: one round, shorter streams, no loop lag")
    parser.add_argument("--rounds", type=int, help="3; of a quick run 1")
    parser.add_argument("--only", default="", help=f"of {','.join(kind.name for kind in KINDS)}; the engine always")
    parser.add_argument("--no-lag", action="store_true", help="without the loop lag, which takes 80 s")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    cores = two_cores()
    os.sched_setaffinity(0, {cores.rest})
    loads = QUICK if options.quick else FULL
    if options.rounds:
        loads = Loads(**{**vars(loads), "rounds": options.rounds})
    only = [name for name in options.only.split(",") if name]
    if unknown := set(only) - {kind.name for kind in KINDS}:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    report = measure_all(cores, loads, only, has_lag=not (options.quick or options.no_lag))
    print(report.text())
    is_whole = not (options.quick or only or options.no_lag)
    folder = RESULTS if is_whole else BIN / "results"
    path = keep(folder, "gateways", report.made_at, report.data(), report.text())
    print(f"Kept in {path.relative_to(HERE.parent)} and the .json beside it.")


if __name__ == "__main__":
    main()
