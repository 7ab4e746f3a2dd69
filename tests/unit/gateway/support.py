"""Shared by the tests of the gateway: requests to an ASGI application; a gateway without its servers; its ports, with
connections in memory, on which real bytes come and go."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from firstkit.accounting.budgets import Budgets
from firstkit.accounting.ledger import TurnOver
from firstkit.accounting.limits import Limits
from firstkit.accounting.spool import Spool
from firstkit.auth.authenticator import Authenticator, Identity
from firstkit.auth.people import People
from firstkit.clock import now
from firstkit.config import Limits as ConfiguredLimits
from firstkit.config import ModelLimits, parse_config
from firstkit.errors import Unauthenticated
from firstkit.gateway.app import build_app
from firstkit.gateway.audit import Audit
from firstkit.gateway.call import Call
from firstkit.gateway.client import Client
from firstkit.gateway.forecast import Forecasts
from firstkit.gateway.guard import Guard
from firstkit.gateway.hot import HotRoutes
from firstkit.gateway.http import Door, Protocol
from firstkit.gateway.identity import Identify, local_admin
from firstkit.gateway.pilots import Pilots
from firstkit.gateway.relay import Relay
from firstkit.gateway.request import MOST_HELD_BYTES
from firstkit.gateway.server import _uvicorn
from firstkit.gateway.state import Gateway, names
from firstkit.gateway.stored import StoredResponses
from firstkit.gateway.waiting import WaitingRoom
from firstkit.ids import digest
from firstkit.routing.table import Route, RoutingTable
from firstkit.states import ReplicaState
from firstkit.store.database import Database
from firstkit.store.wake import WakeServer
from unit.gateway.upstreams import ByHand, settle, until

IDENTITY = Identity("u", "user", "p", "prefix", frozenset({"inference", "metrics", "admin"}))
HOST = (b"host", b"localhost")
CHAT_PATH = "/v1/chat/completions"
CHAT_BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
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


class PromptSpool(Spool):
    """Writes each line when it comes, so that what follows from it need not be waited for."""

    def _commit_soon(self) -> None:
        self._commit()


# -- answers -----------------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """What somebody sent. ``is_whole``: its end is there too; ``chunks``: the pieces of a chunked body."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes
    is_whole: bool = True
    chunks: list[bytes] = field(default_factory=list)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return error_in(self.headers[b"content-type"].decode(), self.json)

    @property
    def events(self) -> list[Any]:
        """The data of the events of a stream, ``[DONE]`` as text."""
        assert self.headers[b"content-type"].startswith(b"text/event-stream")
        said = [event[6:] for event in self.body.split(b"\n\n") if event.startswith(b"data: ")]
        return [event.decode() if event == b"[DONE]" else json.loads(event) for event in said]


def error_in(content_type: str, answer: Any) -> dict[str, Any]:
    """The error object of an answer, which must have the shape of OpenAI, or that of Anthropic around it."""
    assert answer.keys() == {"error"} or (
        answer["type"] == "error" and answer.keys() == {"type", "error", "request_id"}
    )
    error = answer["error"]
    assert error.keys() >= {"message", "type", "param", "code"}
    assert content_type == "application/json"
    return dict(error)


def parsed(data: bytes, has_ended: bool) -> list[Answer]:
    """The answers that a server wrote on one connection; fails on what is no HTTP. The last may not be whole.

    ``has_ended``: the server closed the connection, which is the end of a body without length.
    """
    answers = []
    while data:
        answer, data = _first(data, has_ended)
        answers.append(answer)
        assert answer.is_whole or not data
    return answers


def _first(data: bytes, has_ended: bool) -> tuple[Answer, bytes]:
    """The first answer of ``data``, and what comes behind it."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return Answer(0, {}, data, is_whole=False), b""
    line, *lines = head.split(b"\r\n")
    status = re.fullmatch(rb"HTTP/1\.1 ([1-5]\d\d) [A-Za-z '-]*", line)
    fields = [re.fullmatch(rb"([a-z0-9-]+): ([\x20-\x7e]*)", each) for each in lines]
    assert status, line
    assert all(fields), lines
    headers = {each[1]: each[2] for each in fields if each}
    assert len(headers) == len(lines), "no header stands twice"
    answer = Answer(int(status[1]), headers, b"")
    if answer.status < 200:
        return answer, rest
    if b"content-length" in headers:
        assert b"transfer-encoding" not in headers
        size = int(headers[b"content-length"])
        answer.body, rest = rest[:size], rest[size:]
        answer.is_whole = len(answer.body) == size
    elif headers.get(b"transfer-encoding") == b"chunked":
        answer.is_whole, rest = _unchunk(rest, answer.chunks)
        answer.body = b"".join(answer.chunks)
    else:
        answer.body, rest, answer.is_whole = rest, b"", has_ended
    return answer, rest


def _unchunk(data: bytes, chunks: list[bytes]) -> tuple[bool, bytes]:
    """Take a chunked body apart; returns whether its end is there, and what comes behind it."""
    while (line := re.match(rb"([0-9a-f]+)\r\n", data)) is not None:
        start, size = line.end(), int(line[1], 16)
        if len(data) < start + size + 2:
            return False, b""
        assert data[start + size : start + size + 2] == b"\r\n"
        piece, data = data[start : start + size], data[start + size + 2 :]
        if size == 0:
            return True, data
        chunks.append(piece)
    assert len(data) < 20, data
    return False, b""


async def ask(
    app: ASGIApp,
    path: str,
    method: str = "GET",
    body: bytes | list[bytes] = b"",
    headers: tuple[tuple[bytes, bytes], ...] = (HOST,),
    identity: Identity | None = IDENTITY,
) -> Answer:
    """Send one request to an ASGI application, its body in pieces where it is a list, and take the whole answer."""
    path, _, query = path.partition("?")
    pieces = [body] if isinstance(body, bytes) else list(body)
    state = {} if identity is None else {"identity": identity}
    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
    }
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


# -- gateways ----------------------------------------------------------------------------------------------------------


class Keys:
    """An authenticator. The key ``key`` is known at once, ``slow`` as soon as ``gate`` is open, and no other."""

    def __init__(self) -> None:
        self.identities = {"key": IDENTITY}
        self.gate = asyncio.Event()
        self.asked: list[str] = []

    def cached(self, token: str) -> Identity | None:
        return self.identities.get(token)

    def known(self, token_digest: str) -> Identity | None:
        by_digest = {digest(token): identity for token, identity in self.identities.items()}
        return by_digest.get(token_digest)

    async def identify(self, token: str) -> Identity:
        self.asked.append(token)
        if token != "slow":
            raise Unauthenticated
        await self.gate.wait()
        return IDENTITY


class Calls(Relay):
    """A relay that keeps the calls it is given and answers each with an empty object."""

    def __init__(self, room: WaitingRoom, forecasts: Forecasts, spool: Spool, stored: StoredResponses) -> None:
        super().__init__(room, forecasts, spool, stored)
        self.taken: list[Call] = []

    def serve(self, call: Call, client: Client) -> None:
        self.taken.append(call)
        client.plain("application/json", b"{}")
        call.owner.over()


async def made(folder: Path) -> AsyncIterator[Gateway]:
    """A gateway with a database in ``folder``, and nobody connected to it."""
    db = await Database.open(f"sqlite:///{folder}/first.db")
    gateway = without_database(folder)
    gateway.db = db
    gateway.authenticator = Authenticator(db)
    gateway.audit = Audit(db)
    gateway.budgets = Budgets(gateway.config, db, TurnOver(gateway.relay.spool))
    gateway.pilots = Pilots(db, gateway.room, lambda job_id: None)
    gateway.relay = Calls(gateway.room, gateway.forecasts, gateway.relay.spool, StoredResponses(db, 0.0))
    yield gateway
    await db.close()


def without_database(folder: Path) -> Gateway:
    """A gateway whose keys are those of ``Keys``; all that needs a database fails."""
    config = parse_config(f"server: {{state_dir: {folder}}}\n{CONFIG}")
    table = RoutingTable(names(config))
    forecasts = Forecasts(table)
    room = WaitingRoom(table, 4, lambda urgent: None)
    db = cast(Database, None)
    spool = PromptSpool(folder / "spool")
    return Gateway(
        config=config,
        db=db,
        authenticator=cast(Authenticator, Keys()),
        table=table,
        room=room,
        forecasts=forecasts,
        pilots=Pilots(db, room, lambda job_id: None),
        relay=Relay(room, forecasts, spool, StoredResponses(db, 0.0)),
        wake=WakeServer(folder / "controller.sock", lambda message: None, lambda: None),
        started_at=now(),
        people=People(db, config),
        budgets=Budgets(config, db, TurnOver(spool)),
    )


def limits_of(models: dict[str, dict[str, int]] | None = None, /, **limits: int) -> Limits:
    """As a configuration has them; ``models``: those of the models in it."""
    of_models = {name: ModelLimits.model_validate(entry) for name, entry in (models or {}).items()}
    return Limits(ConfiguredLimits.model_validate(limits), of_models)


def route(
    replica_id: str = "rep-1",
    most: int = 1,
    state: ReplicaState = ReplicaState.READY,
    model: str = "m",
    cluster: str = "here",
    upstream: Any = None,
) -> Route:
    """A route; without ``upstream`` one that is never called."""
    return Route(replica_id, model, cluster, upstream, model, most, state)


class Gated:
    """An ASGI application that reads the whole body, and answers with it and the path when ``gate`` is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.paths: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        await self.gate.wait()
        content = scope["path"].encode() + b" " + body
        headers = [(b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


# -- connections -------------------------------------------------------------------------------------------------------


class Transport(asyncio.Transport):
    """A connection in memory, from the server's end. A client that does not take what is written has it pile up."""

    HIGH_BYTES = 64 * 1024

    def __init__(self) -> None:
        super().__init__()
        self.protocol: asyncio.Protocol
        self.written = bytearray()
        self.late = bytearray()
        """What was written after the connection was closed."""
        self.is_taking = True
        self.is_aborted = False
        self.is_lost = False
        self.has_ended = False
        """The server said that it will write no more."""
        self.peer: tuple[str, int] | None = None
        self._loop = asyncio.get_running_loop()
        self._is_closing = False
        self._is_reading = True
        self._is_full = False
        self._unread: list[bytes] = []
        self._unsent_bytes = 0

    # -- the client's end --------------------------------------------------------------------------------------

    def arrive(self, data: bytes) -> None:
        """Bytes come; they are read at once, or when somebody reads again."""
        self._unread.append(data)
        self._read()

    def take(self, size_bytes: int | None = None) -> None:
        """The client takes what has piled up: a part of it, or all, and all that comes later."""
        self.is_taking = size_bytes is None
        self._unsent_bytes -= self._unsent_bytes if size_bytes is None else size_bytes
        if self._is_full and self._unsent_bytes <= self.HIGH_BYTES // 4:
            self._is_full = False
            self.protocol.resume_writing()
        if self._is_closing and self._unsent_bytes == 0:
            self._lose(None)

    def break_off(self) -> None:
        """The client goes away."""
        self._is_closing = True
        self._lose(ConnectionResetError())

    # -- the server's ------------------------------------------------------------------------------------------

    def write_eof(self) -> None:
        self.has_ended = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.peer if name == "peername" and self.peer is not None else default

    def is_closing(self) -> bool:
        return self._is_closing

    def is_reading(self) -> bool:
        return self._is_reading

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True
        self._loop.call_soon(self._read)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_closing:
            self.late += data
            return
        self.written += data
        self._unsent_bytes += 0 if self.is_taking else len(data)
        if self._unsent_bytes > self.HIGH_BYTES and not self._is_full:
            self._is_full = True
            self.protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return self._unsent_bytes

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            if self._unsent_bytes == 0:
                self._lose(None)

    def abort(self) -> None:
        self._is_closing = self.is_aborted = True
        self._lose(None)

    def _read(self) -> None:
        while self._unread and self._is_reading and not self._is_closing:
            self.protocol.data_received(self._unread.pop(0))

    def _lose(self, reason: Exception | None) -> None:
        if not self.is_lost:
            self.is_lost = True
            self._loop.call_soon(self.protocol.connection_lost, reason)


class Port:
    """A port of a gateway as its server opens it, but that its connections are in memory.

    ``app`` takes the place of the application behind the guard; ``is_admin`` makes it the admin socket.
    """

    def __init__(
        self,
        gateway: Gateway,
        limits: Limits | None = None,
        most: int = 1000,
        app: ASGIApp | None = None,
        is_admin: bool = False,
    ) -> None:
        self.gateway = gateway
        self.limits = limits or Limits()
        self.hot = HotRoutes(gateway, self.limits)
        who = local_admin if is_admin else gateway.identify
        guarded = Guard(app or Identify(build_app(gateway), who, self.limits, gateway.denied))
        self.server = _uvicorn(guarded, Door(None if is_admin else self.hot, most))
        self.server.config.load()
        self.server.server_state.default_headers = [(b"date", b"Thu, 26 Nov 2026 06:30:00 GMT")]

    def connect(self, peer: tuple[str, int] | None = None) -> Visit:
        """``peer``: the address of the client, and its port."""
        return Visit(self, peer)


class Visit:
    """One connection, from the client's end."""

    def __init__(self, port: Port, peer: tuple[str, int] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        config, state = port.server.config, port.server.server_state
        make = cast(Any, config.http_protocol_class)
        self.protocol: Protocol = make(config=config, server_state=state, app_state={}, _loop=self.loop)
        self.transport = Transport()
        self.transport.peer = peer
        self.transport.protocol = self.protocol
        self._answers: tuple[tuple[int, bool], list[Answer]] = ((0, False), [])
        self.protocol.connection_made(self.transport)

    def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.transport.arrive(piece)

    def look(self, after_s: float) -> None:
        """Have the server look at the connection as it would after so many seconds of nothing."""
        self.protocol.look(self.loop.time() + after_s)

    @property
    def answers(self) -> list[Answer]:
        """All that came; the last may not be whole."""
        state = (len(self.transport.written), self.is_closed)
        if self._answers[0] != state:
            self._answers = (state, parsed(bytes(self.transport.written), self.is_closed))
        return self._answers[1]

    @property
    def is_closed(self) -> bool:
        """Whether the server closed the connection in good order."""
        return self.transport.is_closing() and not self.transport.is_aborted

    @property
    def is_open(self) -> bool:
        return not self.transport.is_closing()

    async def answered(self, count: int = 1) -> list[Answer]:
        """The first ``count`` answers, as soon as they are whole."""
        await until(
            f"{count} answers",
            lambda: sum(answer.is_whole for answer in self.answers) >= count or not self.is_open,
        )
        answers = self.answers
        assert sum(answer.is_whole for answer in answers) >= count, f"{len(answers)} answers and no more"
        return answers[:count]

    async def answer(self) -> Answer:
        """The first answer."""
        return (await self.answered())[0]


async def talk(at: Gateway | Port, *pieces: bytes, answers: int = 1) -> list[Answer]:
    """Send ``pieces`` on a connection of their own; returns the ``answers`` that come, and fails if more do."""
    visit = (at if isinstance(at, Port) else Port(at)).connect()
    for piece in pieces:
        visit.say(piece)
        await asyncio.sleep(0)
    came = await visit.answered(answers)
    await settle()
    assert len(visit.answers) == answers
    assert not visit.transport.late, "nothing is written on a connection that was closed"
    return came


async def talk_bytewise(at: Gateway | Port, data: bytes, answers: int = 1) -> list[Answer]:
    """The same with one byte at a time."""
    return await talk(at, *[data[i : i + 1] for i in range(len(data))], answers=answers)


@dataclass
class Served:
    """A gateway with its real relay, the keys of ``Keys``, and one replica of ``m`` that the test plays by hand."""

    gateway: Gateway
    keys: Keys
    replica: ByHand
    port: Port

    def connect(self, peer: tuple[str, int] | None = None) -> Visit:
        return self.port.connect(peer)

    def lines(self) -> list[dict[str, Any]]:
        """Those of the ledger, of requests that ended."""
        written = b"".join(path.read_bytes() for path in sorted(self.gateway.relay.spool.folder.glob("usage-*.jsonl")))
        return [entry for entry in map(json.loads, written.splitlines()) if "outcome" in entry]

    @property
    def body_bytes(self) -> int:
        """Bytes of bodies that the gateway holds."""
        return MOST_HELD_BYTES - self.port.hot.memory._left

    @property
    def under_way(self) -> int:
        """Requests that count as under way for a limit of keys."""
        [kind] = self.port.limits._kinds
        return sum(subject.running for subject in kind.subjects.values())


def serving(
    folder: Path, most: int = 8, limits: Limits | None = None, app: ASGIApp | None = None, replica: Any = None
) -> Served:
    """Up to ``most`` requests are at the replica at a time; ``app`` as of ``Port``."""
    gateway = without_database(folder)
    replica = replica or ByHand()
    gateway.table.add(route(most=most, upstream=replica))
    return Served(gateway, cast(Keys, gateway.authenticator), replica, Port(gateway, limits, app=app))


def request(
    *lines: str,
    path: str = CHAT_PATH,
    method: str = "POST",
    body: Any = CHAT_BODY,
    key: str | None = "key",
    host: str | None = "localhost",
    version: str = "1.1",
) -> bytes:
    """A request, good but for what is given. ``body`` is sent with its length, and as JSON where it is no bytes;
    None: ``lines`` say what comes. A body of JSON has its content type."""
    head = [f"{method} {path} HTTP/{version}", *lines]
    head += [] if host is None else [f"host: {host}"]
    head += [] if key is None else [f"authorization: Bearer {key}"]
    head += ["content-type: application/json"] if method == "POST" else []
    raw = b"" if body is None or method == "GET" else body if isinstance(body, bytes) else json.dumps(body).encode()
    head += [f"content-length: {len(raw)}"] if body is not None and method == "POST" else []
    return "".join(f"{line}\r\n" for line in [*head, ""]).encode("latin-1") + raw


def get(path: str = "/health", *lines: str, **changes: Any) -> bytes:
    """A request without a body."""
    return request(*lines, path=path, method="GET", **changes)
