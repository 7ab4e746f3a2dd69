"""The table of who may what: a row for every route, by hand. Of the code it is only asked which routes there are.

A row says which scopes open the route, what those get who have one of them, for what is theirs and for what is a
stranger's, and who gets something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from unit.gateway.residents import OURS, THEIRS

OLDER = "/resource_server/"
OLDER_STATUS = {403: 401}
"""What clients of the older service are told in place of ours."""


@dataclass(frozen=True)
class Row:
    """``scopes``: any of them opens the route; none: it is open to all. ``good``: the status for what is one's own;
    ``theirs``: for what is a stranger's; None: nothing in the request is anybody's. ``but``: by name of a resident and
    whose object it is, the status that they get."""

    scopes: frozenset[str]
    good: int = 200
    theirs: int | None = None
    but: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def status(self, name: str, scopes: frozenset[str], refused: int | None, whose: str) -> int:
        """What a resident gets."""
        if (name, whose) in self.but:
            return self.but[name, whose]
        if not self.scopes:
            return self.good
        if refused is not None:
            return refused
        if self.scopes.isdisjoint(scopes):
            return 403
        return self.good if whose == OURS or self.theirs is None else self.theirs

    @property
    def sides(self) -> tuple[str, ...]:
        return (OURS,) if self.theirs is None else (OURS, THEIRS)


def row(scopes: str, good: int = 200, theirs: int | None = None, **but: int) -> Row:
    """``but``: ``key_for_admin__theirs=403``."""
    found = {}
    for word, status in but.items():
        name, _, whose = word.partition("__")
        found[name.replace("_", " "), whose] = status
    return Row(frozenset(scopes.split()), good, theirs, found)


# Managers of the other project are plain members of the one that all belong to.
_OF_PROJECT = row(
    "account admin", 200, 404,
    manager_of_another_project__theirs=200, operator__theirs=200, key_for_admin__theirs=200, admin_socket__theirs=200,
    user_of_no_project__ours=404,
)  # fmt: skip
_MEMBERS = replace(
    _OF_PROJECT,
    but={
        **_OF_PROJECT.but,
        **{(name, OURS): 403 for name in ("user", "manager of another project", "auditor", "key for account")},
    },
)
_INFERENCE = row("inference", 200, 404, user_of_no_project__ours=403, user_of_no_project__theirs=403)
_ON_MODEL = row("inference", 200, 404)
_OWN = row("inference", 200, 404)

ROWS: dict[str, Row] = {
    # open
    "GET /health": row(""),
    "GET /ready": row(""),
    "GET /resource_server/health": row(""),
    "GET /resource_server/status": row(""),
    # logins by a browser, of which this gateway has none
    "GET /auth/methods": row(""),
    "GET /auth/login": row("", 404),
    "GET /auth/callback": row("", 400),
    "GET /auth/account": row(
        "", nobody__ours=303, admin_socket__ours=303, disabled_user__ours=403, key_of_a_disabled_user__ours=303
    ),
    "POST /auth/logout": row("", 303),
    # models, clusters, jobs
    "GET /v1/models": row("inference"),
    "GET /v1/models/{model_id}": _ON_MODEL,
    "GET /v1/clusters/{cluster}/models": _ON_MODEL,
    "GET /v1/clusters/{cluster}/models/{model_id}": _ON_MODEL,
    "GET /api/federated/v1/models": row("inference"),
    "GET /v1/clusters": row("inference"),
    "GET /v1/clusters/{cluster}": _ON_MODEL,
    "GET /v1/jobs": row("inference"),
    "GET /v1/estimate/{model}": row("inference admin", 200, 404, admin_socket__theirs=200),
    "GET /openapi.json": row("inference"),
    "GET /docs": row("inference"),
    "GET /docs/{name}": row("inference"),
    # what was asked before
    "GET /v1/responses/{response_id}": _OWN,
    "DELETE /v1/responses/{response_id}": _OWN,
    "GET /v1/responses/{response_id}/input_items": _OWN,
    "GET /v1/requests/{request_id}": row(
        "inference admin", 200, 404, operator__theirs=200, key_for_admin__theirs=200, admin_socket__theirs=200
    ),
    # oneself
    "GET /v1/me": row("account"),
    "POST /v1/me": row("account", 200, 404, manager_of_another_project__theirs=200, user_of_no_project__ours=404),
    "GET /v1/keys": row("account"),
    "POST /v1/keys": row("account", 201, 404, manager_of_another_project__theirs=201, user_of_no_project__ours=404),
    "POST /v1/keys/revoke": row("account", 200, 404),
    "GET /v1/queue": row("account"),
    "GET /v1/usage": row("account", 200, 404, manager_of_another_project__theirs=200, user_of_no_project__ours=404),
    "GET /v1/projects": row("account"),
    "GET /v1/projects/{name}": _OF_PROJECT,
    "POST /v1/projects/{name}/members": _MEMBERS,
    "POST /v1/projects/{name}/members/remove": _MEMBERS,
    # operation
    "GET /metrics": row("metrics"),
    "GET /admin/status": row("admin"),
    "GET /admin/explain/{model}": row("admin", 200, 200),
    "GET /admin/replicas/{replica_id}/log": row("admin", 404),
    "POST /admin/clusters/{cluster}/drain": row("admin", 200, 200),
    "POST /admin/clusters/{cluster}/resume": row("admin", 200, 200),
    # administration; who has no more than the scope of it gives no other
    "GET /admin/keys": row("admin"),
    "POST /admin/keys": row("admin", 201, 201, key_for_admin__ours=403, key_for_admin__theirs=403),
    "POST /admin/keys/revoke": row("admin", 200, 200),
    "GET /admin/users": row("admin"),
    "POST /admin/users/grant": row("admin", 200, 200, key_for_admin__ours=403, key_for_admin__theirs=403),
    "POST /admin/users/ungrant": row("admin", 400, 200, admin_socket__ours=200),
    "POST /admin/users/disable": row("admin", 400, 200, admin_socket__ours=200),
    "POST /admin/users/enable": row("admin", 200, 200),
    "GET /admin/projects": row("admin"),
    "POST /admin/projects": row("admin", 201),
    "GET /admin/usage": row("admin audit"),
    "GET /admin/node-hours": row("admin audit"),
    "GET /admin/budgets": row("admin audit"),
    "POST /admin/budgets": row("admin", 201, 201),
    "POST /admin/budgets/remove": row("admin", 200, 200),
    "GET /admin/audit": row("admin audit"),
    "GET /admin/queue": row("admin audit"),
    # the older service
    "GET /resource_server/whoami": row("inference"),
    "GET /resource_server/list-endpoints": row("inference"),
    "GET /resource_server/{cluster}/models": _ON_MODEL,
    "GET /resource_server/{cluster}/jobs": _ON_MODEL,
    "GET /resource_server/v1/batches": row("inference"),
    "GET /resource_server/v1/batches/{batch_id}": row("inference", 404),
    "GET /resource_server/v1/batches/{batch_id}/result": row("inference", 404),
    "POST /resource_server/{cluster}/{framework}/v1/batches": row("inference", 400),
    "PUT /resource_server/data/staging": row("inference", 400),
    "POST /resource_server/{cluster}/{service}/process": row("inference", 404, 404),
    "GET /resource_server/{cluster}/{service}/tasks/{task_id}": row("inference", 404, 404),
}

_NOT_ON_SOCKET = replace(_INFERENCE, but={**_INFERENCE.but, ("admin socket", OURS): 404, ("admin socket", THEIRS): 404})
_CHAT = ("chat/completions", "completions", "embeddings", "responses", "messages", "messages/count_tokens")
_REST = ("rerank", "score", "audio/transcriptions", "audio/translations", "tasks/{name}")
HOT: dict[str, Row] = {
    f"POST {prefix}/{path}": row_of_all
    for prefix, paths, row_of_all in (
        ("/v1", _CHAT + _REST, _INFERENCE),
        ("/v1/clusters/{cluster}", _CHAT + _REST, _INFERENCE),
        ("/api/federated/v1", _CHAT + _REST, _NOT_ON_SOCKET),
        ("/resource_server/{cluster}/{framework}/v1", _CHAT, _NOT_ON_SOCKET),
    )
    for path in paths
}
"""Requests to models."""
ALL: dict[str, Row] = {**ROWS, **HOT}
HIDING = ("{cluster}", "{model_id}", "/v1/projects/{name}", "{response_id}", "/v1/keys/revoke")
"""Paths that say what they are about: where a resident may not see it, that it was asked for is written down."""


def expected(route: str, name: str, scopes: frozenset[str], refused: int | None, whose: str) -> int:
    """The status that a resident gets, in the words of the path."""
    status = ALL[route].status(name, scopes, refused, whose)
    return OLDER_STATUS.get(status, status) if OLDER in route else status
