"""Each fuzz target for a moment: it runs, and finds nothing at once. ``make fuzz`` gives each of them longer."""

from __future__ import annotations

from typing import Any

import pytest

from fuzz import fuzz_body, fuzz_frames, fuzz_head, fuzz_pbs, fuzz_sse
from fuzz.driver import Target


@pytest.mark.parametrize(
    "module",
    [fuzz_body, fuzz_frames, fuzz_head, fuzz_pbs, fuzz_sse],
    ids=lambda module: module.__name__.rpartition("_")[2],
)
def test_a_moment_of_it(module: Any) -> None:
    target: Target = module.TARGET
    assert target.run_random(seconds=2) > 0
