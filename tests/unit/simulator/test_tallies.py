"""What is held, used, and least."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from firstkit.schedulers.scheduler import Resources
from firstkit.simulator.tallies import Usage

WHOLE = Resources(cpus_per_node=8, gpus_per_node=1, memory_bytes=10, exclusive=True)


def usage() -> Usage:
    return Usage(cpus=64, gpus=8, memory_bytes=100)


def test_nine_small_replicas_need_two_nodes() -> None:
    found = usage()
    for _ in range(2):
        found.job(0.0, WHOLE, 1)
    for _ in range(9):
        found.replica(0.0, WHOLE, 1)
    found.look(10.0)
    assert (found.held_s, found.used_s, found.least_s, found.node_s) == (160.0, 90.0, 160.0, 20.0)


def test_replicas_that_need_no_node_for_themselves_fill_gaps() -> None:
    found = usage()
    found.job(0.0, WHOLE, 1)
    found.replica(0.0, WHOLE, 1)
    found.replica(0.0, replace(WHOLE, exclusive=False), 1)
    found.look(1.0)
    assert (found.held_s, found.least_s) == (8.0, 8.0)


def test_a_part_of_a_node_counts_as_that_part() -> None:
    found = usage()
    found.job(0.0, replace(WHOLE, exclusive=False, gpus_per_node=2), 1)
    found.look(4.0)
    assert (found.held_s, found.node_s) == (8.0, 1.0)


@given(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=30))
def test_no_packing_needs_less_than_the_least(sizes: list[int]) -> None:
    found, free = usage(), list[int]()
    for size in sizes:
        found.replica(0.0, replace(WHOLE, gpus_per_node=size, cpus_per_node=8 * size), 1)
        node = next((i for i, left in enumerate(free) if left >= size), None)
        if node is None:
            free.append(8 - size)
            found.job(0.0, WHOLE, 1)
        else:
            free[node] -= size
    found.look(1.0)
    assert found.used_s <= found.least_s <= found.held_s
