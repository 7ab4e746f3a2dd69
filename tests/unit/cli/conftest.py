"""What the tests of commands share: each module says which FIRST is ``installed``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from unit.cli.installed import Installed


@pytest.fixture
def installed(folder: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Installed:
    """A FIRST with one model and nothing else; a module that needs more has its own."""
    return Installed(folder, database_url, monkeypatch)


@pytest.fixture(params=["gateway", "no gateway"])
def either(request: pytest.FixtureRequest, installed: Installed) -> Iterator[None]:
    """That FIRST, with its gateway running and without."""
    if request.param == "no gateway":
        yield
        return
    with installed.running():
        yield
