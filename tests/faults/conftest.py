"""Shared by the tests of hostile clients: engines outside, one of which says what it was told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from faults.outside import EchoEngine, Outside, outside


@pytest.fixture(scope="module")
def engines() -> Iterator[Outside]:
    with outside() as engines:
        yield engines


@pytest.fixture(scope="module")
def engine(engines: Outside) -> EchoEngine:
    engine: EchoEngine = engines.add("echo")
    return engine
