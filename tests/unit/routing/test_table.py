"""The routing table through any history: what is expected stays in step, nobody is over full, who is gone, closed, not
allowed or about to end is never chosen."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from firstkit.links.messages import END_MARGIN_S, Outcome, Tail, Usage
from firstkit.routing.breaker import FAILURES, Circuit
from firstkit.routing.calendar import Window
from firstkit.routing.choose import REFRESH_S
from firstkit.routing.pace import FEW, SPARE
from firstkit.routing.table import Pool, Route, RoutingTable
from firstkit.routing.wish import ANYWHERE, Wish
from firstkit.states import ReplicaState

MODELS = ["a", "b"]
CLUSTERS = ["here", "there"]
states = st.sampled_from([state for state in ReplicaState if not state.is_final])
sets = st.none() | st.frozensets(st.sampled_from(CLUSTERS))
prefixes = st.sampled_from([(), (b"1",), (b"2",), (b"11", b"1"), (b"12", b"1")])


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def route(
    replica_id: str = "rep-1",
    model: str = "a",
    most: int = 4,
    state: ReplicaState = ReplicaState.READY,
    cluster: str = "here",
    ends_at: float | None = None,
    born_at: float = 1000.0,
) -> Route:
    return Route(replica_id, model, cluster, None, model, most, state, ends_at=ends_at, born_at=born_at)  # type: ignore[arg-type]


def pool_of(*routes: Route, clock: Clock | None = None) -> Pool:
    table = RoutingTable({"a": "a"}, clock or Clock())
    for each in routes:
        table.add(each)
    return table.pools["a"]


def tail(duration_s: float = 1.0, tokens: int = 100, gap_s: float | None = None) -> Tail:
    return Tail(Outcome.COMPLETE, Usage(10, tokens), None, None if gap_s is None else 0.1, gap_s, duration_s)


class Table(RuleBasedStateMachine):
    """Requests and replicas come and go; ``under_way`` is the oracle: the route of each request."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.table = RoutingTable({"a": "a", "alias": "a", "b": "b"}, self.clock)
        self.present: list[Route] = []
        self.under_way: list[Route] = []
        self.count = 0

    @rule(
        model=st.sampled_from(MODELS), most=st.integers(1, 3), state=states, cluster=st.sampled_from(CLUSTERS),
        life=st.none() | st.integers(0, 200),
    )  # fmt: skip
    def add(self, model: str, most: int, state: ReplicaState, cluster: str, life: int | None) -> None:
        self.count += 1
        ends_at = None if life is None else self.clock.now + life
        self.present.append(route(f"rep-{self.count}", model, most, state, cluster, ends_at, self.clock.now))
        self.table.add(self.present[-1])

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.present))
        self.present.remove(gone)
        self.table.remove(gone)
        self.table.remove(gone)  # twice is once

    @precondition(lambda self: self.present)
    @rule(data=st.data(), state=states, left=st.none() | st.integers(0, 100), is_one=st.booleans())
    def change(self, data: st.DataObject, state: ReplicaState, left: int | None, is_one: bool) -> None:
        changed = data.draw(st.sampled_from(self.present))
        changed.state = state
        changed.ends_at = None if left is None else self.clock.now + left
        pool = self.table.pools[changed.model]
        if is_one:
            pool.changed(changed)
        else:
            pool.refresh()

    @precondition(lambda self: self.present)
    @rule(data=st.data(), burden=st.sampled_from([0.0, 0.5, 4.0]))
    def burden(self, data: st.DataObject, burden: float) -> None:
        burdened = data.draw(st.sampled_from(self.present))
        burdened.burden = burden
        self.table.pools[burdened.model].changed(burdened)

    @rule(seconds=st.sampled_from([0.3, 1, 5, 30]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(drained=st.frozensets(st.sampled_from(CLUSTERS)))
    def drain(self, drained: frozenset[str]) -> None:
        self.table.calendar.drained = dict.fromkeys(drained, "")
        self.table.refresh()

    @rule(data=st.data(), model=st.sampled_from(MODELS), within=sets, names=prefixes)
    def take(self, data: st.DataObject, model: str, within: frozenset[str] | None, names: tuple[bytes, ...]) -> None:
        ours = [each for each in self.present if each.model == model]
        avoid = data.draw(st.none() | st.sampled_from(ours)) if ours else None
        pool, wish = self.table.pools[model], Wish(within, None, names)
        pool.refresh()
        allowed = [each for each in ours if each is not avoid and (within is None or each.cluster in within)]
        has_room = [each for each in allowed if each.finish < inf]
        finishes = {each.replica_id: each.finish for each in has_room}
        assert avoid is None or pool.others_have_room(avoid, wish) == bool(has_room)
        taken = pool.take(wish, avoid)
        assert (taken is None) == (not has_room)
        if taken is None:
            return
        assert taken in has_room
        assert taken.cluster not in self.table.calendar.drained
        assert taken.ends_at is None or taken.ends_at > self.clock.now
        elsewhere = [each for each in has_room if avoid is not None and each.cluster != avoid.cluster]
        assert not elsewhere or taken in elsewhere
        best = min(finishes[each.replica_id] for each in elsewhere or has_room)
        assert finishes[taken.replica_id] <= best + (0.25 if names else 0)
        self.under_way.append(taken)

    @precondition(lambda self: self.present)
    @rule(data=st.data(), circuit=st.sampled_from(Circuit))
    def judge(self, data: st.DataObject, circuit: Circuit) -> None:
        judged = data.draw(st.sampled_from(self.present))
        judged.breaker.circuit = circuit
        self.table.pools[judged.model].reconsider(judged)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), seconds=st.sampled_from([0.1, 1, 20]), is_measured=st.booleans())
    def give_back(self, data: st.DataObject, seconds: float, is_measured: bool) -> None:
        ended = data.draw(st.sampled_from(self.under_way))
        self.under_way.remove(ended)
        if is_measured:
            self.table.pools[ended.model].measure(ended, tail(seconds))
        self.table.pools[ended.model].give_back(ended)

    @invariant()
    def requests_are_counted(self) -> None:
        for each in self.present:
            assert each.in_flight == self.under_way.count(each) <= each.max_in_flight
        for model in MODELS:
            expected = sum(each.model == model for each in self.under_way)
            assert self.table.pools[model].in_flight == expected, "those at replicas that went are under way still"

    @invariant()
    def finishes_are_in_step(self) -> None:
        for model, pool in self.table.pools.items():
            assert pool.routes == [each for each in self.present if each.model == model]
            assert pool.finishes == [each.finish for each in pool.routes]
            assert [each.slot for each in pool.routes] == list(range(len(pool.routes)))
            assert pool.ready == [each for each in pool.routes if each.state is ReplicaState.READY]
            assert pool.ending == [each for each in pool.routes if each.is_ending]
            assert pool.is_plain == (len(pool.routes) < 2 and not pool.ending)
            for within in (None, frozenset({"here"})):
                live = pool.live(within)
                closed = self.table.calendar.drained
                assert live == [
                    each for each in pool.ready
                    if each.cluster not in closed and (within is None or each.cluster in within)
                ]  # fmt: skip
                assert pool.is_failing(within) == ({each.breaker.circuit for each in live} == {Circuit.OPEN})
        assert {each.replica_id for each in self.table.routes()} == {each.replica_id for each in self.present}


TestTable = Table.TestCase
TestTable.settings = settings(max_examples=80, stateful_step_count=30)


def test_only_a_ready_replica_takes_any() -> None:
    finishes = {state: route(state=state).finish for state in ReplicaState}
    assert finishes.pop(ReplicaState.READY) == 0.25
    assert set(finishes.values()) == {inf}


def test_requests_spread_among_equals() -> None:
    pool = pool_of(*(route(f"rep-{i}", most=2) for i in range(3)))
    taken = [pool.take() for _ in range(6)]
    assert [each.replica_id for each in taken if each] == ["rep-0", "rep-1", "rep-2"] * 2
    assert pool.take() is None


def test_a_replica_with_a_burden_comes_behind_equals_and_is_taken_when_they_are_full() -> None:
    busy, other = route("rep-1"), route("rep-2")
    pool = pool_of(busy, other)
    busy.burden = 2.0
    pool.changed(busy)
    taken = [pool.take() for _ in range(8)]
    assert [each.replica_id for each in taken if each] == ["rep-2"] + ["rep-2", "rep-1"] * 3 + ["rep-1"]
    assert pool.take() is None


def test_a_request_that_outlives_its_replica_changes_no_other() -> None:
    table = RoutingTable({"a": "a"})
    gone, stays = route("rep-1", most=1), route("rep-2", most=1)
    table.add(gone)
    table.add(stays)
    pool = table.pools["a"]
    assert pool.take() is gone
    assert pool.take() is stays
    table.remove(gone)
    pool.give_back(gone)
    assert pool.finishes == [inf]
    assert pool.take() is None


def test_the_one_that_failed_is_not_taken_even_if_there_is_no_other() -> None:
    table = RoutingTable({"a": "a"})
    failed = route()
    table.add(failed)
    assert table.pools["a"].take(avoid=failed) is None
    assert table.pools["a"].finishes == [0.25], "and nothing is remembered against it"


def test_a_replica_whose_circuit_is_open_takes_none() -> None:
    failing = route()
    for _ in range(FAILURES):
        assert failing.finish < inf
        failing.breaker.failed()
    assert failing.finish == inf
    failing.breaker.try_again()
    assert failing.finish < inf
    failing.breaker.passed()
    assert failing.finish == inf


def test_one_request_at_a_time_tries_a_replica_that_failed() -> None:
    table = RoutingTable({"a": "a"})
    failing, other = route("rep-1", most=9), route("rep-2", most=1)
    table.add(failing)
    table.add(other)
    pool = table.pools["a"]
    for _ in range(FAILURES):
        failing.breaker.failed()
    pool.reconsider(failing)
    assert (pool.take(), pool.take()) == (other, None)
    assert not pool.is_failing()
    failing.breaker.try_again()
    pool.reconsider(failing)
    assert (pool.take(), pool.take()) == (failing, None)
    failing.breaker.succeeded()
    pool.give_back(failing)
    assert [pool.take() for _ in range(3)] == [failing] * 3


def test_a_model_without_replicas_is_cold_and_does_not_fail() -> None:
    table = RoutingTable({"a": "a"})
    assert not table.pools["a"].is_failing()
    starting = route(state=ReplicaState.STARTING)
    starting.breaker.circuit = Circuit.OPEN
    table.add(starting)
    assert not table.pools["a"].is_failing()


def test_names_lead_to_pools() -> None:
    table = RoutingTable({"m": "m", "alias": "m"})
    assert list(table.pools) == ["m"]
    assert table.aliases["alias"] == "m"


# -- speed -------------------------------------------------------------------------------------------------------------


def shares(pool: Pool, count: int) -> list[int]:
    """How many of ``count`` requests, none of which ends, each replica gets."""
    before = [each.in_flight for each in pool.routes]
    for _ in range(count):
        assert pool.take() is not None
    return [each.in_flight - was for each, was in zip(pool.routes, before, strict=True)]


@given(st.integers(1, 8), st.integers(0, 60), st.integers(8, 16))
def test_equals_have_equally_many(replicas: int, count: int, most: int) -> None:
    pool = pool_of(*(route(f"rep-{i}", most=most) for i in range(replicas)))
    found = shares(pool, min(count, replicas * most))
    assert max(found) - min(found) <= 1


def test_twice_the_room_takes_twice_as_many() -> None:
    assert shares(pool_of(route("rep-1", most=20), route("rep-2", most=40)), 30) == [10, 20]


def test_half_the_speed_takes_half_as_many_and_who_is_new_as_many_as_the_mean() -> None:
    clock = Clock()
    fast, slow, new = (route(f"rep-{i}", most=100) for i in range(3))
    pool = pool_of(fast, slow, new, clock=clock)
    for _ in range(FEW):
        pool.measure(fast, tail(1.0))
        pool.measure(slow, tail(2.0))
    assert len(set(shares(pool, 3))) == 1, "what was measured is looked at once in a while"
    clock.now += REFRESH_S
    found = shares(pool, 90)
    assert found[0] / found[1] == pytest.approx(2, rel=0.15)
    assert found[1] < found[2] < found[0]


# -- time --------------------------------------------------------------------------------------------------------------


def test_who_cannot_finish_a_request_gets_none() -> None:
    """While nothing was measured, a request is taken to need half a minute."""
    clock = Clock()
    pool = pool_of(dying := route(ends_at=4000.0, most=9), clock=clock)
    clock.now = 4000 - END_MARGIN_S - REFRESH_S - 31
    assert pool.take() is dying
    clock.now += 2
    assert pool.take() is None, "it waits for the successor"
    pool.measure(dying, tail(8.0))
    clock.now += REFRESH_S
    assert pool.take() is dying, "requests of this model need less"
    clock.now = 4000 - END_MARGIN_S - REFRESH_S - 8 * SPARE + 0.1
    assert pool.take() is None


def test_a_short_request_goes_where_a_long_one_has_no_time() -> None:
    clock = Clock()
    pool = pool_of(dying := route(ends_at=4000.0, most=9), clock=clock)
    assert pool.is_plain
    pool.measure(dying, tail(100.0, 5000, gap_s=0.02))
    clock.now = 4000 - END_MARGIN_S - REFRESH_S - 20
    assert pool.take() is None
    assert not pool.is_plain
    assert pool.take(Wish(most_tokens=4096)) is None
    assert pool.take(Wish(most_tokens=256)) is dying
    assert pool.take(Wish(frozenset({"there"}), 256)) is None
    clock.now += 19
    assert pool.take(Wish(most_tokens=256)) is None


def test_an_end_that_moves() -> None:
    clock = Clock()
    pool = pool_of(moved := route(ends_at=4000.0), clock=clock)
    clock.now = 3990
    assert pool.take() is None
    moved.ends_at = 9000.0
    pool.changed(moved)
    assert pool.take() is moved


def test_the_start_of_a_maintenance_is_an_end() -> None:
    clock = Clock()
    table = RoutingTable({"a": "a"}, clock)
    table.calendar.windows = {"here": [Window(4000.0, 5000.0)]}
    here, there = route("rep-1", most=9), route("rep-2", most=9, cluster="there")
    table.add(here)
    table.add(there)
    pool = table.pools["a"]
    assert {pool.take(), pool.take()} == {here, there}
    for clock.now in (3990.0, 4000.0, 4999.0):
        assert [pool.take(), pool.take()] == [there, there]
    assert pool.live() == [there]
    assert here.in_flight == 1, "it finishes what it has"
    clock.now = 5000.0
    assert pool.take() is here


def test_a_clock_that_was_set_back() -> None:
    clock = Clock()
    pool = pool_of(only := route(ends_at=1020.0), clock=clock)
    clock.now = 1019.0
    assert pool.take() is None
    clock.now = 900.0
    assert pool.take() is only


# -- affinity ----------------------------------------------------------------------------------------------------------

SAME = Wish(prefixes=(b"long", b"short"))


def test_the_same_beginning_goes_to_the_same_replica() -> None:
    pool = pool_of(*(route(f"rep-{i}", most=16) for i in range(4)))
    first = pool.take(SAME)
    assert first is not None
    pool.take()
    for _ in range(5):
        taken = pool.take(SAME)
        assert taken is first
        pool.give_back(taken)
    assert pool.take(Wish(prefixes=(b"other", b"short"))) is first, "a part of it is known there"


def test_a_beginning_that_all_have_spreads() -> None:
    """The one that knows it is preferred, and nobody is starved or over full for it."""
    pool = pool_of(*(route(f"rep-{i}", most=8) for i in range(4)))
    for count in range(1, 33):
        assert pool.take(SAME) is not None
        if count % 4 == 0:
            found = [each.in_flight for each in pool.routes]
            assert max(found) - min(found) <= 3
    assert pool.take(SAME) is None


def test_a_new_replica_gets_its_share_of_what_others_know() -> None:
    pool = pool_of(old := route("rep-1", most=8))
    for _ in range(4):
        pool.take(SAME)
    new = route("rep-2", most=8)
    pool.routes.append(new)
    pool.refresh()
    assert [pool.take(SAME) for _ in range(2)] == [new, new]
    assert old.in_flight == 4


def test_who_is_gone_is_forgotten() -> None:
    table = RoutingTable({"a": "a"})
    first, second = route("rep-1"), route("rep-2")
    table.add(first)
    table.add(second)
    pool = table.pools["a"]
    assert pool.take(SAME) is first
    table.remove(first)
    assert pool.take(SAME) is second


# -- clusters ----------------------------------------------------------------------------------------------------------


def test_who_failed_is_replaced_from_another_cluster_if_there_is_one() -> None:
    failed, near, far = route("rep-1"), route("rep-2"), route("rep-3", cluster="there", most=1)
    pool = pool_of(failed, near, far)
    assert pool.take(avoid=failed) is far
    assert pool.take(avoid=failed) is near, "the other cluster is full"
    assert pool.take(Wish(frozenset({"there"})), avoid=failed) is None


def test_anywhere_is_what_nobody_restricted() -> None:
    assert Wish(None, None, ()) == ANYWHERE
    assert ANYWHERE.kind == (None, None)
