"""What a path says beside the API that it is for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from firstkit.errors import ApiError, ClusterUnderMaintenance, UnsupportedFramework
from firstkit.gateway.apis import APIS, MESSAGES_API, RESPONSES_API
from firstkit.gateway.dialects import CHUNKS, OLDER, OLDER_MESSAGES, OLDER_RESPONSES
from firstkit.gateway.paths import DRAINED_RETRY_S, OLDER_PATHS, Place, check_open, pin, place_of, spoken_at
from firstkit.gateway.request import RequestHead
from firstkit.routing.calendar import Window
from firstkit.routing.table import RoutingTable

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC).timestamp()


def head(*headers: tuple[bytes, bytes]) -> RequestHead:
    return RequestHead("POST", "/", list(headers))


@pytest.mark.parametrize("name", ["chat/completions", "completions", "embeddings", "responses", "messages"])
@pytest.mark.parametrize("framework", ["vllm", "api"])
def test_paths_of_the_older_service(name: str, framework: str) -> None:
    place = place_of(f"/resource_server/sophia/{framework}/v1/{name}")
    assert place.api_path == f"/v1/{name}"
    assert (place.cluster, place.framework) == ("sophia", framework)
    assert pin(head(), place) == "sophia"


def test_each_keeps_the_protocol_of_its_streams() -> None:
    """The end of a stream, and an error in it, are told as its clients read them."""
    assert place_of("/resource_server/sophia/vllm/v1/chat/completions").dialect is OLDER
    for path, dialect in OLDER_PATHS.items():
        assert dialect.done == APIS[path].dialect.done
    assert OLDER_PATHS[RESPONSES_API.path] is OLDER_RESPONSES
    assert OLDER_PATHS[MESSAGES_API.path] is OLDER_MESSAGES


@pytest.mark.parametrize(
    "path",
    [
        "/resource_server/",
        "/resource_server/health",
        "/resource_server/sophia/jobs",
        "/resource_server/sophia/v1/chat/completions",
        "/resource_server/v1/chat/completions",
        "/resource_server/sophia/vllm/chat/completions",
        "/resource_server/sophia/vllm/v1/rerank",
        "/resource_server/sophia/vllm/v1/chat/completions/",
        "/resource_server/sophia/vllm/extra/v1/chat/completions",
        "/resource_server/sophia/vllm//v1/chat/completions",
        "/Resource_server/sophia/vllm/v1/chat/completions",
        "/resource_serversophia/vllm/v1/chat/completions",
    ],
)
def test_no_others_are(path: str) -> None:
    assert place_of(path).api_path not in APIS


@pytest.mark.parametrize("framework", ["VLLM", "sglang", "", "v"])
def test_a_framework_that_is_none(framework: str) -> None:
    place = place_of(f"/resource_server/sophia/{framework}/v1/chat/completions")
    if place.api_path:
        with pytest.raises(UnsupportedFramework) as error:
            pin(head(), place)
        assert (error.value.status, error.value.code) == (400, "unsupported_framework")


@pytest.mark.parametrize("path", ["/v1/clusters/sophia/completions", "/resource_server/sophia/vllm/v1/completions"])
def test_path_and_header_may_not_name_two_clusters(path: str) -> None:
    assert pin(head((b"x-first-cluster", b"sophia")), place_of(path)) == "sophia"
    with pytest.raises(ApiError) as error:
        pin(head((b"x-first-cluster", b"polaris")), place_of(path))
    assert error.value.param == "x-first-cluster"


@pytest.mark.parametrize("name", ["chat/completions", "responses", "messages", "embeddings"])
def test_another_name_of_ours(name: str) -> None:
    assert place_of(f"/api/federated/v1/{name}") == Place(f"/v1/{name}")


@pytest.mark.parametrize("rest", ["clusters/here/chat/completions", "v1/chat/completions", "/chat/completions", ""])
def test_no_others_are_ours_by_it(rest: str) -> None:
    assert place_of(f"/api/federated/v1/{rest}").api_path not in APIS


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/resource_server/whoami", OLDER),
        ("/resource_server/nothing/at/all", OLDER),
        ("/v1/models", CHUNKS),
        ("/resource_server", CHUNKS),
        ("/api/federated/v1/models", CHUNKS),
    ],
)
def test_how_errors_are_told(path: str, dialect: Any) -> None:
    assert spoken_at(path) is dialect


# -- clusters that are closed ------------------------------------------------------------------------------------------


def table() -> RoutingTable:
    found = RoutingTable({}, clock=lambda: NOON)
    found.calendar.windows = {
        "sophia": [Window(NOON - 60, NOON + 3600, "pumps")],
        "polaris": [Window(NOON + 60, NOON + 3600, "later")],
    }
    return found


def test_a_maintenance_says_when_it_ends() -> None:
    with pytest.raises(ClusterUnderMaintenance) as error:
        check_open(table(), "sophia")
    assert error.value.message == "No requests are taken: the cluster 'sophia' is in maintenance: pumps."
    assert error.value.retry_after_s == 3600
    assert error.value.details == {"should_retry": False}


def test_a_drain_outlasts_a_maintenance() -> None:
    closed = table()
    closed.calendar.drained = {"sophia": "cooling"}
    with pytest.raises(ClusterUnderMaintenance, match="drained: cooling") as error:
        check_open(closed, "sophia")
    assert error.value.retry_after_s == DRAINED_RETRY_S


@pytest.mark.parametrize("cluster", ["polaris", "cloud"])
def test_others_are_open(cluster: str) -> None:
    check_open(table(), cluster)
