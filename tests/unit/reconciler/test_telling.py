from __future__ import annotations

from typing import Any

import pytest

from firstkit.reconciler.telling import is_news


def said(status: str = "queued", eta_s: float | None = 100.0, **values: Any) -> dict[str, Any]:
    part = {"status": status, "eta_s": eta_s, "reason": "", "start_in_s": None, **values}
    return {"status": status, "eta_s": eta_s, "reason": "", "forecast_error_s": None, "clusters": {"a": part}}


def test_a_forecast_that_comes_true_is_no_news() -> None:
    assert not is_news(said(), said(eta_s=70.0), 30.0)
    assert not is_news(said("offline"), said("offline"), 30.0), "counts from when somebody asks"


@pytest.mark.parametrize(
    "after",
    [
        said("starting"),
        said(eta_s=60.0),
        said(eta_s=None),
        said(reason="waits"),
        said(start_in_s=5.0),
        said(position=3),
        {**said(), "clusters": {}},
    ],
)
def test_what_changed_is_news(after: dict[str, Any]) -> None:
    assert is_news(said(), after, 0.0)


def test_an_offline_model_whose_start_would_take_longer_is_news() -> None:
    assert is_news(said("offline", 100.0), said("offline", 120.0), 30.0)
