"""``GET /v1/estimate/MODEL``: where a model would run, when, and why, to whoever may use it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from starlette.types import ASGIApp

from firstkit import metrics
from firstkit.auth.authenticator import Identity
from firstkit.clock import now
from firstkit.gateway.identity import LOCAL_ADMIN
from firstkit.gateway.state import Gateway
from firstkit.store.clusters import drain
from firstkit.store.wake import WakeClient
from unit.gateway.support import IDENTITY, ask, route
from unit.gateway.upstreams import until

PUMPS = now().replace(microsecond=0) + timedelta(hours=2)
CONFIG = f"""
clusters:
  polaris:
    maintenance: [{{start: "{PUMPS.isoformat()}", end: "{(PUMPS + timedelta(hours=8)).isoformat()}", message: pumps}}]
  sophia: {{access: {{projects: [physics]}}}}
  aurora: {{}}
models:
  m:
    aliases: [alias]
    deployments:
      - {{cluster: polaris, engine: {{kind: command, argv: [x], capabilities: [chat]}}}}
      - {{cluster: sophia, engine: {{kind: command, argv: [x], capabilities: [chat]}}}}
      - {{cluster: aurora, engine: {{kind: command, argv: [x], capabilities: [chat]}}}}
  org/secret:
    deployments:
      - {{cluster: sophia, engine: {{kind: command, argv: [x], capabilities: [chat]}}}}
"""
PHYSICIST = replace(IDENTITY, project_name="physics")


pytestmark = pytest.mark.configured(CONFIG)


@pytest.fixture
async def controller(gateway: Gateway) -> AsyncIterator[None]:
    client = WakeClient(gateway.config.server.path("controller.sock"), lambda _: None, lambda: None)
    await gateway.wake.start()
    await client.start()
    await until("the controller is connected", lambda: gateway.wake.is_connected)
    yield
    await client.close()
    await gateway.wake.close()


def new(wait_s: float | None, load_s: float | None = 60.0, **more: Any) -> dict[str, Any]:
    late = {
        "late_wait_s": None if wait_s is None else 2 * wait_s,
        "late_load_s": None if load_s is None else 2 * load_s,
    }
    known = {
        "wait_s": wait_s,
        "load_s": load_s,
        **late,
        "by": "waits",
        "after": None,
        "obstacle": "",
        "handicap_s": 0.0,
    }
    return {**known, **more}


def offline(start: dict[str, Any] | None) -> dict[str, Any]:
    return {"status": "offline", "eta_s": None, "reason": "", "start_in_s": None, "late_s": None, "new": start}


def hear(gateway: Gateway, **on: dict[str, Any]) -> None:
    """What the controller says of ``m``, by cluster."""
    gateway.forecasts.hear({"m": {"status": "offline", "eta_s": None, "reason": "", "clusters": on}})


async def estimate(app: ASGIApp, model: str = "m", identity: Identity = IDENTITY) -> Any:
    answer = await ask(app, f"/v1/estimate/{model}", identity=identity)
    assert answer.status == 200, answer.body
    return answer.json


def on(found: Any, cluster: str) -> Any:
    (row,) = [row for row in found["clusters"] if row["cluster"] == cluster]
    return row


async def test_where_it_would_be_live_soonest_and_when(gateway: Gateway, app: ASGIApp, controller: None) -> None:
    hear(gateway, polaris=offline(new(900.0)), aurora=offline(new(300.0)))
    found = await estimate(app)
    assert (found["model"], found["cluster"], found["controller"]) == ("m", "aurora", "connected")
    assert (found["status"], found["live_in_s"], found["late_s"]) == ("offline", 360, 720)
    assert abs((datetime.fromisoformat(found["live_at"]) - now()).total_seconds() - 360) < 30
    assert "those of its shape and hour most" in found["why"][0]
    row = on(found, "polaris")
    assert (row["wait_s"], row["load_s"], row["live_in_s"], row["late_s"]) == (900, 60, 960, 1920)


async def test_by_an_alias_and_by_the_operator_of_this_machine(gateway: Gateway, app: ASGIApp) -> None:
    assert (await estimate(app, "alias"))["model"] == "m"
    rows = (await estimate(app, identity=LOCAL_ADMIN))["clusters"]
    assert [row["cluster"] for row in rows] == ["polaris", "sophia", "aurora"]


async def test_only_clusters_that_one_may_use_count(gateway: Gateway, app: ASGIApp) -> None:
    hear(gateway, polaris=offline(new(900.0)), sophia=offline(new(0.0)), aurora=offline(new(300.0)))
    found = await estimate(app)
    assert found["cluster"] == "aurora"
    assert [row["cluster"] for row in found["clusters"]] == ["polaris", "aurora"]
    assert (await estimate(app, identity=PHYSICIST))["cluster"] == "sophia"


@pytest.mark.parametrize("model", ["org/secret", "org/none"])
async def test_a_model_that_one_may_not_use_is_not_there(app: ASGIApp, model: str) -> None:
    answer = await ask(app, f"/v1/estimate/{model}", identity=IDENTITY)
    assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")


async def test_the_file_decides_between_starts_that_are_the_same(gateway: Gateway, app: ASGIApp) -> None:
    hear(gateway, polaris=offline(new(310.0)), aurora=offline(new(300.0)))
    assert (await estimate(app))["cluster"] == "polaris"
    hear(gateway, polaris=offline(new(310.0, handicap_s=100.0)), aurora=offline(new(300.0)))
    assert (await estimate(app))["cluster"] == "aurora"


async def test_a_cluster_whose_scheduler_is_often_silent_counts_as_slower_as_it_does_where_it_is_decided(
    gateway: Gateway, app: ASGIApp
) -> None:
    hear(gateway, polaris=offline(new(900.0)), aurora=offline(new(300.0)))
    gateway.forecasts.hear({}, {"aurora": {"availability": {"day": 0.25, "week": 0.25}}})
    found = await estimate(app)
    assert (found["cluster"], found["live_in_s"]) == ("polaris", 960)


async def test_where_it_never_loaded_it_is_taken_to_load_as_elsewhere(gateway: Gateway, app: ASGIApp) -> None:
    hear(gateway, polaris=offline(new(300.0)), aurora=offline(new(0.0, None)))
    found = await estimate(app)
    assert (found["cluster"], found["live_in_s"]) == ("aurora", None)
    assert "it never loaded there" in found["why"]


async def test_what_is_on_its_way_comes_first_and_what_is_live_before_that(gateway: Gateway, app: ASGIApp) -> None:
    queued = {"status": "queued", "eta_s": 600.0, "reason": "the job waits: Resources", "start_in_s": 540.0}
    queued |= {"late_s": 900.0, "new": new(0.0)}
    hear(gateway, polaris=offline(new(0.0)), aurora=queued)
    found = await estimate(app)
    assert found["cluster"] == "aurora"
    assert 590 < found["live_in_s"] <= 600
    assert 890 < found["late_s"] <= 900
    assert 530 < on(found, "aurora")["wait_s"] <= 540
    assert found["why"] == ["the job waits: Resources"]
    gateway.table.add(route(cluster="polaris"))
    found = await estimate(app)
    assert (found["cluster"], found["status"], found["live_in_s"], found["late_s"]) == ("polaris", "live", 0, 0)


async def test_an_obstacle_is_said_and_others_are_chosen(gateway: Gateway, app: ASGIApp) -> None:
    hear(gateway, polaris=offline(new(0.0, obstacle="at most 2 nodes may be used")), aurora=offline(new(5000.0)))
    found = await estimate(app)
    assert found["cluster"] == "aurora"
    assert on(found, "polaris")["why"][0] == "at most 2 nodes may be used"


async def test_the_next_maintenance_is_said_and_nothing_is_promised_before_it(gateway: Gateway, app: ASGIApp) -> None:
    start = new(10 * 3600.0, after=(PUMPS + timedelta(hours=8)).isoformat(), obstacle="maintenance begins soon")
    hear(gateway, polaris=offline(start))
    found = await estimate(app)
    row = on(found, "polaris")
    assert datetime.fromisoformat(row["maintenance"]["start"]) == PUMPS
    assert "would start after it" in " ".join(row["why"])
    assert found["cluster"] == "polaris", "nowhere else is anything known"
    assert on(found, "aurora")["live_in_s"] is None


async def test_nothing_is_promised_of_a_drained_cluster(gateway: Gateway, app: ASGIApp) -> None:
    hear(gateway, polaris=offline(new(900.0)), aurora=offline(new(0.0)))
    async with gateway.db.begin() as conn:
        await drain(conn, "aurora", "op", "new cooling")
    await gateway.closures.refresh(gateway.db)
    found = await estimate(app)
    assert found["cluster"] == "polaris"
    row = on(found, "aurora")
    assert row["live_in_s"] is None
    assert "new cooling" in row["obstacle"]


async def test_while_the_controller_is_silent_its_last_word_is_told(gateway: Gateway, app: ASGIApp) -> None:
    found = await estimate(app)
    assert (found["controller"], found["cluster"], found["live_in_s"]) == ("silent", None, None)
    hear(gateway, aurora=offline(new(300.0)))
    found = await estimate(app)
    assert (found["controller"], found["cluster"], found["live_in_s"]) == ("silent", "aurora", 360)
    assert on(found, "polaris")["why"] == ["the controller has not said anything of it yet"]


async def test_how_well_forecasts_came_true_is_said_and_measured(gateway: Gateway, app: ASGIApp) -> None:
    facts = {"wait_s": 300.0, "late_wait_s": 900.0, "wait_error_s": 45.0, "wait_coverage": 0.91, "waits": 120}
    facts |= {"availability": {"day": 0.75, "week": 0.99}}
    gateway.forecasts.hear({}, {"aurora": facts})
    row = on(await estimate(app), "aurora")
    assert row["availability"] == {"day": 0.75, "week": 0.99}
    known = {"wait_s": 300, "late_wait_s": 900, "error_s": 45, "coverage": 0.91, "waits": 120}
    assert row["queue"] == known
    text = metrics.exposition().decode()
    assert 'first_queue_wait_error_seconds{cluster="aurora"} 45.0' in text
    assert 'first_queue_wait_coverage_ratio{cluster="aurora"} 0.91' in text
    assert 'first_scheduler_availability_ratio{cluster="aurora"} 0.75' in text


async def test_names_of_nodes_are_not_told(gateway: Gateway, app: ASGIApp) -> None:
    hear(gateway, aurora=offline(new(300.0, obstacle="back-off: failed (ReqNodeNotAvail, UnavailableNodes:nid0001)")))
    assert "nid0001" not in str(await estimate(app))
