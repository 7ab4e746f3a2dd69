"""``first users``, with a gateway that answers for the store and without one."""

from __future__ import annotations

import json
from typing import Any

from unit.cli.installed import first


def asked(*arguments: str) -> Any:
    return json.loads(first("users", *arguments, "--json").stdout)


def test_nobody_is_there_yet(either: None) -> None:
    assert asked("list") == []
    assert "first login" in first("users", "list").stderr


def test_a_user_gets_roles_and_is_shut_out(either: None) -> None:
    first("keys", "create", "k", "--user", "ada", "--project", "fusion")
    (listed,) = asked("list")
    assert (listed["name"], listed["roles"], listed["projects"], listed["keys"]) == ("ada", [], ["fusion"], 1)
    assert asked("grant", "ada", "auditor")["roles"] == ["auditor"]
    assert asked("grant", "ada", "operator")["roles"] == ["auditor", "operator"]
    assert asked("ungrant", "ada", "auditor")["roles"] == ["operator"]
    assert asked("disable", "ada")["disabled_at"] is not None
    assert asked("enable", "ada")["disabled_at"] is None


def test_what_people_read(either: None) -> None:
    first("keys", "create", "k", "--user", "ada", "--project", "fusion")
    assert first("users", "grant", "ada", "operator").stdout == "'ada' is an operator.\n"
    assert "shut out" in first("users", "disable", "ada").stdout
    header, row = first("users", "list").stdout.splitlines()
    assert header.split("\t") == ["name", "roles", "projects", "keys", "seen", "status"]
    assert row.split("\t") == ["ada", "operator", "fusion", "1", "never", "disabled"]
    assert "come in again" in first("users", "enable", "ada").stdout
    assert "configuration" in first("users", "ungrant", "ada", "operator").stdout


def test_faults_end_with_status_1_and_a_next_step(either: None) -> None:
    for arguments in (("grant", "nobody", "auditor"), ("disable", "nobody"), ("enable", "a\nb")):
        result = first("users", *arguments, status=1)
        assert result.stdout == "", arguments
        assert "'first users list'" in result.stderr, arguments


def test_other_roles_are_not_granted(either: None) -> None:
    for role in ("manager", "user", "root"):
        assert "auditor" in first("users", "grant", "ada", role, status=2).stderr
