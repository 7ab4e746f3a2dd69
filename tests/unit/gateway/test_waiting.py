"""The waiting room: in order, no more than there is room for, and no room is ever lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstkit import clock
from firstkit.errors import Overloaded, ReplicasFailing
from firstkit.gateway import waiting
from firstkit.gateway.waiting import Ticket, WaitingRoom
from firstkit.links.messages import Outcome
from firstkit.metrics import REGISTRY
from firstkit.routing.breaker import FAILURES, FIRST_WAIT_S, Circuit
from firstkit.routing.table import Route, RoutingTable
from firstkit.states import ReplicaState
from unit.gateway.support import route


class Room(WaitingRoom):
    """A room for the model ``m`` that remembers what the controller was told."""

    def __init__(self, max_waiting: int = 3) -> None:
        self.told: list[bool] = []
        super().__init__(RoutingTable({"m": "m"}), max_waiting, self.told.append)

    def add(self, most: int = 1) -> Route:
        added = route(f"rep-{len(list(self.table.routes()))}", most)
        self.table.add(added)
        return added


async def test_who_comes_while_there_is_room_is_served_at_once() -> None:
    room = Room()
    assert room.take("m") is None
    added = room.add()
    assert room.take("m") is added
    assert room.take("m") is None


async def test_nobody_overtakes_those_who_wait() -> None:
    room = Room()
    ticket = room.join("m")
    added = room.add(2)
    assert room.take("m") is None
    room.pump("m")
    assert ticket.route.result() is added
    assert room.take("m") is added


async def test_a_second_attempt_does_not_queue_again() -> None:
    room = Room()
    failed, other = room.add(), room.add()
    room.join("m")
    assert room.take_another("m", failed) is other
    assert room.take_another("m", failed) is None


async def test_a_second_attempt_needs_a_budget() -> None:
    room = Room()
    failed, other = room.add(100), room.add(100)
    assert [room.take_another("m", failed) for _ in range(11)] == [other] * 10 + [None]
    for _ in range(9):
        room.take("m")
    assert room.take_another("m", failed) is None
    room.take("m")
    room.take("m")
    assert room.take_another("m", failed) is other


async def test_where_there_is_no_other_nothing_is_spent() -> None:
    room = Room()
    failed = room.add(100)
    for _ in range(50):
        assert room.take_another("m", failed) is None
    room.add(100)
    assert room.take_another("m", failed) is not None


# -- replicas that fail ------------------------------------------------------------------------------------------------


def fail(room: Room, route: Route, times: int = FAILURES, outcome: Outcome = Outcome.FAILED) -> None:
    for _ in range(times):
        assert room.take("m") is route
        room.give_back(route, outcome)


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.TIMEOUT, Outcome.LOST])
async def test_a_replica_that_fails_again_and_again_is_left_alone(
    outcome: Outcome, caplog: pytest.LogCaptureFixture
) -> None:
    room = Room()
    failing = room.add()
    fail(room, failing, FAILURES, outcome)
    assert room.take("m") is None
    assert [record.action for record in caplog.records] == ["circuit_opened"]  # type: ignore[attr-defined]
    other = room.add()
    assert room.take("m") is other


@pytest.mark.parametrize("outcome", [Outcome.COMPLETE, Outcome.REJECTED, Outcome.CANCELLED])
async def test_what_is_not_its_fault_is_not_held_against_it(outcome: Outcome) -> None:
    room = Room()
    route = room.add()
    fail(room, route, 5 * FAILURES, outcome)


async def test_one_good_answer_makes_up_for_all() -> None:
    room = Room()
    route = room.add()
    for _ in range(5):
        fail(room, route, FAILURES - 1)
        fail(room, route, 1, Outcome.COMPLETE)


async def test_where_all_fail_nobody_has_to_wait_to_hear_it() -> None:
    room = Room()
    failing = room.add()
    fail(room, failing)
    with pytest.raises(ReplicasFailing) as caught:
        room.join("m")
    assert caught.value.retry_after_s == FIRST_WAIT_S
    room.add()
    room.join("m")


async def test_after_the_wait_one_request_tries_it(monkeypatch: pytest.MonkeyPatch) -> None:
    later: list[tuple[float, Any, tuple[Any, ...]]] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_later", lambda wait_s, call, *args: later.append((wait_s, call, args)))
    room = Room()
    failing = room.add(4)
    waits = []
    fail(room, failing)
    for _ in range(6):
        [(wait_s, call, args)] = later
        later.clear()
        waits.append(wait_s)
        assert room.take("m") is None
        call(*args)
        assert room.take("m") is failing
        assert room.take("m") is None, "one at a time"
        ticket = room.join("m")
        room.give_back(failing, Outcome.FAILED)
        assert isinstance(ticket.route.exception(), ReplicasFailing), "nobody waits for what will not come"
        room.leave("m", ticket)
    assert waits == [5, 10, 20, 40, 60, 60]
    [(_, call, args)] = later
    call(*args)
    assert room.take("m") is failing
    tickets = [room.join("m") for _ in range(2)]
    room.give_back(failing, Outcome.COMPLETE)
    assert [ticket.route.result() for ticket in tickets] == [failing, failing]


async def test_a_wait_that_is_over_is_over_for_its_own_opening_only(monkeypatch: pytest.MonkeyPatch) -> None:
    later: list[tuple[Any, tuple[Any, ...]]] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_later", lambda wait_s, call, *args: later.append((call, args)))
    room = Room()
    failing = room.add(2 * FAILURES + 2)
    sent = [room.take("m") for _ in range(2 * FAILURES + 1)]
    assert sent == [failing] * len(sent)
    for outcome in [*[Outcome.FAILED] * FAILURES, Outcome.COMPLETE, *[Outcome.FAILED] * FAILURES]:
        room.give_back(failing, outcome)
    (call, args), (other_call, other_args) = later
    call(*args)
    assert room.take("m") is None, "it opened again since then"
    other_call(*other_args)
    assert room.take("m") is failing


async def test_those_who_wait_get_their_turn_when_it_is_tried() -> None:
    room = Room()
    failing = room.add()
    ticket = room.join("m")
    assert room.take("m") is None
    failing.breaker.circuit = Circuit.OPEN
    room.table.pools["m"].refresh()
    room._try_again(failing)
    assert ticket.route.result() is failing


async def test_a_replica_that_went_in_the_meantime_is_not_tried() -> None:
    room = Room()
    failing = room.add()
    fail(room, failing)
    room.table.remove(failing)
    ticket = room.join("m")
    room._try_again(failing)
    assert not ticket.route.done()


# -- lines -------------------------------------------------------------------------------------------------------------


async def test_gauges_say_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room()
    room.add(2)
    room.take("m")
    room.take("m")
    room.join("m")
    room.count()
    said = [REGISTRY.get_sample_value(f"first_requests_{name}", {"model": "m"}) for name in ("waiting", "in_flight")]
    assert said == [1, 2]


async def test_the_first_who_waits_wakes_the_controller() -> None:
    room = Room()
    room.join("m")
    room.join("m")
    assert room.told == [True, False]


async def test_a_full_line_says_when_to_come_back() -> None:
    room = Room(max_waiting=2)
    room.join("m")
    room.join("m")
    with pytest.raises(Overloaded) as caught:
        room.join("m")
    assert caught.value.retry_after_s == waiting.OVERLOAD_RETRY_S
    assert room.waiting("m") == 2


async def test_room_that_comes_free_goes_to_the_next_in_line() -> None:
    room = Room()
    added = room.add()
    assert room.take("m") is added
    first, second = room.join("m"), room.join("m")
    assert (room.position("m", first), room.position("m", second)) == (1, 2)
    room.give_back(added)
    assert first.route.result() is added
    assert not second.route.done()
    assert (room.position("m", first), room.position("m", second)) == (0, 1)


async def test_who_gives_up_in_the_moment_of_being_served_passes_it_on() -> None:
    room = Room()
    first, second = room.join("m"), room.join("m")
    added = room.add()
    room.pump("m")
    assert first.route.done()
    room.leave("m", first)
    assert second.route.result() is added
    assert added.in_flight == 1
    room.leave("m", second)
    assert added.in_flight == 0


async def test_demand_is_what_the_controller_needs_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    at = [100.0]
    monkeypatch.setattr(waiting, "monotonic", lambda: at[0])
    room = Room()
    assert room.demand() == {"m": {"waiting": 0, "in_flight": 0, "idle_s": None}}
    added = room.add()
    room.take("m")
    ticket = room.join("m")
    said = room.demand()["m"]
    assert (said["waiting"], said["in_flight"]) == (1, 1)
    room.give_back(added)
    at[0] += 7
    assert room.demand() == {"m": {"waiting": 0, "in_flight": 1, "idle_s": 7.0}}
    room.give_back(ticket.route.result())
    assert room.demand() == {"m": {"waiting": 0, "in_flight": 0, "idle_s": 0.0}}
    assert waiting.monotonic is not clock.monotonic


async def test_a_request_that_is_served_at_once_is_demand() -> None:
    """Else the controller hears of it only when it ends, and takes the replica away meanwhile."""
    room = Room()
    room.add()
    room.take("m")
    assert room.told == [False]


OPS = st.lists(
    st.tuples(st.sampled_from(["come", "come", "end", "leave", "add", "drain", "ready", "remove"]), st.integers(0, 9)),
    max_size=40,
)


@settings(max_examples=60)
@given(OPS)
def test_any_history_serves_in_order_and_loses_no_room(ops: list[tuple[str, int]]) -> None:
    asyncio.run(_history(ops))


async def _history(ops: list[tuple[str, int]]) -> None:
    room = Room(max_waiting=3)
    routes: list[Route] = []
    line: list[Ticket] = []
    served: list[Route] = []
    for op, number in ops:
        _step(room, op, number, routes, line, served)
        done = [ticket for ticket in line if ticket.route.done()]
        assert done == line[: len(done)], "they are served in the order in which they came"
        served += [ticket.route.result() for ticket in done]
        del line[: len(done)]
        assert room.waiting("m") == len(line)
        for each in routes:
            assert each.in_flight == served.count(each) <= each.max_in_flight
        has_room = any(each.load < 1.0 for each in routes)
        assert not (line and has_room), "nobody waits while there is room"


def _step(room: Room, op: str, number: int, routes: list[Route], line: list[Ticket], served: list[Any]) -> None:
    pool = room.table.pools["m"]
    if op == "come":
        if (taken := room.take("m")) is not None:
            served.append(taken)
        elif len(line) < 3:
            line.append(room.join("m"))
        else:
            with pytest.raises(Overloaded):
                room.join("m")
    elif op == "end" and served:
        room.give_back(served.pop(number % len(served)))
    elif op == "leave" and line:
        room.leave("m", line.pop(number % len(line)))
    elif op == "add":
        routes.append(room.add(1 + number % 2))
        room.pump("m")
    elif op == "remove" and routes:
        room.table.remove(routes.pop(number % len(routes)))
    elif op in ("drain", "ready") and routes:
        state = ReplicaState.DRAINING if op == "drain" else ReplicaState.READY
        routes[number % len(routes)].state = state
        pool.refresh()
        room.pump("m")
