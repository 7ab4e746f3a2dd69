from __future__ import annotations

import asyncio

from firstkit.links.messages import Exchange, Head, Open, Outcome, Sink, Tail, Usage
from firstkit.onsite.inflight import InFlight

REQUEST = Open("rep-1", "POST", "/v1/completions", 0)


class Remembering:
    """An upstream that answers by hand, its exchange, and the sink behind: all in one."""

    def __init__(self) -> None:
        self.sink: Sink
        self.news: list[object] = []

    def open(self, request: Open, body: bytes, sink: Sink) -> Exchange:
        self.sink = sink
        return self

    def cancel(self) -> None:
        self.sink.on_tail(Tail(Outcome.CANCELLED, Usage(1, 2)))

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def on_head(self, head: Head) -> None:
        self.news.append(head)

    def on_data(self, data: bytes) -> None:
        self.news.append(data)

    def on_tail(self, tail: Tail) -> None:
        self.news.append(tail)


class AtOnce(Remembering):
    """An upstream that has its tail before ``open`` returned."""

    def open(self, request: Open, body: bytes, sink: Sink) -> Exchange:
        sink.on_tail(Tail(Outcome.FAILED, error="no"))
        return self


def open_one(requests: InFlight, upstream: Remembering) -> Sink:
    requests.open(REQUEST, b"", upstream)
    return upstream.sink


async def test_everything_passes_and_is_counted() -> None:
    upstream, changes = Remembering(), list[int]()
    requests = InFlight(upstream, lambda: changes.append(len(requests)))
    exchange = requests.open(REQUEST, b"", upstream)
    assert exchange is upstream
    news = [Head(200), b"data", Tail(Outcome.COMPLETE)]
    upstream.sink.on_head(Head(200))
    upstream.sink.on_data(b"data")
    assert not await requests.wait_empty(0.01)
    upstream.sink.on_tail(Tail(Outcome.COMPLETE))
    assert upstream.news == news
    assert changes == [1, 0]
    assert await requests.wait_empty(0)


async def test_waiting_ends_with_the_last_request() -> None:
    upstream = Remembering()
    requests = InFlight(upstream, lambda: None)
    sinks = [open_one(requests, upstream) for _ in range(2)]
    waiting = [asyncio.create_task(requests.wait_empty(10)) for _ in range(2)]
    await asyncio.sleep(0)
    for sink in sinks:
        assert not any(task.done() for task in waiting)
        sink.on_tail(Tail(Outcome.COMPLETE))
    assert await asyncio.gather(*waiting) == [True, True]


async def test_a_failed_engine_ends_its_requests_as_failed_with_their_usage() -> None:
    upstream = Remembering()
    requests = InFlight(upstream, lambda: None)
    requests.open(REQUEST, b"", upstream)
    requests.fail("the engine ended: exit status 1")
    requests.fail("again")
    assert upstream.news == [Tail(Outcome.FAILED, Usage(1, 2), "the engine ended: exit status 1")]


async def test_a_tail_before_the_exchange() -> None:
    upstream = AtOnce()
    requests = InFlight(upstream, lambda: None)
    requests.open(REQUEST, b"", upstream)
    assert len(requests) == 0
    requests.fail("too late")
    assert upstream.news == [Tail(Outcome.FAILED, error="no")]
