"""Vnodes as hosts. The recordings are those of ``pbs/``."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.errors import ParseError
from firstkit.schedulers.pbs_nodes import (
    Vnode,
    can_hold,
    can_hold_now,
    capacity_of,
    for_jobs,
    hosts_of,
    parse_size,
    parse_vnodes,
)
from firstkit.schedulers.scheduler import Capacity, Resources
from unit.schedulers.pbs_recorded import case

GIB = 1024**3


def recorded(name: str) -> list[Vnode]:
    return parse_vnodes(case(name).output)


def vnode(name: str = "n1", state: str = "free", jobs: Any = (), used: Any = (), **has: Any) -> dict[str, Any]:
    has = {"host": name, "ncpus": 8, "mem": "32gb", "ngpus": 4, **has}
    return {"state": state, "jobs": list(jobs), "resources_available": has, "resources_assigned": dict(used)}


def vnodes(*values: dict[str, Any], **more: Any) -> list[Vnode]:
    return parse_vnodes(json.dumps({"nodes": {f"v{i}": {**value, **more} for i, value in enumerate(values)}}))


def test_the_recorded_cluster_when_nothing_runs() -> None:
    assert capacity_of(recorded("nodes/pbsnodes_av_json_free")) == Capacity(
        nodes=2, cpus=40, gpus=12, memory_bytes=160 * GIB,
        free_nodes=2, free_cpus=40, free_gpus=12, free_memory_bytes=160 * GIB,
        least_cpus=8, least_gpus=4, least_memory_bytes=32 * GIB,
    )  # fmt: skip


def test_the_recorded_cluster_with_all_gpus_of_one_host_in_use() -> None:
    """The other host has free GPUs, but all of its cores are in use, so that nothing can start there."""
    capacity = capacity_of(recorded("nodes/pbsnodes_av_json_all_gpus_used"))
    assert (capacity.nodes, capacity.cpus, capacity.gpus) == (2, 40, 12)
    assert (capacity.free_nodes, capacity.free_cpus, capacity.free_gpus) == (0, 28, 0)


@pytest.mark.parametrize("name", ["nodes/pbsnodes_av_json_offline", "nodes/pbsnodes_av_json_offline_v23"])
def test_a_recorded_host_that_is_offline_is_not_there(name: str) -> None:
    found = recorded(name)
    assert {one.name for one in found if not one.is_in_service} == {"hpc-n1", "hpc-n1[0]", "hpc-n1[1]"}
    capacity = capacity_of(found)
    assert (capacity.nodes, capacity.cpus, capacity.gpus) == (1, 8, 4)


@pytest.mark.parametrize("name", ["nodelost/pbsnodes_av_json_down", "nodelost/pbsnodes_av_json_down_v23"])
def test_a_recorded_host_that_is_down_is_not_there(name: str) -> None:
    found = recorded(name)
    down = {one.host for one in found if not one.is_in_service}
    assert down == {"hpc-n1"}
    assert capacity_of(found).nodes == 1


def test_a_name_that_pbs_does_not_know_is_no_node() -> None:
    assert recorded("nodes/pbsnodes_unknown_v23") == []


@pytest.mark.parametrize(
    ("state", "in_service", "takes_jobs"),
    [
        ("free", True, True),
        ("job-busy", True, False),
        ("job-exclusive", True, False),
        ("resv-exclusive", True, False),
        ("offline", False, False),
        ("offline,job-exclusive", False, False),
        ("down", False, False),
        ("state-unknown,down", False, False),
        ("Stale", False, False),
        ("levitating", False, False),
    ],
)
def test_states_of_vnodes(state: str, in_service: bool, takes_jobs: bool) -> None:
    [one] = vnodes(vnode(state=state))
    assert (one.is_in_service, one.takes_jobs) == (in_service, takes_jobs)
    assert one.free_cpus == (8 if takes_jobs else 0)


def test_what_is_used_is_not_free() -> None:
    [one] = vnodes(vnode(jobs=["7.s"], used={"ncpus": 3, "ngpus": 9, "mem": "1048576kb"}))
    assert (one.free_cpus, one.free_gpus, one.free_memory_bytes, one.is_free) == (5, 0, 31 * GIB, False)


def test_gpus_may_have_another_name() -> None:
    text = json.dumps({"nodes": {"n1": vnode(naccelerators=6)}})
    assert parse_vnodes(text, "naccelerators")[0].gpus == 6
    assert parse_vnodes(text, "nosuch")[0].gpus == 0


def test_hosts_are_the_sum_of_their_vnodes() -> None:
    parts = [vnode("n1", ncpus=0, ngpus=0, mem="0b"), vnode("n1"), vnode("n1", jobs=["7.s"]), vnode("n2")]
    one, other = hosts_of(vnodes(*parts))
    assert (one.cpus, one.gpus, one.is_free) == (16, 8, False)
    assert (other.cpus, other.gpus, other.is_free) == (8, 4, True)


@pytest.mark.parametrize(
    ("constraint", "names"),
    [
        (None, ["v0", "v1"]),
        ("kind=a100", ["v0"]),
        ("kind=A100:tier0=x2", ["v0"]),
        ("tier0=x1", ["v0", "v1"]),
        ("kind=a100:tier0=x3", []),
        ("ncpus=9", ["v1"]),
        ("vnode=v1", ["v1"]),
        ("host=n1", ["v0"]),
        ("big=true", ["v1"]),
        ("nosuch=1", []),
    ],
)
def test_a_constraint_leaves_the_vnodes_that_have_it(constraint: str | None, names: list[str]) -> None:
    found = vnodes(vnode("n1", kind="a100", tier0="x1,x2"), vnode("n2", kind="h100", tier0="x1", ncpus=16, big="True"))
    assert [one.name for one in for_jobs(found, "gpu", constraint)] == names


def test_a_vnode_may_be_of_one_queue() -> None:
    found = [*vnodes(vnode("n1"), queue="debug"), *vnodes(vnode("n2"))]
    assert [one.host for one in for_jobs(found, "gpu", None)] == ["n2"]
    assert [one.host for one in for_jobs(found, "debug", None)] == ["n1", "n2"]
    assert [one.host for one in for_jobs(found, None, None)] == ["n1", "n2"]


def test_what_fits_a_host() -> None:
    idle, [busy] = hosts_of(vnodes(vnode()))[0], hosts_of(vnodes(vnode(jobs=["7.s"], used={"ngpus": 2})))
    for needs, fits, fits_busy in (
        (Resources(cpus_per_node=8, gpus_per_node=4, memory_bytes=32 * GIB), True, False),
        (Resources(gpus_per_node=2), True, True),
        (Resources(exclusive=True), True, False),
        (Resources(cpus_per_node=9), False, False),
        (Resources(gpus_per_node=5), False, False),
        (Resources(memory_bytes=33 * GIB), False, False),
    ):
        assert (can_hold(idle, needs), can_hold_now(idle, needs)) == (fits, fits)
        assert (can_hold(busy, needs), can_hold_now(busy, needs)) == (fits, fits_busy)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("64gb", 64 * GIB), ("131072kb", 128 * 1024**2), ("0b", 0), ("512", 512), ("2KW", 16384), ("", 0), ("-1gb", 0)],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["state", "jobs", "queue", "resources_available", "resources_assigned", "comment"])


@given(JSON | st.dictionaries(st.text(max_size=4), st.dictionaries(KEYS, JSON)).map(lambda nodes: {"nodes": nodes}))
def test_any_nodes_raise_nothing_but_parse_error(document: Any) -> None:
    with suppress(ParseError):
        found = for_jobs(parse_vnodes(json.dumps(document)), "q", "a=1")
        assert capacity_of(found).nodes >= 0
