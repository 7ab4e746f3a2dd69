"""What the client of engines and external services costs: CPU time of a streamed chunk and of a small plain request.

    python bench/upstream.py            # prints a table; needs make install

A server in another process writes prepared bytes in the shape of vLLM's answers. The client's process runs nothing but
an event loop and the client. A bare protocol that ignores what it reads, under the same traffic, tells how much of a
figure is the loop's and the kernel's. The same bytes put into the client by hand, without any socket, tell what our own
code takes: that figure is the steadiest. The best of several rounds.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import uvloop

from figures import report
from firstkit.engines.http import EngineClient, Target
from firstkit.links.messages import Head, Open, Outcome, Tail

ROUNDS = 3
STREAMS = 64
TOKENS = 400
TICK_S = 0.005
CLIENTS = 16
REQUESTS = 5_000

PROMPT = b'{"model":"m","messages":[{"role":"user","content":"' + b"two words " * 12 + b'"}],"max_tokens":16%b}'
STREAM_BODY, PLAIN_BODY = PROMPT % b',"stream":true', PROMPT % b""
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = (
    b'data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"mock-model","choices":[{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}]}\n\n'
)
ANSWER = (
    b'{"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion","created":1700000000,"model":'
    b'"mock-model","choices":[{"index":0,"message":{"role":"assistant","content":"'
    + b" t0000"
    * 16
    + b'","refusal":null,"tool_calls":[]},"logprobs":null,"finish_reason":"length","stop_reason":null}],"usage":{'
    b'"prompt_tokens":10,"total_tokens":26,"completion_tokens":16,"prompt_tokens_details":null},"prompt_logprobs":null}'
)
PLAIN = (
    b"HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)
    + ANSWER
)


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


FIRST = STREAM_HEAD + chunked(CHUNK % (b'{"role":"assistant","content":""}', b"null"))
LAST = chunked(CHUNK % (b'{"content":""}', b'"length"')) + chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def token(i: int) -> bytes:
    """The text of every token is another, as that of the load tests is."""
    return chunked(CHUNK % (b'{"content":" %05d-%016d"}' % (i, time.monotonic_ns() // 1000), b"null"))


# -- the server --------------------------------------------------------------------------------------------------------


class _Server(asyncio.Protocol):
    """Answers a request at once, or with a token per tick; a request comes in one piece."""

    streaming: dict[asyncio.WriteTransport, int] = {}  # noqa: RUF012 - shared by all connections on purpose

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        if b'"stream":true' in data:
            self.transport.write(FIRST)
            self.streaming[self.transport] = 0
        else:
            self.transport.write(PLAIN)

    @classmethod
    def tick(cls) -> None:
        asyncio.get_running_loop().call_later(TICK_S, cls.tick)
        for transport, said in list(cls.streaming.items()):
            cls.streaming[transport] = said + 1
            if said == TOKENS:
                del cls.streaming[transport]
            transport.write(LAST if said == TOKENS else token(said))


async def serve() -> None:
    """Print the port and serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(_Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    _Server.tick()
    spin()
    await server.serve_forever()


def spin() -> None:
    """Never sleep: to wake the server costs its client several times what the client itself costs."""
    asyncio.get_running_loop().call_soon(spin)


# -- the client --------------------------------------------------------------------------------------------------------


class _Sink:
    """Forgets what it hears, but for the end."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        self._on_end = on_end

    def on_head(self, head: Head) -> None: ...

    def on_data(self, data: bytes) -> None: ...

    def on_tail(self, tail: Tail) -> None:
        assert tail.outcome is Outcome.COMPLETE, tail.error
        self._on_end()


class _Bare(asyncio.Protocol):
    """Sends a request, reads its answer to the last byte, sends the next: what nobody can do without."""

    def __init__(self, request: bytes, end: bytes, on_end: Callable[[], bool]) -> None:
        self._request = request
        self._end = end
        self._on_end = on_end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if data.endswith(self._end) and self._on_end():
            self.transport.write(self._request)


class _Count:
    """So many requests, so many of them at a time; ``cpu_s`` of the process until the last has ended."""

    def __init__(self, requests: int, at_a_time: int) -> None:
        self.left = requests - at_a_time
        self.at_a_time = self._running = at_a_time
        self._ended = asyncio.get_running_loop().create_future()

    def next(self) -> bool:
        """One has ended: whether another is to start."""
        if self.left > 0:
            self.left -= 1
            return True
        self._running -= 1
        if self._running == 0:
            self._ended.set_result(None)
        return False

    async def cpu_s(self, start: Callable[[], Awaitable[Any]]) -> float:
        started = time.process_time()
        for _ in range(self.at_a_time):
            await start()
        await self._ended
        return time.process_time() - started


async def bare(port: int, body: bytes, end: bytes, count: _Count) -> float:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    made: list[asyncio.BaseTransport] = []

    async def start() -> None:
        loop = asyncio.get_running_loop()
        made.append((await loop.create_connection(lambda: _Bare(head + body, end, count.next), "127.0.0.1", port))[0])

    spent = await count.cpu_s(start)
    for transport in made:
        transport.close()
    return spent


async def ours(port: int, body: bytes, is_stream: bool, count: _Count) -> float:
    client = EngineClient(Target(url=f"http://127.0.0.1:{port}/v1"))
    request = Open("r", "POST", "/v1/chat/completions", len(body), {"x-request-id": "req-1"}, is_stream, False)

    def ask() -> None:
        client.open(request, body, _Sink(again))

    def again() -> None:
        if count.next():
            ask()

    async def start() -> None:
        ask()

    spent = await count.cpu_s(start)
    client.close()
    return spent


class _Nowhere(asyncio.Transport):
    """A connection whose other end is us."""

    def write(self, data: Any) -> None: ...

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None: ...


async def by_hand(body: bytes, is_stream: bool, pieces: list[bytes], times: int) -> float:
    """CPU seconds of so many answers that come in these pieces."""
    client = EngineClient(Target(url="http://127.0.0.1:1/v1"))
    made: list[asyncio.Protocol] = []

    async def dial(protocol: Callable[[], asyncio.Protocol]) -> asyncio.BaseProtocol:
        made.append(protocol())
        made[0].connection_made(_Nowhere())
        return made[0]

    client._way.dial = dial  # type: ignore[method-assign]
    request = Open("r", "POST", "/v1/chat/completions", len(body), {"x-request-id": "req-1"}, is_stream, False)
    sink = _Sink(lambda: None)
    started = time.process_time()
    for _ in range(times):
        client.open(request, body, sink)
        while not made or made[0]._user is None:  # type: ignore[attr-defined] # noqa: ASYNC110 - a turn or two
            await asyncio.sleep(0)
        for piece in pieces:
            made[0].data_received(piece)
        assert client.in_flight == 0
    spent = time.process_time() - started
    client.close()
    return spent


async def measure(port: int) -> dict[str, float]:
    """Microseconds, the best of all rounds."""
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        chunks, requests = STREAMS * TOKENS, REQUESTS
        found = {
            "stream": await ours(port, STREAM_BODY, True, _Count(STREAMS, STREAMS)) / chunks,
            "bare stream": await bare(port, STREAM_BODY, LAST[-20:], _Count(STREAMS, STREAMS)) / chunks,
            "plain": await ours(port, PLAIN_BODY, False, _Count(requests, CLIENTS)) / requests,
            "bare plain": await bare(port, PLAIN_BODY, PLAIN[-20:], _Count(requests, CLIENTS)) / requests,
            "own stream": await by_hand(STREAM_BODY, True, [FIRST, *map(token, range(10_000)), LAST], 1) / 10_000,
            "own plain": await by_hand(PLAIN_BODY, False, [PLAIN], 10_000) / 10_000,
        }
        best = {what: min(1e6 * value, best.get(what, float("inf"))) for what, value in found.items()}
    return best


def main() -> None:
    with subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        found = uvloop.run(measure(int(server.stdout.readline())))
        server.terminate()
    for what, title, limit in (("stream", "a streamed chunk", 20), ("plain", "a small plain request", 60)):
        report(f"client of a service: {title}", found[what], "us", limit)
        print(f"    {found['bare ' + what]:.2f} us with nothing but a loop, {found['own ' + what]:.2f} us without one")


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        uvloop.run(serve())
    else:
        main()
