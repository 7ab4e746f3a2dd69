"""Small HTTP servers that answer what a test says, on a UNIX socket or a port of 127.0.0.1."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Answers:
    """Path -> the whole answer as bytes; what was asked comes in ``requests``, head and body."""

    by_path: dict[str, bytes]
    requests: list[bytes] = field(default_factory=list)
    port: int = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


def answer(status: str, body: bytes, kind: str = "application/json") -> bytes:
    """A whole answer with its length."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def stream(*chunks: bytes, ends: bool = True) -> bytes:
    """A chunked answer; without ``ends`` it is cut."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + (b"0\r\n\r\n" if ends else b"")


@contextlib.contextmanager
def on_socket(path: Path, by_path: dict[str, bytes]) -> Iterator[Answers]:
    """Serve on a UNIX socket."""
    answers = Answers(by_path)
    with _running(socketserver.ThreadingUnixStreamServer(str(path), _handler(answers))):
        yield answers
    path.unlink()


@contextlib.contextmanager
def on_port(by_path: dict[str, bytes]) -> Iterator[Answers]:
    """Serve on a free port of 127.0.0.1."""
    answers = Answers(by_path)
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _handler(answers))
    answers.port = server.server_address[1]
    with _running(server):
        yield answers


@contextlib.contextmanager
def _running(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(answers: Answers) -> type[socketserver.StreamRequestHandler]:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            head = b""
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                head += line
            length = next(
                (int(line[15:]) for line in head.splitlines() if line.lower().startswith(b"content-length:")), 0
            )
            answers.requests.append(head + b"\r\n" + self.rfile.read(length))
            path = head.split(b" ")[1].decode()
            self.wfile.write(answers.by_path.get(path, answer("404 Not Found", b"{}")))

    return Handler
