"""What is told of a project: by what the store holds and the configuration says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from firstkit.config.accounting import Project as Entry
from firstkit.store import people
from firstkit.store.database import Database

Entries = Mapping[str, Entry]
"""The projects of the configuration, by name."""


async def list_all(db: Database, entries: Entries) -> list[dict[str, Any]]:
    """All projects by name, with how many users were added to each."""
    return [shown(project, entries) for project in await people.list_projects(db)]


def shown(project: people.Project, entries: Entries) -> dict[str, Any]:
    """A project as operators see it in a list. ``configured``: whether the configuration names it."""
    entry = entries.get(project.name, Entry())
    return {**project.as_row(), "share": entry.share, "configured": project.name in entries}


async def find(db: Database, name: str) -> people.Project:
    """The project of this name; raises ProjectNotFound."""
    async with db.read() as conn:
        project_id = await people.project_id_of(conn, name)
    [project] = await people.list_projects(db, ids=[project_id])
    return project


def described(project: people.Project, entries: Entries) -> dict[str, Any]:
    """A project as its members see it."""
    share = entries.get(project.name, Entry()).share
    return {"name": project.name, "description": project.description, "share": share}


async def belonging(db: Database, name: str, entries: Entries) -> dict[str, Any]:
    """Who belongs to a project: ``members`` were added to it, ``configuration`` names the rest. Raises
    ProjectNotFound."""
    entry = entries.get(name, Entry())
    members = [member.as_row() for member in await people.members_of(db, name)]
    named = {what: list(getattr(entry, what)) for what in ("users", "groups", "domains", "managers")}
    return {"members": members, "configuration": named}
