"""The recordings in ``pbs/``, and a reading of them that shares no code with the parsers under test."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).with_name("pbs")
_ID = re.compile(r'^\s+"([0-9]+(?:\[[0-9]*\])?\.[a-z-]+)":\s*\{$')
_JSON_LINE = re.compile(r'^(\s+)"([A-Za-z_]+)":\s*(.*?),?$')
_PLAIN_LINE = re.compile(r"^    ([A-Za-z_.]+) = (.*)$")


class Case(NamedTuple):
    """One recorded command."""

    name: str
    argv: list[str]
    exit_code: int | None
    clients: str
    output: str
    errors: str

    @property
    def program(self) -> str:
        return self.argv[0]

    @property
    def is_json(self) -> bool:
        return self.output.lstrip().startswith("{")


def case(name: str) -> Case:
    meta: dict[str, Any] = json.loads((FOLDER / f"{name}.meta.json").read_text())
    output, errors = ((FOLDER / f"{name}.{kind}").read_bytes().decode(errors="replace") for kind in ("out", "err"))
    return Case(name, meta["argv"], meta["exit_code"], meta["clients"], output, errors)


def cases(*programs: str) -> list[Case]:
    names = [str(path.relative_to(FOLDER))[: -len(".meta.json")] for path in sorted(FOLDER.rglob("*.meta.json"))]
    found = [case(name) for name in names]
    return [one for one in found if one.program in programs]


def said_in_json(text: str) -> dict[str, dict[str, str]]:
    """The simple attributes of each job, line by line: PBS prints one a line, valid JSON or not."""
    jobs: dict[str, dict[str, str]] = {}
    now: dict[str, str] = {}
    depth = ""
    for line in text.split("\n"):
        begin = _ID.match(line)
        found = _JSON_LINE.match(line)
        if begin:
            now = jobs.setdefault(begin[1], {})
            depth = ""
        elif found and found[3] != "{":
            depth = depth or found[1]
            if found[1] == depth:
                now[found[2]] = unquoted(found[3])
    return jobs


def unquoted(text: str) -> str:
    """A JSON value as the text that it stands for, with what is not valid left as it is."""
    if not text.startswith('"'):
        return text
    inner = text[1:-1]
    for written, meant in (("\\n", "\n"), ("\\t", "\t"), ('\\"', '"'), ("\\\\", "\\")):
        inner = inner.replace(written, meant)
    return inner


def said_plainly(text: str) -> dict[str, dict[str, str]]:
    """The same of ``qstat -f``, whose long values go on in lines with a tab, and break off at will."""
    jobs: dict[str, dict[str, str]] = {}
    now: dict[str, str] = {}
    last = ""
    for line in text.split("\n"):
        found = _PLAIN_LINE.match(line)
        if line.startswith("Job Id: "):
            now = jobs.setdefault(line[len("Job Id: ") :], {})
        elif found:
            last = found[1]
            now[last] = found[2]
        elif line.startswith("\t"):
            now[last] += line[1:]
        elif line:
            now[last] += f"\n{line}"
    return jobs
