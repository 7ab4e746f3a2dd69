"""``first estimate``: where a model would run, when it would be live, how long that takes, and why."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

import typer

from firstkit.cli.common import ConfigOption, JsonOption
from firstkit.cli.showing import duration, show_json
from firstkit.cli.stored import ask

Row = dict[str, Any]
HINT = "'first models' lists the models."


def estimate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model, by its name or an alias.")],
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Say where a model would run, when it would be live, and why."""
    path = f"/v1/estimate/{quote(model, safe='/')}"
    found: Row = ask(config, path, None, None, mine=path, hint=HINT)
    if as_json:
        show_json(found)
    else:
        print(*sentences(found), sep="\n")


def sentences(found: Row) -> Iterator[str]:
    """The answer of the gateway as lines for people."""
    yield _whole(found)
    if found["controller"] != "connected":
        yield "The controller is silent: nothing is started, and what follows is what it said last."
    for row in found["clusters"]:
        yield ""
        yield from _on_cluster(row)


def _whole(found: Row) -> str:
    if found["cluster"] is None:
        return f"{found['model']} is {found['status']}; nobody can say when it would be live."
    if found["status"] == "live":
        return f"{found['model']} is live on {found['cluster']}."
    is_coming = found["status"] in ("starting", "queued")
    words = f"is {found['status']} on" if is_coming else "would run on"
    return f"{found['model']} {words} {found['cluster']}; {_when(found)}."


def _when(row: Row) -> str:
    """``live in 12 min, at 14:05 UTC (nine times of ten within 40 min)``."""
    if row["live_in_s"] is None:
        return "nobody can say when it would be live"
    words = f"live in {duration(row['live_in_s'])}, at {_moment(row['live_at'])}"
    return words if row["late_s"] is None else f"{words} (nine times of ten within {duration(row['late_s'])})"


def _on_cluster(row: Row) -> Iterator[str]:
    words = "live" if row["status"] == "live" else f"{row['status']}; {_when(row)}"
    yield f"{row['cluster']}: {words}."
    parts = [f"{word} {duration(row[key])}" for key, word in (("wait_s", "waits"), ("load_s", "loads")) if row[key]]
    said = [f"it {' and '.join(parts)}"] if parts else []
    if said := said + [" ".join(part.split()).rstrip(".") for part in row["why"]]:
        yield f"  {_sentence('; '.join(said))}"
    if (window := row["maintenance"]) is not None:
        yield f"  Maintenance from {_moment(window['start'])} to {_moment(window['end'])}."
    if (error_s := row["queue"]["error_s"]) is not None:
        coverage = row["queue"]["coverage"]
        within = "" if coverage is None else f"; {coverage:.0%} of the waits ended within what nine of ten should"
        yield f"  Forecasts of its queue were off by {duration(error_s)} on average{within}."
    if (share := row["availability"]["week"]) is not None:
        yield f"  Its scheduler answered in {share:.1%} of the minutes of the last week in which it was asked."


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _moment(text: str) -> str:
    """The time of day, with the day where that is another one."""
    at = datetime.fromisoformat(text).astimezone(UTC)
    is_today = at.date() == datetime.now(UTC).date()
    return f"{at:%H:%M} UTC" if is_today else f"{at:%Y-%m-%d %H:%M} UTC"
