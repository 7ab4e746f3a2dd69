"""Writes docs/reference/permissions.md: who may what, from the tables of roles and scopes and the checks of the routes.

PYTHONPATH=tests python -m docs.permissions_page
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from docs import source
from docs.markdown import ROOT
from firstkit.auth.permissions import ROLES, SCOPES, Role, Scope

PAGE = ROOT / "docs" / "reference" / "permissions.md"
HEAD = """# Permissions

Who may what. This page is written by `make permissions-page` from the tables by which the gateway decides, and from
what each route asks for. What stands nowhere here nobody may do.

A request is let in by a *scope*, and each route needs one. People have the scopes of their *roles*; a key has those
that it was given, and one that somebody made for themselves at most those that they have now. How roles and projects
are given is in [projects and people](../howto/projects-and-people.md).

## Roles
"""
SCOPES_HEAD = """## Scopes
"""
ROUTES_HEAD = """## Routes

With the scope that opens each; where several stand, any of them does. What the routes answer is in the
[HTTP API](http-api.md#keys-and-scopes).
"""
REST = """## Beyond the scope

A scope opens a route, not what belongs to others.

| what | who |
|---|---|
| a key, a request, a kept response | Its user. Operators: keys and requests of everybody. For all others it is 404. |
| a project | Those who belong to it. For all others it is 404. |
| the members of a project | Its managers, and operators. For its other members it is 403 `not_manager`. |
| a model or a cluster with `access` | Those whom the rule names. For all others it is 404, and in no list. |
| a model, for a key that is for some models | Only those. |
| a new key | It has no scope, project or model that its maker does not have, and does not outlive a key that made it. |
| a role | Who gives it holds all its scopes. Nobody takes their own role of an operator, or shuts themselves out. |

All of this is in force within 5 seconds of a change. Whoever may open the [admin socket](http-api.md#admin-socket) is
an operator without a role: the operating system says who that is.
"""


def role_rows() -> Iterator[str]:
    yield "| role | who | scopes |\n|---|---|---|"
    for role in Role:
        who, scopes = ROLES[role]
        yield f"| `{role.value}` | {who} | {_codes(scope.value for scope in Scope if scope in scopes)} |"


def scope_rows() -> Iterator[str]:
    yield "| scope | opens | roles |\n|---|---|---|"
    for scope in Scope:
        holders = _codes(role.value for role in Role if scope in ROLES[role][1])
        yield f"| `{scope.value}` | {SCOPES[scope]} | {holders} |"


def route_rows() -> Iterator[str]:
    yield "| route | scope |\n|---|---|"
    order = ["open", *(scope.value for scope in Scope)]
    routes = [(scopes.split(","), route.partition(" ")) for route, scopes in source.routes().items()]
    for scopes, (method, _, path) in sorted(
        routes, key=lambda each: (order.index(each[0][0]), len(each[0]), each[1][2], each[1][0])
    ):
        yield f"| `{method} {path}` | {'open' if scopes == ['open'] else _codes(scopes)} |"


def render() -> str:
    """The whole page."""
    parts = [HEAD, *role_rows(), "", SCOPES_HEAD, *scope_rows(), "", ROUTES_HEAD, *route_rows(), "", REST]
    return "\n".join(parts)


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
