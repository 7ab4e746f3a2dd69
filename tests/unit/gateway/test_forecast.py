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
