"""A job that only looks around on its node and writes down what it found: it proves that jobs of ours can run there."""

from __future__ import annotations

import os
import platform
import socket
import sys
from collections.abc import Sequence
from typing import Optional

from firstkit.onsite.allowed import NotAllowed, read_allowed
from firstkit.onsite.check import FAILED, OK, TRIAL_RESULT, Finding, Trial, TrialResult, look_at_replicas
from firstkit.onsite.command import TRIAL
from firstkit.onsite.job import PILOT_FILE
from firstkit.schedulers.records import write_file
from firstkit.wire import WireError, encode, from_dict

CONNECT_LIMIT_S = 5.0
ANSWER_LIMIT_BYTES = 4096


def main(argv: Sequence[str]) -> int:
    """``FOLDER``: look around for the job in this folder, once; returns the exit status."""
    import json

    if len(argv) != 1:
        sys.stderr.write("usage: first-onsite trial FOLDER\n")
        return 2
    folder = os.path.abspath(argv[0])
    try:
        with open(os.path.join(folder, PILOT_FILE), "rb") as file:
            trial = from_dict(Trial, json.loads(file.read())[TRIAL], TRIAL)
        allowed = read_allowed(os.path.dirname(os.path.dirname(folder)))
    except (OSError, ValueError, KeyError, TypeError, NotAllowed) as exc:
        words = exc if isinstance(exc, (OSError, WireError, NotAllowed)) else type(exc).__name__
        sys.stderr.write(f"this trial cannot be made: {words}\n")
        return 2
    findings = (*(_links(trial)), *look_at_replicas(trial.replicas, allowed))
    result = TrialResult(os.uname().nodename, f"{platform.python_version()} ({sys.executable})", findings)
    write_file(os.path.join(folder, TRIAL_RESULT), encode(result))
    return 0


def _links(trial: Trial) -> list[Finding]:
    """One finding where pilots shall dial: one address that is reached is enough."""
    faults = []
    for address in trial.addresses:
        fault = reach(address, trial.proxy)
        if not fault:
            way = f" through {trial.proxy}" if trial.proxy else ""
            return [Finding("link", OK, f"{os.uname().nodename} reaches {address}{way}")]
        faults.append(f"{address}: {fault}")
    if not faults:
        return []
    fix = "open the way from compute nodes to the gateway's pilot port, or name a proxy under 'link'"
    return [Finding("link", FAILED, f"{os.uname().nodename} does not reach the gateway: {'; '.join(faults)}", fix)]


def reach(address: str, proxy: Optional[str] = None) -> str:
    """What is in the way to ``host:port``; empty: nothing."""
    if not address.isprintable() or " " in address:
        return "no address"
    way = address if proxy is None else proxy.rpartition("/")[2]
    host, _, port = way.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_LIMIT_S) as connection:
            connection.settimeout(CONNECT_LIMIT_S)
            return "" if proxy is None else _ask_proxy(connection, address)
    except (OSError, ValueError, OverflowError) as exc:
        return f"{proxy or 'no connection'}: {exc}"


def _ask_proxy(connection: socket.socket, address: str) -> str:
    connection.sendall(f"CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
    answer = b""
    while b"\r\n" not in answer and len(answer) < ANSWER_LIMIT_BYTES:
        data = connection.recv(ANSWER_LIMIT_BYTES)
        if not data:
            break
        answer += data
    status = answer.partition(b"\r\n")[0].decode("latin-1", "replace")[:100]
    return "" if status.split(" ")[1:2] == ["200"] else f"the proxy says {status!r}"
