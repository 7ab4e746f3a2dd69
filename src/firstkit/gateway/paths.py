"""What a path says beside the API that it is for: the cluster that shall answer, and an older dialect."""

from __future__ import annotations

from typing import NamedTuple

from firstkit.errors import ClusterUnderMaintenance, InvalidRequest, UnsupportedFramework
from firstkit.gateway.dialects import CHUNKS, OLDER, OLDER_MESSAGES, OLDER_RESPONSES, Dialect
from firstkit.gateway.request import RequestHead
from firstkit.routing.table import RoutingTable

PINNED = "/v1/clusters/"
"""Before the name of a cluster, and the rest of a path of APIS: the same, on that cluster."""
FEDERATED = "/api/federated/v1/"
"""Another name of ``/v1/``, which the service that had this name before announced for its next version."""
RESOURCE_SERVER = "/resource_server/"
"""Before ``{cluster}/{framework}/v1/...``: the paths of that service."""
FRAMEWORKS = ("vllm", "api")
DRAINED_RETRY_S = 600.0
"""Nobody knows when an operator will end a drain."""
OLDER_PATHS: dict[str, Dialect] = {
    "/v1/chat/completions": OLDER,
    "/v1/completions": OLDER,
    "/v1/embeddings": OLDER,
    "/v1/responses": OLDER_RESPONSES,
    "/v1/messages": OLDER_MESSAGES,
    "/v1/messages/count_tokens": OLDER_MESSAGES,
}


class Place(NamedTuple):
    """A path taken apart. ``api_path``: of APIS, if it is one. ``dialect``: None where it is that of the API."""

    api_path: str
    cluster: str | None = None
    dialect: Dialect | None = None
    framework: str | None = None


def place_of(path: str) -> Place:
    if path.startswith(PINNED):
        cluster, _, rest = path[len(PINNED) :].partition("/")
        return Place(f"/v1/{rest}", cluster)
    if path.startswith(RESOURCE_SERVER):
        cluster, _, rest = path[len(RESOURCE_SERVER) :].partition("/")
        framework, slash, rest = rest.partition("/")
        dialect = OLDER_PATHS.get(slash + rest)
        return Place("" if dialect is None else slash + rest, cluster, dialect, framework)
    if path.startswith(FEDERATED):
        return Place(f"/v1/{path[len(FEDERATED) :]}")
    return Place(path)


def spoken_at(path: str) -> Dialect:
    """The protocol of errors at a path that is of no API."""
    return OLDER if path.startswith(RESOURCE_SERVER) else CHUNKS


def check_open(table: RoutingTable, cluster: str) -> None:
    """Raise ClusterUnderMaintenance where a cluster takes nothing new: clients of the older service do not wait for
    that."""
    calendar, at = table.calendar, table.clock()
    if (why := calendar.why_closed(cluster, at)) is None:
        return
    window = None if cluster in calendar.drained else calendar.maintenance(cluster, at)
    left_s = DRAINED_RETRY_S if window is None else window.end - at
    raise ClusterUnderMaintenance(
        f"No requests are taken: {why}.", retry_after_s=left_s, details={"should_retry": False}
    )


def pin(head: RequestHead, place: Place) -> str | None:
    """The cluster that a request asks for, by its path or by a header. Raises InvalidRequest."""
    if place.framework is not None and place.framework not in FRAMEWORKS:
        raise UnsupportedFramework(f"The framework must be one of {', '.join(FRAMEWORKS)}.")
    by_header = head.get(b"x-first-cluster")
    if place.cluster is not None and by_header is not None and place.cluster != by_header:
        raise InvalidRequest(
            "The header 'x-first-cluster' names another cluster than the path.", param="x-first-cluster"
        )
    return by_header if place.cluster is None else place.cluster
