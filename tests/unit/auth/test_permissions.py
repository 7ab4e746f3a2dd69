from __future__ import annotations

from dataclasses import replace

import pytest

from firstkit.auth.permissions import ALL_SCOPES, Identity, Scope, check_grant, may_use, require
from firstkit.errors import Forbidden

IDENTITY = Identity("user-1", "ada", "project-1", "abcdefghijkl", frozenset({"inference"}))


def test_a_scope_that_is_held() -> None:
    require(IDENTITY, Scope.INFERENCE)


@pytest.mark.parametrize("scope", [Scope.ADMIN, Scope.METRICS])
def test_a_scope_that_is_not_held(scope: Scope) -> None:
    with pytest.raises(Forbidden, match=scope.value):
        require(IDENTITY, scope)


def test_nobody_grants_more_than_they_hold() -> None:
    check_grant([Scope.INFERENCE], IDENTITY.scopes)
    check_grant(list(Scope), ALL_SCOPES)
    with pytest.raises(Forbidden, match="admin"):
        check_grant([Scope.INFERENCE, Scope.ADMIN], IDENTITY.scopes)


@pytest.mark.parametrize(
    ("projects", "users", "may"),
    [((), ("ada",), True), (("astro",), (), True), (("chem",), ("bob",), False), (("ada",), ("astro",), False)],
)
def test_what_is_for_some_is_for_them_by_name(projects: tuple[str, ...], users: tuple[str, ...], may: bool) -> None:
    assert may_use(projects, users, replace(IDENTITY, project_name="astro")) is may


def test_who_has_no_project_is_in_none() -> None:
    assert not may_use(("project-1", "other"), (), IDENTITY)
