from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.reconciler.packing import Room, Rooms, new_job, waiting_room
from firstkit.schedulers.scheduler import Capacity, Resources

NEEDS = Resources(cpus_per_node=2, gpus_per_node=1, memory_bytes=10)
ALONE = replace(NEEDS, exclusive=True)
ROOM = Room("job-a", cpus=2, gpus=1, memory_bytes=10, job=Resources())
CLUSTER = Capacity(4, 32, 16, 4000, 4, 32, 16, 4000, least_cpus=8, least_gpus=4, least_memory_bytes=1000)


def choose(rooms: Sequence[Room], needs: Resources, longer_than_s: float = 0.0) -> Room | None:
    return Rooms(rooms).choose(needs, longer_than_s)


# -- rooms -------------------------------------------------------------------------------------------------------------


def test_an_exact_fit_fits_and_leaves_nothing() -> None:
    assert choose([ROOM], NEEDS) == ROOM
    assert not ROOM.without(NEEDS).fits(NEEDS)


@pytest.mark.parametrize("lacking", [{"cpus": 1}, {"gpus": 0}, {"memory_bytes": 9}])
def test_what_lacks_anything_does_not_fit(lacking: dict[str, int]) -> None:
    assert choose([replace(ROOM, **lacking)], NEEDS) is None


def test_the_tightest_room_is_taken() -> None:
    wide = replace(ROOM, job_id="job-0", gpus=4)
    assert choose([wide, ROOM], NEEDS) is ROOM


def test_a_job_that_runs_is_filled_before_one_that_waits() -> None:
    waits = replace(ROOM, job_id="job-0", is_waiting=True)
    wide = replace(ROOM, gpus=4)
    assert choose([waits, wide], NEEDS) is wide
    assert choose([waits], NEEDS) is waits


def test_a_room_shrinks_with_each_who_moves_in() -> None:
    rooms = Rooms([replace(ROOM, cpus=4, gpus=3, memory_bytes=30)])
    assert rooms.take(NEEDS) is not None
    assert rooms.take(NEEDS) is not None
    assert rooms.take(NEEDS) is None
    left = rooms.get("job-a")
    assert left is not None
    assert (left.cpus, left.gpus, left.memory_bytes) == (0, 1, 10)


def test_nobody_is_charged_for_somebody_else() -> None:
    assert choose([ROOM], replace(NEEDS, account="other")) is None
    assert choose([ROOM], replace(NEEDS, qos="high")) is None


def test_one_kind_of_node_is_not_another() -> None:
    assert choose([ROOM], replace(NEEDS, partition="gpu")) is None
    assert choose([ROOM], replace(NEEDS, constraint="a100")) is None


def test_a_job_that_ends_soon_is_no_place() -> None:
    ending = replace(ROOM, left_s=100.0)
    assert choose([ending], replace(NEEDS, walltime_s=200)) is ending
    assert choose([ending], replace(NEEDS, walltime_s=200), longer_than_s=100.0) is None
    assert choose([ending], replace(NEEDS, walltime_s=201)) is None
    assert choose([ending], NEEDS) is None


def test_where_nobody_said_how_long_a_job_shall_live_half_of_what_it_got_is_enough() -> None:
    day = replace(ROOM, left_s=12.0, usual_s=24.0)
    assert choose([day], NEEDS) is day
    assert choose([replace(day, left_s=11.0)], NEEDS) is None


def test_who_wants_a_node_alone_joins_only_such_jobs() -> None:
    assert choose([ROOM], ALONE) is None
    shared = replace(ROOM, job=Resources(exclusive=True))
    assert choose([shared], ALONE) is shared
    assert choose([shared], NEEDS) is shared


def test_a_replica_of_several_nodes_shares_with_nobody() -> None:
    two = replace(ROOM, job=Resources(nodes=2, exclusive=True))
    assert choose([two], NEEDS) is None
    assert choose([replace(ROOM, job=Resources(exclusive=True))], replace(ALONE, nodes=2)) is None


SIZES = st.integers(0, 6)
ROOMS = st.lists(
    st.builds(Room, st.sampled_from(["job-a", "job-b", "job-c", "job-d"]), SIZES, SIZES, SIZES, st.just(Resources())),
    max_size=4,
    unique_by=lambda room: room.job_id,
)


@given(ROOMS, st.lists(st.builds(Resources, st.just(1), SIZES, SIZES, SIZES), max_size=6))
def test_no_room_is_ever_overfilled_and_none_that_fits_is_missed(rooms: list[Room], all_needs: list[Resources]) -> None:
    ids, known = [room.job_id for room in rooms], Rooms(rooms)
    for needs in all_needs:
        before = [room for job_id in ids if (room := known.get(job_id))]
        taken = known.take(needs)
        assert (taken is None) == (not any(room.fits(needs) for room in before))
        for job_id in ids:
            left = known.get(job_id)
            assert left is not None
            assert min(left.cpus, left.gpus, left.memory_bytes) >= 0


# -- new jobs ----------------------------------------------------------------------------------------------------------


def test_a_job_with_a_node_alone_asks_for_what_every_node_has() -> None:
    room = new_job("new", ALONE, CLUSTER)
    assert room.job == replace(ALONE, cpus_per_node=8, gpus_per_node=4, memory_bytes=0)
    assert (room.cpus, room.gpus, room.memory_bytes) == (8, 4, 1000)


def test_who_needs_no_gpu_asks_for_none() -> None:
    assert new_job("new", replace(ALONE, gpus_per_node=0), CLUSTER).job.gpus_per_node == 0


def test_any_other_job_asks_for_what_its_replica_needs() -> None:
    for needs in (NEEDS, replace(ALONE, nodes=2)):
        room = new_job("new", needs, CLUSTER)
        assert room.job == needs
        assert not room.without(needs).fits(NEEDS)


def test_what_is_larger_than_a_node_is_asked_for_as_it_is() -> None:
    large = new_job("new", replace(ALONE, cpus_per_node=99, memory_bytes=1001), CLUSTER)
    assert (large.job.cpus_per_node, large.job.memory_bytes, large.memory_bytes) == (99, 1001, 1001)


@pytest.mark.parametrize("other", [{"partition": "cpu"}, {"constraint": "a100"}])
def test_of_nodes_of_another_kind_nothing_is_known(other: dict[str, str]) -> None:
    needs = replace(ALONE, **other)
    assert new_job("new", needs, CLUSTER).job == needs
    assert new_job("new", needs, replace(CLUSTER, **other)).job.gpus_per_node == 4


def test_while_nobody_has_said_how_large_nodes_are_each_asks_for_its_own() -> None:
    assert new_job("new", ALONE, None).job == ALONE
    assert new_job("new", ALONE, Capacity(4, 32, 16, 4000, 0, 0, 0, 0)).job == ALONE


def test_a_job_that_waits_has_the_room_that_it_asks_for_without_those_in_it() -> None:
    job = new_job("new", ALONE, CLUSTER).job
    room = waiting_room("job-a", job, CLUSTER, [ALONE, NEEDS])
    assert (room.cpus, room.gpus, room.memory_bytes, room.is_waiting) == (4, 2, 980, True)
    assert room.job == job
