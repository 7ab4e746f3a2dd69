"""``first status``, ``first models``, ``first logs``: what runs, asked of the gateway."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from firstkit.cli.common import ConfigOption, JsonOption, fail, open_server
from firstkit.cli.showing import duration, eta, show, show_json
from firstkit.clock import now

if TYPE_CHECKING:
    from firstkit.cli.admin import GatewayAway

Row = dict[str, Any]
MODELS = ("model", "status", "ready", "in flight", "waiting", "ETA", "reason")
REPLICAS = ("replica", "model", "cluster", "state", "in flight", "load", "reason")
JOBS = ("job", "cluster", "state", "link", "started", "reason")
TIME = "%Y-%m-%d %H:%M"
NUMBERS = ("ready", "in flight", "waiting", "context", "ETA", "load")


def status(as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Show models, replicas and jobs, with load and ETA."""
    found = _status(open_server(config).state_dir)
    if as_json:
        show_json(found)
        return
    print(headline(found))
    for columns, rows in (
        (MODELS, [_model(row) for row in found["models"]]),
        (REPLICAS, [_replica(row) for row in found["replicas"]]),
        (JOBS, [_job(row) for row in found["jobs"]]),
    ):
        if rows:
            print(flush=True)
            show(columns, rows, NUMBERS)


def models(as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """List the models and what FIRST knows of them."""
    rows = _status(open_server(config).state_dir)["models"]
    if as_json:
        show_json(rows)
        return
    show(
        ("model", "aliases", "status", "answers", "context", "ETA", "reason"),
        [_known(row) for row in rows],
        NUMBERS,
    )


def logs(
    replica: Annotated[
        str, typer.Argument(metavar="REPLICA", help="Id of the replica, from 'first status', or how it begins.")
    ],
    lines: Annotated[int, typer.Option(min=1, max=1000, help="How many lines.")] = 100,
    config: ConfigOption = None,
) -> None:
    """Print the end of an engine's log.

    Also of a replica that failed within the last hour.
    """
    from firstkit.cli.admin import GatewayAway, Refusal, fetch

    state_dir = open_server(config).state_dir
    known = [row["id"] for row in _status(state_dir)["replicas"]]
    fitting = matching(replica, known)
    if len(fitting) > 1:
        fail(f"'{replica}' is how several replicas begin: {', '.join(fitting)}.", "Write more of the id.")
    if not fitting:
        fail(f"no replica is called '{replica}'.", "'first status' shows those of the last hour.")
    try:
        text = fetch(state_dir, f"/admin/replicas/{fitting[0]}/log?lines={lines}")
    except GatewayAway as exc:
        _away(exc)
    except Refusal as exc:
        fail(exc.message, "'first status' shows the replicas of the last hour.")
    sys.stdout.flush()
    sys.stdout.buffer.write(text if text.endswith(b"\n") else text + b"\n")


def matching(wanted: str, ids: Sequence[str]) -> list[str]:
    """The ids that are ``wanted`` or begin so, with or without the word before the dash."""
    if wanted in ids:
        return [wanted]
    return [name for name in ids if wanted and (name.startswith(wanted) or name.partition("-")[2].startswith(wanted))]


def headline(found: Row) -> str:
    """One sentence about gateway and controller."""
    since = (now() - datetime.fromisoformat(found["started_at"])).total_seconds()
    words = f"FIRST {found['version']}, gateway up for {duration(since)}"
    if found["controller"] == "connected":
        return f"{words}, controller connected."
    return f"{words}, but the controller is silent: running models go on, nothing is started or stopped."


def _status(state_dir: Path) -> Row:
    from firstkit.cli.admin import GatewayAway, Refusal, fetch_status

    try:
        return fetch_status(state_dir)
    except GatewayAway as exc:
        _away(exc)
    except Refusal as exc:
        fail(exc.message, "The gateway's log says more.")


def _away(exc: GatewayAway) -> NoReturn:
    fail(exc.message, exc.next_step)


def _wait(row: Row) -> str:
    return "" if row["status"] == "live" else eta(row["eta_s"]).removeprefix("ETA ")


def _known(row: Row) -> tuple[object, ...]:
    names, answers = ", ".join(row["aliases"]), ", ".join(row["capabilities"])
    return row["id"], names, row["status"], answers, row["context_length"], _wait(row), row["reason"]


def _model(row: Row) -> tuple[object, ...]:
    name = row["id"] if not row["aliases"] else f"{row['id']} ({', '.join(row['aliases'])})"
    return name, row["status"], row["ready"], row["in_flight"], row["waiting"], _wait(row), row["reason"]


def _replica(row: Row) -> tuple[object, ...]:
    load = None if row["load_s"] is None else f"{row['load_s']:.1f} s"
    flight = f"{row['in_flight']}/{row['max_in_flight']}"
    return row["id"], row["model"], row["cluster"], row["state"], flight, load, row["reason"]


def _job(row: Row) -> tuple[object, ...]:
    started = row["started_at"] and datetime.fromisoformat(row["started_at"]).strftime(TIME)
    return row["id"], row["cluster"], row["state"], row["link"], started, row["reason"]
