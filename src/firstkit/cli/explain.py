"""``first explain``: what is wanted of a model, why, and what it waits for, on each cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import quote

import typer

from firstkit.cli.common import ConfigOption, JsonOption, fail, open_server
from firstkit.cli.showing import duration, eta, show_json

Row = dict[str, Any]


def explain(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model, by its name or an alias.")],
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Say what is wanted of a model, why, and what it waits for."""
    from firstkit.cli.admin import GatewayAway, Refusal, fetch

    try:
        answer = fetch(open_server(config).state_dir, f"/admin/explain/{quote(model, safe='/')}")
    except GatewayAway as exc:
        fail(exc.message, exc.next_step)
    except Refusal as exc:
        unknown = exc.status == HTTPStatus.NOT_FOUND
        fail(exc.message, "'first models' lists the models." if unknown else "The gateway's log says more.")
    found: Row = json.loads(answer)
    if as_json:
        show_json(found)
    else:
        print(*sentences(found), sep="\n")


def sentences(found: Row) -> Iterator[str]:
    """The answer of the gateway as lines for people."""
    yield f"{found['model']} is {standing(found)}.{_because(found)}"
    yield " ".join(_requests(found))
    if found["controller"] != "connected":
        yield "The controller is silent: nothing is started or stopped, and what follows is what it said last."
    for row in found["clusters"]:
        yield ""
        yield from _on_cluster(row)


def standing(row: Row) -> str:
    """Status, ETA and position in a few words: ``queued, ETA 3 min, position 2``."""
    if row["status"] == "live":
        return "live"
    words = [row["status"]]
    if row["eta_s"] is not None:
        ready_in = duration(row["eta_s"])
        words.append(f"would be live {ready_in} after a request" if row["status"] == "offline" else f"ETA {ready_in}")
    elif row["status"] != "offline":
        words.append(eta(None))
    if row.get("position") is not None:
        words.append(f"position {row['position']}")
    return ", ".join(words)


def _because(row: Row) -> str:
    reason = " ".join(row["reason"].split())
    return f" {reason[0].upper()}{reason[1:].rstrip('.')}." if reason else ""


def _requests(found: Row) -> Iterator[str]:
    if not found["in_flight"] and not found["waiting"]:
        yield "No requests are there now."
        return
    counts = f"{_some(found['in_flight'], 'request')} at work, {_some(found['waiting'], 'request')} waiting."
    yield counts[0].upper() + counts[1:]
    for entry in found["demand"]:
        if entry["waiting"] and entry["clusters"] is not None:
            yield f"Of them {entry['waiting']} may go only to: {', '.join(entry['clusters']) or 'no cluster'}."


def _on_cluster(row: Row) -> Iterator[str]:
    yield f"{row['cluster']}: {standing(row)}.{_because(row)}"
    state = row["state"]
    yield f"  The cluster is {_state(state)}"
    if state["kind"] == "external":
        yield f"  Others run it: nothing is started or stopped here. {_some(row['in_flight'], 'request')} at work."
        return
    why = f": {'; '.join(row['why'])}" if row["why"] else ""
    yield f"  Wanted: {_some(row['wanted'], 'replica')}{why}."
    counts = ", ".join(f"{count} {name}" for name, count in row["replicas"].items() if count)
    yield f"  There: {counts or 'no replicas'}; {_some(row['in_flight'], 'request')} at work."
    if row["waits_for"]:
        yield f"  It waits for: {'; '.join(row['waits_for'])}."
    if row["start_in_s"] is not None:
        yield f"  One more replica would be live in {duration(row['start_in_s'])}."


def _state(state: Row) -> str:
    words = state["status"] + (f": {state['message']}" if state["message"] else "")
    if (free := state["capacity"]) is not None:
        words += f"; free: {free['free_nodes']} of {free['nodes']} nodes"
        if free["gpus"]:
            words += f", {free['free_gpus']} of {free['gpus']} GPUs"
    return f"{words.rstrip('.')}."


def _some(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"
