"""Every way in which a request to a model ends, as something that a test can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from firstkit.gateway import relay
from firstkit.links.messages import Outcome
from unit.gateway.support import CHAT_BODY, Served, Visit, request
from unit.gateway.upstreams import CHUNK

STREAM = {**CHAT_BODY, "stream": True}


def one(served: Served, body: Any = CHAT_BODY, key: str = "key") -> Visit:
    visit = served.connect()
    visit.say(request(body=body, key=key))
    return visit


def complete(served: Served) -> None:
    one(served)
    served.replica.last.answer()


def stream(served: Served) -> None:
    one(served, STREAM)
    served.replica.last.stream(CHUNK)
    served.replica.last.complete()


def broken(served: Served) -> None:
    one(served, STREAM)
    served.replica.last.stream(CHUNK)
    served.replica.last.end(Outcome.FAILED, "boom")


def refused_by_the_engine(served: Served) -> None:
    one(served)
    served.replica.last.head(400)
    served.replica.last.end(Outcome.REJECTED)


def lost(served: Served) -> None:
    one(served)
    served.replica.last.end(Outcome.LOST)


def too_long_for_the_engine(served: Served) -> None:
    one(served)
    served.replica.last.end(Outcome.TIMEOUT)


def large_and_broken(served: Served) -> None:
    one(served)
    served.replica.last.head()
    served.replica.last.data(b"x" * (relay.HELD_BYTES + 1))
    served.replica.last.end(Outcome.FAILED)


def gone(served: Served) -> None:
    one(served, STREAM).transport.break_off()


def fill(served: Served) -> None:
    """Have no room at any replica."""
    for each in served.gateway.table.routes():
        each.in_flight = each.max_in_flight
    served.gateway.table.pools["m"].refresh()


def gone_while_it_waits(served: Served) -> None:
    fill(served)
    visit = one(served)
    assert served.gateway.room.waiting("m") == 1
    visit.transport.break_off()


def overloaded(served: Served) -> None:
    fill(served)
    for visit in [one(served) for _ in range(5)]:
        visit.transport.break_off()


def no_json(served: Served) -> None:
    one(served, b"{")


def no_model(served: Served) -> None:
    one(served, {**CHAT_BODY, "model": "nope"})


def no_key(served: Served) -> None:
    one(served, key="bad")


def ended_by_us(served: Served) -> None:
    visit = one(served, STREAM)
    served.replica.last.stream(CHUNK)
    visit.protocol.end_now()


ENDINGS: list[Callable[[Served], None]] = [
    complete, stream, broken, refused_by_the_engine, lost, too_long_for_the_engine, large_and_broken, gone,
    gone_while_it_waits, overloaded, no_json, no_model, no_key, ended_by_us,
]  # fmt: skip
