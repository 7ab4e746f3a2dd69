"""Clients that take their time: they are shown out, cost little memory, and nobody else waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import psutil
import pytest

from faults.outside import FloodEngine, Outside, assert_sound, descriptors, gateway
from faults.talks import FINE, LATE, PAGE, SILENT, Conversation, Talk, a_body_that_was_asked_for
from faults.tools import program
from faults.wire import Wire, chat_request, parsed
from firstkit.testing.fake_engine import QuickEngine
from lab import Lab, wait_for

MIB = 1024 * 1024
MB = 1_000_000
READERS = 100
STREAMS = 100
LIMIT_S = 45.0
"""No conversation of these lasts longer, on the slowest machine."""


@pytest.fixture(scope="module")
def flood(engines: Outside) -> FloodEngine:
    engine: FloodEngine = engines.add("flood", FloodEngine)
    return engine


@pytest.fixture(scope="module")
def lab(engines: Outside, flood: FloodEngine) -> Iterator[Lab]:
    engines.add("echo")
    engines.add("long", QuickEngine, tokens=140, token_delay=0.1)
    engines.add("steady", QuickEngine, tokens=30, token_delay=0.1)
    with gateway(engines, idle_timeout=5) as lab:  # of engines: none of it is for clients
        yield lab
        assert_sound(lab)


def rss(lab: Lab) -> int:
    """Memory of the gateway, in bytes."""
    assert lab.gateway
    return int(psutil.Process(lab.gateway.pid).memory_info().rss)


# -- conversations, side by side ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def heard(lab: Lab) -> Iterator[dict[str, Future[bytes]]]:
    """All conversations at the same time, in a thread, while other tests go on; by name, what was heard."""

    async def one(conversation: Conversation) -> bytes:
        talk = await Talk(lab).open()
        try:
            async with asyncio.timeout(LIMIT_S):
                return await conversation(talk)
        finally:
            await talk.close()

    async def all_of_them() -> None:
        tasks = [asyncio.ensure_future(one(conversation)) for conversation in (*LATE, *FINE, *SILENT)]
        for conversation, task in zip((*LATE, *FINE, *SILENT), tasks, strict=True):
            task.add_done_callback(lambda done, name=conversation.__name__: settle(results[name], done))
        await asyncio.gather(*tasks, return_exceptions=True)

    results: dict[str, Future[bytes]] = {each.__name__: Future() for each in (*LATE, *FINE, *SILENT)}
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: asyncio.run(all_of_them()))
        yield results


def settle(future: Future[bytes], done: asyncio.Task[bytes]) -> None:
    if done.exception() is not None:
        future.set_exception(done.exception())
    else:
        future.set_result(done.result())


# -- crowds of slowhttptest, while somebody else asks ------------------------------------------------------------------


def latencies(lab: Lab, enough: Callable[[int], bool]) -> list[float]:
    """Of good requests one after the other, each on a connection of its own, in seconds. Every one is answered."""
    seconds: list[float] = []
    while not enough(len(seconds)):
        began = time.perf_counter()
        with Wire(lab.port) as wire:
            wire.send(chat_request(lab.key, "normal"))
            assert wire.answer().said == "normal"
        seconds.append(time.perf_counter() - began)
    return seconds


def crowd(lab: Lab, size: int, *options: str, path: str, lasts_s: int) -> subprocess.Popen[bytes]:
    """``slowhttptest`` with a key, by way of its option for cookies."""
    slow = program("slowhttptest", "slowhttptest")
    key = f"x=y\r\nAuthorization: Bearer {lab.key}"
    common = ["-c", str(size), "-r", "1000", "-l", str(lasts_s), "-p", "15", "-j", key, "-v", "1"]
    command = [slow, *options, *common, "-u", f"http://127.0.0.1:{lab.port}{path}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@contextlib.contextmanager
def crowds(lab: Lab, size: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """``size`` slow heads, as many slow bodies, as many slow readers."""
    chat = "/v1/chat/completions"
    heads = ("-H", "-i", "3", "-x", "24", "-t", "POST")
    bodies = ("-B", "-i", "3", "-s", "8192", "-x", "10", "-f", "application/json")
    readers = ("-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32", "-k", "3")
    processes = [
        crowd(lab, size, *heads, path=chat, lasts_s=100),
        crowd(lab, size, *bodies, path=chat, lasts_s=100),
        crowd(lab, size, *readers, path="/health", lasts_s=15),
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout
            process.stdout.close()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("size", [700, pytest.param(2000, marks=pytest.mark.long)])
def test_thousands_of_slow_connections(lab: Lab, size: int) -> None:
    """Slow heads and slow bodies are shown out long before they would leave, and everybody else is served meanwhile."""
    usual = statistics.median(latencies(lab, lambda count: count >= 100))
    before, few = rss(lab), descriptors(lab)
    most = 0
    with crowds(lab, size) as processes:

        def all_left(_: int) -> bool:
            nonlocal most
            most = max(most, descriptors(lab))
            return all(process.poll() is not None for process in processes)

        meanwhile = latencies(lab, all_left)
        told = [plain(process.communicate()[0]) for process in processes]
    assert most - few > size, "they were there at the same time"
    for text in told:
        assert "service available: NO" not in text
    for text in told[:2]:
        assert "No open connections left" in text, text[-800:]
    assert statistics.median(meanwhile) < 5 * usual + 0.01
    assert rss(lab) - before < 100 * MB
    wait_for("their connections are closed", lambda: descriptors(lab) < few + 50)


def plain(text: bytes) -> str:
    """Without colours."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text.decode(errors="replace"))


# -- what the conversations came to ------------------------------------------------------------------------------------


@pytest.mark.parametrize("conversation", LATE, ids=lambda each: each.__name__)
def test_who_is_late_is_told_and_shown_out(heard: dict[str, Future[bytes]], conversation: Conversation) -> None:
    answer, rest = parsed(heard[conversation.__name__].result(LIMIT_S), is_closed=True)
    assert (answer.status, answer.error["code"], answer.says_close) == (408, "request_timeout", True)
    assert answer.interim == ((100,) if conversation is a_body_that_was_asked_for else ())
    assert rest == b""


@pytest.mark.parametrize("conversation", SILENT, ids=lambda each: each.__name__)
def test_who_says_nothing_is_shown_out(heard: dict[str, Future[bytes]], conversation: Conversation) -> None:
    assert heard[conversation.__name__].result(LIMIT_S) == b""


@pytest.mark.parametrize("conversation", FINE, ids=lambda each: each.__name__)
def test_who_is_slow_but_not_too_slow(heard: dict[str, Future[bytes]], conversation: Conversation) -> None:
    assert heard[conversation.__name__].result(LIMIT_S) == b"fine"


@pytest.mark.long
@pytest.mark.timeout(200)
def test_an_idle_connection_is_closed_in_the_end(lab: Lab) -> None:
    with Wire(lab.port) as wire:
        wire.sock.settimeout(120)
        wire.send(PAGE + b"\r\n")
        assert wire.answer().status == 200
        assert wire.rest() == b""


# -- slow readers ------------------------------------------------------------------------------------------------------


def gaps(lab: Lab) -> list[float]:
    """Seconds between the pieces of ``STREAMS`` streams that run at the same time; all of them end well."""

    async def one() -> list[float]:
        talk = await Talk(lab).open()
        talk.say(chat_request(lab.key, "x", "steady", stream=True))
        data, times = b"", []
        while not data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            piece = await talk.reader.read(1 << 16)
            assert piece, data
            times.append(time.perf_counter())
            data += piece
        await talk.close()
        return [after - before for before, after in pairwise(times[1:])]

    async def together() -> list[list[float]]:
        return await asyncio.gather(*(one() for _ in range(STREAMS)))

    return [gap for each in asyncio.run(together()) for gap in each]


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def slow_reader(lab: Lab) -> socket.socket:
    """A client of a stream without end, with as little room for it as the system allows."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    reader.settimeout(30)
    reader.connect(("127.0.0.1", lab.port))
    reader.sendall(chat_request(lab.key, "x", "flood", stream=True))
    assert reader.recv(1) == b"H"
    return reader


@pytest.mark.timeout(180)
def test_slow_readers_slow_nobody_else(lab: Lab, flood: FloodEngine) -> None:
    """A hundred that take a byte a second of streams without end, beside a hundred usual ones."""
    usual = p99(gaps(lab))
    before = rss(lab)
    with contextlib.ExitStack() as readers_close, ThreadPoolExecutor(1) as pool:
        readers = [readers_close.enter_context(slow_reader(lab)) for _ in range(READERS)]
        wait_for("the engine is held back", lambda: stands_still(flood))
        stop = threading.Event()

        def sip() -> None:
            while not stop.wait(1.0):
                for reader in readers:
                    reader.recv(1)

        sipping = pool.submit(sip)
        try:
            # other tests run on these cores: what slow readers cost would show in every round
            wait_for("streams beside them as they usually are", lambda: p99(gaps(lab)) < 1.1 * usual + 0.05)
            grown = rss(lab) - before
        finally:
            stop.set()
        sipping.result()
        assert flood.stats.in_flight == READERS, "their streams live on"
        assert grown < READERS * MIB, "of one answer never more than that waits here"
    wait_for("the engine hears that they left", lambda: flood.stats.in_flight == 0)
    assert flood.stats.aborted >= READERS


def stands_still(flood: FloodEngine) -> bool:
    """No stream goes on for half a second."""
    before = flood.stats.tokens
    time.sleep(0.5)
    return flood.stats.tokens == before and flood.stats.in_flight == READERS


def test_who_asks_and_never_reads(lab: Lab) -> None:
    """Answers wait for their reader in bounded room, and no further requests are taken meanwhile."""
    before = rss(lab)
    request = chat_request(lab.key, "x" * 900)
    with Wire(lab.port) as wire:
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        wire.sock.settimeout(1)
        with contextlib.suppress(OSError):
            for _ in range(30_000):
                wire.sock.sendall(request)
        assert rss(lab) - before < 50 * MB
        wire.sock.settimeout(20)
        for _ in range(20):
            assert wire.answer().said == "x" * 900
