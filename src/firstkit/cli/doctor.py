"""``first doctor``: what is missing on this machine, and how to get it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import typer

from firstkit.cli.common import (
    LONGEST_STATE_DIR,
    ConfigOption,
    JsonOption,
    Server,
    default_config_path,
    open_server,
)
from firstkit.cli.showing import show, show_json

GIB = 1024**3
LEAST_PYTHON = (3, 11)
LEAST_MEMORY = 2 * GIB
LEAST_DISK = 2 * GIB
OK, MISSING, OFF = "ok", "missing", "off"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``status``: ok, missing, or off for what needs not run."""

    what: str
    status: str
    found: str
    fix: str = ""


def doctor(as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Look at what is missing, and how to get it."""
    findings = list(_findings(_server(config)))
    if as_json:
        show_json([asdict(finding) for finding in findings])
    else:
        show(("what", "status", "found", "how to fix it"), [(f.what, f.status, f.found, f.fix) for f in findings])
    missing = [finding.what for finding in findings if finding.status == MISSING]
    if missing:
        print(f"Error: missing: {', '.join(missing)}.", "The last column says what to do.", sep="\n", file=sys.stderr)
        raise typer.Exit(1)


def _server(config: Path | None) -> Server:
    """The deployment that is looked at; the demonstration as it would be where there is none yet."""
    if config is None and not os.environ.get("FIRST_CONFIG") and not default_config_path().exists():
        return Server(default_config_path(), default_config_path().parent)
    return open_server(config)


def _findings(server: Server) -> Iterator[Finding]:
    yield _python()
    yield from _demonstration()
    if re.match(r"postgres(ql)?:", server.database or ""):
        yield _package("asyncpg", "pip install 'firstkit[postgres]'")
    yield from _machine(server.state_dir)
    yield _configuration(server)
    yield _state_dir(server.state_dir)
    yield from _processes(server)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    is_enough = sys.version_info[:2] >= LEAST_PYTHON
    return Finding(
        "Python", OK if is_enough else MISSING, version, "" if is_enough else "Install Python 3.11 or newer."
    )


def _demonstration() -> Iterator[Finding]:
    from firstkit.cli.demonstration import INSTALL, WEIGHTS, built_in_weights

    yield _package("xllamacpp", INSTALL)
    weights = built_in_weights()
    yield Finding("weights", OK if weights else MISSING, str(weights or WEIGHTS), "" if weights else INSTALL)


def _package(name: str, fix: str) -> Finding:
    is_there = find_spec(name) is not None
    return Finding(name, OK if is_there else MISSING, "installed" if is_there else "", "" if is_there else fix)


def _machine(state_dir: Path) -> Iterator[Finding]:
    from firstkit.schedulers.machine import physical_memory_bytes

    yield Finding("cores", OK, str(len(os.sched_getaffinity(0))))
    memory = physical_memory_bytes()
    yield _enough("memory", memory, LEAST_MEMORY, "Models need memory: use a machine with more of it.")
    there = next(path for path in (state_dir, *state_dir.parents) if path.exists())
    free = shutil.disk_usage(there).free
    yield _enough(
        "disk", free, LEAST_DISK, f"Make room on the file system of {there}, or choose another state directory."
    )


def _enough(what: str, size: int, least: int, fix: str) -> Finding:
    is_enough = size >= least
    return Finding(what, OK if is_enough else MISSING, f"{size / GIB:.1f} GiB", "" if is_enough else fix)


def _configuration(server: Server) -> Finding:
    if server.config_path.exists():
        return Finding("configuration", OK, str(server.config_path))
    return Finding("configuration", OFF, "none yet", "'first up' writes one.")


def _state_dir(state_dir: Path) -> Finding:
    fault = state_dir_fault(state_dir)
    fix = "Choose another one: 'server.state_dir', or FIRST_STATE_DIR." if fault else ""
    return Finding("state directory", MISSING if fault else OK, f"{state_dir}{': ' if fault else ''}{fault}", fix)


def state_dir_fault(state_dir: Path) -> str:
    """Why no state can be kept there; empty: it can."""
    from firstkit.store.network_files import NETWORK_FILE_SYSTEMS, file_system_of

    if len(os.fsencode(str(state_dir))) > LONGEST_STATE_DIR:
        return f"longer than {LONGEST_STATE_DIR} bytes, too long for UNIX sockets"
    mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
    kind = file_system_of(state_dir.resolve(), mounts) or ""
    if NETWORK_FILE_SYSTEMS.fullmatch(kind):
        return f"on a network file system ({kind}), where SQLite loses data"
    there = next(path for path in (state_dir, *state_dir.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return f"{there} cannot be written by you"
    if there == state_dir and there.stat().st_mode & 0o077:
        return "others may look into it; chmod 700 it"
    return ""


def _processes(server: Server) -> Iterator[Finding]:
    from firstkit.cli.admin import GatewayAway, Refusal, fetch_status

    start = "'first up' or 'first serve' starts it."
    try:
        status = fetch_status(server.state_dir)
    except GatewayAway as exc:
        yield _port(server)
        yield Finding("gateway", OFF, exc.message.rstrip("."), start)
        yield Finding("controller", OFF, "not running", start)
    except Refusal as exc:
        yield Finding("gateway", MISSING, exc.message, "The gateway's log says more.")
    else:
        yield Finding("port", OK, f"{server.listen}, used by this gateway")
        yield Finding("gateway", OK, f"running, version {status['version']}")
        is_there = status["controller"] == "connected"
        fix = "" if is_there else "The log of 'first serve', which starts it again, says why."
        yield Finding("controller", OK if is_there else MISSING, "running" if is_there else "silent", fix)


def _port(server: Server) -> Finding:
    host, _, port = server.listen.rpartition(":")
    host = host.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as exc:
            fix = "Stop that program, or choose another 'server.listen'; 'first up' takes a free one by itself."
            return Finding("port", MISSING, f"{server.listen}: {exc.strerror}", fix)
    return Finding("port", OK, f"{server.listen}, free")
