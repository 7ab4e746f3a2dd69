"""Starts the demonstration: its configuration, its key, and ``first serve`` in the background."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from firstkit.cli.common import LONGEST_STATE_DIR, Server, default_config_path, fail
from firstkit.errors import FirstError

LOG = "serve.log"
UP_LOCK = "up.lock"
PORT = 8000
LOG_LINES = 20


def make_state_dir() -> Path:
    state_dir = default_config_path().parent
    size = len(os.fsencode(str(state_dir)))
    if size > LONGEST_STATE_DIR:
        fail(
            f"the path of the state directory, {state_dir}, has {size} bytes; UNIX sockets allow {LONGEST_STATE_DIR}.",
            "Name a shorter one: export FIRST_STATE_DIR=...",
        )
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(state_dir / UP_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as exc:
        fail(f"the state directory {state_dir} cannot be used: {exc.strerror}.", "Name another one: FIRST_STATE_DIR.")
    return state_dir


@contextmanager
def alone(state_dir: Path) -> Iterator[None]:
    """One ``first up`` at a time looks and starts; the next one finds what this one started."""
    descriptor = os.open(state_dir / UP_LOCK, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def may_start(state_dir: Path, model: Path | None, foreground: bool) -> bool:
    """False: the demonstration that is asked for runs already. Ends the command where another one does."""
    from firstkit.cli.serving import serving

    found = serving(state_dir)
    if found is None:
        return True
    if found.config_path != default_config_path():
        fail(
            f"'first serve' runs already with this state directory, and with the configuration {found.config_path}.",
            "End it first, or give the demonstration a state directory of its own: export FIRST_STATE_DIR=...",
        )
    name, weights = demonstration_model(state_dir)
    if model is not None and str(model.expanduser().absolute()) != weights:
        fail(f"the demonstration runs already, with the model '{name}' ({weights}).", "'first down' ends it.")
    if foreground:
        fail("the demonstration runs already, in the background.", "'first down' ends it.")
    return False


def start(state_dir: Path, model: Path | None, foreground: bool) -> subprocess.Popen[bytes]:
    """Write the configuration, make the key, start ``first serve``; returns when it holds its lock."""
    from firstkit.cli import demonstration
    from firstkit.cli.demonstration_key import ensure_key
    from firstkit.schedulers.machine import physical_memory_bytes

    try:
        chosen = demonstration.built_in() if model is None else demonstration.of_file(model, physical_memory_bytes())
    except demonstration.Unusable as exc:
        fail(exc.message, exc.next_step)
    print(f"Starting FIRST with the model {chosen.model}, {chosen.weights.name}.", flush=True)
    if chosen.note:
        print(chosen.note, flush=True)
    server = Server(default_config_path(), state_dir, f"127.0.0.1:{_choose_port(state_dir)}")
    content = demonstration.configuration(chosen, server.listen, state_dir, len(os.sched_getaffinity(0)))
    demonstration.write_configuration(server.config_path, content)
    try:
        ensure_key(server)
    except FirstError as exc:
        fail(f"no key could be made: {exc.message}", f"'first doctor' looks at {state_dir}.")
    return _spawn(server, foreground)


def _choose_port(state_dir: Path) -> int:
    """The port of last time, else 8000, where they are free; else any free one, and says so."""
    before = _port_before(state_dir)
    if _is_free(before):
        return before
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    print(f"Port {before} is taken by another program; this one is free: {port}.", flush=True)
    return port


def _port_before(state_dir: Path) -> int:
    import yaml

    with suppress(OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        written = yaml.safe_load((state_dir / default_config_path().name).read_bytes())
        return int(written["server"]["listen"].rpartition(":")[2])
    return PORT


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the gateway does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _spawn(server: Server, foreground: bool) -> subprocess.Popen[bytes]:
    from firstkit.cli.serving import serving
    from firstkit.schedulers.processes import die_with_parent

    log = server.state_dir / LOG
    if log.exists():
        log.replace(log.with_name(f"{LOG}.1"))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    parent = os.getpid()
    try:
        # A session of its own, so that neither Ctrl-C nor the end of the terminal reaches it.
        process = subprocess.Popen(
            [sys.executable, "-m", "firstkit.cli", "serve", "--config", str(server.config_path)],
            stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor, start_new_session=True,
            preexec_fn=(lambda: die_with_parent(parent, signal.SIGTERM)) if foreground else None,  # noqa: PLW1509 - one thread
        )  # fmt: skip
    finally:
        os.close(descriptor)
    while serving(server.state_dir) is None:
        if process.poll() is not None:
            broken(
                "'first serve' ended at once.", log_tail(server.state_dir), "'first doctor' looks at what is missing."
            )
        time.sleep(0.02)
    return process


def demonstration_model(state_dir: Path) -> tuple[str, str]:
    from firstkit.cli import demonstration

    try:
        return demonstration.served(state_dir / default_config_path().name)
    except demonstration.Unusable as exc:
        fail(exc.message, exc.next_step)


def broken(message: str, log: str, next_step: str) -> NoReturn:
    """End the command with the end of a log before the sentence."""
    if log.strip():
        print(
            "The end of the log:", *(f"  {line}" for line in log.splitlines()[-LOG_LINES:]), sep="\n", file=sys.stderr
        )
    fail(message, next_step)


def log_tail(state_dir: Path) -> str:
    """The last lines that ``first serve`` and its children wrote, in words where they are ours."""
    try:
        lines = (state_dir / LOG).read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    except OSError:
        return ""
    return "\n".join(map(_in_words, lines))


def _in_words(line: str) -> str:
    import json

    try:
        entry = json.loads(line)
        words = f"{entry['level']}: {entry['message']}"
    except (ValueError, TypeError, KeyError):
        return line
    error = str(entry.get("exception", "")).strip().rpartition("\n")[2]
    return f"{words}: {error}" if error else words
