"""What ``gateway/http.py`` relies on of uvicorn and httptools, each by its name: where an upgrade of them breaks
something, the test that fails says what."""

from __future__ import annotations

import ast
import asyncio
import functools
import inspect
from collections import deque
from types import SimpleNamespace
from typing import Any, cast

import httptools
import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from firstkit.gateway import http
from unit.gateway.support import Gated, Transport, get, parsed, request
from unit.gateway.upstreams import settle, until

OVERRIDDEN = {
    "__init__", "_start_asgi_task", "connection_lost", "connection_made", "data_received", "on_body", "on_header",
    "on_headers_complete", "on_message_begin", "on_message_complete", "on_response_complete", "pause_writing",
    "resume_writing", "shutdown",
}  # fmt: skip
"""Methods of uvicorn that ours take the place of: it calls them, under these names."""
USED = {
    "_unset_keepalive_if_required", "app", "connections", "cycle", "expect_100_continue", "flow", "headers", "loop",
    "parser", "pipeline", "server_state", "tasks", "transport", "url",
}  # fmt: skip
"""What ours find on uvicorn's protocol."""
OF_THE_CYCLE = {
    "response_complete",
    "response_started",
    "disconnected",
    "message_event",
    "keep_alive",
    "waiting_for_100_continue",
}
OF_THE_FLOW = {"read_paused", "write_paused", "pause_reading", "resume_reading"}
OF_THE_STATE = {"total_requests", "connections", "tasks", "default_headers"}
OF_THE_PARSER = {"feed_data", "get_method", "get_http_version", "should_keep_alive", "should_upgrade"}


class Plain(HttpToolsProtocol):
    """uvicorn's protocol as it is, with the names of what was called."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.called: list[str] = []
        super().__init__(*args, **kwargs)

    def __getattribute__(self, name: str) -> Any:
        if name in OVERRIDDEN:
            object.__getattribute__(self, "called").append(name)
        return super().__getattribute__(name)


def connected(app: Any = None) -> tuple[Plain, Transport]:
    """A connection to ``app`` on uvicorn's own protocol, as its server would make it."""
    config = uvicorn.Config(app or Gated(), http=cast(Any, Plain), lifespan="off", ws="none", log_config=None)
    config.load()
    protocol = Plain(config=config, server_state=ServerState(), app_state={}, _loop=asyncio.get_running_loop())
    transport = Transport()
    transport.protocol = protocol
    protocol.connection_made(transport)
    return protocol, transport


def answering() -> Gated:
    app = Gated()
    app.gate.set()
    return app


# -- names -------------------------------------------------------------------------------------------------------------


def class_of_ours() -> ast.ClassDef:
    tree = ast.parse(inspect.getsource(http))
    [found] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Protocol"]
    return found


def test_these_are_all_the_names_that_are_used() -> None:
    """Of uvicorn's protocol; else the lists of this file want one more, with a test of what it does."""
    ours = class_of_ours()
    methods = {node.name for node in ours.body if isinstance(node, ast.FunctionDef)}
    attributes = [node for node in ast.walk(ours) if isinstance(node, ast.Attribute)]
    of_self = {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "self"}
    made_by_us = {name for name in http.Protocol.__init__.__code__.co_names if name.startswith("_")}
    assert methods & set(dir(HttpToolsProtocol)) == OVERRIDDEN
    assert of_self - methods - made_by_us - USED == set()
    for names, holder in ((OF_THE_CYCLE, "cycle"), (OF_THE_FLOW, "flow"), (OF_THE_STATE, "server_state")):
        used = {node.attr for node in attributes if ast.unparse(node.value) in (holder, f"self.{holder}")}
        assert used - names - {"start"} == set(), holder
    parser = {node.attr for node in attributes if ast.unparse(node.value) == "self.parser"}
    assert parser <= OF_THE_PARSER


@pytest.mark.parametrize("name", sorted(OVERRIDDEN))
def test_the_protocol_still_has(name: str) -> None:
    assert callable(getattr(HttpToolsProtocol, name))


@pytest.mark.parametrize("name", sorted(USED))
async def test_the_protocol_still_holds(name: str) -> None:
    protocol, _ = connected()
    assert hasattr(protocol, name) or name == "url"


@pytest.mark.parametrize("name", sorted(OVERRIDDEN - {"__init__", "data_received", "pause_writing", "resume_writing"}))
async def test_uvicorn_still_calls(name: str) -> None:
    protocol, transport = connected(answering())
    protocol.data_received(request(path="/x"))
    await until("the answer", lambda: bool(transport.written))
    protocol.shutdown()
    await settle()
    assert name in protocol.called or name == "connection_made"


async def test_kinds_of_what_it_holds() -> None:
    protocol, transport = connected()
    assert isinstance(protocol.pipeline, deque)
    assert isinstance(protocol.flow, FlowControl)
    assert protocol.loop is asyncio.get_running_loop()
    assert protocol.transport is transport
    assert protocol.cycle is None
    state = protocol.server_state
    assert protocol.connections is state.connections
    assert protocol in state.connections
    assert protocol.tasks is state.tasks
    assert (state.total_requests, state.default_headers) == (0, [])
    assert isinstance(protocol.parser, httptools.HttpRequestParser)


@pytest.mark.parametrize("name", sorted(OF_THE_CYCLE))
async def test_the_cycle_still_holds(name: str) -> None:
    protocol, _ = connected()
    protocol.data_received(get())
    assert isinstance(protocol.cycle, RequestResponseCycle)
    assert hasattr(protocol.cycle, name)


@pytest.mark.parametrize("name", sorted(OF_THE_FLOW))
async def test_the_flow_still_holds(name: str) -> None:
    assert hasattr(FlowControl(Transport()), name)


@pytest.mark.parametrize("name", sorted(OF_THE_PARSER))
def test_the_parser_still_has(name: str) -> None:
    assert callable(getattr(httptools.HttpRequestParser, name))


# -- what uvicorn does -------------------------------------------------------------------------------------------------


async def test_a_server_makes_protocols_by_calling_what_http_says() -> None:
    made: list[dict[str, Any]] = []

    def factory(**kwargs: Any) -> HttpToolsProtocol:
        made.append(kwargs)
        return HttpToolsProtocol(**kwargs)

    config = uvicorn.Config(Gated(), http=cast(Any, functools.partial(factory)), lifespan="off", log_config=None)
    config.load()
    assert config.http_protocol_class(config=config, server_state=ServerState(), app_state={}, _loop=None)  # type: ignore[call-arg]
    assert set(made[0]) == {"config", "server_state", "app_state", "_loop"}
    source = inspect.getsource(uvicorn.Server.startup)
    for name in ("config=config", "server_state=self.server_state", "app_state=", "_loop=_loop"):
        assert name in source


async def test_one_tick_in_ten_makes_a_new_list_of_headers() -> None:
    """``Door.header_lines`` knows by the identity of the list when to make its lines again."""
    server = uvicorn.Server(uvicorn.Config(Gated(), log_config=None, server_header=False))
    assert await server.on_tick(0) is False
    first = server.server_state.default_headers
    assert [name for name, _ in first] == [b"date"]
    await server.on_tick(0)
    assert server.server_state.default_headers is not first
    server.should_exit = True
    assert await server.on_tick(0) is True


async def test_the_main_loop_is_what_serves_wait_in() -> None:
    source = inspect.getsource(uvicorn.Server._serve)
    assert "await self.main_loop()" in source
    assert "await self.shutdown(sockets=sockets)" in source
    assert "with self.capture_signals()" in inspect.getsource(uvicorn.Server.serve)


async def test_a_server_that_ends_tells_connections_and_waits_and_then_cancels() -> None:
    source = inspect.getsource(uvicorn.Server.shutdown)
    tells, waits, cancels = (source.index(x) for x in ("connection.shutdown()", "_wait_tasks_to_complete", "t.cancel("))
    assert tells < waits < cancels
    assert "timeout_graceful_shutdown" in source


async def test_a_head_becomes_a_cycle_that_is_started() -> None:
    protocol, _ = connected(answering())
    protocol.data_received(get("/x?a=b"))
    assert protocol.url == b"/x?a=b"
    assert (b"host", b"localhost") in protocol.headers
    assert protocol.cycle.scope["headers"] is protocol.headers
    assert len(protocol.tasks) == 1
    assert protocol.called.count("_start_asgi_task") == 1


async def test_a_cycle_behind_another_is_put_to_the_left_and_reading_stops() -> None:
    protocol, transport = connected()
    protocol.data_received(get("/1") + get("/2") + get("/3"))
    assert protocol.called.count("_start_asgi_task") == 1
    assert [cycle.scope["path"] for cycle, _ in protocol.pipeline] == ["/3", "/2"]
    assert [app for _, app in protocol.pipeline] == [protocol.app] * 2
    assert protocol.cycle is protocol.pipeline[0][0]
    assert protocol.flow.read_paused
    assert not transport.is_reading()


async def test_it_is_put_there_whatever_the_cycle_before_it_is() -> None:
    """Only ``response_complete`` of it is looked at: hot requests stand there too."""
    for is_complete in (False, True):
        protocol, _ = connected()
        protocol.cycle = cast(RequestResponseCycle, SimpleNamespace(response_complete=is_complete))
        protocol.data_received(get("/x"))
        assert (len(protocol.pipeline), len(protocol.tasks)) == ((0, 1) if is_complete else (1, 0))


async def test_the_end_of_an_answer_is_told_and_starts_the_next() -> None:
    app = answering()
    protocol, transport = connected(app)
    protocol.data_received(get("/1") + get("/2"))
    await until("both are answered", lambda: app.paths == ["/1", "/2"])
    await settle()
    assert protocol.called.count("on_response_complete") == 2
    assert [answer.body for answer in parsed(bytes(transport.written), False)] == [b"/1 ", b"/2 "]
    assert protocol.server_state.total_requests == 2
    assert protocol.flow.read_paused is False


async def test_the_end_is_told_after_the_last_byte_and_with_the_connection_closed_where_it_ends() -> None:
    seen: list[tuple[bool, bool, bool]] = []
    for version in ("1.1", "1.0"):
        protocol, transport = connected(answering())
        protocol.data_received(get("/x", version=version))
        cycle = protocol.cycle

        def told(transport: Transport = transport, cycle: RequestResponseCycle = cycle) -> None:
            seen.append((transport.written.endswith(b"/x "), transport.is_closing(), cycle.response_complete))

        cycle.on_response = told
        count = len(seen)
        await until("the answer", lambda count=count: len(seen) > count)  # type: ignore[misc]
    assert seen == [(True, False, True), (True, True, True)]


async def test_a_cycle_that_may_not_keep_the_connection_says_so_and_closes_it() -> None:
    protocol, transport = connected(answering())
    protocol.data_received(get("/x"))
    protocol.cycle.keep_alive = False
    await until("the end", transport.is_closing)
    assert b"connection: close\r\n" in transport.written


async def test_a_cycle_that_is_disconnected_writes_nothing_and_its_application_hears_it() -> None:
    got: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"late"})

    protocol, transport = connected(app)
    protocol.data_received(request("content-length: 9", path="/x", body=None))
    protocol.cycle.disconnected = True
    protocol.cycle.message_event.set()
    await until("it is heard", lambda: bool(got))
    await settle()
    assert got == [{"type": "http.disconnect"}]
    assert transport.written == b""
    assert not protocol.tasks


async def test_whether_an_answer_has_begun_is_known() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.Event().wait()

    protocol, _ = connected(app)
    protocol.data_received(get("/x"))
    assert not protocol.cycle.response_started
    await settle()
    assert protocol.cycle.response_started
    assert not protocol.cycle.response_complete
    for task in list(protocol.tasks):
        task.cancel()
    await settle()


async def test_what_is_expected_is_said_when_the_application_reads() -> None:
    """And taken from ``expect_100_continue`` when the head is complete."""
    app = answering()
    protocol, transport = connected(app)
    protocol.data_received(request("expect: 100-continue", "content-length: 1", path="/x", body=None))
    assert transport.written == b""
    await settle()
    assert transport.written == b"HTTP/1.1 100 Continue\r\n\r\n"


async def test_a_long_body_that_nobody_reads_stops_the_reading() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    protocol, _ = connected(app)
    protocol.data_received(request(path="/x", body=b"x" * 70_000))
    assert protocol.flow.read_paused
    for task in list(protocol.tasks):
        task.cancel()
    await settle()


async def test_a_shutdown_closes_what_is_idle_and_lets_the_rest_end() -> None:
    protocol, transport = connected()
    protocol.shutdown()
    assert transport.is_closing()
    protocol, transport = connected()
    protocol.data_received(get("/x"))
    protocol.shutdown()
    assert not transport.is_closing()
    assert not protocol.cycle.keep_alive
    protocol.cycle = cast(RequestResponseCycle, SimpleNamespace(response_complete=False, keep_alive=True))
    protocol.shutdown()
    assert not protocol.cycle.keep_alive


async def test_a_connection_that_is_lost_is_forgotten_and_wakes_the_cycle() -> None:
    protocol, transport = connected()
    protocol.data_received(get("/x"))
    transport.break_off()
    await settle()
    assert protocol not in protocol.connections
    assert protocol.cycle.disconnected
    assert protocol.cycle.message_event.is_set()
    protocol, transport = connected()
    transport.break_off()
    await settle()  # without a cycle that is no error


async def test_pauses_of_writing_are_those_of_the_flow() -> None:
    protocol, _ = connected()
    protocol.pause_writing()
    assert protocol.flow.write_paused
    protocol.resume_writing()
    assert not protocol.flow.write_paused


async def test_pauses_of_reading_are_told_to_the_transport_once() -> None:
    protocol, transport = connected()
    protocol.flow.pause_reading()
    protocol.flow.pause_reading()
    assert (protocol.flow.read_paused, transport.is_reading()) == (True, False)
    protocol.flow.resume_reading()
    assert (protocol.flow.read_paused, transport.is_reading()) == (False, True)


async def test_no_websocket_is_ever_made() -> None:
    protocol, transport = connected(answering())
    assert protocol.ws_protocol_class is None
    protocol.data_received(get("/x", "connection: upgrade", "upgrade: websocket"))
    await until("the answer", lambda: bool(transport.written))
    assert transport.written.startswith(b"HTTP/1.1 200 ")


# -- what httptools does -----------------------------------------------------------------------------------------------


class Heard:
    """The callbacks of a parser, by name, with what they got."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[bytes, ...]]] = []
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda *args: self.calls.append((name, args))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


def test_the_order_of_callbacks() -> None:
    heard = Heard()
    heard.parser.feed_data(b"POST /x HTTP/1.1\r\nHost: y\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n")
    names = [name for name in heard.names if "chunk" not in name]
    assert names == [
        "on_message_begin", "on_url", "on_header", "on_header", "on_headers_complete", "on_body", "on_message_complete",
    ]  # fmt: skip
    assert ("on_header", (b"Host", b"y")) in heard.calls


def test_trailers_come_as_headers_after_the_body() -> None:
    heard = Heard()
    heard.parser.feed_data(b"POST /x HTTP/1.1\r\nhost: y\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: y\r\n\r\n")
    assert heard.calls.index(("on_header", (b"x", b"y"))) > heard.names.index("on_headers_complete")


@pytest.mark.parametrize("callback", ["on_header", "on_headers_complete", "on_body", "on_message_complete"])
def test_what_a_callback_raises_stops_the_parser_as_an_error_of_its_own(callback: str) -> None:
    class Stops(Heard):
        pass

    def stop(self: Heard, *args: bytes) -> None:
        self.calls.append((callback, args))
        raise http.Refused

    setattr(Stops, callback, stop)
    heard = Stops()
    with pytest.raises(httptools.HttpParserError) as caught:
        heard.parser.feed_data(b"POST /x HTTP/1.1\r\nhost: y\r\ncontent-length: 1\r\n\r\na" * 2)
    assert isinstance(caught.value, httptools.HttpParserCallbackError)
    assert heard.names[-1] == callback
    assert heard.names.count(callback) == 1


def test_what_is_asked_of_the_parser_in_on_headers_complete() -> None:
    asked: list[tuple[Any, ...]] = []

    class Asks(Heard):
        def on_headers_complete(self) -> None:
            parser = self.parser
            asked.append(
                (parser.get_method(), parser.get_http_version(), parser.should_keep_alive(), parser.should_upgrade())
            )

    for head in (
        b"POST /x HTTP/1.1\r\n\r\n",
        b"GET /x HTTP/1.0\r\n\r\n",
        b"GET /x HTTP/1.1\r\nconnection: close\r\n\r\n",
    ):
        Asks().parser.feed_data(head)
    with pytest.raises(httptools.HttpParserUpgrade):
        Asks().parser.feed_data(b"GET /x HTTP/1.1\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n")
    assert asked == [
        (b"POST", "1.1", True, False),
        (b"GET", "1.0", False, False),
        (b"GET", "1.1", False, False),
        (b"GET", "1.1", True, True),
    ]


def test_an_upgrade_is_said_when_the_message_is_complete_and_is_no_error() -> None:
    heard = Heard()
    with pytest.raises(httptools.HttpParserUpgrade) as caught:
        heard.parser.feed_data(b"GET /x HTTP/1.1\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nrest")
    assert heard.names[-1] == "on_message_complete"
    assert not isinstance(caught.value, httptools.HttpParserError)


def test_behind_the_last_request_of_a_connection_nothing_is_parsed() -> None:
    """Nor is it an error: the answer may still be under way."""
    heard = Heard()
    heard.parser.feed_data(b"GET /x HTTP/1.1\r\nconnection: close\r\n\r\nGET /y HTTP/1.1\r\n\r\n")
    heard.parser.feed_data(b"\0\0\0")
    assert heard.names.count("on_message_complete") == 1


@pytest.mark.parametrize(
    "data",
    [
        b"GET /x HTTP/1.1\nhost: y\n\n",
        b"GET /x HTTP/1.1\r\nhost : y\r\n\r\n",
        b"GET /x HTTP/1.1\r\nhost: y\r\n z\r\n\r\n",
        b"GET /x HTTP/1.1\r\nhost: y\0\r\n\r\n",
        b"GET /x HTTP/1.1\r\nhost: y\rz\r\n\r\n",
        b"GET /x HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
        b"GET /x HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"GET /x HTTP/1.1\r\ncontent-length: +1\r\n\r\n",
        b"POST /x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nx\r\n",
        b"POST /x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n",
        b"POST /x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\n\n",
        b"POST /x HTTP/1.1\r\ntransfer-encoding: xchunked\r\n\r\n",
        b"get /x HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01",
    ],
)
def test_the_parser_itself_refuses(data: bytes) -> None:
    with pytest.raises(httptools.HttpParserError):
        Heard().parser.feed_data(data)


@pytest.mark.parametrize("data", [b"GET /" + b"a" * 100_000, b"GET / HTTP/1.1\r\nx: " + b"a" * 100_000])
def test_the_parser_has_no_limits_of_its_own(data: bytes) -> None:
    """``http.Protocol`` counts; if the parser did, its answers would be others."""
    Heard().parser.feed_data(data)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/x", b"/x"),
        (b"/x?y=/z", b"/x"),
        (b"/x#y", b"/x"),
        (b"//x/y", b"//x/y"),
        (b"/%78", b"/%78"),
        (b"http://host/x?y", b"/x"),
        (b"http://host", None),
        (b"*", b"*"),
    ],
)
def test_the_path_of_a_target(target: bytes, path: bytes | None) -> None:
    assert httptools.parse_url(target).path == path


@pytest.mark.parametrize("target", [b"", b"host:80", b"/a b"])
def test_a_target_that_is_none(target: bytes) -> None:
    with pytest.raises(httptools.HttpParserError):
        httptools.parse_url(target)
