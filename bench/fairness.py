"""What fair shares cost a request on this machine, in CPU time: where nobody waits, and with many in line.

python bench/fairness.py [--keep]  # prints a table; needs make install. --keep: dated, in results/
"""

from __future__ import annotations

import argparse
import gc
import itertools
import time
from collections.abc import Callable

from figures import keep_reported, report
from firstkit.routing.admission import Claim, Line

ROUNDS = 30
USERS = 10_000
AT_ONCE = 250
EXPECTED, USED = 200, 150


def best_us(work: Callable[[], object], times: int) -> float:
    """CPU of one ``work()``, the best of ROUNDS, in microseconds."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(times):
            work()
        best = min(best, (time.process_time() - started) / times)
    return 1e6 * best


def claims(projects: int, users: int) -> list[Claim]:
    return [Claim(f"project {i % projects}", f"user {i}", EXPECTED) for i in range(users)]


def line_of(waiting: list[Claim]) -> Line[int]:
    """A line in which each of these waits once."""
    line: Line[int] = Line(2 * len(waiting))
    for ticket, claim in enumerate(waiting):
        line.join(ticket, None, claim)
    return line


def alone() -> None:
    """A request that is served at once, among many users who were."""
    line: Line[int] = Line(1)
    everybody = itertools.cycle(claims(100, USERS))

    def one() -> None:
        claim = next(everybody)
        line.begin(claim)
        line.used(claim, USED, 1.0)

    for _ in range(USERS):
        one()
    report("a request where nobody waits", best_us(one, 2000), "us", 3)


def in_line(projects: int) -> None:
    """A request that joins, is found as the next, is served and has ended, while all others go on waiting."""
    waiting = claims(projects, USERS)
    line = line_of(waiting)
    numbers = itertools.count(USERS)

    def some() -> None:
        served = []
        for _ in range(AT_ONCE):
            [ticket] = line.heads()
            line.serve(ticket)
            served.append(waiting[ticket % USERS])
        for claim in served:
            line.used(claim, USED, 1.0)
        for ticket, claim in zip(numbers, served, strict=False):
            waiting[ticket % USERS] = claim
            line.join(ticket, None, claim)

    report(f"{USERS:,} users wait, of {projects:,} projects", best_us(some, 1) / AT_ONCE, "us", 20)
    assert len(line) == USERS


def positions(projects: int, users: int, each: int) -> None:
    """The position of everybody in a line that changes as fast as they ask, on an average."""
    waiting = claims(projects, users) * each
    line = line_of(waiting)
    numbers = itertools.count(len(waiting))

    def ask() -> None:
        for ticket in (*line.of_user("user 0"), *line.heads()):
            line.position(ticket)
        [first] = line.heads()
        line.serve(first)
        line.join(next(numbers), None, waiting[first % len(waiting)])

    name = f"position among {len(waiting):,}, {projects:,} projects, {users:,} users"
    report(name, best_us(ask, 200) / 1000 / (each + 1), "ms", 1)


def machine() -> None:
    report("this machine: sum(range(1000))", best_us(lambda: sum(range(1000)), 200), "us", 14)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--keep", action="store_true")
    keep = arguments.parse_args().keep
    gc.freeze()
    gc.set_threshold(20_000, 50, 20)  # as in the gateway
    machine()
    alone()
    for projects in (1, 100, 5000):
        in_line(projects)
    positions(1, 1000, 1)
    positions(100, 1000, 1)
    positions(10, 50, 20)
    machine()
    if keep:
        print(keep_reported("fairness"))


if __name__ == "__main__":
    main()
