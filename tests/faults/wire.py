"""A client that sends bytes as they are, and takes nothing for an answer but whole, strict HTTP."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from dataclasses import dataclass, field
from typing import Any

from unit.gateway.support import error_in

LIMIT_S = 20.0
_STATUS = re.compile(rb"HTTP/1\.1 ([1-5]\d\d) [ -~]*")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([\t -~\x80-\xff]*)")


class Incomplete(Exception):
    """More bytes are needed for a whole answer."""


@dataclass(frozen=True)
class Answer:
    """One answer, with the interim ones (100 Continue) that came before it."""

    status: int
    headers: dict[str, str]
    body: bytes
    interim: tuple[int, ...] = ()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return error_in(self.headers["content-type"], self.json)

    @property
    def says_close(self) -> bool:
        return self.headers.get("connection", "").lower() == "close"

    @property
    def said(self) -> str:
        """The text of a chat answer, plain or streamed."""
        if self.headers["content-type"] == "application/json":
            return str(self.json["choices"][0]["message"]["content"])
        events = [event[6:] for event in self.body.split(b"\n\n") if event.startswith(b"data: ")]
        assert events[-1] == b"[DONE]", events[-1]
        choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices)


def parsed(data: bytes, is_closed: bool, is_head: bool = False) -> tuple[Answer, bytes]:
    """The first answer in ``data`` and what is behind it; raises Incomplete, fails on anything that is not HTTP."""
    interim: list[int] = []
    while True:
        head, found, data = data.partition(b"\r\n\r\n")
        if not found:
            assert _STATUS.match(head) or b"HTTP/1.1 100 ".startswith(head[:13]) or len(head) < 16, head[:200]
            raise Incomplete
        status, headers = _head(head)
        if status >= 200:
            break
        assert status == 100, f"an interim answer {status}"
        interim.append(status)
    body, rest = (b"", data) if is_head or status in (204, 304) else _body(headers, data, is_closed)
    return Answer(status, headers, body, tuple(interim)), rest


def _head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.split(b"\r\n")
    status = _STATUS.fullmatch(first)
    assert status, first
    headers: dict[str, str] = {}
    for line in lines:
        header = _HEADER.fullmatch(line)
        assert header, line
        name = header[1].decode().lower()
        assert name not in headers, f"{name} twice"
        headers[name] = header[2].decode("latin-1")
    return int(status[1]), headers


def _body(headers: dict[str, str], data: bytes, is_closed: bool) -> tuple[bytes, bytes]:
    length = headers.get("content-length")
    if "transfer-encoding" in headers:
        assert (headers["transfer-encoding"], length) == ("chunked", None)
        return _chunked(data)
    if length is not None:
        assert re.fullmatch("0|[1-9][0-9]*", length)
        if len(data) < int(length):
            raise Incomplete
        return data[: int(length)], data[int(length) :]
    if not is_closed:
        raise Incomplete
    return data, b""


def _chunked(data: bytes) -> tuple[bytes, bytes]:
    body = []
    while True:
        size_line, found, data = data.partition(b"\r\n")
        if not found:
            raise Incomplete
        assert re.fullmatch(rb"[0-9a-fA-F]{1,8}", size_line), size_line
        size = int(size_line, 16)
        if len(data) < size + 2:
            raise Incomplete
        assert data[size : size + 2] == b"\r\n", data[:100]
        body.append(data[:size])
        data = data[size + 2 :]
        if size == 0:
            return b"".join(body), data


@dataclass
class Wire:
    """One connection to a port of this machine. ``received`` is what came and was not taken as an answer yet."""

    port: int
    received: bytes = b""
    is_closed: bool = False
    sock: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self.sock = socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """All of it, as far as the other side takes it: it may have refused and closed before the end."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(data)

    def trickle(self, data: bytes) -> None:
        """Byte by byte, each in a packet of its own."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for i in range(len(data)):
                self.sock.send(data[i : i + 1])

    def answer(self, is_head: bool = False) -> Answer:
        """The next whole answer; raises EOFError when the connection ends before it."""
        while True:
            try:
                answer, self.received = parsed(self.received, self.is_closed, is_head)
            except Incomplete:
                if self.is_closed:
                    raise EOFError(f"closed behind {self.received[:200]!r}") from None
                self._receive()
            else:
                return answer

    def rest(self) -> bytes:
        """All that comes until the connection ends."""
        while not self.is_closed:
            self._receive()
        return self.received

    def end(self) -> bytes:
        """Say that nothing more will be sent, and take what still comes. Spares waiting for a lingering close."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        return self.rest()

    def until(self, text: bytes) -> None:
        """Wait until ``text`` came."""
        while text not in self.received:
            if self.is_closed:
                raise EOFError(f"closed behind {self.received[:200]!r}")
            self._receive()

    def _receive(self) -> None:
        """One piece more. A reset is an end as well: what it cut off is missed by who waits for it."""
        try:
            piece = self.sock.recv(1 << 16)
        except ConnectionError:
            piece = b""
        self.received += piece
        self.is_closed = not piece


def chat_body(prompt: str, model: str = "echo", **fields: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": prompt}], **fields}).encode()


def chat_request(key: str, prompt: str, model: str = "echo", **fields: Any) -> bytes:
    """A good request: its answer says ``prompt``."""
    body = chat_body(prompt, model, **fields)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
