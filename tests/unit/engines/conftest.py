from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

from firstkit.engines.parsing import ResponseParser
from firstkit.engines.parsing_h11 import H11Parser
from firstkit.engines.parsing_httptools import HttptoolsParser


def pytest_asyncio_loop_factories(config, item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """A gateway runs on uvloop, a pilot on whatever its Python has."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=[HttptoolsParser, H11Parser])
def parser(request: pytest.FixtureRequest) -> Callable[[], ResponseParser]:
    """A gateway has httptools, a pilot has h11 at least."""
    return request.param


@pytest.fixture
def clients(parser: Callable[[], ResponseParser], monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that are made from here on use one parser, then the other."""
    monkeypatch.setattr("firstkit.engines.http.response_parser", lambda: parser)
