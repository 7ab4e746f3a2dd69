from __future__ import annotations

from typing import Any

import pytest

from firstkit.errors import CallFailed, LinkLost
from firstkit.links.messages import PilotReport, ReplicaReport
from firstkit.reconciler.autoscale import peak
from firstkit.reconciler.calls import Calls
from firstkit.reconciler.world import World
from firstkit.states import ReplicaState
from firstkit.wire import to_dict


class Clock:
    at = 1000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def world() -> World:
    made = World(["m"], 60.0, Clock())
    made.gateway_came()
    return made


def said(state: ReplicaState = ReplicaState.READY, in_flight: int = 0) -> dict[str, Any]:
    report: dict[str, Any] = to_dict(PilotReport("job-a", (ReplicaReport("rep-a", state, in_flight),)))
    return report


def later(world: World, seconds: float) -> None:
    assert isinstance(world.clock, Clock)
    world.clock.at += seconds


# -- pilots ------------------------------------------------------------------------------------------------------------


def test_only_what_there_is_to_act_on_is_news(world: World) -> None:
    assert world.hear_pilots({"pilots": {"job-a": said(ReplicaState.STARTING)}})
    assert world.hear_pilots({"pilots": {"job-a": said()}})
    assert not world.hear_pilots({"pilots": {"job-a": said(in_flight=3)}})
    assert world.reports["job-a"].replicas[0].in_flight == 3
    assert world.hear_pilots({"pilots": {"job-a": None}})
    assert world.reports == {}


def test_the_first_message_is_the_whole_truth(world: World) -> None:
    world.hear_pilots({"pilots": {"job-old": said()}})
    assert world.hear_pilots({"all": True, "pilots": {"job-a": said()}})
    assert list(world.reports) == ["job-a"]


def test_silence_is_counted_from_the_loss_of_the_link(world: World) -> None:
    world.hear_pilots({"pilots": {"job-a": said()}})
    later(world, 5)
    assert world.silent_s("job-a") == 0
    world.hear_pilots({"pilots": {"job-a": None}})
    later(world, 7)
    assert world.silent_s("job-a") == 7
    assert world.silent_s("job-never-heard") == 12


def test_while_the_gateway_is_away_nobody_is_silent(world: World) -> None:
    world.hear_pilots({"pilots": {"job-a": None}})
    world.gateway_went()
    later(world, 1000)
    assert world.silent_s("job-a") == 0
    world.gateway_came()
    later(world, 3)
    assert world.silent_s("job-a") == 3


# -- demand ------------------------------------------------------------------------------------------------------------


def test_demand_lasts_until_other_is_heard(world: World) -> None:
    world.hear_demand({"m": {"waiting": 2, "in_flight": 3, "idle_s": 0.0}, "unknown": {}})
    later(world, 500)
    assert peak(world.history("m"), world.clock()) == 5
    world.hear_demand({"m": {"waiting": 0, "in_flight": 0, "idle_s": None}})
    later(world, 1)
    assert peak(world.history("m"), world.clock()) == 0


def test_a_request_between_two_messages_is_not_missed(world: World) -> None:
    world.hear_demand({"m": {"waiting": 0, "in_flight": 0, "idle_s": 10.0}})
    assert peak(world.history("m"), world.clock() - 10) == 1
    assert peak(world.history("m"), world.clock() - 9) == 0


def test_what_runs_at_the_start_is_assumed_to_be_wanted(world: World) -> None:
    world.assume_more("m", 8)
    world.assume_more("m", 4)
    assert peak(world.history("m"), world.clock()) == 12


# -- calls -------------------------------------------------------------------------------------------------------------


class Gateway:
    """Answers calls by ``reply``, or not at all."""

    def __init__(self, reply: dict[str, Any] | None) -> None:
        self.heard: list[dict[str, Any]] = []
        self.reply = reply
        self.calls = Calls(self.send)

    def send(self, message: dict[str, Any]) -> None:
        self.heard.append(message)
        if self.reply is not None:
            self.calls.hear({"kind": "reply", "id": message["id"], **self.reply})


async def test_a_call_gets_its_result() -> None:
    gateway = Gateway({"result": {"a": 1}})
    assert await gateway.calls.call("job-a", "start", replica={}) == {"a": 1}
    assert gateway.heard == [{"kind": "call", "id": 1, "job_id": "job-a", "verb": "start", "args": {"replica": {}}}]


async def test_a_refusal_and_a_lost_answer_are_told_apart() -> None:
    with pytest.raises(CallFailed, match="does not fit"):
        await Gateway({"error": "it does not fit", "refused": True}).calls.call("job-a", "start")
    with pytest.raises(LinkLost, match="no link"):
        await Gateway({"error": "no link", "refused": False}).calls.call("job-a", "start")


async def test_nobody_waits_for_a_gateway_that_went_away(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway(None)
    monkeypatch.setattr(gateway, "send", lambda message: gateway.calls.gateway_went())
    gateway.calls._send = gateway.send
    with pytest.raises(LinkLost, match="went away"):
        await gateway.calls.call("job-a", "stop")


async def test_late_replies_mean_nothing() -> None:
    gateway = Gateway({"result": 1})
    await gateway.calls.call("job-a", "status")
    gateway.calls.hear({"id": 1, "result": 2})
    gateway.calls.hear({"id": 99, "result": 2})
