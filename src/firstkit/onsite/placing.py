"""Sets up the state directory of a cluster: the program, the gate, the list of what is allowed.

Runs on the cluster as the user of the jobs, by a person (``first cluster install``): no key of a gateway can.
"""

from __future__ import annotations

import json
import os
import shlex
import stat
import sys
from collections.abc import Mapping
from typing import Any, Optional

from firstkit.onsite.allowed import ALLOWED_FILE, DIGEST, GATE_FILE, document_digest, parse_allowed
from firstkit.schedulers.records import write_file
from firstkit.wire import WireError

NEW_ALLOWED_FILE = "allowed.new.json"
GATE = """\
# Starts the newest of the programs next to it. 'first cluster install' replaces this file as a whole.
import os
import sys

program = os.path.join(os.path.dirname(os.path.abspath(__file__)), {name!r})
sys.argv[0] = program
sys.path.insert(0, program)
from firstkit.onsite.__main__ import main

sys.exit(main())
"""


class CannotPlace(Exception):
    """The state directory cannot be set up; its message says why and what to do."""


def main(program: str, name: str, order: Mapping[str, Any]) -> int:
    """Set up as ``order`` says, with the program that lies at ``program``; tells a person what to do next."""
    try:
        lines = set_up(program, name, order)
    except (CannotPlace, WireError) as exc:
        sys.stderr.write(f"Error: {exc}\n")
        return 1
    except OSError as exc:
        sys.stderr.write(f"Error: {exc.filename or order.get('state_dir')}: {exc.strerror}\n")
        return 1
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def set_up(program: str, name: str, order: Mapping[str, Any]) -> list[str]:
    """Place the program as ``name``, the gate and the list; returns lines that say so, and the line of the key.

    May be done again at any time: running jobs keep the file that they started from. Raises CannotPlace and OSError.
    """
    state_dir = order["state_dir"]
    for folder in (state_dir, os.path.join(state_dir, "bin"), os.path.join(state_dir, "jobs")):
        make_private(folder)
    target = os.path.join(state_dir, "bin", name)
    if not os.path.exists(target):
        with open(program, "rb") as file:
            write_file(target, file.read())
    lines = [f"{target} is in place.", place_list(state_dir, order["allowed"])]
    write_file(os.path.join(state_dir, GATE_FILE), GATE.format(name=name).encode())
    if order.get("public_key"):
        lines += ["", "This line belongs into ~/.ssh/authorized_keys of this user here, once:", ""]
        lines.append(key_line(sys.executable, state_dir, order["public_key"]))
    return lines


def make_private(folder: str) -> None:
    """Make a folder that only we can enter. One that is there has to be ours, and ours alone to write into; raises
    CannotPlace."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    found = os.stat(folder)
    if found.st_uid != os.geteuid():
        raise CannotPlace(f"{folder} belongs to another user; name a folder of your own as state_dir")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CannotPlace(f"{folder} may be written by others; chmod 700 {folder}")


def place_list(state_dir: str, document: Mapping[str, Any]) -> str:
    """Write the list of what is allowed, unless somebody changed the one that is there; returns a line that says so."""
    parse_allowed(document)
    path = os.path.join(state_dir, ALLOWED_FILE)
    data = json.dumps(document, indent=2).encode() + b"\n"
    if _is_by_hand(path):
        other = os.path.join(state_dir, NEW_ALLOWED_FILE)
        write_file(other, data)
        return f"{path} was changed by hand and stays; what the configuration says is in {other}."
    write_file(path, data)
    return f"{path} allows what the configuration says."


def _is_by_hand(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            document = json.loads(file.read())
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return not isinstance(document, dict) or document.get(DIGEST) != document_digest(document)


def key_line(python: str, state_dir: str, public_key: str, comment: Optional[str] = None) -> str:
    """The line of ``authorized_keys`` by which a key may do nothing but the verbs."""
    words = (python, "-I", os.path.join(state_dir, GATE_FILE), "gate", "--state-dir", state_dir)
    command = " ".join(map(shlex.quote, words)).replace('"', '\\"')
    return f'restrict,command="{command}" {public_key}' + (f" {comment}" if comment else "")
