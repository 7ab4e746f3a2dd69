"""The client against fakes that behave and fakes that do not, under both event loops, with both parsers."""

import asyncio
import contextlib
import json
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from firstkit.engines.engine import Address, Habits
from firstkit.engines.http import EngineClient, Target
from firstkit.engines.reported import BYTES_PER_TOKEN
from firstkit.links.messages import Head, Open, Outcome, Usage
from firstkit.testing.fake_engine import GarbageEngine
from unit.engines.support import CHAT, EVENTS, GOOD, Collected, Fake, Script, alone, chunk, chunked, send
from waiting import until

pytestmark = pytest.mark.usefixtures("clients")


async def test_streams_and_plain_answers(folder: Path) -> None:
    async with Fake(folder, tokens=3) as fake:
        sink = await fake.ask()
        assert sink.head == Head(200, "text/event-stream")
        assert sink.body.count(b"word") == 3
        assert b"[DONE]" not in sink.body
        assert sink.tail is not None
        assert (sink.tail.outcome, sink.tail.usage) == (Outcome.COMPLETE, Usage(2, 3))
        sink = await fake.ask(CHAT, False, n=2)
        assert json.loads(sink.body)["choices"][1]["message"]["content"] == "word0 word1 word2 "
        assert sink.tail is not None
        assert sink.tail.usage == Usage(2, 6)
        sink = await fake.ask("/v1/embeddings", False)
        assert sink.tail is not None
        assert (sink.tail.outcome, sink.tail.usage) == (Outcome.COMPLETE, Usage(2, 0))
        assert sink.calls[0] == "head"
        assert fake.connections == 1, "the connection is used again"


async def test_many_at_a_time(folder: Path) -> None:
    async with Fake(folder, tokens=20, token_delay=0.002) as fake:
        fake.gate.clear()
        sinks = [fake.open(stream=i % 2 == 0) for i in range(40)]
        await until(lambda: fake.connections == 40, "all to arrive")
        fake.gate.set()
        tails = await asyncio.gather(*(sink.ended() for sink in sinks))
        assert [(tail.outcome, tail.usage) for tail in tails] == [(Outcome.COMPLETE, Usage(2, 20))] * 40
        assert fake.engine.stats.most_in_flight == fake.connections == 40


async def test_an_engine_that_closes_after_streams_in_spite_of_its_headers(folder: Path) -> None:
    async with Fake(folder, "ClosingEngine", tokens=2) as fake:
        for _ in range(10):
            assert (await fake.ask()).tail is not None
        assert fake.engine.stats.completed == 10
    async with Fake(folder / ".", "ClosingEngine", tokens=2) as fake:
        fake.use(habits=Habits(closes_after_stream=True))
        for _ in range(3):
            assert (await fake.ask()).tail is not None
        assert fake.connections == 3
        assert "kept=0" in repr(fake.client)


async def test_a_kept_connection_that_died_is_replaced_once(folder: Path) -> None:
    answer = chunked(GOOD)
    async with Script(folder, answer, answer, b"") as script:
        for _ in range(2):
            sink = send(script.client)
            assert (await sink.ended()).outcome is Outcome.COMPLETE
        assert len(script.requests) == 2
        sink = send(script.client)
        tail = await sink.ended()
        assert (tail.outcome, len(script.requests)) == (Outcome.FAILED, 3), "a new connection that dies is not"


async def test_a_kept_connection_that_dies_at_the_request_is_replaced(folder: Path) -> None:
    served: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            for number in range(2):
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
                served.append(number)
                if number == 0:
                    writer.write(chunked(GOOD))
        writer.close()

    server = await asyncio.start_unix_server(serve, folder / "engine.sock")
    client = EngineClient(Target(Address("engine.sock"), str(folder)))
    for _ in range(2):
        assert (await send(client).ended()).outcome is Outcome.COMPLETE
    assert served == [0, 1, 0]
    client.close()
    server.close()
    await alone()


async def test_a_connection_that_was_idle_too_long_is_not_used(folder: Path) -> None:
    async with Fake(folder, tokens=1) as fake:
        fake.use(habits=Habits(keep_s=0.0))
        for _ in range(2):
            await fake.ask()
        assert fake.connections == 2


@pytest.mark.parametrize("variant", GarbageEngine.variants)
@pytest.mark.parametrize("stream", [True, False])
async def test_garbage_fails(folder: Path, variant: str, stream: bool) -> None:
    async with Fake(folder, "GarbageEngine", variant=variant, after=2) as fake:
        sink = await fake.ask(CHAT, stream)
        assert sink.tail is not None
        assert sink.tail.outcome is Outcome.FAILED
        assert sink.tail.error
        assert b"[DONE]" not in sink.body
        if stream:
            assert sink.body == b"" or sink.body.endswith(b"\n\n")
            said = sink.body.count(b'"content": "')
            estimate = ceil(sink.sent_bytes / BYTES_PER_TOKEN)
            assert sink.tail.usage == (Usage(estimate, said, estimated=True) if said else Usage(0, 0))
        assert sink.tail.usage is not None
        assert sink.tail.usage.completion_tokens in (0, 2, 3)


async def test_a_cancel_is_heard_by_the_engine_at_once(folder: Path) -> None:
    async with Fake(folder, tokens=10_000, token_delay=0.001) as fake:
        sink = fake.open()
        await until(lambda: len(sink.calls) > 5, "some tokens")
        sink.exchange.cancel()
        seen = len(sink.calls)
        assert "tail" not in sink.calls, "the tail comes in a later turn of the loop"
        tail = await sink.ended()
        assert len(sink.calls) == seen + 1
        assert tail.outcome is Outcome.CANCELLED
        assert tail.usage is not None
        assert tail.usage.estimated
        assert tail.usage.completion_tokens == sink.body.count(b'"content": "word')
        await until(lambda: fake.engine.stats.aborted == 1, "the abort")
        for late in (sink.exchange.cancel, sink.exchange.pause, sink.exchange.resume):
            late()


async def test_a_cancel_from_within_the_sink(folder: Path) -> None:
    async with Fake(folder, tokens=100) as fake:
        sink = fake.open()
        sink.on_piece = lambda data: sink.exchange.cancel()
        assert (await sink.ended()).outcome is Outcome.CANCELLED
        assert sink.calls == ["head", "data", "tail"]


async def test_a_cancel_before_there_is_a_connection(folder: Path) -> None:
    async with Fake(folder) as fake:
        sink = fake.open()
        sink.exchange.cancel()
        tail = await sink.ended()
        assert (tail.outcome, tail.usage) == (Outcome.CANCELLED, Usage(0, 0))
        assert fake.engine.stats.requests == 0


async def test_pause_stops_the_engine_and_resume_goes_on(folder: Path) -> None:
    async with Fake(folder, tokens=8_000) as fake:
        sink = fake.open()
        sink.on_piece = lambda data: sink.exchange.pause()
        await until(lambda: "data" in sink.calls, "a first piece")
        delivered = -1
        while delivered != fake.engine.stats.tokens:  # until what lies in the kernel is full
            delivered = fake.engine.stats.tokens
            await asyncio.sleep(0.05)
        assert 0 < delivered < 8_000
        assert sink.calls.count("data") == 1
        sink.on_piece = lambda data: None
        sink.exchange.resume()
        assert (await sink.ended()).usage == Usage(2, 8_000)


async def test_pause_before_there_is_a_connection(folder: Path) -> None:
    async with Fake(folder, tokens=5) as fake:
        sink = fake.open(idle_timeout_s=0.1)
        sink.exchange.pause()
        await until(lambda: fake.engine.stats.completed == 1, "the answer")
        await asyncio.sleep(0.3)
        assert sink.calls == [], "and while we do not listen, silence is not the engine's"
        sink.exchange.resume()
        assert (await sink.ended()).outcome is Outcome.COMPLETE


@pytest.mark.parametrize(("behaviour", "said"), [("SilentEngine", 0), ("StallingEngine", 3)])
async def test_silence_is_ended(folder: Path, behaviour: str, said: int) -> None:
    async with Fake(folder, behaviour, after=3) as fake:
        sink = await fake.ask(idle_timeout_s=0.2)
        assert sink.tail is not None
        assert (sink.tail.outcome, sink.tail.error) == (Outcome.TIMEOUT, "the engine sent nothing for 0.2 s")
        assert sink.tail.usage is not None
        assert sink.tail.usage.completion_tokens == said
        assert sink.tail.usage.estimated == (said > 0)
        await until(lambda: fake.engine.stats.aborted == 1, "the abort")


async def test_slow_is_not_silent(folder: Path) -> None:
    async with Fake(folder, tokens=8, token_delay=0.1) as fake:
        sink = await fake.ask(idle_timeout_s=0.3)
        assert sink.tail is not None
        assert sink.tail.outcome is Outcome.COMPLETE
        assert 0.05 < (sink.tail.gap_s or 0) < 0.3


async def test_refusals_pass_with_their_body(folder: Path) -> None:
    async with Fake(folder) as fake:
        sink = await fake.ask(CHAT, True, messages=[])
        assert sink.head == Head(400, "application/json")
        assert json.loads(sink.body)["error"]["message"] == "messages or prompt is missing"
        assert sink.tail is not None
        assert (sink.tail.outcome, sink.tail.usage) == (Outcome.REJECTED, Usage(0, 0))


async def test_an_engine_that_loads_or_wants_a_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY_KEY", "canary-1")
    async with Fake(folder, key_env="CANARY_KEY") as fake:
        sink = await fake.ask()
        assert sink.head is not None
        assert sink.head.status == 401
        fake.use(key="canary-1")
        assert "canary" not in repr(fake.client)
        assert (await fake.ask()).body.count(b"word") == 8


async def test_nobody_there(folder: Path) -> None:
    client = EngineClient(Target(Address("engine.sock"), str(folder)))
    tail = await send(client).ended()
    assert (tail.outcome, tail.usage) == (Outcome.FAILED, Usage(0, 0))
    assert tail.error == "the engine cannot be reached: No such file or directory"
    client = EngineClient(Target(url="http://127.0.0.1:1/v1"))
    assert (await send(client).ended()).error == "the engine cannot be reached: Connection refused"


async def test_what_http_cannot_say_is_a_tail_too(folder: Path) -> None:
    client = EngineClient(Target(Address("engine.sock"), str(folder)))
    unsayable = [("/v1/\r\nx: y", {}), ("/ä", {}), ("/", {"a\n": "b"})]
    for request in [Open("r", "POST", path, 2, headers) for path, headers in unsayable]:
        sink = Collected()
        client.open(request, b"{}", sink)
        assert sink.calls == []
        assert (await sink.ended()).outcome is Outcome.FAILED


async def test_what_is_sent(folder: Path) -> None:
    answer = chunked(GOOD)
    async with Script(folder, answer) as script:
        sink = Collected()
        headers = {"X-Tag": "1", "Authorization": "Bearer canary", "Host": "evil", "Transfer-Encoding": "chunked"}
        script.client.open(Open("r", "POST", CHAT, 2, headers, True), b"{}", sink)
        await sink.ended()
        head, _, body = script.requests[0].partition(b"\r\n\r\n")
        line, *rest = head.split(b"\r\n")
        assert (line, body) == (b"POST /v1/chat/completions HTTP/1.1", b"{}")
        assert sorted(rest) == [
            b"accept-encoding: identity",
            b"accept: text/event-stream",
            b"connection: keep-alive",
            b"content-length: 2",
            b"content-type: application/json",
            b"host: engine",
            b"x-tag: 1",
        ]


async def test_a_large_body(folder: Path) -> None:
    async with Fake(folder, tokens=1) as fake:
        sink = await fake.ask(CHAT, True, filler="x" * 20_000_000)
        assert sink.tail is not None
        assert sink.tail.outcome is Outcome.COMPLETE


RAW: list[tuple[str, bytes, Outcome, str | None]] = [
    ("good", chunked(GOOD), Outcome.COMPLETE, None),
    ("without length, closed", EVENTS.replace(b"transfer-encoding: chunked", b"x: y") + GOOD, Outcome.COMPLETE, None),
    ("closed before the last chunk", chunked(GOOD)[:-5], Outcome.COMPLETE, None),
    ("closed before [DONE]", chunked(chunk("a"), chunk(None, "stop"))[:-5], Outcome.FAILED, "broke off"),
    ("cut in a chunk", chunked(chunk("a"))[:-30], Outcome.FAILED, "broke off"),
    ("a wrong chunk", chunked(chunk("a"))[:-5] + b"zz\r\n", Outcome.FAILED, "broke off"),
    ("a length and chunks", b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", Outcome.FAILED, "broke off"),
    ("nothing", b"", Outcome.FAILED, "broke off"),
    ("half a head", b"HTTP/1.1 200 OK\r\nconte", Outcome.FAILED, "broke off"),
    ("a hundred and one", b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n", Outcome.FAILED, "broke off"),
    ("continue first", b"HTTP/1.1 100 Continue\r\n\r\n" + chunked(GOOD), Outcome.COMPLETE, None),
    ("continue for ever", b"HTTP/1.1 100 Continue\r\n\r\n" * 4000, Outcome.FAILED, "broke off"),
    ("zipped", chunked(GOOD).replace(b"x-y: z", b"content-encoding: gzip"), Outcome.FAILED, "compressed"),
]


@pytest.mark.parametrize(("answer", "outcome", "error"), [r[1:] for r in RAW], ids=[r[0] for r in RAW])
async def test_bytes(folder: Path, answer: bytes, outcome: Outcome, error: str | None) -> None:
    async with Script(folder, answer) as script:
        tail = await send(script.client).ended()
        assert tail.outcome is outcome
        assert (error or "") in (tail.error or "")


async def test_an_answer_that_said_all_does_not_wait_for_http(folder: Path) -> None:
    async with Script(folder, chunked(GOOD)[:-5], hold=True) as script:
        assert (await send(script.client).ended()).outcome is Outcome.COMPLETE


async def test_bytes_after_an_answer_end_the_connection(folder: Path) -> None:
    async with Script(folder, chunked(GOOD) + b"HTTP/1.1 200 OK\r\n\r\n", chunked(GOOD), hold=True) as script:
        for _ in range(2):
            assert (await send(script.client).ended()).outcome is Outcome.COMPLETE
        assert len(script.requests) == 2


async def test_close_ends_what_is_under_way(folder: Path) -> None:
    async with Fake(folder, "SilentEngine") as fake:
        sink = fake.open()
        await until(lambda: fake.engine.stats.in_flight, "the request")
        fake.client.close()
        tail = await sink.ended()
        assert (tail.outcome, tail.error) == (Outcome.FAILED, "the engine was stopped")


async def test_a_socket_with_a_long_path(folder: Path) -> None:
    deep = folder / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    async with Fake(folder, tokens=1) as fake:
        (deep / "engine.sock").symlink_to(folder / "engine.sock")
        fake.use(folder=str(deep))
        sink: Any = await fake.ask()
        assert sink.tail.outcome is Outcome.COMPLETE
