"""A gateway that runs out of file descriptors: new clients are told so, and the streams of the others go on."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from faults.outside import GatedEngine, Outside, assert_sound, gateway, outside
from faults.wire import Answer, Wire, chat_request
from lab import Lab, wait_for

DESCRIPTORS = 256
ENOUGH = 400
"""More connections than it can have."""


class PoorLab(Lab):
    """A lab whose processes may open ``DESCRIPTORS`` files each."""

    def _spawn(self, module: str) -> subprocess.Popen[bytes]:
        limited = ["prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}", sys.executable, "-m", module]
        with (self.folder / f"{module}.log").open("ab") as log:
            return subprocess.Popen(
                [*limited, "--config", str(self.config_path)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )


@pytest.fixture
def engines() -> Iterator[Outside]:
    with outside() as engines:
        yield engines


@pytest.fixture
def gated(engines: Outside) -> GatedEngine:
    engine: GatedEngine = engines.add("gated", GatedEngine)
    return engine


@pytest.fixture
def lab(engines: Outside, gated: GatedEngine) -> Iterator[Lab]:
    engines.add("echo")
    with gateway(engines, PoorLab) as lab:
        yield lab
        gated.gate.set()
        assert_sound(lab)


def test_streams_until_nothing_is_left(lab: Lab, gated: GatedEngine) -> None:
    """Each new stream begins or is refused; all that began are whole in the end, and then there is room again."""
    streams: list[Wire] = []
    refused: list[Answer] = []
    closed = 0
    with contextlib.ExitStack() as stack:
        for i in range(ENOUGH):
            wire = stack.enter_context(Wire(lab.port))
            wire.send(chat_request(lab.key, f"stream {i}", "gated", stream=True))
            try:
                wire.until(b"\r\n\r\n")
            except EOFError:
                closed += 1
                continue
            if wire.received.startswith(b"HTTP/1.1 200 "):
                streams.append(wire)
            else:
                refused.append(wire.answer())
                wire.end()
                wire.sock.close()
        assert len(streams) > 50, "the gateway makes use of what it has"
        assert refused
        assert len(refused) + closed + len(streams) == ENOUGH
        for answer in refused:
            check_refusal(answer)
        gated.gate.set()
        for wire in streams:
            assert wire.answer().said.startswith("first stream ")
    wait_for("there is room again", lambda: asks(lab, 10))


def test_connections_that_say_nothing_until_nothing_is_left(lab: Lab) -> None:
    """A client that was there before goes on being served, beside more idle connections than there can be."""
    with Wire(lab.port) as early, contextlib.ExitStack() as stack:
        early.send(chat_request(lab.key, "early"))
        assert early.answer().said == "early"
        idle = [stack.enter_context(Wire(lab.port)) for _ in range(ENOUGH)]
        idle[-1].send(chat_request(lab.key, "late"))
        with contextlib.suppress(EOFError):
            check_refusal(idle[-1].answer())
        for i in range(20):
            early.send(chat_request(lab.key, f"early {i}"))
            assert early.answer().said == f"early {i}"
    wait_for("there is room again", lambda: asks(lab, 10))


def check_refusal(answer: Answer) -> None:
    assert answer.status == 503
    assert (answer.error["type"], answer.error["code"]) == ("server_error", "overloaded")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.says_close


def asks(lab: Lab, times: int) -> bool:
    """Whether so many requests, each on its own connection at the same time, are all answered well."""
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(lab.port)) for _ in range(times)]
        for wire in wires:
            wire.send(chat_request(lab.key, "again"))
        try:
            return all(wire.answer().status == 200 for wire in wires)
        except EOFError:
            return False
