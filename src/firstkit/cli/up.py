"""``first up``: the built-in demonstration, or a model of the user's, from nothing to live in one command."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstkit.cli.common import Server, command_name, default_config_path, open_server
from firstkit.clock import monotonic, now

if TYPE_CHECKING:
    from firstkit.cli.progress import Progress
    from firstkit.cli.watching import Look

LOOK_EVERY_S = 0.1
SILENCE_LIMIT_S = 60.0
"""How long gateway and controller may take to answer before they count as broken."""
DOCTOR = "'first doctor' looks at what is missing."
OTHER_FILE = "Is the file whole, and of a kind that llama.cpp knows? 'first up' alone starts the built-in model."


def up(
    model: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A GGUF file to serve instead of the demonstration's model.")
    ] = None,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay in the foreground; Ctrl-C ends all.")] = False,
) -> None:
    """Start the demonstration, or a model of yours.

    Returns when the model is live, and prints how to reach it. Where it runs already: prints the same again.
    """
    from firstkit.cli import starting
    from firstkit.cli.down import end

    gc.enable()
    if foreground:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    since, state_dir = now(), starting.make_state_dir()
    with starting.alone(state_dir):
        may_start = starting.may_start(state_dir, model, foreground)
        process = starting.start(state_dir, model, foreground) if may_start else None
    server, name = open_server(default_config_path()), starting.demonstration_model(state_dir)[0]
    try:
        _wait_until_live(server, name, since if process else None)
        _welcome(server, name)
        if foreground and process is not None:
            _stay(process)
    except KeyboardInterrupt:
        if not foreground:
            print(f"\n{name} goes on starting in the background. 'first down' ends it.", file=sys.stderr)
            raise
    if foreground:
        end(server)


def _wait_until_live(server: Server, name: str, since: datetime | None) -> None:
    """Return when the model is live; end the command when it will not be, and what was started ``since`` with it."""
    from firstkit.cli.demonstration import MODEL as BUILT_IN
    from firstkit.cli.down import end
    from firstkit.cli.progress import Progress
    from firstkit.cli.starting import broken

    with Progress() as progress:
        hopeless = _follow(server, name, since, progress)
    if hopeless is None:
        return
    if since is None:
        broken(hopeless.trouble, hopeless.log, "'first down' ends it; 'first up' tries again.")
    end(server)
    broken(hopeless.trouble, hopeless.log, DOCTOR if name == BUILT_IN else OTHER_FILE)


def _follow(server: Server, name: str, since: datetime | None, progress: Progress) -> Look | None:
    """None: it is live. Else the look that makes it hopeless."""
    from firstkit.cli.serving import serving
    from firstkit.cli.starting import log_tail
    from firstkit.cli.watching import Look, look

    heard_at = monotonic()
    while True:
        status = _status(server)
        seen = look(status, name, since)
        if seen.is_live:
            return None
        if seen.trouble:
            return seen
        if serving(server.state_dir) is None:
            return Look("", trouble="gateway and controller have ended.", log=log_tail(server.state_dir))
        if status is not None and status["controller"] == "connected":
            heard_at = monotonic()
        elif monotonic() - heard_at > SILENCE_LIMIT_S:
            silence = f"{seen.stage}, and has been for {SILENCE_LIMIT_S:.0f} s."
            return Look("", trouble=silence, log=log_tail(server.state_dir))
        progress.tell(seen.stage, seen.detail)
        time.sleep(LOOK_EVERY_S)


def _status(server: Server) -> dict[str, Any] | None:
    """None: no gateway answers, or it cannot read its store just now."""
    from firstkit.cli.admin import GatewayAway, Refusal, fetch_status

    try:
        return fetch_status(server.state_dir)
    except (GatewayAway, Refusal):
        return None


def _welcome(server: Server, name: str) -> None:
    from firstkit.cli.demonstration_key import read_key
    from firstkit.cli.welcome import warning, welcome

    print(welcome(command_name(), server.base_url, read_key(server.state_dir) or "", name), flush=True)
    if text := warning():
        print(f"\n{text}", file=sys.stderr)


def _stay(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of ``first serve``; Ctrl-C raises KeyboardInterrupt."""
    print("\nCtrl-C ends all of it.", flush=True)
    process.wait()
