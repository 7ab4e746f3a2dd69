"""What administrators ask a running gateway, over its UNIX socket."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from firstkit.errors import FirstError

SOCKET = "admin.sock"
PATIENCE_S = 20.0


class GatewayAway(FirstError):
    """The gateway is not running."""

    next_step = "'first up' starts the demonstration, 'first serve' a configuration of yours."


class SocketForbidden(GatewayAway):
    """The gateway's socket belongs to somebody else."""

    next_step = "Run this command as the user that runs FIRST."


class Refusal(FirstError):
    """The gateway answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def fetch(state_dir: Path, path: str) -> bytes:
    """The body of ``GET path``. Raises GatewayAway when nobody answers, Refusal for any status but 200."""
    connection = http.client.HTTPConnection("localhost", timeout=PATIENCE_S)
    try:
        connection.sock = _connect(state_dir / SOCKET)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
    except PermissionError as exc:
        raise SocketForbidden(f"the gateway's socket {state_dir / SOCKET} may not be opened by you.") from exc
    except (FileNotFoundError, NotADirectoryError, ConnectionError) as exc:
        raise GatewayAway(f"the gateway is not running (state directory {state_dir}).") from exc
    except (OSError, http.client.HTTPException) as exc:
        raise GatewayAway(f"the gateway does not answer: {exc or type(exc).__name__}.") from exc
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise Refusal(answer.status, _message(body) or f"the gateway answered {answer.status}.")
    return body


def fetch_status(state_dir: Path) -> dict[str, Any]:
    """Models, replicas and jobs as the gateway knows them now. Raises like ``fetch``."""
    status: dict[str, Any] = json.loads(fetch(state_dir, "/admin/status"))
    return status


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
