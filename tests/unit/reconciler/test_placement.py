from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.reconciler.placement import Room, choose_room, replicas_per_job
from firstkit.schedulers.scheduler import Capacity, Resources

NEEDS = Resources(cpus_per_node=2, gpus_per_node=1, memory_bytes=10)
ROOM = Room("job-a", cpus=2, gpus=1, memory_bytes=10, job=Resources())


def test_an_exact_fit_fits_and_leaves_nothing() -> None:
    assert choose_room([ROOM], NEEDS) == ROOM
    assert not ROOM.without(NEEDS).fits(NEEDS)


@pytest.mark.parametrize("lacking", [{"cpus": 1}, {"gpus": 0}, {"memory_bytes": 9}])
def test_what_lacks_anything_does_not_fit(lacking: dict[str, int]) -> None:
    assert choose_room([replace(ROOM, **lacking)], NEEDS) is None


def test_the_tightest_room_is_taken() -> None:
    wide = replace(ROOM, job_id="job-0", gpus=4)
    assert choose_room([wide, ROOM], NEEDS) is ROOM


def test_nobody_is_charged_for_somebody_else() -> None:
    assert choose_room([ROOM], replace(NEEDS, account="other")) is None
    assert choose_room([ROOM], replace(NEEDS, qos="high")) is None


def test_a_job_that_ends_soon_is_no_place() -> None:
    ending = replace(ROOM, left_s=100.0)
    assert choose_room([ending], replace(NEEDS, walltime_s=200)) is ending
    assert choose_room([ending], replace(NEEDS, walltime_s=201)) is None
    assert choose_room([ending], NEEDS) is None


def test_who_wants_a_node_alone_joins_only_such_jobs() -> None:
    alone = replace(NEEDS, exclusive=True)
    assert choose_room([ROOM], alone) is None
    shared = replace(ROOM, job=Resources(exclusive=True))
    assert choose_room([shared], alone) is shared
    assert choose_room([shared], NEEDS) is shared


def test_replicas_per_job() -> None:
    alone = replace(NEEDS, exclusive=True)
    cluster = Capacity(4, 32, 16, 4000, 4, 32, 16, 4000)
    assert replicas_per_job(NEEDS, cluster) == 1
    assert replicas_per_job(alone, cluster) == 4
    assert replicas_per_job(replace(alone, gpus_per_node=0), cluster) == 4
    assert replicas_per_job(replace(alone, cpus_per_node=99), cluster) == 1
    assert replicas_per_job(alone, None) == 0


SIZES = st.integers(0, 6)
ROOMS = st.builds(Room, st.sampled_from(["job-a", "job-b", "job-c"]), SIZES, SIZES, SIZES, st.just(Resources()))


@given(st.lists(ROOMS, max_size=5), st.lists(st.builds(Resources, st.just(1), SIZES, SIZES, SIZES), max_size=6))
def test_no_room_is_ever_overfilled(rooms: list[Room], all_needs: list[Resources]) -> None:
    for needs in all_needs:
        room = choose_room(rooms, needs)
        assert (room is None) == (not any(other.fits(needs) for other in rooms))
        if room is not None:
            left = room.without(needs)
            assert min(left.cpus, left.gpus, left.memory_bytes) >= 0
            rooms[rooms.index(room)] = left
