"""``first down``: the end of what ``first up`` or ``first serve`` started."""

from __future__ import annotations

import os

from firstkit.cli.common import ConfigOption, Server, default_config_path, fail, open_config, open_server
from firstkit.errors import FirstError

NOTHING = "Nothing was running."


def down(config: ConfigOption = None) -> None:
    """End gateway, controller, jobs and engines."""
    if config is None and not os.environ.get("FIRST_CONFIG") and not default_config_path().exists():
        print(NOTHING)
        return
    if not end(open_server(config)):
        print(NOTHING)


def end(server: Server) -> bool:
    """Stop serving, then end all jobs, and say what was done; False: nothing ran.

    Ends the command when something will not end.
    """
    from firstkit.cli.ending import end_jobs
    from firstkit.cli.serving import STOP_LIMIT_S, stop

    try:
        stopped = stop(server.state_dir)
    except PermissionError:
        fail("'first serve' runs as another user.", "Run this command as that user.")
    except TimeoutError:
        fail(
            f"'first serve' did not end within {STOP_LIMIT_S:.0f} s.",
            f"Look into its log; {server.state_dir / 'serve.lock'} holds its pid.",
        )
    if stopped:
        print("Gateway and controller have ended.", flush=True)
    try:
        jobs = end_jobs(open_config(server.config_path))
    except FirstError as exc:
        fail(
            f"not all jobs have ended: {exc.message}",
            "Run 'first down' again; 'pilot.log' in a job's folder may say more.",
        )
    if jobs:
        print("1 job has ended, and its engines with it." if len(jobs) == 1 else f"{len(jobs)} jobs have ended.")
    return stopped or bool(jobs)
