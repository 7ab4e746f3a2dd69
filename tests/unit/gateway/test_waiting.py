"""The waiting room: in order, no more than there is room for, and no room is ever lost."""

from __future__ import annotations

import asyncio
from math import inf
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
from firstkit.routing.admission import NOBODY, Claim
from firstkit.routing.breaker import FAILURES, FIRST_WAIT_S, Circuit
from firstkit.routing.calendar import Window
from firstkit.routing.table import Route, RoutingTable
from firstkit.routing.wish import ANYWHERE, Wish
from firstkit.states import ReplicaState
from unit.gateway.support import route


class Room(WaitingRoom):
    """A room for the model ``m`` that remembers what the controller was told."""

    def __init__(self, max_waiting: int = 3, per_user: int | None = None) -> None:
        self.told: list[bool] = []
        super().__init__(RoutingTable({"m": "m"}), max_waiting, self.told.append, per_user)

    def add(self, most: int = 1, cluster: str = "here") -> Route:
        added = route(f"rep-{len(list(self.table.routes()))}", most, cluster=cluster)
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
    first, second = room.join("m"), room.join("m")
    added = room.add()
    assert room.take("m") is None
    assert first.route.result() is added
    assert not second.route.done()
    room.give_back(added)
    assert second.route.result() is added


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
    assert caught.value.message == "2 requests wait for the model 'm', and no more may (server.max_waiting)."
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


def said(waiting: int, in_flight: int, idle_s: float | None, clusters: list[str] | None = None) -> dict[str, Any]:
    return {
        "m": [{"clusters": clusters, "waiting": waiting, "in_flight": in_flight, "idle_s": idle_s, "finish_s": 30.0}]
    }


async def test_demand_is_what_the_controller_needs_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    at = [100.0]
    monkeypatch.setattr(waiting, "monotonic", lambda: at[0])
    room = Room()
    assert room.demand() == said(0, 0, None)
    added = room.add()
    room.take("m")
    ticket = room.join("m")
    assert room.demand() == said(1, 1, 0.0)
    room.give_back(added)
    at[0] += 7
    assert room.demand() == said(0, 1, 7.0)
    room.give_back(ticket.route.result())
    assert room.demand() == said(0, 0, 0.0)
    assert waiting.monotonic is not clock.monotonic


async def test_a_request_that_is_served_at_once_is_demand() -> None:
    """Else the controller hears of it only when it ends, and takes the replica away meanwhile."""
    room = Room()
    room.add()
    room.take("m")
    assert room.told == [False]


async def test_demand_tells_apart_where_requests_may_go() -> None:
    room = Room(max_waiting=9)
    room.add(3)
    room.add(1, "there")
    pinned, other = Wish(frozenset({"there"})), Wish(frozenset({"there", "here"}))
    taken = [room.take("m", wish) for wish in (ANYWHERE, other, pinned)]
    room.join("m", pinned)
    room.join("m", pinned._replace(most_tokens=16))
    found = {tuple(entry["clusters"] or ()): entry for entry in room.demand()["m"]}
    counts = {clusters: (entry["in_flight"], entry["waiting"]) for clusters, entry in found.items()}
    assert counts == {(): (1, 0), ("here", "there"): (1, 0), ("there",): (1, 2)}
    room.give_back(taken[1], wish=other)  # type: ignore[arg-type]
    assert [entry["in_flight"] for entry in room.demand()["m"]] == [1, 0, 1]


# -- fair shares -------------------------------------------------------------------------------------------------------

ADA, BEN = Claim("fusion", "ada", 100), Claim("climate", "ben", 100)


def told(room: Room) -> dict[str, tuple[int, int]]:
    """By user what waits and what is under way."""
    members = (user for project in room.standings()["m"] for user in project.members)
    return {user.id: (user.waiting, user.in_flight) for user in members}


async def test_one_who_comes_late_goes_before_the_many_of_another() -> None:
    room = Room(max_waiting=99)
    added = room.add()
    assert room.take("m", claim=ADA) is added
    many = [room.join("m", claim=ADA) for _ in range(50)]
    late = room.join("m", claim=BEN)
    assert [room.position("m", ticket) for ticket in (late, many[0], many[-1])] == [1, 2, 51]
    room.used("m", ADA, 100)
    room.give_back(added)
    assert late.route.result() is added
    room.used("m", BEN, 100)
    room.give_back(added)
    assert many[0].route.result() is added


async def test_what_is_given_at_once_counts_like_what_had_to_wait() -> None:
    room = Room(max_waiting=9)
    added = room.add(3)
    for _ in range(3):
        room.take("m", claim=ADA)
    again = room.join("m", claim=ADA)
    first = room.join("m", claim=BEN)
    second = room.join("m", claim=BEN)
    room.give_back(added)
    room.give_back(added)
    assert first.route.done()
    assert second.route.done()
    assert not again.route.done(), "one is still counted as under way, until it is told what they used"


async def test_who_leaves_with_a_route_has_used_nothing() -> None:
    room = Room(max_waiting=9)
    room.add()
    ticket = room.join("m", claim=ADA)
    room.pump("m")
    assert told(room) == {"ada": (0, 1)}
    room.leave("m", ticket)
    assert told(room) == {}
    [standing] = room.standings()["m"]
    assert (standing.id, standing.use, standing.in_flight) == ("fusion", 0.0, 0)


async def test_who_leaves_the_line_or_is_sent_away_has_used_nothing() -> None:
    room = Room(max_waiting=9)
    failing = room.add(FAILURES)
    for _ in range(FAILURES):
        room.take("m", claim=BEN)
    tickets = [room.join("m", claim=ADA) for _ in range(2)]
    room.leave("m", tickets[0])
    failing.state = ReplicaState.DRAINING
    room.table.pools["m"].changed(failing)
    for _ in range(FAILURES):
        room.used("m", BEN, 0)
        room.give_back(failing, Outcome.FAILED)
        failing.state = ReplicaState.READY if room.table.pools["m"].in_flight == 1 else ReplicaState.DRAINING
    assert isinstance(tickets[1].route.exception(), ReplicasFailing)
    room.leave("m", tickets[1])
    assert told(room) == {}


async def test_a_second_attempt_costs_no_second_time() -> None:
    room = Room()
    failed = room.add()
    room.add()
    room.take("m", claim=ADA)
    assert room.take_another("m", failed) is not None
    assert told(room) == {"ada": (0, 1)}


async def test_batches_get_the_room_that_nobody_else_can_use() -> None:
    room = Room(max_waiting=9)
    here = room.add()
    assert room.take("m") is here
    batch = room.join("m", claim=ADA._replace(is_batch=True))
    pinned = room.join("m", Wish(frozenset({"there"})), BEN)
    urgent = room.join("m", claim=ADA)
    room.give_back(here)
    assert urgent.route.done()
    room.give_back(here)
    assert batch.route.done(), "who waits for another cluster does not keep it from this one"
    assert not pinned.route.done()


async def test_the_error_of_a_full_line_says_which_bound_it_is() -> None:
    room = Room(max_waiting=8, per_user=4)
    for _ in range(4):
        room.join("m", claim=ADA)
    with pytest.raises(Overloaded, match=r"your requests .* 'm' .*server\.max_waiting_per_user"):
        room.join("m", claim=ADA)
    for _ in range(2):
        room.join("m", claim=BEN)
    with pytest.raises(
        Overloaded, match=r"6 requests wait .* last quarter of the places \(server\.max_waiting\)"
    ) as caught:
        room.join("m", claim=BEN)
    assert caught.value.retry_after_s == waiting.OVERLOAD_RETRY_S
    room.join("m", claim=Claim("fusion", "eve"))
    room.join("m", claim=Claim("fusion", "dan"))
    with pytest.raises(Overloaded, match=r"8 requests wait .* no more may \(server\.max_waiting\)"):
        room.join("m", claim=Claim("fusion", "joe"))


async def test_projects_have_the_shares_that_are_told() -> None:
    room = Room(max_waiting=999)
    added = room.add()
    room.take("m")
    for _ in range(100):
        room.join("m", claim=ADA)
        room.join("m", claim=BEN)
    room.share({"fusion": 3.0})
    for _ in range(40):
        room.give_back(added)
    assert told(room) == {"ada": (70, 30), "ben": (90, 10)}
    assert {each.id: each.share for each in room.standings()["m"]} == {"fusion": 3.0, "climate": 1.0}


async def test_what_was_used_before_counts() -> None:
    room = Room(max_waiting=99)
    room.recall("m", "fusion", "ada", 1e6, 3600.0)
    room.recall("m", "climate", "ben", 0.0, 3600.0)
    room.share({})
    assert {each.id: each.factor for each in room.standings()["m"]} == {"fusion": 0.25, "climate": 1.0}


async def test_what_waits_of_a_user_is_found() -> None:
    room = Room(max_waiting=9)
    first, _, second = room.join("m", claim=ADA), room.join("m", claim=BEN), room.join("m", THERE, ADA)
    assert list(room.of_user("ada")) == [("m", first), ("m", second)]
    assert list(room.of_user("nobody")) == []


# -- where requests may go ---------------------------------------------------------------------------------------------

HERE, THERE = Wish(frozenset({"here"})), Wish(frozenset({"there"}))


async def test_who_waits_for_one_cluster_holds_up_nobody_else() -> None:
    room = Room(max_waiting=9)
    room.add(2)
    pinned = room.join("m", THERE)
    assert room.take("m") is not None
    assert room.take("m", HERE) is not None
    last = room.join("m")
    there = room.add(1, "there")
    room.pump("m")
    assert pinned.route.result() is there
    assert not last.route.done()
    room.give_back(there, wish=THERE)
    assert last.route.result() is there, "who may go everywhere goes there too"


async def test_among_those_whom_it_may_serve_the_first_goes_first() -> None:
    room = Room(max_waiting=9)
    tickets = [room.join("m", wish) for wish in (THERE, ANYWHERE, HERE, ANYWHERE, HERE)]
    here = room.add(1)
    order = []
    for _ in range(4):
        room.pump("m")
        [served] = [ticket for ticket in tickets if ticket.route.done() and ticket not in order]
        order.append(served)
        room.give_back(here, wish=served.wish)
    assert [tickets.index(ticket) for ticket in order] == [1, 2, 3, 4]


async def test_a_position_counts_those_who_are_before_one() -> None:
    room = Room(max_waiting=9)
    tickets = [room.join("m", wish) for wish in (THERE, HERE, THERE, HERE, ANYWHERE, THERE)]
    assert [room.position("m", ticket) for ticket in tickets] == [1, 1, 2, 2, 5, 4]


async def test_the_first_who_waits_for_a_cluster_wakes_the_controller() -> None:
    room = Room(max_waiting=9)
    for wish in (ANYWHERE, ANYWHERE, THERE, THERE):
        room.join("m", wish)
    assert room.told == [True, False, True, False]


async def test_where_one_cluster_fails_others_may_help() -> None:
    room = Room()
    failing = room.add()
    there = room.add(1, "there")
    tickets = []
    for _ in range(FAILURES):
        assert room.take("m", HERE) is failing
        room.take("m", THERE)
        tickets = [room.join("m", HERE), room.join("m")]
        for ticket in tickets:
            room.leave("m", ticket)
        room.give_back(failing, Outcome.FAILED, HERE)
        room.give_back(there, wish=THERE)
    with pytest.raises(ReplicasFailing):
        room.join("m", HERE)
    assert room.take("m") is there
    room.join("m")


async def test_those_who_may_go_elsewhere_are_not_sent_away() -> None:
    room = Room(max_waiting=9)
    failing, there = room.add(FAILURES), room.add(1, "there")
    taken = [room.take("m", HERE) for _ in range(FAILURES)]
    assert taken == [failing] * FAILURES
    assert room.take("m", THERE) is there
    stuck, free = room.join("m", HERE), room.join("m")
    failing.state = ReplicaState.DRAINING
    room.table.pools["m"].changed(failing)
    for _ in range(FAILURES - 1):
        room.give_back(failing, Outcome.LOST, HERE)
    failing.state = ReplicaState.READY
    room.give_back(failing, Outcome.LOST, HERE)
    assert isinstance(stuck.route.exception(), ReplicasFailing)
    assert not free.route.done()
    room.give_back(there, wish=THERE)
    assert free.route.result() is there


async def test_when_its_cluster_dies_a_request_in_line_waits_for_the_others() -> None:
    room = Room()
    here = room.add()
    assert room.take("m") is here
    ticket = room.join("m")
    room.table.remove(here)
    room.give_back(here, Outcome.LOST)
    assert not ticket.route.done()
    there = room.add(1, "there")
    room.pump("m")
    assert ticket.route.result() is there


async def test_a_second_attempt_goes_to_another_cluster() -> None:
    room = Room()
    failed, near, far = room.add(), room.add(), room.add(1, "there")
    assert room.take_another("m", failed) is far
    assert room.take_another("m", failed, THERE) is None
    assert room.take_another("m", failed) is near


async def test_what_time_opens_is_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    at = [1000.0]
    room = Room()
    room.table.pools["m"]._clock = lambda: at[0]
    room.table.calendar.windows = {"here": [Window(900.0, 1100.0)]}
    here = room.add()
    assert room.take("m") is None
    ticket = room.join("m")
    room.pump_all()
    assert not ticket.route.done()
    at[0] = 1100.0
    room.pump_all()
    assert ticket.route.result() is here


WISHES = [ANYWHERE, HERE, THERE, Wish(frozenset({"here", "there"}))]
CLAIMS = [NOBODY, *(Claim(p, u, 100, is_batch) for p in "pq" for u in "uv" for is_batch in (False, True))]
OPS = st.lists(
    st.tuples(st.sampled_from(["come", "come", "end", "leave", "add", "drain", "ready", "remove"]), st.integers(0, 9)),
    max_size=50,
)


@settings(max_examples=150)
@given(OPS, st.booleans(), st.booleans())
def test_any_history_serves_in_order_and_loses_no_room(
    ops: list[tuple[str, int]], is_restricted: bool, is_shared: bool
) -> None:
    asyncio.run(History(is_restricted, is_shared).play(ops))


class History:
    """Requests of several kinds and users; ``line`` are those that wait, ``served`` those that have a route."""

    def __init__(self, is_restricted: bool, is_shared: bool) -> None:
        self.wishes = WISHES if is_restricted else [ANYWHERE]
        self.claims = CLAIMS if is_shared else [NOBODY]
        self.routes: list[Route] = []
        self.line: list[Ticket] = []
        self.served: list[tuple[Route, Wish, Claim]] = []

    async def play(self, ops: list[tuple[str, int]]) -> None:
        self.room = Room(max_waiting=4)
        for op, number in ops:
            self.step(op, number)
            self.look()

    def look(self) -> None:
        for wish in self.wishes:
            for claim in self.claims:
                kind = [ticket for ticket in self.line if (ticket.wish, ticket.claim) == (wish, claim)]
                done = [ticket for ticket in kind if ticket.route.done()]
                assert done == kind[: len(done)], "those of one user are served in the order in which they came"
        done = [ticket for ticket in self.line if ticket.route.done()]
        self.served += [(ticket.route.result(), ticket.wish, ticket.claim) for ticket in done]
        self.line = [ticket for ticket in self.line if not ticket.route.done()]
        assert self.room.waiting("m") == len(self.line)
        for each in self.routes:
            assert each.in_flight == [taken for taken, _, _ in self.served].count(each) <= each.max_in_flight
        assert all(wish.within is None or taken.cluster in wish.within for taken, wish, _ in self.served)
        for ticket in self.line:
            within = ticket.wish.within
            has_room = [each for each in self.routes if each.finish < inf and (not within or each.cluster in within)]
            assert not has_room, "nobody waits while there is room"
        entries = self.room.demand()["m"]
        assert sum(entry["waiting"] for entry in entries) == len(self.line)
        assert sum(entry["in_flight"] for entry in entries) == len(self.served) == self.room.table.pools["m"].in_flight
        assert len({str(entry["clusters"]) for entry in entries}) == len(entries)
        standings = self.room.standings().get("m", [])
        assert sum(each.in_flight for each in standings) == sum(claim is not NOBODY for _, _, claim in self.served)
        assert sum(each.waiting for each in standings) == sum(ticket.claim is not NOBODY for ticket in self.line)

    def step(self, op: str, number: int) -> None:
        room = self.room
        if op == "come":
            self.come(self.wishes[number % len(self.wishes)], self.claims[number % len(self.claims)])
        elif op == "end" and self.served:
            taken, wish, claim = self.served.pop(number % len(self.served))
            room.used("m", claim, 10 * number)
            room.give_back(taken, wish=wish)
        elif op == "leave" and self.line:
            room.leave("m", self.line.pop(number % len(self.line)))
        elif op == "add":
            self.routes.append(room.add(1 + number % 2, "here" if number % 3 else "there"))
            room.pump("m")
        elif op == "remove" and self.routes:
            room.table.remove(self.routes.pop(number % len(self.routes)))
        elif op in ("drain", "ready") and self.routes:
            changed = self.routes[number % len(self.routes)]
            changed.state = ReplicaState.DRAINING if op == "drain" else ReplicaState.READY
            room.table.pools["m"].changed(changed)
            room.pump("m")

    def come(self, wish: Wish, claim: Claim) -> None:
        theirs = any(ticket.claim.user == claim.user != "" for ticket in self.line)
        if (taken := self.room.take("m", wish, claim)) is not None:
            self.served.append((taken, wish, claim))
        elif len(self.line) < (3 if theirs else 4):
            self.line.append(self.room.join("m", wish, claim))
        else:
            with pytest.raises(Overloaded):
                self.room.join("m", wish, claim)
