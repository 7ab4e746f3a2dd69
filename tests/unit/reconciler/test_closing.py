from __future__ import annotations

from datetime import timedelta

from firstkit.config.clusters import Maintenance
from firstkit.reconciler.closing import Site, site, why_too_late
from unit.reconciler.support import NOW

HOUR = timedelta(hours=1)
NEXT = Maintenance(start=NOW + HOUR, end=NOW + 2 * HOUR, message="new cooling")
PAST = Maintenance(start=NOW - 2 * HOUR, end=NOW - HOUR)
PRESENT = Maintenance(start=NOW - HOUR, end=NOW + HOUR)


def test_an_open_cluster_is_left_at_the_start_of_its_next_maintenance() -> None:
    assert site([], None, NOW) == Site()
    assert site([PAST], None, NOW) == Site()
    assert site([PAST, NEXT], None, NOW) == Site("", NEXT, NOW + HOUR)


def test_a_drained_cluster_says_why() -> None:
    assert site([], "broken switch", NOW).closed == "the cluster is drained: broken switch"
    assert site([], "", NOW).closed == "the cluster is drained"


def test_maintenance_closes_until_its_end() -> None:
    found = site([NEXT, PRESENT], None, NOW)
    assert found.closed == "the cluster is in maintenance until 2026-11-24 13:00 UTC"
    assert (found.window, found.leaves_at) == (PRESENT, NOW + HOUR)
    assert site([PRESENT], None, NOW + HOUR).closed == ""


def test_a_replica_that_would_be_gone_soon_is_not_worth_a_start() -> None:
    there = site([NEXT], None, NOW)
    assert why_too_late(there, 7200, 10.0, NOW) == ""
    assert "new cooling" in why_too_late(there, 7201, 10.0, NOW)
    assert why_too_late(there, None, 1800.0, NOW) == ""
    assert why_too_late(there, None, 1801.0, NOW)
    assert why_too_late(site([], "", NOW), None, None, NOW) == "the cluster is drained"
    assert why_too_late(Site(), 1e9, 1e9, NOW) == ""
