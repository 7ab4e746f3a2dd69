"""The public API as a client of it sees it: which models there are, and an answer that comes in pieces."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from firstkit.errors import FirstError

SILENCE_S = 120.0
"""Longest silence of a gateway that lives: it says something every 15 s, whatever it waits for."""
NEXT_STEPS = {
    "invalid_api_key": "Put a good key into FIRST_API_KEY; 'first keys create NAME' makes one.",
    "insufficient_scope": "Use a key with the scope 'inference'; 'first keys create NAME' makes one.",
    "model_not_found": "'first models' lists the models.",
    "model_not_ready": "Ask again later; 'first status' shows how far it is.",
    "overloaded": "Ask again in a moment.",
    "unsupported_endpoint": "Name a model that can chat: --model NAME. 'first models' lists the models.",
    "engine_refused": "Often the conversation is too long for the model: begin a new one.",
}
NOBODY = "'first status' says whether the gateway runs; 'first up' starts the demonstration."
LOOK = "'first status' shows what runs, 'first logs REPLICA' what the engine says."


class ApiFailed(FirstError):
    """The API answered with an error, or not at all; ``next_step`` says what to do."""

    def __init__(self, message: str, next_step: str) -> None:
        super().__init__(message)
        self.next_step = next_step


@dataclass(frozen=True)
class Text:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True)
class Waiting:
    """Where the request stands while there is no answer yet."""

    status: str
    eta_s: float | None = None
    position: int = 1
    reason: str = ""


@dataclass(frozen=True)
class Ended:
    """The answer is complete; ``reason`` is ``stop``, or ``length`` where it was cut by a limit on its tokens."""

    reason: str


Piece = Text | Waiting | Ended


class Api:
    """One gateway and one key."""

    def __init__(self, base_url: str, key: str) -> None:
        parsed = urlsplit(base_url)
        self._base_url, self._host, self._port, self._path = base_url, parsed.hostname, parsed.port, parsed.path
        self._connect = http.client.HTTPSConnection if parsed.scheme == "https" else http.client.HTTPConnection
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def models(self) -> list[dict[str, Any]]:
        """The models as ``GET /v1/models`` lists them. Raises ApiFailed."""
        with self._answer("GET", "/models") as answer:
            found: list[dict[str, Any]] = json.loads(answer.read())["data"]
            return found

    def chat(self, model: str, messages: list[dict[str, str]]) -> Iterator[Piece]:
        """The answer to a conversation as it comes, Ended last. Raises ApiFailed, also for one that was cut."""
        body = {"model": model, "messages": messages, "stream": True}
        with self._answer("POST", "/chat/completions", json.dumps(body).encode()) as answer:
            try:
                yield from pieces(answer)
            except (OSError, http.client.HTTPException) as exc:
                raise ApiFailed(f"the answer was cut: {exc or type(exc).__name__}.", LOOK) from exc

    @contextmanager
    def _answer(self, method: str, path: str, body: bytes | None = None) -> Iterator[http.client.HTTPResponse]:
        """A good answer, whose body is still to be read; raises ApiFailed for any other, and for none."""
        with closing(self._connect(str(self._host), self._port, timeout=SILENCE_S)) as connection:
            try:
                connection.request(method, self._path + path, body, self._headers)
                answer = connection.getresponse()
                data = b"" if answer.status == http.client.OK else answer.read()
            except (OSError, http.client.HTTPException) as exc:
                words = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
                raise ApiFailed(f"no answer from {self._base_url}: {words}.", NOBODY) from exc
            with answer:
                if answer.status != http.client.OK:
                    raise _failure(data, f"the gateway answered {answer.status}.")
                yield answer


def pieces(lines: Iterable[bytes]) -> Iterator[Piece]:
    """The pieces in a stream of server-sent events; raises ApiFailed for an error event and for a missing end."""
    reason = ""
    for line in lines:
        line = line.rstrip(b"\r\n")
        if line.startswith(b":"):
            if (waiting := read_comment(line[1:].decode(errors="replace").strip())) is not None:
                yield waiting
        elif line == b"data: [DONE]":
            yield Ended(reason)
            return
        elif line.startswith(b"data:"):
            event = _object(line[5:])
            if "error" in event:
                raise _failure(line[5:], "the answer ended with an error.")
            for choice in event.get("choices") or ():
                reason = choice.get("finish_reason") or reason
                if text := (choice.get("delta") or {}).get("content"):
                    yield Text(text)
    raise ApiFailed("the answer was cut: the connection ended before the answer did.", LOOK)


def read_comment(text: str) -> Waiting | None:
    """``position=1 status=starting eta_s=12 reason=loading``; None for any other comment."""
    match = re.fullmatch(r"position=(\d+) status=(\w+) eta_s=(\d+|unknown)(?: reason=(.*))?", text)
    if match is None:
        return None
    eta_s = None if match[3] == "unknown" else float(match[3])
    return Waiting(match[2], eta_s, int(match[1]), match[4] or "")


def _failure(data: bytes, otherwise: str) -> ApiFailed:
    error = _object(data).get("error")
    if not isinstance(error, dict):
        return ApiFailed(otherwise, LOOK)
    return ApiFailed(str(error.get("message") or otherwise), NEXT_STEPS.get(str(error.get("code")), LOOK))


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
