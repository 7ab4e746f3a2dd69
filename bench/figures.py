"""How figures are shown, each beside its limit, and kept, dated, with the machine that they were measured on."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_reported: list[dict[str, Any]] = []


def report(what: str, value: float, unit: str, limit: float, *, at_least: bool = False) -> None:
    """One line of the table; ``limit`` is the most that the value may be, or with ``at_least`` the least."""
    is_met = value >= limit if at_least else value <= limit
    _reported.append({"figure": what, "value": value, "unit": unit, "limit": limit})
    bound = "at least" if at_least else "limit"
    print(f"{what:44} {value:8.2f} {unit:3} {bound} {limit:g} {unit}{'' if is_met else '   MISSED'}", flush=True)


def keep_reported(name: str) -> Path:
    """Keep every line of the table that was reported up to now; returns the path of its Markdown."""
    made_at, machine = datetime.now(UTC).isoformat(), environment()
    rows = [
        f"| {row['figure']} | {row['value']:.3g} {row['unit']} | {row['limit']:g} {row['unit']} |" for row in _reported
    ]
    surroundings = ", ".join(f"{name} {value}" for name, value in machine.items())
    head = [f"# Figures, {made_at[:10]}", "", "| figure | measured | limit |", "|---|---|---|"]
    text = "\n".join([*head, *rows, "", surroundings, ""])
    return keep(RESULTS, name, made_at, {"made_at": made_at, "machine": machine, "figures": _reported}, text)


def keep(folder: Path, name: str, made_at: str, data: dict[str, Any], text: str) -> Path:
    """Write ``data`` as JSON and ``text`` as Markdown, named by date and time; returns the path of the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{made_at[:16].replace(':', '').replace('T', '-')}-{name}"
    (folder / f"{stem}.json").write_text(json.dumps(data, indent=1) + "\n")
    path = folder / f"{stem}.md"
    path.write_text(text)
    return path


def environment() -> dict[str, str]:
    """What figures depend on: the machine, without its name."""
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": model.partition(":")[2].strip() or os.uname().machine,
        "cores": str(os.cpu_count()),
        "memory": f"{memory_gib:.0f} GiB",
        "kernel": os.uname().release,
        "python": sys.version.split()[0],
    }
