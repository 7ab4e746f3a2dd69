from __future__ import annotations

from typing import Any

import pytest

from firstkit.errors import CallFailed, LinkLost
from firstkit.links.messages import PilotReport, ReplicaReport
from firstkit.reconciler.autoscale import Policy
from firstkit.reconciler.calls import Calls
from firstkit.reconciler.world import World
from firstkit.states import ReplicaState
from firstkit.wire import to_dict

POLICY = Policy(hot=0, most=3, max_in_flight=4, idle_timeout_s=60.0, sustain_s=10.0)


class Clock:
    at = 1000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def world() -> World:
    made = World({"m": [POLICY]}, Clock())
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
    loaded = ReplicaReport("rep-a", ReplicaState.READY, 3, running=9, waiting=2, others=8, cache_use=0.9)
    assert not world.hear_pilots({"pilots": {"job-a": to_dict(PilotReport("job-a", (loaded,)))}})
    assert world.hear_pilots({"pilots": {"job-a": None}})
    assert world.reports == {}


def test_what_a_pilot_said_last_is_known_once_after_its_link_went(world: World) -> None:
    world.living["here"] = frozenset({"job-a"})
    world.hear_pilots({"pilots": {"job-a": said(ReplicaState.FAILED)}})
    world.hear_pilots({"pilots": {"job-a": None}})
    last = world.take_last_words("job-a")
    assert last is not None
    assert last.replicas[0].state is ReplicaState.FAILED
    assert world.take_last_words("job-a") is None


def test_of_a_link_that_came_back_and_of_jobs_that_live_nowhere_no_last_words_are_kept(world: World) -> None:
    world.living["here"] = frozenset({"job-a"})
    for message in (said(), None, said()):
        world.hear_pilots({"pilots": {"job-a": message}})
    assert world.take_last_words("job-a") is None
    world.living["here"] = frozenset()
    world.hear_pilots({"pilots": {"job-a": None}})
    assert world.take_last_words("job-a") is None


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


def entry(waiting: int = 0, in_flight: int = 0, idle_s: float | None = None, clusters: Any = None) -> dict[str, Any]:
    return {"clusters": clusters, "waiting": waiting, "in_flight": in_flight, "idle_s": idle_s}


def needed(world: World, clusters: frozenset[str] | None = None) -> int | None:
    return next((need.by(POLICY) for need in world.needs("m") if need.clusters == clusters), None)


def test_demand_lasts_until_other_is_heard(world: World) -> None:
    world.hear_demand({"m": [entry(2, 3, 0.0)], "unknown": []})
    later(world, 500)
    assert needed(world) == 5
    world.hear_demand({"m": [entry()]})
    later(world, 61)
    assert needed(world) == 0


def test_a_request_between_two_messages_is_not_missed(world: World) -> None:
    world.hear_demand({"m": [entry(idle_s=10.0)]})
    later(world, 50)
    assert needed(world) == 1
    later(world, 1)
    assert needed(world) == 0


def test_each_set_of_clusters_has_its_own_demand(world: World) -> None:
    world.hear_demand({"m": [entry(1), entry(7, clusters=["a", "b"])]})
    later(world, 11)
    assert (needed(world), needed(world, frozenset("ab"))) == (1, 7)
    assert world.is_waited_for("m")


def test_a_set_of_clusters_that_is_not_named_asks_for_nothing_and_is_forgotten_in_time(world: World) -> None:
    world.hear_demand({"m": [entry(7, clusters=["a"])]})
    later(world, 11)
    world.hear_demand({"m": []})
    assert needed(world, frozenset("a")) == 7, "it counts for the idle time"
    assert not world.is_waited_for("m")
    later(world, 61)
    assert needed(world, frozenset("a")) is None
    assert needed(world) == 0


def test_what_a_request_needs_is_taken_over_where_it_is_said(world: World) -> None:
    assert world.finish_s("m") == 0.0
    world.hear_demand({"m": [{**entry(), "finish_s": 12.5}, entry(clusters=["a"])]})
    world.hear_demand({"m": [entry()]})
    assert world.finish_s("m") == 12.5


def test_strays_are_of_no_cluster_that_was_looked_at(world: World) -> None:
    world.hear_pilots({"pilots": {"job-a": said(), "job-b": {**said(), "job_id": "job-b"}}})
    world.living = {"here": frozenset({"job-a"}), "there": frozenset()}
    assert world.strays() == {"job-b"}


def test_demand_is_known_once_the_gateway_has_said_it(world: World) -> None:
    assert not world.is_demand_known
    world.hear_demand({})
    assert world.is_demand_known
    world.gateway_went()
    assert not world.is_demand_known


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
