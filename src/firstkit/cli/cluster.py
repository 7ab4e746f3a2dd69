"""``first cluster``: setting clusters up, looking into them, taking them out of service.

``submit`` and the like are what the controller asks of a cluster, for carriers and for those who look into one by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firstkit.cli.common import ConfigOption, JsonOption, fail, open_config
from firstkit.cli.drain import NameArgument, drain, resume

if TYPE_CHECKING:
    from firstkit.config import Cluster, Config
    from firstkit.onsite.check import Finding

VERBS = {
    "submit": "Submit a job.",
    "poll": "Tell of all jobs.",
    "cancel": "End a job.",
    "capacity": "Tell what there is and what is free.",
    "estimate": "Tell when a job would start.",
}
DETAIL = "Asks this machine's scheduler: one JSON object on standard input, one on standard output."

app = typer.Typer(help="Set up, check and drain clusters; ask their schedulers.", no_args_is_help=True)


@app.command()
def install(
    name: NameArgument,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="USER@HOST", help="Set it up there, by your own ssh: as the user of the jobs."),
    ] = None,
    script: Annotated[
        Path | None,
        typer.Option("--script", metavar="FILE", help="Write the program that sets it up, to be run there by hand."),
    ] = None,
    python: Annotated[
        str, typer.Option("--python", metavar="PROGRAM", help="Python 3.9 or newer on the cluster, for --to.")
    ] = "python3",
    config: ConfigOption = None,
) -> None:
    """Set up a cluster: our program, the gate of its key, and the list of what a gateway may run there."""
    found = open_config(config)
    cluster = _cluster(found, name)
    if cluster.carrier.kind == "local":
        from firstkit.clusters.zipapp import install as place

        print(f"{place(found.cluster_state_dir(name).absolute())} is in place.")
        return
    from firstkit.clusters.installing import install_script, public_key_of, run_there

    key_file = cluster.carrier.key_file.expanduser()
    if not key_file.with_name(f"{key_file.name}.pub").exists() and not key_file.exists():
        fail(f"there is no key {key_file}.", f"Make it: ssh-keygen -t ed25519 -N '' -f {key_file}")
    text = install_script(found, name, public_key_of(key_file))
    if script is not None:
        script.write_text(text, encoding="utf-8")
        print(f"Run {script} on {cluster.carrier.host} as {cluster.carrier.user}: python3 -I {script.name}")
    elif to is None:
        fail(
            "say where.", f"--to {cluster.carrier.user}@{cluster.carrier.host} goes there; --script FILE writes a file."
        )
    elif not re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", python):
        fail("--python: the path of a program is needed.", "Name it without blanks, for example /usr/bin/python3.11.")
    elif status := run_there(to, python, text):
        fail(f"{to} was not set up (exit status {status}).", "What went wrong stands above.", status)


@app.command()
def check(
    name: NameArgument,
    job: Annotated[bool, typer.Option("--job", help="Submit a short job, too, and look at what it finds.")] = False,
    wait: Annotated[float, typer.Option("--wait", metavar="SECONDS", help="How long that job may take.")] = 300.0,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Prove, through its carrier, that a cluster can be used as it is configured."""
    import asyncio

    found = open_config(config)
    _cluster(found, name)
    findings = asyncio.run(_check(found, name, job, wait, as_json))
    if as_json:
        from dataclasses import asdict

        from firstkit.cli.showing import show_json

        show_json([asdict(finding) for finding in findings])
    failed = [finding.what for finding in findings if finding.status == "failed"]
    if failed:
        print(f"Error: {len(failed)} failed: {', '.join(failed)}.", file=sys.stderr)
        raise typer.Exit(1)


async def _check(config: Config, name: str, job: bool, wait_s: float, quiet: bool) -> list[Finding]:
    """All findings; unless ``quiet``, each is printed as soon as it is made."""
    from firstkit.clusters.carrier import cluster_client
    from firstkit.clusters.checking import Case
    from firstkit.clusters.checking import check as findings_of

    client, findings = cluster_client(config, name), []
    try:
        async for finding in findings_of(Case(name, config, client), job, wait_s):
            findings.append(finding)
            if not quiet:
                fix = f"\n{'':9}{finding.fix}" if finding.status != "ok" and finding.fix else ""
                print(f"{finding.status:8} {finding.what}: {finding.found}{fix}", flush=True)
    finally:
        await client.close()
    return findings


def _cluster(config: Config, name: str) -> Cluster:
    """The cluster of that name with a scheduler; ends the command when there is none."""
    cluster = config.clusters.get(name)
    if cluster is None or cluster.kind != "batch":
        known = ", ".join(key for key, one in config.clusters.items() if one.kind == "batch") or "none"
        fail(f"there is no cluster '{name}' with a scheduler.", f"The configuration has: {known}.")
    return cluster


app.command()(drain)
app.command()(resume)


def _verb(name: str) -> Callable[[], None]:
    def ask() -> None:
        from firstkit.onsite import command

        raise typer.Exit(command.main([name], [sys.executable, "-I", "-m", "firstkit.onsite"]))

    return ask


for _name, _words in VERBS.items():
    app.command(_name, help=f"{_words}\n\n{DETAIL}", short_help=_words)(_verb(_name))
