"""How many connections the descriptors of the process are enough for."""

from __future__ import annotations

import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.gateway.descriptors import RESERVED, most_connections, raise_limit
from firstkit.gateway.http import SURPLUS


@given(st.integers(0, 2_000_000), st.booleans())
def test_there_are_enough_for_all(count: int, has_external: bool) -> None:
    most = most_connections(count, has_external)
    assert most >= 1
    if count >= RESERVED + 2:
        assert most * (2 if has_external else 1) + RESERVED <= count


def test_some_of_those_that_are_kept_are_for_surplus_connections() -> None:
    assert RESERVED > SURPLUS + 20


def test_the_limit_is_raised_to_what_the_system_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: set_to.append((kind, limits)))
    assert raise_limit() == 4096
    assert set_to == [(resource.RLIMIT_NOFILE, (4096, 4096))]
