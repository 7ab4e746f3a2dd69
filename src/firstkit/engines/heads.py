"""The heads of requests to one engine, as bytes: what is the same in all of them is put together once. Pure."""

from __future__ import annotations

import re
from typing import Callable, Optional

from firstkit.engines.engine import Habits
from firstkit.links.messages import Open

MOST_REMEMBERED = 64
_NOT_PASSED = frozenset(
    ("host", "content-length", "transfer-encoding", "connection", "authorization", "accept-encoding", "expect", "te",
     "keep-alive", "proxy-authorization", "proxy-connection", "trailer", "upgrade")
)  # fmt: skip
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110's word
_NAME = re.compile(_TOKEN)
_METHOD = re.compile(f"(?!HEAD$|CONNECT$){_TOKEN}")
"""Answers to those two end by other rules than all others."""
_PATH = re.compile(r"/[!-~]*")
_REPLACED = ("accept", "content-type")
"""Headers of ours that give way to those of a request."""


class Unsayable(ValueError):
    """HTTP cannot carry a request with such a method, path or header."""


class Heads:
    """Builds heads. ``path``: makes of our path that of the engine. ``key`` goes along as a bearer token."""

    def __init__(self, host: str, path: Callable[[str], str], key: Optional[str], habits: Habits) -> None:
        self._host = host
        self._path = path
        self._key = key
        self.habits = habits
        self._starts: dict[tuple[str, str, bool, str], str] = {}
        self._names: dict[str, str] = {}

    def is_last(self, request: Open) -> bool:
        """Whether no other request may follow this one on its connection."""
        return not self.habits.keeps_alive or (request.stream and self.habits.closes_after_stream)

    def head(self, request: Open, body_bytes: int) -> bytes:
        """The request line and all headers; raises Unsayable."""
        lines = replaced = ""
        for key, value in request.headers.items():
            name = self._names.get(key) or self._name(key)
            if name in _NOT_PASSED:
                continue
            if name in _REPLACED:
                replaced += name
            _check(value)
            lines += f"{name}: {value}\r\n"
        kind = (request.method, request.path, request.stream, replaced)
        start = self._starts.get(kind) or self._start(kind, self.is_last(request))
        return f"{start}{lines}content-length: {body_bytes}\r\n\r\n".encode("ascii")

    def _name(self, key: str) -> str:
        name = key.lower()
        if not _NAME.fullmatch(name):
            raise Unsayable
        if len(self._names) < MOST_REMEMBERED:
            self._names[key] = name
        return name

    def _start(self, kind: tuple[str, str, bool, str], is_last: bool) -> str:
        method, path, is_stream, replaced = kind
        path = self._path(path)
        if not _METHOD.fullmatch(method) or not _PATH.fullmatch(path):
            raise Unsayable
        lines = {
            "host": self._host,
            "accept": "text/event-stream" if is_stream else "application/json",
            "content-type": "application/json",
            "accept-encoding": "identity",
            "connection": "close" if is_last else "keep-alive",
            **({} if self._key is None else {"authorization": f"Bearer {self._key}"}),
        }
        start = f"{method} {path} HTTP/1.1\r\n"
        for name, value in lines.items():
            _check(value)
            start += "" if name in replaced else f"{name}: {value}\r\n"
        if len(self._starts) < MOST_REMEMBERED:
            self._starts[kind] = start
        return start


def _check(value: str) -> None:
    """Raise Unsayable for a value with line ends, NUL or anything but visible ASCII and spaces."""
    if not value.isascii() or not value.isprintable():
        raise Unsayable
