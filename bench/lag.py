"""How late the gateway's loop runs its timers while the controller plans 1,000 replicas, under 64 streams.

python bench/lag.py [--seconds 40]           # prints the figure; needs make install

The gateway is the real one, on a core of its own; 64 streams run through it to an external service. The controller is
the real loop on a played cluster (played_controller.py): 100 deployments with 10 hot replicas each, every replica in a
job of its own, so that 1,000 pilots hold a link to the gateway. The demand that the gateway tells wakes the controller
once a second, and each time it reads, plans and tells its forecasts. The lag is the gateway's own histogram
``first_loop_lag_seconds``, read before and after: one observation every 0.1 s.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

from figures import report
from measure import HERE, MODEL, Cores, Load, on_core, two_cores, under_load
from played_controller import PLANS
from targets import Engine

sys.path.insert(0, str(HERE.parent / "tests"))

from lab import Lab, wait_for

DEPLOYMENTS, HOT = 100, 10
REPLICAS = DEPLOYMENTS * HOT
LIMIT_S = 0.005
Histogram = dict[float, int]
"""Upper bound in seconds -> observations up to it, as Prometheus counts them."""


@dataclass(frozen=True)
class Lag:
    """``p99_s``: upper bound of the bucket that the 99th percentile is in. ``share``: of observations up to 5 ms."""

    observations: int
    p99_s: float
    share: float

    @classmethod
    def between(cls, before: Histogram, after: Histogram) -> Lag:
        new = {bound: count - before.get(bound, 0) for bound, count in sorted(after.items())}
        total = new[inf]
        p99_s = next(bound for bound, count in new.items() if count >= 0.99 * total)
        return cls(total, p99_s, new[LIMIT_S] / max(1, total))

    def __str__(self) -> str:
        bound = "above all buckets" if self.p99_s == inf else f"at most {1e3 * self.p99_s:g} ms"
        return f"p99 {bound}; {100 * self.share:.1f} % of {self.observations} observations within 5 ms"


@dataclass(frozen=True)
class Found:
    """``quiet``: without a controller. ``bring_up``: while it starts 1,000 replicas. ``planning``: while they run."""

    quiet: Lag
    bring_up: Lag
    bring_up_s: float
    planning: Lag
    plans: int
    plan_ms: float
    """The longest of the plans, on the other core."""


def measure(cores: Cores, seconds: float) -> Found:
    """All three, ``seconds`` of planning; the process must be on ``cores.rest``."""
    with contextlib.ExitStack() as stack:
        engine = Engine(cores)
        stack.callback(engine.close)
        engine.start()
        lab = Lab.make(_models(engine.url))
        stack.callback(lab.close)
        with on_core(cores.gateway):
            lab.start_gateway()
        url = (lab.base_url, lab.key)
        with _lag(lab, url, seconds / 4) as quiet:
            pass
        started = time.monotonic()
        with _lag(lab, url, 0.0) as bring_up:
            _start_controller(lab)
            wait_for(f"{REPLICAS} replicas are ready", lambda: _is_up(lab), 300)
        bring_up_s = time.monotonic() - started
        begun = len(_plans(lab))
        with _lag(lab, url, seconds) as planning:
            pass
        plans = [plan for plan in _plans(lab)[begun:] if plan["ready"] == REPLICAS]
        longest_ms = 1e3 * max((plan["took_s"] for plan in plans), default=0.0)
        return Found(quiet[0], bring_up[0], bring_up_s, planning[0], len(plans), longest_ms)


@contextlib.contextmanager
def _lag(lab: Lab, url: tuple[str, str], seconds: float) -> Iterator[list[Lag]]:
    """What the gateway's loop was late by during the block and ``seconds`` of streams."""
    found: list[Lag] = []
    before = _histogram(lab)
    yield found
    if seconds:
        with under_load(*url, Load(64, seconds, tokens=200, gap_us=20_000, is_stream=True, ramp_s=2.0)):
            time.sleep(seconds)
    after = _histogram(lab)
    found.append(Lag.between(before, after))


def _models(external_url: str) -> dict[str, Any]:
    external = {
        "cluster": "outside",
        "engine": {"kind": "external", "url": external_url},
        "scale": {"max_in_flight": 256},
    }
    played = {
        "cluster": "here",
        "engine": {"kind": "command", "argv": ["played", "--port", "{port}"]},
        "resources": {"cpus_per_node": 1, "memory_gib": 0.1},
        "scale": {"hot": HOT, "max": 2 * HOT},
    }
    models = {f"played-{i}": {"deployments": [played]} for i in range(DEPLOYMENTS)}
    return {MODEL: {"deployments": [external]}, **models}


def _start_controller(lab: Lab) -> None:
    words = [sys.executable, str(HERE / "played_controller.py"), "--config", str(lab.config_path)]
    with (lab.folder / "controller.log").open("wb") as log:
        lab.controller = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _plans(lab: Lab) -> list[dict[str, Any]]:
    path = lab.config.server.path(PLANS)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _is_up(lab: Lab) -> bool:
    assert lab.controller is not None
    assert lab.controller.poll() is None, lab.logs()
    plans = _plans(lab)
    return bool(plans) and plans[-1]["ready"] == REPLICAS and not plans[-1]["actions"]


def _histogram(lab: Lab) -> Histogram:
    status, body = lab.get("/metrics", authorization=f"Bearer {lab.key}")
    assert status == 200, body
    found = {}
    for line in body.decode().splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("first_loop_lag_seconds_bucket"):
            found[float(name.partition('le="')[2].partition('"')[0])] = int(float(value))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="The gateway's loop lag while 1,000 replicas are planned.")
    parser.add_argument("--seconds", type=float, default=40.0)
    options = parser.parse_args()
    cores = two_cores()
    os.sched_setaffinity(0, {cores.rest})
    found = measure(cores, options.seconds)
    print(f"  without a controller: {found.quiet}")
    print(f"  while {REPLICAS:,} replicas start, {found.bring_up_s:.0f} s: {found.bring_up}")
    print(f"  while they run, {found.plans} plans, the longest {found.plan_ms:.1f} ms: {found.planning}")
    report("loop lag of the gateway, p99", 1e3 * found.planning.p99_s, "ms", 1e3 * LIMIT_S)


if __name__ == "__main__":
    main()
