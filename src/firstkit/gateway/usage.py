"""Routes about what was used: one's own, that of a project, and everybody's; and the node-hours that it took."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Literal, Protocol

import msgspec
from fastapi import APIRouter, FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from firstkit.accounting.exports import NODE_HOUR_NOTE, csv_lines, node_hour_columns, usage_columns
from firstkit.accounting.grouping import Grouping, NodeHourGrouping
from firstkit.accounting.node_hours import node_hours
from firstkit.accounting.reports import usage_report
from firstkit.accounting.served import known_project_id
from firstkit.auth.permissions import Scope
from firstkit.errors import InvalidRequest
from firstkit.gateway.identity import identity_of, needs
from firstkit.gateway.moments import Moment
from firstkit.gateway.state import gateway_of

AT_ONCE = 200
"""Rows that are written before others have their turn: a millisecond."""

FORMS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {"schema": {"type": "object"}}, "text/csv": {"schema": {"type": "string"}}}}
}

own = APIRouter(prefix="/v1", dependencies=[needs(Scope.ACCOUNT)], tags=["account"])
everybodys = APIRouter(prefix="/admin", dependencies=[needs(Scope.ADMIN, Scope.AUDIT)], tags=["administration"])


def install(app: FastAPI) -> None:
    """Add the routes to ``app``."""
    app.include_router(own)
    app.include_router(everybodys)


class Row(Protocol):
    """A line of a report."""

    def as_row(self) -> Mapping[str, Any]: ...


class _Asked(BaseModel):
    """Which requests, and in which form. A parameter that is written wrongly would else mean more than was meant."""

    model_config = ConfigDict(extra="forbid")
    since: Moment | None = None
    until: Moment | None = None
    format: Literal["json", "csv"] | None = None


class UsageAsked(_Asked):
    """``by``: any groupings; ``project``: the one whose usage it is, by name."""

    by: list[Grouping] = []
    project: Annotated[str, Field(min_length=1)] | None = None


class NodeHoursAsked(_Asked):
    """``by``: ``month``, ``model``, or both."""

    by: list[NodeHourGrouping] = []


@own.get("/usage", responses=FORMS)
async def own_usage(request: Request, asked: Annotated[UsageAsked, Query()]) -> Response:
    """Your requests and tokens of [since, until), by any groupings. With ``project``: those that were charged to it,
    your own or, for its managers, everybody's."""
    identity = identity_of(request)
    user_id: str | None = identity.user_id
    project_id = None
    if asked.project is not None:
        project_id = identity.charged_to(asked.project).project_id
        user_id = None if identity.manages(project_id) else user_id
    return await _usage(request, asked, user_id, project_id)


@everybodys.get("/usage", responses=FORMS)
async def usage(request: Request, asked: Annotated[UsageAsked, Query()]) -> Response:
    """Sums from the ledger, of requests that arrived in [since, until), broken down by any groupings."""
    project_id = None if asked.project is None else await known_project_id(gateway_of(request).db, asked.project)
    return await _usage(request, asked, None, project_id)


@everybodys.get("/node-hours", responses=FORMS)
async def node_hours_of_all(request: Request, asked: Annotated[NodeHoursAsked, Query()]) -> Response:
    """Node-hours of jobs in [since, until), at most until now: whom the scheduler charged, and how FIRST attributes
    them to projects, by tokens."""
    _check_order(asked)
    gateway = gateway_of(request)
    idle_project = gateway.config.accounting.idle_project
    found = await node_hours(gateway.db, asked.since, asked.until, idle_project, asked.by)
    return _answer(request, asked, "node-hours", node_hour_columns(asked.by), found, note=NODE_HOUR_NOTE)


async def _usage(request: Request, asked: UsageAsked, user_id: str | None, project_id: str | None) -> Response:
    _check_order(asked)
    found = await usage_report(
        gateway_of(request).db, asked.by, asked.since, asked.until, user_id=user_id, project_id=project_id
    )
    return _answer(request, asked, "usage", usage_columns(asked.by), found)


def _check_order(asked: _Asked) -> None:
    if asked.since is not None and asked.until is not None and asked.until <= asked.since:
        raise InvalidRequest("'until': must be later than 'since'.", param="until")


def _answer(
    request: Request, asked: _Asked, name: str, columns: Sequence[str], found: Iterable[Row], **about: str
) -> Response:
    """Written bit by bit: a report of many rows would keep others waiting."""
    rows = (row.as_row() for row in found)
    if (asked.format or _wanted(request.headers.get("accept", ""))) == "json":
        in_order = ({column: row[column] for column in columns} for row in rows)
        return StreamingResponse(_together(_json_pieces(in_order, about)), media_type="application/json")
    header = {"content-disposition": f'attachment; filename="{name}.csv"'}
    lines = _together(line.encode() for line in csv_lines(columns, rows))
    return StreamingResponse(lines, media_type="text/csv; charset=utf-8; header=present", headers=header)


async def _together(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Some pieces at a time; between them others have their turn."""
    remaining = iter(pieces)
    while some := b"".join(islice(remaining, AT_ONCE)):
        yield some
        await asyncio.sleep(0)


def _json_pieces(rows: Iterable[Mapping[str, Any]], about: Mapping[str, str]) -> Iterator[bytes]:
    """``{"data": [...], ...}``, row by row."""
    encode = msgspec.json.encode
    yield b'{"data":['
    for number, row in enumerate(rows):
        yield (b"," if number else b"") + encode(row)
    yield b"]"
    for name, text in about.items():
        yield b",%b:%b" % (encode(name), encode(text))
    yield b"}"


def _wanted(accept: str) -> Literal["json", "csv"]:
    """Which of both is named first."""
    kinds = [kind.partition(";")[0].strip().lower() for kind in accept.split(",")]
    known = [kind for kind in kinds if kind in ("text/csv", "application/json")]
    return "csv" if known[:1] == ["text/csv"] else "json"
