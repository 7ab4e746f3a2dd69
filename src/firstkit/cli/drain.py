"""``first cluster drain`` and ``first cluster resume``: take a cluster out of service, and into it again."""

from __future__ import annotations

import json
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from firstkit.cli.admin import GatewayAway, Refusal, fetch
from firstkit.cli.common import ConfigOption, JsonOption, fail, open_server
from firstkit.cli.showing import show_json
from firstkit.cli.stored import DATABASE_AWAY

Row = dict[str, Any]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The cluster, as the configuration calls it.")]


def drain(
    name: NameArgument,
    message: Annotated[str, typer.Option(help="Why, and until when: what users are told.")],
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Take a cluster out of service.

    It takes no new requests and no new jobs; what runs there finishes. Once more changes the message.
    """
    row = _change(config, name, "drain", {"message": message})
    if as_json:
        show_json(row)
        return
    print(f"{name} is drained: {row['message']}")
    print(f"It takes no new requests and no new jobs. 'first cluster resume {name}' ends that.")


def resume(name: NameArgument, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Take a cluster into service again that was drained."""
    row = _change(config, name, "resume", {})
    if as_json:
        show_json(row)
    elif row["status"] == "maintenance":
        print(f"{name} is not drained any more, and in maintenance until {row['maintenance']['end']}.")
    else:
        print(f"{name} takes requests and jobs.")


def _change(config: Path | None, name: str, verb: str, body: Row) -> Row:
    """The state of the cluster after the change; ends the command when it fails."""
    try:
        changed = fetch(open_server(config).state_dir, f"/admin/clusters/{quote(name, safe='')}/{verb}", body)
    except GatewayAway as exc:
        fail(exc.message, exc.next_step)
    except Refusal as exc:
        fail(exc.message, _next_step(exc.status))
    row: Row = json.loads(changed)
    return row


def _next_step(status: int) -> str:
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return DATABASE_AWAY
    return "'first status' shows the clusters."
