"""What administrators ask a running gateway, over its UNIX socket."""

from __future__ import annotations

import contextlib
import getpass
import http.client
import json
import os
import re
import socket
from pathlib import Path
from typing import Any

from firstkit.errors import FirstError

SOCKET = "admin.sock"
PATIENCE_S = 20.0


class GatewayAway(FirstError):
    """No gateway answers."""

    next_step = "'first up' starts the demonstration, 'first serve' a configuration of yours."


class NotRunning(GatewayAway):
    """Nobody listens: nothing was asked."""


class SocketForbidden(GatewayAway):
    """The gateway's socket belongs to somebody else."""

    next_step = "Run this command as the user that runs FIRST."


class Refusal(FirstError):
    """The gateway answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def fetch(state_dir: Path, path: str, body: dict[str, Any] | None = None) -> bytes:
    """The answer to ``GET path``, or to ``POST path`` with a body as JSON.

    Raises NotRunning, GatewayAway when nobody answers, Refusal when the answer is an error.
    """
    connection = http.client.HTTPConnection("localhost", timeout=PATIENCE_S)
    try:
        connection.sock = _connect(state_dir / SOCKET)
        return exchange(connection, path, {"x-first-actor": re.sub("[^ -~]", "?", actor())}, body)
    except PermissionError as exc:
        raise SocketForbidden(f"the gateway's socket {state_dir / SOCKET} may not be opened by you.") from exc
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as exc:
        raise NotRunning(f"the gateway is not running (state directory {state_dir}).") from exc
    except (OSError, http.client.HTTPException) as exc:
        raise GatewayAway(f"the gateway does not answer: {exc or type(exc).__name__}.") from exc


def exchange(
    connection: http.client.HTTPConnection, path: str, headers: dict[str, str], body: dict[str, Any] | None
) -> bytes:
    """The answer to ``GET path``, or to ``POST path`` with a body, on a connection that is closed then. Raises OSError,
    HTTPException; Refusal when the answer is an error."""
    with contextlib.closing(connection):
        if body is None:
            connection.request("GET", path, headers=headers)
        else:
            connection.request("POST", path, json.dumps(body), {**headers, "content-type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
    if answer.status not in (http.client.OK, http.client.CREATED):
        raise Refusal(answer.status, _message(content) or f"the gateway answered {answer.status}.")
    return content


def fetch_status(state_dir: Path) -> dict[str, Any]:
    """Models, replicas and jobs as the gateway knows them now. Raises like ``fetch``."""
    status: dict[str, Any] = json.loads(fetch(state_dir, "/admin/status"))
    return status


def login() -> str:
    """The name of whoever runs this command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without an entry in the password database
        return f"uid-{os.getuid()}"


def actor() -> str:
    """The same, as the audit log names it."""
    return f"cli:{login()}"


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(PATIENCE_S)
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def _message(body: bytes) -> str:
    """The sentence in an error of ours; empty where there is none."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
