"""The routes about usage and node-hours: whose it is that one sees, and the form in which it comes."""

from __future__ import annotations

import asyncio
import csv
import json
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from sqlalchemy import insert
from starlette.types import ASGIApp, Message

from firstkit.auth.permissions import Identity, Membership, Role, scopes_of
from firstkit.config import Accounting
from firstkit.gateway import usage as routes
from firstkit.gateway.app import build_app
from firstkit.gateway.guard import Guard
from firstkit.gateway.identity import Identify, local_admin
from firstkit.gateway.state import Gateway
from firstkit.schedulers.scheduler import Resources
from firstkit.store import tables
from firstkit.store.jobs import Charge, NewReplica, add_job, add_replicas, note_job
from unit.gateway.support import HOST, Answer, ask
from usage_entries import usage_entry

DAY = datetime(2026, 10, 24, tzinfo=UTC)
ASTRO, CLIMATE = Membership("pa", "astro"), Membership("pc", "climate", is_manager=True)
ADA = Identity(
    "ua", "ada", "pa", "abcdefghijkl", scopes_of([Role.USER]), "astro", (ASTRO, CLIMATE), frozenset({Role.USER})
)
BEN = Identity("ub", "ben", "pa", "abcdefghijkm", scopes_of([Role.USER]), "astro", (ASTRO,), frozenset({Role.USER}))
AUDITOR = Identity("uc", "cyd", "", "session", scopes_of([Role.AUDITOR]))
OPERATOR = Identity("ud", "dee", "", "session", scopes_of([Role.OPERATOR]))
NO_SCOPE = Identity("ue", "eve", "pa", "abcdefghijkn", frozenset({"inference", "metrics"}), "astro", (ASTRO,))


@pytest.fixture
async def app(gateway: Gateway) -> ASGIApp:
    """Two users, two projects, and one request of each user in each project; a job that served them."""
    async with gateway.db.begin() as conn:
        people = [{"id": f"u{name[0]}", "name": name, "created_at": DAY, "is_admin": False} for name in ("ada", "ben")]
        charged = [{"id": f"p{name[0]}", "name": name, "created_at": DAY} for name in ("astro", "climate")]
        await conn.execute(insert(tables.users), people)
        await conn.execute(insert(tables.projects), charged)
        await add_job(conn, "job", "polaris", Resources(nodes=2), "sha", DAY, Charge("alloc", "svc"))
        await add_replicas(conn, [NewReplica("rep", "job", "m", "m@polaris", "polaris", 1, Resources())], DAY)
        await note_job(conn, "job", started_at=DAY, ended_at=DAY + timedelta(hours=2))
        for user in ("ua", "ub"):
            for project in ("pa", "pc"):
                who = {"user_id": user, "project_id": project, "key_prefix": f"key-of-{user}", "replica_id": "rep"}
                entry = usage_entry(f"{user}-{project}", at=DAY, **who)
                await conn.execute(
                    insert(tables.usage).values({c.name: getattr(entry, c.name) for c in tables.usage.columns})
                )
    return Guard(build_app(gateway))


async def seen(app: ASGIApp, query: str, identity: Identity) -> list[tuple[str, str]]:
    """User and project of the requests that somebody is told of."""
    answer = await ask(app, f"/v1/usage?by=user&by=project{query}", identity=identity)
    assert answer.status == 200, answer.json
    return [(row["user"], row["project"]) for row in answer.json["data"]]


# -- whose -------------------------------------------------------------------------------------------------------------


async def test_everybody_sees_their_own(app: ASGIApp) -> None:
    assert await seen(app, "", ADA) == [("ada", "astro"), ("ada", "climate")]
    assert await seen(app, "", BEN) == [("ben", "astro"), ("ben", "climate")]


async def test_of_a_project_members_see_their_own_part_and_managers_all(app: ASGIApp) -> None:
    assert await seen(app, "&project=astro", ADA) == [("ada", "astro")]
    assert await seen(app, "&project=climate", ADA) == [("ada", "climate"), ("ben", "climate")]


@pytest.mark.parametrize("name", ["climate", "nothing", "pc", "a%00b", "astro%20"])
async def test_a_project_of_others_is_one_that_there_is_not(app: ASGIApp, name: str) -> None:
    answer = await ask(app, f"/v1/usage?project={name}", identity=BEN)
    assert (answer.status, answer.error["code"]) == (404, "project_not_found")


async def test_no_project_without_a_name(app: ASGIApp) -> None:
    nobody = Identity("ub", "ben", "", "session", scopes_of([Role.USER]))
    answer = await ask(app, "/v1/usage?project=", identity=nobody)
    assert (answer.status, answer.error["param"]) == (400, "project")


@pytest.mark.parametrize("field", ["user_id", "user", "all", "scope"])
async def test_no_parameter_opens_the_usage_of_others(app: ASGIApp, field: str) -> None:
    answer = await ask(app, f"/v1/usage?by=user&{field}=ua", identity=BEN)
    assert (answer.status, answer.error["param"]) == (400, field)


@pytest.mark.parametrize("path", ["/v1/usage", "/admin/usage", "/admin/node-hours"])
async def test_who_has_no_scope_for_it_sees_nothing(app: ASGIApp, path: str) -> None:
    assert (await ask(app, path, identity=NO_SCOPE)).error["code"] == "insufficient_scope"


@pytest.mark.parametrize("path", ["/admin/usage", "/admin/node-hours"])
async def test_everybodys_is_for_auditors_and_operators(gateway: Gateway, app: ASGIApp, path: str) -> None:
    assert (await ask(app, path, identity=ADA)).status == 403
    for somebody in (AUDITOR, OPERATOR):
        assert (await ask(app, path, identity=somebody)).status == 200
    socket = Guard(Identify(build_app(gateway), local_admin))
    assert (await ask(socket, path)).status == 200


async def test_operators_ask_about_one_project(app: ASGIApp) -> None:
    answer = await ask(app, "/admin/usage?by=user&project=climate", identity=AUDITOR)
    assert [(row["user"], row["requests"]) for row in answer.json["data"]] == [("ada", 1), ("ben", 1)]
    for name in ("nothing", "a%00b"):
        unknown = await ask(app, f"/admin/usage?project={name}", identity=AUDITOR)
        assert (unknown.status, unknown.error["code"]) == (404, "project_not_found")


# -- in which form -----------------------------------------------------------------------------------------------------


async def test_node_hours_say_what_is_internal(gateway: Gateway, app: ASGIApp) -> None:
    gateway.config.__dict__["accounting"] = Accounting(idle_project="nobody")
    answer = await ask(app, "/admin/node-hours?since=2026-10-01&until=2026-11-01&by=month", identity=AUDITOR)
    assert "FIRST's own attribution" in answer.json["note"]
    about = {
        "since": "2026-10-01T00:00:00Z",
        "until": "2026-11-01T00:00:00Z",
        "cluster": "polaris",
        "account": "alloc",
        "submit_as": "svc",
    }
    assert answer.json["data"] == [
        {**about, "project_id": "pa", "project": "astro", "node_hours": 1.0, "tokens": 30, "requests": 2},
        {**about, "project_id": "pc", "project": "climate", "node_hours": 1.0, "tokens": 30, "requests": 2},
        {**about, "project_id": "", "project": "nobody", "node_hours": 2.0, "tokens": 0, "requests": 0},
    ]


CSV_OF_OCTOBER = """\
since,until,cluster,account,submit_as,project_id,project,node_hours,tokens,requests
2026-10-01T00:00:00Z,2026-11-01T00:00:00Z,polaris,alloc,svc,pa,astro,1.000000,30,2
2026-10-01T00:00:00Z,2026-11-01T00:00:00Z,polaris,alloc,svc,pc,climate,1.000000,30,2
2026-10-01T00:00:00Z,2026-11-01T00:00:00Z,polaris,alloc,svc,,idle,2.000000,0,0
"""


async def test_node_hours_as_a_centre_reads_them(app: ASGIApp) -> None:
    path = "/admin/node-hours?since=2026-10-01&until=2026-11-01&by=month"
    for query, accept in (("&format=csv", b"*/*"), ("", b"text/csv"), ("&format=csv", b"application/json")):
        answer = await ask(app, path + query, headers=(HOST, (b"accept", accept)), identity=AUDITOR)
        assert answer.headers[b"content-type"] == b"text/csv; charset=utf-8; header=present"
        assert answer.headers[b"content-disposition"] == b'attachment; filename="node-hours.csv"'
        assert answer.body.decode() == CSV_OF_OCTOBER


async def test_by_model_there_is_one_more_column(app: ASGIApp) -> None:
    answer = await ask(app, "/admin/node-hours?by=model&by=month&format=csv", identity=AUDITOR)
    rows = list(csv.DictReader(StringIO(answer.body.decode())))
    assert [(row["project"], row["model"]) for row in rows] == [("astro", "m"), ("climate", "m"), ("idle", "")]


@pytest.mark.parametrize(
    ("accept", "is_csv"),
    [
        ("text/csv", True),
        ("Text/CSV;q=0.9", True),
        ("text/html, text/csv, application/json", True),
        ("application/json, text/csv", False),
        ("*/*", False),
        ("", False),
        ("text/csvx", False),
    ],
)
async def test_what_is_named_first_in_accept_comes(app: ASGIApp, accept: str, is_csv: bool) -> None:
    answer = await ask(app, "/v1/usage", headers=(HOST, (b"accept", accept.encode())), identity=ADA)
    assert answer.headers[b"content-type"].startswith(b"text/csv" if is_csv else b"application/json")


async def test_usage_as_csv_has_its_groupings_first(app: ASGIApp) -> None:
    answer = await ask(app, "/v1/usage?by=project&by=day&format=csv", identity=ADA)
    assert answer.body.decode().splitlines() == [
        "project,day,requests,prompt_tokens,completion_tokens,estimated,failed",
        "astro,2026-10-24,1,10,5,0,0",
        "climate,2026-10-24,1,10,5,0,0",
    ]


async def test_a_report_of_no_rows(app: ASGIApp) -> None:
    later = "since=2026-12-01&until=2026-12-02"
    assert (await ask(app, f"/v1/usage?by=day&{later}", identity=ADA)).json == {"data": []}
    assert (await ask(app, f"/admin/node-hours?{later}", identity=AUDITOR)).json["data"] == []
    assert len((await ask(app, f"/admin/node-hours?{later}&format=csv", identity=AUDITOR)).body.splitlines()) == 1


async def test_a_long_report_comes_whole(gateway: Gateway, app: ASGIApp) -> None:
    count = 3 * routes.AT_ONCE + 1
    async with gateway.db.begin() as conn:
        for number in range(count):
            entry = usage_entry(f"more-{number}", user_id="ub", model=f"model-{number:04}")
            await conn.execute(
                insert(tables.usage).values({c.name: getattr(entry, c.name) for c in tables.usage.columns})
            )
    rows: list[dict[str, Any]] = json.loads(await patiently(app, "by=model"))["data"]
    assert [row["model"] for row in rows[1:]] == [f"model-{number:04}" for number in range(count)]
    lines = (await patiently(app, "by=model&format=csv")).decode().splitlines()
    assert [line.partition(",")[0] for line in lines[2:]] == [row["model"] for row in rows[1:]]


async def patiently(app: ASGIApp, query: str) -> bytes:
    """What a client gets that stays until the end."""
    said: list[bytes] = []
    got_request = asyncio.Event()

    async def receive() -> Message:
        if got_request.is_set():
            await asyncio.Event().wait()
        got_request.set()
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        said.append(message.get("body", b""))

    scope = {"type": "http", "method": "GET", "path": "/v1/usage", "raw_path": b"/v1/usage", "scheme": "http"}
    asked = {"query_string": query.encode(), "headers": [HOST], "http_version": "1.1", "state": {"identity": BEN}}
    await app({**scope, **asked}, receive, send)
    assert len(said) > 4, "in pieces"
    return b"".join(said)


# -- what cannot be asked ----------------------------------------------------------------------------------------------


def refused(answer: Answer) -> tuple[int, Any]:
    return answer.status, answer.error["param"]


@pytest.mark.parametrize("path", ["/v1/usage", "/admin/usage", "/admin/node-hours"])
@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("by=colour", "by"),
        ("since=tomorrow", "since"),
        ("until=0001-01-01T00:00:00%2B14:00", "until"),
        ("since=2026-11-02&until=2026-11-01", "until"),
        ("since=2026-11-01&until=2026-11-01T01:00%2B01:00", "until"),
        ("format=xml", "format"),
        ("colour=red", "colour"),
    ],
)
async def test_bad_questions_name_the_parameter(app: ASGIApp, path: str, query: str, param: str) -> None:
    asking = Identity("u", "all", "pa", "session", ADA.scopes | AUDITOR.scopes)
    assert refused(await ask(app, f"{path}?{query}", identity=asking)) == (400, param)
