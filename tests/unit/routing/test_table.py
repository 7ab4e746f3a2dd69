"""The routing table through any history: loads stay in step, nobody is over full, what is gone is never chosen."""

from __future__ import annotations

from math import inf

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from firstkit.routing.breaker import FAILURES, Circuit
from firstkit.routing.table import Pool, Route, RoutingTable
from firstkit.states import ReplicaState

MODELS = ["a", "b"]
states = st.sampled_from([state for state in ReplicaState if not state.is_final])


def route(
    replica_id: str = "rep-1", model: str = "a", most: int = 4, state: ReplicaState = ReplicaState.READY
) -> Route:
    return Route(replica_id, model, "here", None, model, most, state)  # type: ignore[arg-type]


class Table(RuleBasedStateMachine):
    """Requests and replicas come and go; ``under_way`` is the oracle: the route of each request."""

    def __init__(self) -> None:
        super().__init__()
        self.table = RoutingTable({"a": "a", "alias": "a", "b": "b"})
        self.present: list[Route] = []
        self.under_way: list[Route] = []
        self.count = 0

    @rule(model=st.sampled_from(MODELS), most=st.integers(1, 3), state=states)
    def add(self, model: str, most: int, state: ReplicaState) -> None:
        self.count += 1
        self.present.append(route(f"rep-{self.count}", model, most, state))
        self.table.add(self.present[-1])

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.present))
        self.present.remove(gone)
        self.table.remove(gone)
        self.table.remove(gone)  # twice is once

    @precondition(lambda self: self.present)
    @rule(data=st.data(), state=states)
    def change(self, data: st.DataObject, state: ReplicaState) -> None:
        changed = data.draw(st.sampled_from(self.present))
        changed.state = state
        self.table.pools[changed.model].refresh()

    @rule(data=st.data(), model=st.sampled_from(MODELS))
    def take(self, data: st.DataObject, model: str) -> None:
        ours = [each for each in self.present if each.model == model]
        avoid = data.draw(st.none() | st.sampled_from(ours)) if ours else None
        has_room = [each for each in ours if each.load < 1.0 and each is not avoid]
        loads = {each.replica_id: each.load for each in has_room}
        assert avoid is None or self.table.pools[model].others_have_room(avoid) == bool(has_room)
        taken = self.table.pools[model].take(avoid)
        assert (taken is None) == (not has_room)
        if taken is not None:
            assert taken in has_room
            assert loads[taken.replica_id] == min(loads.values())
            self.under_way.append(taken)

    @precondition(lambda self: self.present)
    @rule(data=st.data(), circuit=st.sampled_from(Circuit))
    def judge(self, data: st.DataObject, circuit: Circuit) -> None:
        judged = data.draw(st.sampled_from(self.present))
        judged.breaker.circuit = circuit
        self.table.pools[judged.model].reconsider(judged)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        ended = data.draw(st.sampled_from(self.under_way))
        self.under_way.remove(ended)
        self.table.pools[ended.model].give_back(ended)

    @invariant()
    def requests_are_counted(self) -> None:
        for each in self.present:
            assert each.in_flight == self.under_way.count(each) <= each.max_in_flight
        for model in MODELS:
            expected = sum(each.model == model for each in self.under_way)
            assert self.table.pools[model].in_flight == expected, "those at replicas that went are under way still"

    @invariant()
    def loads_are_in_step(self) -> None:
        for model, pool in self.table.pools.items():
            assert pool.routes == [each for each in self.present if each.model == model]
            assert pool.loads == [each.load for each in pool.routes]
            assert [each.slot for each in pool.routes] == list(range(len(pool.routes)))
            assert pool.ready == [each for each in pool.routes if each.state is ReplicaState.READY]
            circuits = {each.breaker.circuit for each in pool.ready}
            assert pool.is_failing == (circuits == {Circuit.OPEN})
        assert {each.replica_id for each in self.table.routes()} == {each.replica_id for each in self.present}


TestTable = Table.TestCase
TestTable.settings = settings(max_examples=60, stateful_step_count=30)


def test_only_a_ready_replica_has_a_load() -> None:
    loads = {state: route(state=state).load for state in ReplicaState}
    assert loads.pop(ReplicaState.READY) == 0.0
    assert set(loads.values()) == {inf}


def test_requests_spread_among_equals() -> None:
    pool = Pool()
    pool.routes += [route(f"rep-{i}", most=2) for i in range(3)]
    pool.refresh()
    taken = [pool.take() for _ in range(6)]
    assert [each.replica_id for each in taken if each] == ["rep-0", "rep-1", "rep-2"] * 2
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
    assert pool.loads == [1.0]
    assert pool.take() is None


def test_the_one_that_failed_is_not_taken_even_if_there_is_no_other() -> None:
    table = RoutingTable({"a": "a"})
    failed = route()
    table.add(failed)
    assert table.pools["a"].take(avoid=failed) is None
    assert table.pools["a"].loads == [0.0], "and nothing is remembered against it"


def test_a_replica_whose_circuit_is_open_has_no_load() -> None:
    failing = route()
    for _ in range(FAILURES):
        assert failing.load == 0.0
        failing.breaker.failed()
    assert failing.load == inf
    failing.breaker.try_again()
    assert failing.load == 0.0
    failing.breaker.passed()
    assert failing.load == inf


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
    assert not pool.is_failing
    failing.breaker.try_again()
    pool.reconsider(failing)
    assert (pool.take(), pool.take()) == (failing, None)
    failing.breaker.succeeded()
    pool.give_back(failing)
    assert [pool.take() for _ in range(3)] == [failing] * 3


def test_a_model_without_replicas_is_cold_and_does_not_fail() -> None:
    table = RoutingTable({"a": "a"})
    assert not table.pools["a"].is_failing
    starting = route(state=ReplicaState.STARTING)
    starting.breaker.circuit = Circuit.OPEN
    table.add(starting)
    assert not table.pools["a"].is_failing


def test_names_lead_to_pools() -> None:
    table = RoutingTable({"m": "m", "alias": "m"})
    assert list(table.pools) == ["m"]
    assert table.aliases["alias"] == "m"
