"""The entry point of ``first``. Each command answers in less than 0.4 s: what is heavy is imported where it is used."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from typing import NoReturn

from firstkit.errors import FirstError


def run() -> NoReturn:
    """The entry point. It leaves without taking the interpreter apart: that takes a tenth of the time of a command."""
    gc.disable()  # collecting among what is imported takes a quarter of the time; commands that stay switch it on again
    status = _run()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(status)


def _run() -> int:
    """The exit status of the command; what can be foreseen to go wrong becomes a sentence, here at the latest."""
    try:
        try:
            from firstkit.cli.commands import COMMANDS, build
            from firstkit.cli.light import lighten

            lighten()
            build(COMMANDS.keys() & sys.argv[1:2] or COMMANDS)(prog_name="first")
        finally:
            sys.stdout.flush()
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except BrokenPipeError:
        return 141  # the reader has enough
    except KeyboardInterrupt:
        return 130
    except FirstError as exc:
        print(f"Error: {exc.message}", "'first doctor' looks at what is missing.", sep="\n", file=sys.stderr)
    except OSError as exc:
        where = f": {exc.filename}" if exc.filename else ""
        print(
            f"Error: {exc.strerror or exc}{where}",
            "'first doctor' looks at what is missing.",
            sep="\n",
            file=sys.stderr,
        )
    return 1
