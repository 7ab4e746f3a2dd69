"""The page about permissions is that of the present code."""

from __future__ import annotations

from docs import source
from docs.markdown import Page
from docs.permissions_page import PAGE, render
from firstkit.auth.permissions import ROLES, SCOPES, Role, Scope


def test_the_page_is_that_of_the_code() -> None:
    """If it is not: make permissions-page"""
    assert PAGE.read_text(encoding="utf-8") == render()


def test_every_role_and_scope_says_what_it_is() -> None:
    assert list(ROLES) == list(Role)
    assert list(SCOPES) == list(Scope)
    page = Page(PAGE)
    assert list(page.rows("Roles")) == [role.value for role in Role]
    assert list(page.rows("Scopes")) == [scope.value for scope in Scope]


def test_every_route_stands_there_with_its_scope() -> None:
    told = {route: cells[1].replace("`", "").replace(" ", "") for route, cells in Page(PAGE).rows("Routes").items()}
    assert told == source.routes()


def test_every_scope_opens_something() -> None:
    opened = {scope for scopes in source.routes().values() for scope in scopes.split(",")}
    assert opened == {*(scope.value for scope in Scope), "open"}
