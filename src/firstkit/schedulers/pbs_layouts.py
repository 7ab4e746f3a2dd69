"""How the commands of PBS lay out what they print: lists of ids, and attributes by name. Pure.

``qstat`` is asked for ``-F dsv``: of several jobs some versions print only the first as JSON, others print JSON that is
none where a name or a variable looks like a number or holds a backslash. ``pbsnodes`` has no other exact layout than
JSON. Whatever the text, these raise nothing but ParseError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Optional

from firstkit.errors import ParseError

SEPARATOR = "@|@"
"""Between the attributes of a job: in no value of ours, and in none that PBS makes."""
ID = re.compile(r"[0-9]{1,18}(\[[0-9]{0,9}\])?(\.[A-Za-z0-9_][A-Za-z0-9_.-]{0,254})?\Z")
"""``25.server``, ``38[].server``: what PBS calls a job."""
_BEGIN = re.compile(rf"^Job Id: ([0-9A-Za-z_.\[\]-]+){re.escape(SEPARATOR)}", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")

Attributes = dict[str, str]
"""``{"job_state": "R", "Resource_List.ncpus": "4", ...}``, each as it was printed; what is unknown is absent."""


def parse_ids(text: str) -> list[str]:
    """The ids that qselect prints, one a line."""
    ids = [line.strip() for line in text.split("\n") if line.strip()]
    if (text and not text.endswith("\n")) or not all(map(ID.match, ids)):
        raise ParseError("the answer of qselect is cut off, or is no list of ids")
    return ids


def parse_submitted(text: str) -> Optional[str]:
    """The id of the job that qsub has made; sites print greetings before it. None: there is none."""
    ids = [line.strip() for line in text.split("\n") if ID.match(line.strip())]
    return ids[-1] if ids else None


def parse_records(text: str, section: str = "Jobs") -> dict[str, Attributes]:
    """Each job (or node, with ``section`` "nodes") by its id. No text at all: there are none."""
    return _from_json(text, section) if text.lstrip().startswith("{") else _from_dsv(text)


def _from_dsv(text: str) -> dict[str, Attributes]:
    if text and not text.endswith("\n"):
        raise ParseError("the answer of qstat is cut off")
    before, *parts = _BEGIN.split(text)
    if before.strip():
        raise ParseError("the answer of qstat is no list of jobs")
    records = {pbs_id: _fields(body[:-1]) for pbs_id, body in zip(parts[::2], parts[1::2])}
    if len(records) * 2 != len(parts):
        raise ParseError("the answer of qstat has a job twice")
    return records


def _fields(body: str) -> Attributes:
    found: Attributes = {}
    for field in body.split(SEPARATOR):
        name, equals, value = field.partition("=")
        if not equals or not _NAME.match(name) or name in found:
            raise ParseError("an attribute in the answer of qstat cannot be understood")
        found[name] = value
    return found


def _from_json(text: str, section: str) -> dict[str, Attributes]:
    try:
        # Numbers stay text: a job may be called 1e5, or 007.
        document = json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError) as exc:
        raise ParseError("the answer of PBS is no JSON") from exc
    found = document.get(section, {}) if isinstance(document, dict) else None
    if not isinstance(found, dict) or not all(isinstance(value, dict) for value in found.values()):
        raise ParseError("the answer of PBS has another form than it should")
    return {name: _flat(value) for name, value in found.items()}


def _flat(values: Mapping[str, Any]) -> Attributes:
    """Text at both levels; ``{"a": {"b": "c"}}`` becomes ``{"a.b": "c"}``."""
    flat: Attributes = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update({f"{name}.{inner}": text for inner, text in value.items() if isinstance(text, str)})
        elif isinstance(value, list):
            flat[name] = ",".join(item for item in value if isinstance(item, str))
        elif isinstance(value, str):
            flat[name] = value
    return flat
