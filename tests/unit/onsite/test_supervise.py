"""One replica with a real engine process."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from firstkit.links.messages import Open, Outcome
from firstkit.onsite.place import is_port_free
from firstkit.onsite.supervise import Rhythm
from firstkit.states import ReplicaState
from unit.onsite.support import Bench, FakeAdapter, Sink, chat, engines_below
from waiting import until

STARTING, READY, DRAINING = ReplicaState.STARTING, ReplicaState.READY, ReplicaState.DRAINING
STOPPED, FAILED = ReplicaState.STOPPED, ReplicaState.FAILED
ENDLESS = {"tokens": 100000, "token_delay": 0.01}


@pytest.fixture
async def bench(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.chdir(folder)
    bench = Bench(folder)
    yield bench
    await bench.close()
    assert engines_below(folder) == []


@pytest.mark.parametrize("takes_socket", [True, False])
async def test_a_good_life(bench: Bench, takes_socket: bool) -> None:
    adapter = FakeAdapter(takes_socket=takes_socket, load_delay=0.2)
    replica = bench.start(adapter)
    assert replica.open(Open("rep-1", "POST", "/", 0), b"", Sink()) is None
    report = await bench.until(READY)
    assert report.load_s is not None
    assert 0.2 <= report.load_s < 10
    assert (report.context_length, report.engine_version) == (2048, "fake 1")
    assert report.capabilities == ("chat", "completions")
    sink = bench.ask()
    assert replica.in_flight == 1
    await until(lambda: sink.tail, "the tail")
    assert sink.tail is not None
    assert sink.tail.outcome is Outcome.COMPLETE
    assert b"word7" in sink.data
    assert replica.in_flight == 0
    await replica.stop(1.0)
    assert bench.history == [READY, DRAINING, STOPPED]
    assert sorted(path.name for path in (bench.folder / "replicas" / "rep-1").iterdir()) == ["engine.log"]


async def test_the_key_of_a_port_is_in_no_argument(bench: Bench) -> None:
    adapter = FakeAdapter(takes_socket=False)
    bench.start(adapter)
    await bench.until(READY)
    key = adapter.places[0].key
    assert key
    assert key not in " ".join(bench.engine().cmdline())


async def test_files_are_there_for_the_engine_and_gone_after_it(bench: Bench) -> None:
    adapter = FakeAdapter()
    adapter.files = {"options.yaml": "api-key: secret\n"}
    replica = bench.start(adapter)
    await bench.until(READY)
    path = bench.folder / "replicas" / "rep-1" / "options.yaml"
    assert path.read_text() == "api-key: secret\n"
    assert path.stat().st_mode & 0o777 == 0o600
    await replica.stop(1.0)
    assert not path.exists()


async def test_a_file_elsewhere_is_not_written(bench: Bench) -> None:
    adapter = FakeAdapter()
    adapter.files = {"../options.yaml": ""}
    bench.start(adapter)
    report = await bench.until(FAILED)
    assert report.reason == "could not be started: '../options.yaml' is no name for a file of an engine"
    assert not (bench.folder / "replicas" / "options.yaml").exists()


async def test_the_load_of_an_engine_is_reported(bench: Bench) -> None:
    """Somebody else has two requests at it, the pilot one."""
    adapter = FakeAdapter(**ENDLESS)
    adapter.metric_names = {"running": "fake:running"}
    replica = bench.start(adapter, rhythm=Rhythm(load_s=0.01))
    await bench.until(READY)
    bench.ask(100000)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(chat(100000))
    writers = [(await asyncio.open_unix_connection("replicas/rep-1/engine.sock"))[1] for _ in range(2)]
    for writer in writers:
        writer.write(head + chat(100000))
    await until(lambda: replica.report().others == 2, "the load")
    report = replica.report()
    assert (report.running, report.waiting, report.cache_use, report.in_flight) == (3, None, None, 1)
    for writer in writers:
        writer.close()
    await until(lambda: replica.report().others == 0, "the load to go")
    assert replica.state is READY


async def test_an_engine_whose_load_is_not_known(bench: Bench) -> None:
    adapter = FakeAdapter()
    adapter.metric_names = {"running": "r"}
    replica = bench.start(adapter, rhythm=Rhythm(load_s=0.01))
    await bench.until(READY)
    sink = bench.ask()
    await until(lambda: sink.tail, "the tail")
    report = replica.report()
    assert (report.running, report.waiting, report.others, report.cache_use) == (None, None, 0, None)


async def test_an_engine_that_cannot_load(bench: Bench) -> None:
    bench.start(FakeAdapter("CrashAtLoadEngine"))
    report = await bench.until(FAILED)
    assert report.reason == "exit status 3"
    assert report.log_tail == "fake engine: cannot load the weights"
    assert bench.replica.has_ended


async def test_an_engine_that_is_not_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/no/such/python")
    bench.start(FakeAdapter())
    report = await bench.until(FAILED)
    assert report.reason == "could not be started: [Errno 2] No such file or directory: '/no/such/python'"


async def test_an_engine_that_loads_for_ever(bench: Bench) -> None:
    bench.start(FakeAdapter(load_delay=1000), load_timeout_s=0.3)
    report = await bench.until(FAILED)
    assert report.reason == "was not ready after 0.3 s"
    await until(lambda: bench.replica.has_ended, "the end of the process")
    assert bench.history == [FAILED]


async def test_an_engine_killed_in_mid_stream(bench: Bench) -> None:
    bench.start(FakeAdapter(**ENDLESS))
    await bench.until(READY)
    sinks = [bench.ask(100000) for _ in range(3)]
    await until(lambda: all(b"word3" in sink.data for sink in sinks), "tokens")
    bench.engine().kill()
    await until(lambda: all(sink.tail for sink in sinks), "tails")
    assert {sink.tail.outcome for sink in sinks if sink.tail} == {Outcome.FAILED}
    assert all(sink.tail.usage.completion_tokens >= 4 for sink in sinks if sink.tail and sink.tail.usage)
    report = await bench.until(FAILED)
    assert (report.reason, report.in_flight) == ("killed by SIGKILL", 0)


async def test_an_engine_that_stops_answering(bench: Bench) -> None:
    rhythm = Rhythm(when_ready_s=0.02, timeout_s=0.1)
    bench.start(FakeAdapter(**ENDLESS), rhythm=rhythm)
    await bench.until(READY)
    sink = bench.ask(100000)
    await until(lambda: b"word3" in sink.data, "tokens")
    bench.engine().send_signal(signal.SIGSTOP)
    report = await bench.until(FAILED)
    assert report.reason == "stopped answering its health check"
    assert sink.tail is not None
    assert sink.tail.outcome is Outcome.FAILED
    assert sink.tail.error == "the engine failed: stopped answering its health check"
    assert sink.tail.usage is not None
    bench.engine().send_signal(signal.SIGCONT)
    await until(lambda: bench.replica.has_ended, "the end of the process")
    assert bench.history == [READY, FAILED]


async def test_stop_waits_for_what_is_under_way(bench: Bench) -> None:
    replica = bench.start(FakeAdapter(tokens=30, token_delay=0.01))
    await bench.until(READY)
    sink = bench.ask(30)
    stopping = asyncio.create_task(replica.stop(10.0))
    await bench.until(DRAINING)
    late = bench.ask(30)
    await stopping
    for answer in (sink, late):
        assert answer.tail is not None
        assert answer.tail.outcome is Outcome.COMPLETE
    assert replica.state is STOPPED


async def test_stop_waits_no_longer_than_the_grace(bench: Bench) -> None:
    replica = bench.start(FakeAdapter(**ENDLESS))
    await bench.until(READY)
    sink = bench.ask(100000)
    await replica.stop(0.1)
    assert sink.tail is not None
    assert sink.tail.outcome is Outcome.FAILED
    assert replica.state is STOPPED


async def test_stop_at_once_and_while_loading(bench: Bench) -> None:
    replica = bench.start(FakeAdapter(load_delay=1000))
    await replica.stop(10.0)
    assert replica.state is STOPPED
    assert replica.open(Open("rep-1", "POST", "/", len(chat())), chat(), Sink()) is None
    replica = bench.start(FakeAdapter(load_delay=1000))
    await until(lambda: engines_below(bench.folder), "the process")
    await replica.stop(10.0)
    assert replica.state is STOPPED


async def test_a_taken_port_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first port belongs to somebody else by the time the engine wants it: it is started again on another."""
    somebody = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    taken: int = somebody.sockets[0].getsockname()[1]
    ports = iter([taken])
    from firstkit.onsite import place

    really_free = place.free_port
    monkeypatch.setattr(place, "free_port", lambda: next(ports, 0) or really_free())
    adapter = FakeAdapter(takes_socket=False)
    bench.start(adapter)
    await bench.until(READY)
    assert [item.address.port == taken for item in adapter.places] == [True, False]
    assert not is_port_free(taken)
    somebody.close()
