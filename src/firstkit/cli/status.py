"""``first status``, ``first models``, ``first logs``: what runs, asked of the gateway."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from firstkit.cli.common import ConfigOption, JsonOption, fail, open_server
from firstkit.cli.explain import standing
from firstkit.cli.showing import duration, eta, show, show_json
from firstkit.clock import now
from firstkit.states import JobState

if TYPE_CHECKING:
    from firstkit.cli.admin import GatewayAway

Row = dict[str, Any]
CLUSTERS = ("cluster", "state", "free nodes", "free GPUs", "jobs", "message")
MODELS = ("model", "cluster", "status", "requests", "place", "ETA", "reason")
REPLICAS = ("replica", "serves", "cluster", "state", "in flight", "load", "reason")
JOBS = ("job", "cluster", "state", "link", "place", "start", "left", "reason")
TIME = "%Y-%m-%d %H:%M"
NUMBERS = ("free nodes", "free GPUs", "place", "in flight", "context", "ETA", "load", "left")


def status(as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Show clusters, models, replicas and jobs, with load, place in the queue and ETA."""
    found = _status(open_server(config).state_dir)
    if as_json:
        show_json(found)
    else:
        show_status(found)


def show_status(found: Row) -> None:
    """Print the gateway's answer for people."""
    print(headline(found))
    for columns, rows in (
        (CLUSTERS, [_cluster(row) for row in found["clusters"]]),
        (MODELS, [line for row in found["models"] for line in _model(row)]),
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
        ("model", "aliases", "status", "answers", "context", "ETA", "reason", "clusters"),
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
    is_said = row["status"] not in ("live", "offline") or row["eta_s"] is not None
    return eta(row["eta_s"]).removeprefix("ETA ") if is_said and row["status"] != "live" else ""


def _known(row: Row) -> tuple[object, ...]:
    names, answers = ", ".join(row["aliases"]), ", ".join(row["capabilities"])
    places = "; ".join(f"{place['name']}: {standing(place)}" for place in row["clusters"])
    return row["id"], names, row["status"], answers, row["context_length"], _wait(row), row["reason"], places


def _cluster(row: Row) -> tuple[object, ...]:
    nodes = gpus = None
    if (has := row["capacity"]) is not None:
        nodes = f"{has['free_nodes']}/{has['nodes']}"
        gpus = f"{has['free_gpus']}/{has['gpus']}" if has["gpus"] else None
    queue = row["queue"]
    jobs = ", ".join(f"{queue[state]} {state}" for state in ("running", "pending") if queue[state])
    return row["id"], row["status"], nodes, gpus, jobs, row["message"]


def _model(row: Row) -> Iterator[tuple[object, ...]]:
    """A line for each cluster. Those who wait stand in the first: most may go to any cluster."""
    for number, place in enumerate(row["clusters"]):
        busy = [f"{place['in_flight']}/{place['room']}"] if place["room"] or place["in_flight"] else []
        waiting = [f"{row['waiting']} wait"] if row["waiting"] and number == 0 else []
        requests = ", ".join(busy + waiting)
        yield row["id"], place["name"], place["status"], requests, place["position"], _wait(place), place["reason"]


def _replica(row: Row) -> tuple[object, ...]:
    load = None if row["load_s"] is None else f"{row['load_s']:.1f} s"
    flight = f"{row['in_flight']}/{row['max_in_flight']}"
    return row["id"], row["model"], row["cluster"], row["state"], flight, load, row["reason"]


def _job(row: Row) -> tuple[object, ...]:
    at, is_over = now(), JobState(row["state"]).is_final
    if row["started_at"]:
        start = datetime.fromisoformat(row["started_at"]).strftime(TIME)
    else:
        start = f"in {_until(row['starts_at'], at)}" if row["starts_at"] and not is_over else ""
    left = _until(row["ends_at"], at) if row["ends_at"] and not is_over else ""
    reason = row["reason"]
    if row["exit_code"] and "exit status" not in reason:
        reason = f"{reason}; exit status {row['exit_code']}".removeprefix("; ")
    return row["id"], row["cluster"], row["state"], row["link"], row["position"], start, left, reason


def _until(moment: str, at: datetime) -> str:
    return duration(max(0.0, (datetime.fromisoformat(moment) - at).total_seconds()))
