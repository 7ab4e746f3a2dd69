"""People of all kinds with keys and sessions in a real database, what is theirs, and what is a stranger's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from firstkit.clock import now
from firstkit.ids import digest
from firstkit.store import tables
from firstkit.store.database import Database
from firstkit.store.sql import insert_new
from usage_entries import usage_entry

OURS, THEIRS = "ours", "theirs"
PROJECTS = {OURS: "climate", THEIRS: "astro"}
"""All but strangers belong to the first; the second is that of strangers."""
STRANGER = "eve"
PASSER_BY = "tom"
"""Who belongs to nothing, and has done nothing."""
CAPABILITIES = (
    "chat, completions, embeddings, responses, messages, count_tokens, rerank, score, transcriptions, translations, "
    "tasks/ocr"
)
ENGINE = f"engine: {{kind: command, argv: [x], capabilities: [{CAPABILITIES}]}}"
CONFIG = f"""
clusters: {{here: {{}}, far: {{access: {{projects: [astro]}}}}}}
models:
  m:
    deployments: [{{cluster: here, {ENGINE}}}, {{cluster: far, {ENGINE}}}]
  hidden:
    access: {{projects: [astro]}}
    deployments: [{{cluster: here, {ENGINE}}}, {{cluster: far, {ENGINE}}}]
"""
MODELS = {OURS: "m", THEIRS: "hidden"}
CLUSTERS = {OURS: "here", THEIRS: "far"}


@dataclass(frozen=True)
class Resident:
    """Somebody who asks. ``scopes``: those that they should have; ``refused``: the status that they get in place of an
    answer, whatever they ask for. ``role``: what they are to the project of all."""

    name: str
    user: str
    scopes: frozenset[str] = frozenset()
    token: str | None = None
    roles: tuple[str, ...] = ()
    role: str | None = "member"
    key_scopes: tuple[str, ...] = ()
    is_disabled: bool = False
    refused: int | None = None
    is_local: bool = False
    """They come by the admin socket."""

    @property
    def user_id(self) -> str:
        return f"user-{self.user}"


def _session(letter: str) -> str:
    return f"first-session-{letter * 52}"


def _key(letter: str) -> str:
    return f"first-{letter * 12}-{letter * 52}"


def _scopes(*names: str) -> frozenset[str]:
    return frozenset(names)


NOBODY = Resident("nobody", "", refused=401)
USER = Resident("user", "ada", _scopes("inference", "account"), _session("a"))
MANAGER = Resident("manager", "mia", _scopes("inference", "account"), _session("b"), role="manager")
OTHER_MANAGER = Resident("manager of another project", "max", _scopes("inference", "account"), _session("c"))
AUDITOR = Resident(
    "auditor", "ann", _scopes("inference", "account", "audit", "metrics"), _session("d"), roles=("auditor",)
)
OPERATOR = Resident(
    "operator", "oto", _scopes("inference", "account", "audit", "metrics", "admin"), _session("e"), roles=("operator",)
)
SHUT_OUT = Resident("disabled user", "dan", token=_session("f"), is_disabled=True, refused=403)
SHUT_OUT_KEY = Resident(
    "key of a disabled user", "dan", token=_key("f"), key_scopes=("admin",), is_disabled=True, refused=401
)
OF_NONE = Resident("user of no project", "noa", _scopes("inference", "account"), _session("g"), role=None)
KEYS = [
    Resident(f"key for {scope}", "kim", _scopes(scope), _key(letter), key_scopes=(scope,))
    for scope, letter in zip(("inference", "account", "metrics", "audit", "admin"), "hijkl", strict=True)
]
KEY_FOR_INFERENCE = KEYS[0]
LOCAL = Resident("admin socket", "lou", _scopes("metrics", "audit", "admin"), is_local=True)
RESIDENTS = [
    NOBODY, USER, MANAGER, OTHER_MANAGER, AUDITOR, OPERATOR, SHUT_OUT, SHUT_OUT_KEY, OF_NONE, *KEYS, LOCAL,
]  # fmt: skip


async def move_in(db: Database) -> None:
    """Let the database know all of them, and the stranger."""
    people = {each.user: each for each in RESIDENTS if each.user}
    async with db.begin() as conn:
        for name in PROJECTS.values():
            await _add(conn, tables.projects, id=f"project-{name}", name=name, description=f"about {name}")
        for each in people.values():
            await _add_user(conn, each)
            await _leave(conn, each.user_id, each.user)
        await _add(conn, tables.users, id=f"user-{STRANGER}", name=STRANGER, is_admin=False, seen_at=now())
        await _add(conn, tables.users, id=f"user-{PASSER_BY}", name=PASSER_BY, is_admin=False)
        await _leave(conn, f"user-{STRANGER}", STRANGER)
        for user in (STRANGER, OTHER_MANAGER.user):
            member = {"user_id": f"user-{user}", "project_id": f"project-{PROJECTS[THEIRS]}", "role": "manager"}
            await _add(conn, tables.members, **member)
        for each in RESIDENTS:
            if each.key_scopes and each.token is not None:
                await add_key(conn, each.name, each.user, token=each.token, scopes=each.key_scopes)
            elif each.token is not None:
                until = now() + timedelta(hours=1)
                values = {"sha256": digest(each.token), "user_id": each.user_id, "issuer": "https://idp.example.org"}
                await _add(conn, tables.sessions, **values, expires_at=until)


async def add_key(conn: AsyncConnection, name: str, user: str, *, token: str, scopes: Iterable[str]) -> None:
    """A key as operators make them."""
    project = PROJECTS[THEIRS if user == STRANGER else OURS]
    values: dict[str, Any] = {"user_id": f"user-{user}", "project_id": f"project-{project}", "scopes": list(scopes)}
    await _add(conn, tables.api_keys, prefix=token[6:18], secret_sha256=digest(token), name=name, **values)


async def add_member(conn: AsyncConnection, user: str, project: str) -> None:
    """Let a user belong to a project, where they do not yet."""
    member = {"user_id": f"user-{user}", "project_id": f"project-{project}", "role": "member", "created_at": now()}
    await conn.execute(insert_new(tables.members, conn.dialect.name).values(member))


async def keep_response(conn: AsyncConnection, user: str) -> None:
    """A response that is kept for a user, where none is yet."""
    said = {
        "model": "m",
        "input": "[]",
        "response": "{}",
        "created_at": now(),
        "expires_at": now() + timedelta(hours=1),
    }
    row = {"user_id": f"user-{user}", "id": response_id(user), **said}
    await conn.execute(insert_new(tables.responses, conn.dialect.name).values(row))


def request_id(user: str) -> str:
    """A request that ``user`` has sent."""
    return f"req-{digest(user)[:32]}"


def response_id(user: str) -> str:
    """A response that was kept for ``user``."""
    return f"resp-{user}"


async def _add_user(conn: AsyncConnection, each: Resident) -> None:
    disabled_at = now() if each.is_disabled else None
    told = {"roles": list(each.roles), "seen_at": now(), "disabled_at": disabled_at, "is_admin": False}
    project_id = f"project-{PROJECTS[OURS]}"
    default = project_id if each.role else None
    await _add(conn, tables.users, id=each.user_id, name=each.user, default_project_id=default, **told)
    if each.role is not None:
        await _add(conn, tables.members, user_id=each.user_id, project_id=project_id, role=each.role)


async def _leave(conn: AsyncConnection, user_id: str, user: str) -> None:
    """What somebody leaves behind who was here."""
    entry = usage_entry(request_id(user), user_id=user_id)
    await conn.execute(insert(tables.usage).values({c.name: getattr(entry, c.name) for c in tables.usage.columns}))
    await keep_response(conn, user)


async def _add(conn: AsyncConnection, table: Any, **values: Any) -> None:
    await conn.execute(insert(table).values(created_at=now(), **values))
