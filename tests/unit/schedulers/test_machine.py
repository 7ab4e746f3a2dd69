import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.errors import SchedulerRefused
from firstkit.schedulers.machine import GIB, allocate, check_fits, free, physical_memory_bytes, read_machine
from firstkit.schedulers.records import Machine
from firstkit.schedulers.scheduler import Resources

MACHINE = Machine(cpus=(0, 1, 2, 5), gpus=("0", "GPU-b"), memory_bytes=1000)
ASKS = st.builds(
    Resources,
    cpus_per_node=st.integers(1, 5),
    gpus_per_node=st.integers(0, 3),
    memory_bytes=st.integers(0, 1200),
    exclusive=st.booleans(),
)


@given(st.lists(st.tuples(ASKS, st.booleans()), max_size=12))
def test_running_jobs_never_share_anything(history: list[tuple[Resources, bool]]) -> None:
    taken: list[Machine] = []
    for needs, ends_one in history:
        part = allocate(needs, MACHINE, taken)
        if part is not None:
            taken.append(part)
            assert len(part.cpus) >= needs.cpus_per_node
            assert len(part.gpus) >= needs.gpus_per_node
            assert part.memory_bytes >= needs.memory_bytes
        cpus = [cpu for other in taken for cpu in other.cpus]
        gpus = [gpu for other in taken for gpu in other.gpus]
        assert sorted(cpus) == sorted(set(cpus) & set(MACHINE.cpus))
        assert sorted(gpus) == sorted(set(gpus) & set(MACHINE.gpus))
        assert sum(other.memory_bytes for other in taken) <= MACHINE.memory_bytes
        if ends_one and taken:
            taken.pop(0)


@given(ASKS)
def test_what_fits_at_all_starts_on_an_idle_machine(needs: Resources) -> None:
    try:
        check_fits(needs, MACHINE)
    except SchedulerRefused:
        assert allocate(needs, MACHINE, []) is None
    else:
        assert allocate(needs, MACHINE, []) is not None


def test_exclusive_takes_all_and_waits_for_all() -> None:
    exclusive = Resources(exclusive=True)
    assert allocate(exclusive, MACHINE, []) == MACHINE
    assert allocate(exclusive, MACHINE, [Machine((0,), (), 0)]) is None
    assert allocate(Resources(), MACHINE, [MACHINE]) is None


def test_free_is_never_negative() -> None:
    assert free(MACHINE, [Machine((0, 9), ("0",), 5000)]) == Machine((1, 2, 5), ("GPU-b",), 0)


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        (Resources(nodes=2), "2 nodes; this machine has 1"),
        (Resources(cpus_per_node=5), "5 cores; this machine has 4"),
        (Resources(gpus_per_node=3), "3 GPUs; this machine has 2"),
        (Resources(memory_bytes=1001), "1001 bytes of memory; this machine has 1000"),
    ],
)
def test_what_never_fits_is_refused_in_words(needs: Resources, words: str) -> None:
    with pytest.raises(SchedulerRefused, match=words):
        check_fits(needs, MACHINE)


def test_machine_as_it_is_and_as_it_is_limited() -> None:
    cores = tuple(sorted(os.sched_getaffinity(0)))
    assert read_machine({}, {}) == Machine(cores, (), physical_memory_bytes())
    limited = read_machine({"cpus": 1, "memory_gib": 0.5, "gpus": 2}, {"CUDA_VISIBLE_DEVICES": "3, GPU-x,7"})
    assert limited == Machine(cores[:1], ("3", "GPU-x"), GIB // 2)
    assert read_machine({"gpus": 2}, {}).gpus == ("0", "1")


def test_more_than_there_is_cannot_be_configured() -> None:
    with pytest.raises(SchedulerRefused, match=r"scheduler\.cpus: 100000 are configured"):
        read_machine({"cpus": 100000}, {})
    with pytest.raises(SchedulerRefused, match=r"scheduler\.gpus: 2 are configured, but CUDA_VISIBLE_DEVICES names 1"):
        read_machine({"gpus": 2}, {"CUDA_VISIBLE_DEVICES": "4"})
