"""The command ``first``: each command answers in less than 0.4 s, so only the module of the one asked for is imported,
and that imports what is heavy inside its functions.
"""

from __future__ import annotations

import gc

was_collecting = gc.isenabled()
gc.disable()  # collecting among all that imports make would take a quarter of their time

import contextlib  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterable  # noqa: E402
from importlib import import_module  # noqa: E402
from typing import Annotated, NoReturn  # noqa: E402

import typer  # noqa: E402

from firstkit.cli.light import lighten  # noqa: E402
from firstkit.errors import FirstError  # noqa: E402

if was_collecting:
    gc.freeze()  # else all of it would be looked through at once
    gc.enable()

COMMANDS = {
    "up": "up.up",
    "down": "down.down",
    "connection": "connection.connection",
    "status": "status.status",
    "models": "status.models",
    "chat": "chat.chat",
    "logs": "status.logs",
    "usage": "usage.usage",
    "doctor": "doctor.doctor",
    "serve": "serving.serve",
    "cluster": "cluster.cluster",
    "keys": "keys.app",
    "config": "checking.app",
}
"""Name -> module and function, or group of commands, in the order of the help."""


def build(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The application with these commands."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        # rich's help and tracebacks would be imported for nothing but colour
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name in names:
        module, _, attribute = COMMANDS[name].partition(".")
        command = getattr(import_module(f"firstkit.cli.{module}"), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from firstkit import __version__

        print(f"first {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """FIRST: batch clusters and single machines as one private inference service."""


def run() -> NoReturn:
    """The entry point. It leaves without taking the interpreter apart: that takes a tenth of the time of a command."""
    gc.disable()  # for what commands import; those that take long switch it on again
    status = _run()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(status)


def _run() -> int:
    """The exit status of the command; what can be foreseen to go wrong becomes a sentence, here at the latest."""
    try:
        try:
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
