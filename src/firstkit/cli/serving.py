"""``first serve``, and how other commands find it: by a lock that dies with it."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from firstkit.cli.common import CHECK_IT, ConfigOption, Server, fail, open_server
from firstkit.errors import ConfigError

LOCK = "serve.lock"
BAD_CONFIGURATION = 2
STOP_LIMIT_S = 60.0


@dataclass(frozen=True)
class Serving:
    """A ``first serve`` that runs: its process and the configuration that it was started with."""

    pid: int
    config_path: Path


def serve(config: ConfigOption = None) -> None:
    """Run gateway and controller in the foreground.

    Starts either again when it dies. SIGTERM and Ctrl-C end both; jobs go on, 'first down' ends them.
    """
    server = open_server(config)
    take_lock(server)
    gc.enable()
    from firstkit import logs
    from firstkit.cli.supervision import Supervisor, parts

    logs.configure()
    status = Supervisor(parts(str(server.config_path))).run()
    if status == BAD_CONFIGURATION:
        fail("the configuration does not let FIRST start; the line above says why.", CHECK_IT, status)


def take_lock(server: Server) -> None:
    """Hold the lock of the state directory until this process ends; ends the command when somebody else has it."""
    from firstkit.locks import hold

    try:
        server.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = hold(server.state_dir / LOCK, "first serve")
    except ConfigError as exc:
        fail(f"{exc.message}.", "'first status' shows what runs; 'first down' ends it.")
    except OSError as exc:
        fail(
            f"the state directory {server.state_dir} cannot be used: {exc.strerror}.",
            "Choose one that is yours, by 'server.state_dir' or FIRST_STATE_DIR.",
        )
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n{server.config_path}\n".encode(), 0)


def serving(state_dir: Path) -> Serving | None:
    """Who serves with this state directory; None: nobody."""
    try:
        descriptor = os.open(state_dir / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        while _is_held(descriptor):
            pid, _, path = os.pread(descriptor, 4096, 0).decode(errors="surrogateescape").partition("\n")
            if pid.isdigit() and path.endswith("\n"):
                return Serving(int(pid), Path(path[:-1]))
            time.sleep(0.01)  # it has just taken the lock and will write in a moment
        return None
    finally:
        os.close(descriptor)


def stop(state_dir: Path) -> bool:
    """End whoever serves, and wait for the end; False when nobody did. Raises TimeoutError."""
    found = serving(state_dir)
    if found is None:
        return False
    try:
        os.kill(found.pid, signal.SIGTERM)
    except ProcessLookupError:
        return True
    deadline = time.monotonic() + STOP_LIMIT_S
    while serving(state_dir) == found:
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)
    return True


def _is_held(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False
