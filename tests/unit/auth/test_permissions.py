from __future__ import annotations

import pytest

from firstkit.auth.permissions import ALL_SCOPES, Identity, Scope, check_grant, require
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
