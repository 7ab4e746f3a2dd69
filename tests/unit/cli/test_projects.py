"""``first projects``, with a gateway that answers for the store, without one, and as somebody who is logged in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unit.cli.installed import Installed, first

PROJECTS = {"weather": {"description": "by the configuration", "users": ["olga"], "managers": ["grace"], "share": 2}}


@pytest.fixture
def installed(folder: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Installed:
    return Installed(folder, database_url, monkeypatch, projects=PROJECTS)


def asked(*arguments: str) -> Any:
    return json.loads(first("projects", *arguments, "--json").stdout)


def user(name: str) -> None:
    """People become users with their first key."""
    first("keys", "create", "k", "--user", name)


def test_a_project_and_its_members(either: None) -> None:
    user("ada")
    made = asked("create", "fusion", "--description", "plasma")
    assert (made["name"], made["description"], made["members"], made["share"]) == ("fusion", "plasma", 0, 1.0)
    assert asked("add", "fusion", "ada")["role"] == "member"
    assert asked("add", "fusion", "ada", "--manager")["role"] == "manager"
    told = asked("show", "fusion")
    assert [(member["user"], member["role"]) for member in told["members"]] == [("ada", "manager")]
    assert {project["name"]: project["members"] for project in asked("list")}["fusion"] == 1
    assert asked("remove", "fusion", "ada")["user"] == "ada"
    assert asked("show", "fusion")["members"] == []


def test_what_people_read(either: None) -> None:
    user("ada")
    assert "fusion" in first("projects", "create", "fusion", "--description", "plasma").stdout
    assert first("projects", "add", "fusion", "ada", "--manager").stdout == "'ada' is a manager of 'fusion'.\n"
    header, *rows = first("projects", "list").stdout.splitlines()
    assert header.split("\t") == ["name", "description", "members", "share"]
    assert ["fusion", "plasma", "1", "1.0"] in [row.split("\t") for row in rows]
    about, header, row = first("projects", "show", "fusion").stdout.splitlines()
    assert about == "fusion: plasma; share 1."
    assert (header.split("\t"), row.split("\t")[:2]) == (["user", "role", "since"], ["ada", "manager"])
    assert "ada" in first("projects", "remove", "fusion", "ada").stdout


def test_a_name_may_hold_anything(either: None) -> None:
    user("ada")
    for name in ("a/b members", "50 % ö?#"):
        asked("create", name)
        asked("add", name, "ada")
        assert [member["user"] for member in asked("show", name)["members"]] == ["ada"]


@pytest.mark.parametrize("either", ["gateway"], indirect=True)
def test_what_the_configuration_says_is_shown(either: None) -> None:
    told = asked("show", "weather")
    assert (told["description"], told["share"]) == ("by the configuration", 2)
    assert (told["configuration"]["users"], told["configuration"]["managers"]) == (["olga"], ["grace"])
    assert "By the configuration also the managers: grace." in first("projects", "show", "weather").stdout


FAULTS = (
    ("show", "nothing"),
    ("create", "default"),
    ("create", " "),
    ("add", "default", "nobody"),
    ("add", "nothing", "ada"),
    ("remove", "nothing", "ada"),
)


def test_faults_end_with_status_1_and_a_next_step(either: None) -> None:
    user("ada")
    for arguments in FAULTS:
        result = first("projects", *arguments, status=1)
        assert result.stdout == "", arguments
        assert "Traceback" not in result.stderr, arguments
        assert "'first projects list'" in result.stderr, arguments


@pytest.mark.parametrize("either", ["gateway"], indirect=True)
def test_who_is_logged_in_sees_and_manages_their_own(either: None, installed: Installed) -> None:
    made = ("keys", "create", "l", "--user", "grace", "--project", "fusion", "--also", "other", "--scope", "account")
    token = json.loads(first(*made, "--json").stdout)["key"]
    user("ada")
    asked("add", "fusion", "grace", "--manager")
    installed.log_in(token)
    assert [(each["name"], each["role"], each["default"]) for each in asked("list")] == [
        ("fusion", "manager", True),
        ("other", "member", False),
    ]
    assert "'other'" in first("projects", "use", "other").stdout
    said = first("projects", "use", "nothing", status=1).stderr
    assert "'nothing'" in said
    assert "'first projects list'" in said
    assert first("projects", "list").stdout.splitlines()[0].split("\t") == ["name", "description", "role", "default"]
    assert asked("add", "fusion", "ada")["role"] == "member"
    assert {member["user"] for member in asked("show", "fusion")["members"]} == {"ada", "grace"}
    assert asked("remove", "fusion", "ada")["user"] == "ada"
    assert "members" not in asked("show", "other")
    assert "manager" in first("projects", "add", "other", "ada", status=1).stderr
    assert "default" in first("projects", "show", "default", status=1).stderr
    assert "no configuration" in first("projects", "create", "mine", status=1).stderr, "that is for operators"
