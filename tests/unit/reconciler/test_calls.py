from __future__ import annotations

import asyncio
from typing import Any

import pytest

from firstkit.errors import CallFailed, LinkLost
from firstkit.reconciler import calls
from firstkit.reconciler.calls import Calls


class Silence:
    """A gateway that hears calls and answers none by itself."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.calls = Calls(self.heard.append)

    async def called(self, *verbs: str) -> list[asyncio.Task[Any]]:
        """Calls under way, their messages sent."""
        tasks = [asyncio.ensure_future(self.calls.call("job-a", verb)) for verb in verbs]
        await asyncio.sleep(0)
        return tasks

    def answer(self, verb: str, **reply: Any) -> None:
        (number,) = (message["id"] for message in self.heard if message["verb"] == verb)
        self.calls.hear({"kind": "reply", "id": number, **reply})


@pytest.fixture
def gateway() -> Silence:
    return Silence()


async def test_each_call_gets_its_own_answer_in_any_order(gateway: Silence) -> None:
    start, stop, status = await gateway.called("start", "stop", "status")
    gateway.answer("status", result="all well")
    gateway.answer("stop", error="no such replica", refused=True)
    gateway.answer("start", result=None)
    assert await status == "all well"
    assert await start is None
    with pytest.raises(CallFailed, match="no such replica"):
        await stop


async def test_of_two_answers_the_first_counts(gateway: Silence) -> None:
    (call,) = await gateway.called("status")
    gateway.answer("status", result=1)
    gateway.answer("status", error="too late")
    assert await call == 1


async def test_an_error_that_does_not_say_whose_it_is_is_no_refusal(gateway: Silence) -> None:
    (call,) = await gateway.called("start")
    gateway.answer("start", error="the link broke")
    with pytest.raises(LinkLost, match="the link broke"):
        await call


async def test_a_gateway_that_never_answers_is_not_waited_for(
    gateway: Silence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "ANSWER_S", 0.0)
    with pytest.raises(LinkLost, match="did not answer 'start'"):
        await gateway.calls.call("job-a", "start")
    gateway.answer("start", result="after all")


async def test_a_gateway_that_went_answers_no_call_that_was_under_way(gateway: Silence) -> None:
    answered, *others = await gateway.called("status", "start", "stop")
    gateway.answer("status", result=1)
    gateway.calls.gateway_went()
    assert await answered == 1
    for call in others:
        with pytest.raises(LinkLost, match="went away"):
            await call


async def test_a_call_that_was_given_up_is_forgotten(gateway: Silence) -> None:
    (call,) = await gateway.called("start")
    call.cancel()
    await asyncio.wait([call])
    gateway.answer("start", result="after all")
    gateway.calls.gateway_went()
    assert gateway.calls._waiting == {}
