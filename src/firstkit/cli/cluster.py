"""``first cluster``: what the controller asks of a cluster, for carriers and for those who look into one by hand."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def cluster(
    verb: Annotated[str, typer.Argument(metavar="VERB", help="submit, poll, cancel or capacity.")],
) -> None:
    """Ask this machine's scheduler: JSON in, JSON out.

    One object on standard input, one on standard output: what the controller asks of a cluster.
    """
    from firstkit.onsite import command

    raise typer.Exit(command.main([verb], [sys.executable, "-I", "-m", "firstkit.onsite"]))
