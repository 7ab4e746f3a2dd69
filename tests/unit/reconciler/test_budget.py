from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from firstkit.config import Scale
from firstkit.config.clusters import Spending
from firstkit.reconciler.budget import Account, Budget, budget, hours_of
from firstkit.schedulers.scheduler import Resources
from firstkit.store.jobs import Spent
from unit.reconciler.support import NOW

HOUR = timedelta(hours=1)
SIX_HOURS = Resources(nodes=1, walltime_s=6 * 3600)


def spent(**values: Any) -> Spent:
    known = {
        "nodes": 1,
        "walltime_s": 6 * 3600,
        "created_at": NOW - 2 * HOUR,
        "started_at": NOW - 2 * HOUR,
        "ends_at": NOW + 4 * HOUR,
        "ended_at": None,
    }
    return Spent("job-a", "m@here", **{**known, **values})


def account(**values: Any) -> Account:
    return budget(Spending(), [spent(**values)], NOW).deployments["m@here"]


def test_a_running_job_has_used_its_time_and_is_bound_to_use_the_rest() -> None:
    assert account() == Account(1, 2.0, 4.0)
    assert account(nodes=3) == Account(3, 6.0, 12.0)
    assert account(ends_at=None) == Account(1, 2.0, 4.0)
    assert account(ends_at=None, walltime_s=None) == Account(1, 2.0, 24.0)


def test_a_job_that_waits_is_bound_to_use_all() -> None:
    assert account(started_at=None, ends_at=None) == Account(1, 0.0, 6.0)


def test_of_a_job_that_ended_only_the_last_day_counts() -> None:
    assert account(ended_at=NOW - HOUR) == Account(0, 1.0, 0.0)
    assert account(started_at=NOW - 30 * HOUR, ended_at=NOW - 12 * HOUR) == Account(0, 12.0, 0.0)
    assert account(started_at=None, ended_at=NOW) == Account()


def test_submissions_count_for_an_hour() -> None:
    assert account(created_at=NOW - HOUR / 2).submissions == 1
    assert account(created_at=NOW - HOUR).submissions == 0
    assert account(created_at=NOW - HOUR / 2, started_at=None, ended_at=NOW).submissions == 1, "also refused ones"


def test_a_job_whose_deployment_nobody_knows_is_charged_to_the_cluster() -> None:
    found = budget(Spending(), [replace(spent(), deployment=None)], NOW)
    assert found.deployments == {}
    assert found.cluster.nodes == 1


def test_without_limits_only_submissions_are_counted() -> None:
    assert Budget().refusal("m@here", Scale(), SIX_HOURS) == ""
    assert Budget().left("m@here", Scale(submissions_per_hour=7), SIX_HOURS) == 7


def test_limits_say_which_they_are() -> None:
    def refusal(limits: Spending, used: Account, scale: Scale | None = None) -> str:
        return Budget(limits, used, {"m@here": used}).refusal("m@here", scale or Scale(), SIX_HOURS)

    assert refusal(Spending(nodes=2), Account(nodes=1)) == ""
    assert refusal(Spending(nodes=2), Account(nodes=2)) == "at most 2 nodes may be used on this cluster"
    day = Spending(node_hours_per_day=10)
    assert refusal(day, Account(used_h=3, bound_h=1)) == ""
    assert refusal(day, Account(used_h=3, bound_h=1.1)) == (
        "at most 10 node-hours may be used on this cluster in a day"
    )
    own = Scale(node_hours_per_day=6)
    assert refusal(Spending(), Account(), own) == ""
    assert refusal(Spending(), Account(used_h=0.1), own) == "at most 6 node-hours may be used for it in a day"
    assert "submitted" in refusal(Spending(), Account(submissions=60))


def test_a_job_without_a_walltime_may_use_a_day() -> None:
    assert hours_of(Resources(nodes=2)) == 48
    assert hours_of(Resources(nodes=2, walltime_s=1800)) == 1


ACCOUNTS = st.builds(Account, st.integers(0, 5), st.floats(0, 50), st.floats(0, 50), st.integers(0, 10))
LIMITS = st.builds(Spending, nodes=st.none() | st.integers(1, 9), node_hours_per_day=st.none() | st.floats(1, 100))
SCALES = st.builds(Scale, node_hours_per_day=st.none() | st.floats(1, 100), submissions_per_hour=st.integers(1, 12))
JOBS = st.builds(Resources, nodes=st.integers(1, 3), walltime_s=st.none() | st.integers(10, 100_000))


@given(LIMITS, ACCOUNTS, SCALES, JOBS)
def test_so_many_as_are_left_can_be_submitted(limits: Spending, used: Account, scale: Scale, job: Resources) -> None:
    now = Budget(limits, used, {"m@here": used})
    left, submitted = now.left("m@here", scale, job), 0
    while submitted < 20 and not now.refusal("m@here", scale, job):
        now = now.with_job("m@here", job)
        submitted += 1
    assert abs(min(left, 20) - submitted) <= (0 if limits.node_hours_per_day is scale.node_hours_per_day is None else 1)
