"""The commands of ``first``. Only the modules of those that are asked for are imported."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Annotated

import typer

COMMANDS = {
    "up": "up.up",
    "down": "down.down",
    "connection": "connection.connection",
    "status": "status.status",
    "models": "status.models",
    "explain": "explain.explain",
    "chat": "chat.chat",
    "configure": "configure.configure",
    "logs": "status.logs",
    "login": "login.login",
    "logout": "login.logout",
    "whoami": "login.whoami",
    "usage": "usage.usage",
    "queue": "queue.queue",
    "doctor": "doctor.doctor",
    "serve": "serving.serve",
    "cluster": "cluster.app",
    "keys": "keys.app",
    "projects": "projects.app",
    "budgets": "budgets.app",
    "users": "users.app",
    "audit": "audit.audit",
    "config": "checking.app",
    "simulate": "simulate.simulate",
    "estimate": "estimate.estimate",
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
