"""What engines are told where the scheduler said how many cores there are, but not which."""

import pytest

from firstkit.engines.engine import Address, Place
from firstkit.engines.vllm import _environment


@pytest.mark.parametrize(("is_bound", "binds"), [(True, "4,5"), (False, None)])
def test_vllm_counts_threads_and_binds_them_only_where_cores_have_names(is_bound: bool, binds: str | None) -> None:
    env = _environment(Place("/job", (4, 5), (), Address(port=1), is_bound=is_bound))
    assert env["OMP_NUM_THREADS"] == "2"
    assert env.get("VLLM_CPU_OMP_THREADS_BIND") == binds
