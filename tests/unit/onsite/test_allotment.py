from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.onsite.allotment import (
    Allotment,
    DoesNotFit,
    Share,
    counted_job,
    gpu_environment,
    visible_gpus,
    whole_job,
)
from firstkit.schedulers.scheduler import Resources

JOB = Share(tuple(range(8)), ("GPU-a", "GPU-b", "2", "3"), 64)
NEEDS = st.builds(
    Resources,
    cpus_per_node=st.integers(0, 6),
    gpus_per_node=st.integers(0, 4),
    memory_bytes=st.integers(0, 50),
)
STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 5), NEEDS), max_size=40)


@given(STEPS)
def test_shares_never_overlap_and_nothing_is_lost(steps: list[tuple[bool, int, Resources]]) -> None:
    allotment, held = Allotment(JOB), dict[str, Share]()
    for gives_back, number, needs in steps:
        owner = f"rep-{number}"
        if gives_back:
            allotment.give_back(owner)
            held.pop(owner, None)
        elif owner not in held:
            before = allotment.free
            try:
                held[owner] = allotment.take(owner, needs)
            except DoesNotFit:
                assert allotment.free == before
                continue
            assert len(held[owner].cpus) == max(1, needs.cpus_per_node)
            assert len(held[owner].gpus) == needs.gpus_per_node
        check(allotment, held)


def check(allotment: Allotment, held: dict[str, Share]) -> None:
    shares = [*held.values(), allotment.free]
    assert sorted(cpu for share in shares for cpu in share.cpus) == list(JOB.cpus)
    assert sorted(gpu for share in shares for gpu in share.gpus) == sorted(JOB.gpus)
    assert sum(share.memory_bytes for share in shares) == JOB.memory_bytes
    assert allotment.free.memory_bytes >= 0


@pytest.mark.parametrize(
    ("needs", "sentence"),
    [
        (Resources(cpus_per_node=9), "needs 9 cores; 8 are free"),
        (Resources(gpus_per_node=5), "needs 5 GPUs; 4 are free"),
        (Resources(memory_bytes=65), "needs 65 bytes of memory; 64 are free"),
        (Resources(nodes=2), "needs 2 nodes; 1 are free"),
    ],
)
def test_a_refusal_names_both_numbers(needs: Resources, sentence: str) -> None:
    with pytest.raises(DoesNotFit, match=sentence):
        Allotment(JOB).take("rep-1", needs)


@pytest.mark.parametrize(
    ("env", "gpus"),
    [
        ({}, ()),
        ({"CUDA_VISIBLE_DEVICES": ""}, ()),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ()),
        ({"CUDA_VISIBLE_DEVICES": "0, 2,0"}, ("0", "2")),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8932f937-d72c,MIG-1"}, ("GPU-8932f937-d72c", "MIG-1")),
        ({"ROCR_VISIBLE_DEVICES": "1"}, ("1",)),
        ({"ZE_AFFINITY_MASK": "0.0,0.1"}, ("0.0", "0.1")),
        ({"ROCR_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "0"}, ("0",)),
    ],
)
def test_gpus_are_what_the_scheduler_names(env: dict[str, str], gpus: tuple[str, ...]) -> None:
    assert visible_gpus(env) == gpus


def test_an_engine_sees_its_gpus_in_the_variables_of_the_job() -> None:
    assert gpu_environment({}, ()) == {}
    assert gpu_environment({"ZE_AFFINITY_MASK": "0.0,0.1"}, ("0.1",)) == {"ZE_AFFINITY_MASK": "0.1"}
    assert gpu_environment({"CUDA_VISIBLE_DEVICES": "0,1"}, ()) == {"CUDA_VISIBLE_DEVICES": ""}
    both = {"CUDA_VISIBLE_DEVICES": "0,1,2", "ROCR_VISIBLE_DEVICES": "4,5,6"}
    assert gpu_environment(both, ("1", "2")) == {"CUDA_VISIBLE_DEVICES": "1,2", "ROCR_VISIBLE_DEVICES": "5,6"}


def test_a_whole_job() -> None:
    assert whole_job([3, 1, 1], {"CUDA_VISIBLE_DEVICES": "7"}, 9) == Share((1, 3), ("7",), 9)


def test_counted_cores_are_disjoint_by_number_and_bind_nobody() -> None:
    allotment = Allotment(counted_job(5, {"CUDA_VISIBLE_DEVICES": "0"}, 100))
    first, second = (allotment.take(name, Resources(cpus_per_node=2)) for name in ("rep-1", "rep-2"))
    assert (first.cpus, second.cpus, allotment.free.cpus) == ((0, 1), (2, 3), (4,))
    assert [share.bound_cpus for share in (first, second, allotment.free)] == [(), (), ()]
    assert whole_job([4, 5], {}, 1).bound_cpus == (4, 5)


def test_a_replica_of_several_nodes_has_the_job_for_itself() -> None:
    allotment = Allotment(JOB, nodes=2)
    small, wide = Resources(gpus_per_node=1), Resources(nodes=2, gpus_per_node=2)
    assert allotment.take("rep-1", wide).gpus == ("GPU-a", "GPU-b")
    assert allotment.free == Share()
    with pytest.raises(DoesNotFit, match="needs 1 nodes; 0 are free"):
        allotment.take("rep-2", small)
    allotment.give_back("rep-1")
    allotment.take("rep-2", small)
    with pytest.raises(DoesNotFit, match="needs 2 nodes; 0 are free"):
        allotment.take("rep-1", wide)
    allotment.give_back("rep-2")
    with pytest.raises(DoesNotFit, match="needs 3 nodes; 2 are free"):
        allotment.take("rep-3", Resources(nodes=3))
    assert allotment.free == JOB
