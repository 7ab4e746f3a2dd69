"""What is told of a model that is not ready."""

from __future__ import annotations

import pytest

from firstkit.gateway.forecast import Forecasts
from firstkit.routing.table import Route, RoutingTable
from firstkit.states import ModelStatus, ReplicaState


@pytest.fixture
def forecasts() -> Forecasts:
    return Forecasts(RoutingTable({"m": "m"}))


def ready_route() -> Route:
    return Route("rep-1", "m", "here", None, "m", 4, ReplicaState.READY)  # type: ignore[arg-type]


def test_links_win_over_forecasts(forecasts: Forecasts) -> None:
    route = ready_route()
    forecasts.hear({"m": {"status": "offline", "eta_s": None, "reason": ""}})
    forecasts.table.add(route)
    assert forecasts.outlook("m").status is ModelStatus.LIVE
    forecasts.hear({"m": {"status": "live", "eta_s": 0, "reason": "", "clusters": {}}})
    forecasts.table.remove(route)
    assert forecasts.outlook("m").status is ModelStatus.OFFLINE


def test_without_a_controller_nothing_is_invented(forecasts: Forecasts) -> None:
    error = forecasts.not_ready("m")
    assert error.details == {"status": "offline", "eta_s": None, "should_retry": False}
    assert "eta_s=unknown" in forecasts.sentence("m", 1)


@pytest.mark.parametrize(("eta", "should_retry"), [(5.0, True), (59.0, True), (61.5, False)])
def test_sdks_are_asked_back_only_when_they_would_wait(forecasts: Forecasts, eta: float, should_retry: bool) -> None:
    forecasts.hear({"m": {"status": "starting", "eta_s": eta, "reason": "loading"}})
    error = forecasts.not_ready("m")
    assert error.details["should_retry"] is should_retry
    assert error.retry_after_s == pytest.approx(eta, abs=1)


def test_a_reason_stays_on_its_line(forecasts: Forecasts) -> None:
    forecasts.hear({"m": {"status": "queued", "eta_s": 3, "reason": "a\r\n\r\ndata: {}"}})
    assert "\n" not in forecasts.sentence("m", 2)
    assert forecasts.sentence("m", 2).startswith("position=2 status=queued")


# -- clusters ----------------------------------------------------------------------------------------------------------

HERE, THERE = frozenset({"here"}), frozenset({"there"})
HEARD = {
    "m": {
        "status": "starting",
        "eta_s": 20.0,
        "reason": "loading",
        "clusters": {
            "here": {"status": "queued", "eta_s": 500.0, "reason": "position 3", "why": ["1 hot"], "position": 3},
            "there": {"status": "starting", "eta_s": 20.0, "reason": "loading", "waits_for": []},
            "far": {"status": "offline", "eta_s": 5.0, "reason": ""},
        },
    }
}


def test_who_may_go_to_some_clusters_hears_of_those(forecasts: Forecasts) -> None:
    forecasts.hear(HEARD)
    assert forecasts.outlook("m").status is ModelStatus.STARTING
    assert forecasts.outlook("m", HERE).status is ModelStatus.QUEUED
    assert forecasts.outlook("m", HERE | THERE).status is ModelStatus.STARTING
    assert forecasts.outlook("m", HERE | {"far"}).status is ModelStatus.QUEUED, "nothing is on its way there"
    assert forecasts.outlook("m", frozenset({"elsewhere"})).status is ModelStatus.OFFLINE
    error = forecasts.not_ready("m", HERE)
    assert error.message == "The model 'm' is not running on here yet (queued: position 3)."
    assert error.details["should_retry"] is False
    assert forecasts.sentence("m", 2, HERE).startswith("position=2 status=queued eta_s=500")
    forecasts.table.add(ready_route())
    assert forecasts.outlook("m", HERE).status is ModelStatus.LIVE
    assert forecasts.outlook("m", THERE).status is ModelStatus.STARTING
    assert forecasts.not_ready("m", HERE).message == "All replicas of the model 'm' on here are busy."


def test_what_an_operator_said_is_told(forecasts: Forecasts) -> None:
    forecasts.deployed = {"m": HERE | THERE}
    forecasts.hear(HEARD)
    forecasts.table.add(ready_route())
    forecasts.table.calendar.drained = {"here": "new\ncooling"}
    forecasts.table.refresh()
    assert forecasts.outlook("m", HERE).status is not ModelStatus.LIVE
    error = forecasts.not_ready("m", HERE)
    assert error.message == "The model 'm' takes no requests on here: the cluster 'here' is drained: new cooling."
    assert "reason=the cluster 'here' is drained: new cooling" in forecasts.sentence("m", 1, HERE)
    assert "drained" not in forecasts.not_ready("m").message, "others take them"
    forecasts.table.calendar.drained = {"here": "", "there": ""}
    forecasts.table.refresh()
    assert "'here' is drained; the cluster 'there' is drained" in forecasts.not_ready("m").message


def test_replicas_that_end_too_soon(forecasts: Forecasts) -> None:
    route = ready_route()
    forecasts.table.add(route)
    route.ends_at = route.born_at + 10
    route.born_at -= 1000
    forecasts.table.pools["m"].changed(route)
    assert "end before this request could" in forecasts.not_ready("m").message


def test_what_the_controller_said_is_there_as_it_said_it(forecasts: Forecasts) -> None:
    assert forecasts.explain("m") == forecasts.cluster_facts("here") == {}
    facts = {"scheduler": "silent", "reason": "timed out", "capacity": None, "spent": {"nodes": 2}}
    forecasts.hear(HEARD, {"here": facts})
    assert forecasts.explain("m")["here"]["why"] == ["1 hot"]
    assert forecasts.cluster_facts("here") == facts
    forecasts.hear({})
    assert forecasts.cluster_facts("here") == facts
