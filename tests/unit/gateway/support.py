"""Shared by the tests of the gateway: requests to an ASGI application, a gateway without its servers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message

from firstkit.accounting.spool import Spool
from firstkit.auth.authenticator import Authenticator, Identity
from firstkit.clock import now
from firstkit.config import parse_config
from firstkit.gateway.forecast import Forecasts
from firstkit.gateway.pilots import Pilots
from firstkit.gateway.relay import Relay
from firstkit.gateway.state import Gateway, names
from firstkit.gateway.waiting import WaitingRoom
from firstkit.routing.table import Route, RoutingTable
from firstkit.states import ReplicaState
from firstkit.store.database import Database
from firstkit.store.wake import WakeServer

IDENTITY = Identity("u", "user", "p", "prefix", frozenset({"inference", "metrics", "admin"}))
HOST = (b"host", b"localhost")
CONFIG = """
clusters: {here: {}, outside: {kind: external}}
models:
  m:
    aliases: [alias]
    description: a model
    deployments:
      - {cluster: here, engine: {kind: command, argv: [x], capabilities: [chat]}}
      - {cluster: outside, engine: {kind: external, url: "http://x/v1", capabilities: [completions]}}
  org/embedder:
    deployments:
      - {cluster: here, engine: {kind: command, argv: [x], capabilities: [embeddings]}}
"""


@dataclass
class Answer:
    """What an application sent."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return error_in(self.headers[b"content-type"].decode(), self.json)


def error_in(content_type: str, answer: Any) -> dict[str, Any]:
    """The error object of an answer, which must have the shape of OpenAI."""
    [(key, error)] = answer.items()
    assert key == "error"
    assert error.keys() >= {"message", "type", "param", "code"}
    assert content_type == "application/json"
    return dict(error)


async def ask(
    app: ASGIApp,
    path: str,
    method: str = "GET",
    body: bytes | list[bytes] = b"",
    headers: tuple[tuple[bytes, bytes], ...] = (HOST,),
    identity: Identity | None = IDENTITY,
) -> Answer:
    """Send one request, its body in pieces where it is a list, and take the whole answer."""
    path, _, query = path.partition("?")
    pieces = [body] if isinstance(body, bytes) else list(body)
    state = {} if identity is None else {"identity": identity}
    scope = {"type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode()}
    scope |= {"query_string": query.encode(), "headers": list(headers), "state": state, "scheme": "http"}
    sent: list[Message] = []

    async def receive() -> Message:
        if not pieces:
            return {"type": "http.disconnect"}
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    assert [message["type"] for message in sent].count("http.response.start") == 1
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return Answer(sent[0]["status"], dict(sent[0]["headers"]), content)


class Calls(Relay):
    """A relay that keeps the calls it is given and answers each with an empty object."""

    def __init__(self, room: WaitingRoom, forecasts: Forecasts, spool: Spool) -> None:
        super().__init__(room, forecasts, spool)
        self.taken: list[Any] = []

    async def serve(self, call: Any, client: Any) -> None:
        self.taken.append(call)
        await client.plain("application/json", b"{}")


async def made(folder: Path) -> AsyncIterator[Gateway]:
    """A gateway with a database in ``folder``, and nobody connected to it."""
    config = parse_config(f"server: {{state_dir: {folder}}}\n{CONFIG}")
    db = await Database.open(config.server.database_url)
    table = RoutingTable(names(config))
    forecasts = Forecasts(table)
    room = WaitingRoom(table, 4, lambda urgent: None)
    yield Gateway(
        config=config,
        db=db,
        authenticator=Authenticator(db),
        table=table,
        room=room,
        forecasts=forecasts,
        pilots=Pilots(db, room, lambda: None),
        relay=Calls(room, forecasts, Spool(folder / "spool")),
        wake=WakeServer(folder / "controller.sock", lambda message: None, lambda: None),
        started_at=now(),
    )
    await db.close()


def route(
    replica_id: str = "rep-1",
    most: int = 1,
    state: ReplicaState = ReplicaState.READY,
    model: str = "m",
    cluster: str = "here",
) -> Route:
    """A route whose upstream is never called."""
    return Route(replica_id, model, cluster, None, model, most, state)  # type: ignore[arg-type]
