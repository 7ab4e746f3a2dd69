"""What limits cost on this machine: CPU time of a request with every limit there is, and what users take of memory. The
bars are for a Python that is built with optimisation, on an idle machine; the first line tells how far this is from it.

python bench/limits.py [--keep]  # prints a table; needs make install. --keep: dated, in results/
"""

from __future__ import annotations

import argparse
import itertools
import json
import tracemalloc
from collections.abc import Callable, Mapping
from functools import partial

import msgspec

from decisions import cpu_s
from figures import keep_reported, report
from firstkit.accounting.estimate import Estimate, estimate
from firstkit.accounting.limits import Limits
from firstkit.auth.permissions import Identity
from firstkit.config import Limits as AllLimits
from firstkit.config import ModelLimits

USERS = 10_000
PROJECTS = 500
PER_S = 1000.0
"""Requests, of all users together."""
AMPLE = 10_000_000
ESTIMATE = Estimate(prompt=40, most_prompt=400, completion=500, given=True)
SMALL = {"model": "m", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 500}
LONG = {"model": "m", "messages": [{"role": "user", "content": "some words " * 20_000}]}


def everything() -> Limits:
    """All that can be limited, so high that nobody is refused."""
    of_all = AllLimits.model_validate(dict.fromkeys(AllLimits.model_fields, AMPLE))
    of_model = ModelLimits.model_validate(dict.fromkeys(ModelLimits.model_fields, AMPLE))
    return Limits(of_all, {"m": of_model})


def users() -> list[Identity]:
    scopes = frozenset({"inference"})
    return [
        Identity(f"user-{i:032}", f"user {i}", f"project-{i % PROJECTS:032}", f"key-{i:08}", scopes)
        for i in range(USERS)
    ]


def requests(limits: Limits) -> Callable[[], None]:
    """Serves a request of the next user: from its admission to its end."""
    turns = itertools.cycle(users())
    numbers = itertools.count()

    def serve() -> None:
        at = next(numbers) / PER_S
        stay = limits.enter(next(turns), at)
        if stay is not None:
            stay.charge("m", ESTIMATE, at)
            stay.lines(at)
            stay.leave(90, at)

    return serve


def limiting() -> None:
    serve = requests(everything())
    report(f"all limits, {USERS:,} users", 1e6 * cpu_s(serve, 2 * USERS), "us", 20)
    by_user = AllLimits(requests_per_minute_per_user=AMPLE, concurrency_per_user=AMPLE)
    report("two limits a user", 1e6 * cpu_s(requests(Limits(by_user)), 2 * USERS), "us", 8)
    report("no limit", 1e6 * cpu_s(requests(Limits()), 2 * USERS), "us", 1)


def remembering() -> None:
    """What is in memory of users who came once, and have not all free again yet."""
    serve = requests(Limits(AllLimits(requests_per_minute_per_user=2)))
    tracemalloc.start()
    for _ in range(USERS):
        serve()
    report("memory of a user", tracemalloc.get_traced_memory()[0] / USERS, "B", 500)
    tracemalloc.stop()


def estimating() -> None:
    def of(request: Mapping[str, object], most: int | None) -> float:
        raw = json.dumps(request).encode()
        body, size_bytes = msgspec.json.decode(raw, type=dict[str, msgspec.Raw]), len(raw)
        work = partial(estimate, "chat/completions", body, size_bytes, most, 1, default=8192, context=32_768)
        return 1e6 * cpu_s(work, 2000)

    report("estimate of a small request", of(SMALL, 500), "us", 5)
    report("estimate of one of 220 kB", of(LONG, None), "us", 100)


def main() -> None:
    parser = argparse.ArgumentParser(description="What limits and estimates cost.")
    parser.add_argument("--keep", action="store_true", help="keep the table, dated, in results/")
    options = parser.parse_args()
    report("this machine: sum(range(1000))", 1e6 * cpu_s(lambda: sum(range(1000)), 500), "us", 14)
    limiting()
    remembering()
    estimating()
    if options.keep:
        print(f"Kept in results/{keep_reported('limits').name}")


if __name__ == "__main__":
    main()
