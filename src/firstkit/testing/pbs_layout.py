"""What the commands of PBS print, letter for letter, for the double in ``pbs_lab``. Pure.

Two releases of the clients are copied: ``master`` (JSON by cJSON) and ``v23`` (JSON made by hand, some of it no JSON at
all). Both call themselves 23.06.06. A job is a list of attributes in the order in which PBS prints them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

VERSION = "23.06.06"
_NUMBERS = frozenset(
    (
        "cpupercent",
        "ncpus",
        "ngpus",
        "nodect",
        "Priority",
        "session_id",
        "substate",
        "umask",
        "run_count",
        "Stageout_status",
        "Exit_status",
        "history_timestamp",
    )
)
_NUMBER_LIKE = re.compile(r"-?\d+(\.\d*)?([eE][+-]?\d+)?\Z")
_BARE_IN_V23 = re.compile(r"([+-]?(0|[1-9]\d*)(\.\d*)?([eE][+-]?\d+)?|nan|inf(inity)?)\Z")


class Attribute(NamedTuple):
    """``name.part = value``, or without a part ``name = value``."""

    name: str
    part: str
    value: str


class Raw(str):
    """Text that is printed as it is: a number, or what PBS takes for one."""


# -- jobs --------------------------------------------------------------------------------------------------------------


def moment(seconds: float) -> str:
    """A time as PBS prints it: in the zone of whoever asks, which is not said."""
    return time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(seconds))


def job_attributes(job: Mapping[str, Any], server: str) -> list[Attribute]:
    """All attributes that PBS shows of a job to its owner; what is not known yet is absent."""
    whole = [*_identity(job, server), *_times(job, server), *_placing(job), *_course(job, server)]
    return [attribute for attribute in whole if attribute is not None]


def _identity(job: Mapping[str, Any], server: str) -> list[Attribute | None]:
    used = job["resources_used"] or {}
    return [
        _plain("Job_Name", job["name"]),
        _plain("Job_Owner", f"{job['user']}@{server}"),
        *[Attribute("resources_used", name, str(value)) for name, value in used.items()],
        _plain("job_state", job["state"]),
        _plain("queue", job["queue"]),
        _plain("server", server),
        _plain("Account_Name", job["account"]),
        _plain("Checkpoint", "u"),
        _plain("ctime", moment(job["ctime"])),
    ]


def _times(job: Mapping[str, Any], server: str) -> list[Attribute | None]:
    number = job["id"]
    workdir = job["env"]["PBS_O_WORKDIR"]
    output = job["output"] or f"{workdir}/{job['name']}.o{number}"
    return [
        _plain("Error_Path", f"{server}:{workdir}/{job['name']}.e{number}"),
        _plain("exec_host", job["exec_host"]),
        _plain("exec_vnode", job["exec_vnode"]),
        _plain("Hold_Types", job["holds"] or "n"),
        _plain("Join_Path", job["join"]),
        _plain("Keep_Files", job["keep"]),
        _plain("Mail_Points", "a"),
        _plain("mtime", moment(job["mtime"])),
        _plain("Output_Path", f"{server}:{output}"),
        _plain("Priority", 0),
        _plain("qtime", moment(job["ctime"])),
        _plain("Rerunable", job["is_rerunnable"]),
    ]


def _placing(job: Mapping[str, Any]) -> list[Attribute | None]:
    return [
        *[Attribute("Resource_List", name, str(value)) for name, value in job["resources"].items()],
        _plain("stime", job["stime"] and moment(job["stime"])),
        _plain("obittime", job["obittime"] and moment(job["obittime"])),
        _plain("session_id", job["session"]),
        _plain("jobdir", job["jobdir"]),
        _plain("substate", job["substate"]),
        _plain("Variable_List", ",".join(f"{name}={value}" for name, value in job["variables"])),
    ]


def _course(job: Mapping[str, Any], server: str) -> list[Attribute | None]:
    argv = job["argv"] or [None]
    arguments = "".join(f"<jsdl-hpcpa:Argument>{argument}</jsdl-hpcpa:Argument>" for argument in argv[1:])
    estimated = job["estimated"]
    return [
        _plain("comment", job["comment"]),
        _plain("etime", None if job["holds"] or job["never_eligible"] else moment(job["ctime"])),
        _plain("umask", job["umask"]),
        _plain("run_count", job["run_count"] or None),
        _plain("Stageout_status", job["stageout"]),
        _plain("Exit_status", job["exit_status"]),
        _plain("Submit_arguments", job["submit_arguments"]),
        _plain("executable", argv[0] and f"<jsdl-hpcpa:Executable>{argv[0]}</jsdl-hpcpa:Executable>"),
        _plain("argument_list", arguments or None),
        _plain("estimated", estimated and estimated.get("exec_vnode"), "exec_vnode"),
        _plain("estimated", estimated and moment(estimated["start_time"]), "start_time"),
        _plain("history_timestamp", job["history_at"]),
        _plain("project", job["project"]),
        _plain("Submit_Host", server),
    ]


def _plain(name: str, value: Any, part: str = "") -> Attribute | None:
    """None for a value that is none: the attribute is absent then."""
    return None if value is None else Attribute(name, part, str(value))


def dsv(job_id: str, attributes: Sequence[Attribute], delimiter: str) -> str:
    """One line for one job. A delimiter within a value has a backslash before it."""
    fields = [f"Job Id: {job_id}"]
    for name, part, value in attributes:
        fields.append(f"{name}{'.' * bool(part)}{part}={value.replace(delimiter, chr(92) + delimiter)}")
    return delimiter.join(fields) + "\n"


def job_tree(attributes: Sequence[Attribute], clients: str) -> dict[str, Any]:
    """The attributes of a job as nested objects, with numbers where these clients print numbers."""
    tree: dict[str, Any] = {}
    for name, part, value in attributes:
        if name == "Variable_List":
            tree[name] = _variables(value, clients)
        elif part:
            tree.setdefault(name, {})[part] = _number(part, value, clients)
        else:
            tree[name] = _number(name, value, clients)
    return tree


def _number(name: str, value: str, clients: str) -> str:
    if clients == "v23":
        return Raw(value) if _BARE_IN_V23.match(value) else value
    return Raw(value) if name in _NUMBERS else value


def _variables(text: str, clients: str) -> dict[str, str]:
    """v23 takes what follows an empty value for its value; master takes digits for numbers, and loses their text."""
    found: dict[str, str] = {}
    fields = re.split(r"(?<!\\),", text)
    while fields:
        name, _, value = fields.pop(0).partition("=")
        if clients == "v23":
            if value == "" and fields:
                value = "," + fields.pop(0)
            found[name] = _number(name, value.replace("\\,", ","), clients)
        else:
            found[name] = _as_cjson(value.replace("\\,", ","))
    return found


def _as_cjson(value: str) -> str:
    if not _NUMBER_LIKE.match(value):
        return value
    number = float(value)
    if number in (float("inf"), float("-inf")):
        return Raw("null")
    short = format(number, ".15g")
    return Raw(short if float(short) == number else format(number, ".17g"))


# -- JSON of both ------------------------------------------------------------------------------------------------------


def document(server: str, key: str, content: Mapping[str, Any], clients: str) -> bytes:
    """A whole answer in JSON; without ``content`` it is the head alone, as of a server that is down."""
    tree: dict[str, Any] = {"timestamp": Raw(int(time.time())), "pbs_version": VERSION, "pbs_server": server}
    if content:
        tree[key] = content
    return print_tree(tree, clients)


def print_tree(tree: Mapping[str, Any], clients: str) -> bytes:
    if clients == "v23":
        has_content = any(isinstance(value, Mapping) for value in tree.values())
        return _v23_bytes(_v23(tree, 1) + "\n" * has_content)
    return (_master(tree, 1) + "\n").encode(errors="surrogateescape")


def _master(value: Any, depth: int) -> str:
    if isinstance(value, Mapping):
        inner = ",\n".join(
            "\t" * depth + f"{_quoted(name)}:\t{_master(below, depth + 1)}" for name, below in value.items()
        )
        return "{\n" + inner + ("\n" if inner else "") + "\t" * (depth - 1) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_quoted(item) for item in value) + "]"
    return str(value) if isinstance(value, Raw) else _quoted(value)


def _quoted(text: str) -> str:
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return '"' + "".join(letter if letter >= " " else f"\\u{ord(letter):04x}" for letter in text) + '"'


def _v23(value: Any, depth: int) -> str:
    pad = "    " * depth
    if isinstance(value, Mapping):
        inner = ",\n".join(f'{pad}"{name}":{_v23(below, depth + 1)}' for name, below in value.items())
        return "{\n" + inner + ("\n" if inner else "") + pad[4:] + "}"
    if isinstance(value, list):
        return "[\n" + ",\n".join(f'{pad}"{item}"' for item in value) + "\n" + pad[4:] + "]"
    return str(value) if isinstance(value, Raw) else f'"{_v23_text(value)}"'


def _v23_text(text: str) -> str:
    """Backslashes stay as they are, whether what they stand before is JSON or not."""
    text = text.replace("\\,", ",").replace('\\"', '"').replace('"', '\\"')
    return text.replace("\n", "\\n").replace("\t", "\\t")


def _v23_bytes(text: str) -> bytes:
    """What is not ASCII, or controls, becomes a circumflex and the byte 64 further on: often not UTF-8."""
    found = bytearray()
    for byte in text.encode(errors="surrogateescape"):
        found += bytes([byte]) if 0x20 <= byte < 0x7F or byte == 0x0A else bytes([0x5E, (byte + 64) & 0xFF])
    return bytes(found)


# -- nodes -------------------------------------------------------------------------------------------------------------


def node_tree(vnode: Mapping[str, Any], clients: str) -> dict[str, Any]:
    """A vnode as ``pbsnodes -F json`` shows it; here v23 knows what to do with a backslash."""
    tree: dict[str, Any] = {"Mom": vnode["host"], "ntype": "PBS", "state": vnode["state"]}
    if vnode["pcpus"]:
        tree["pcpus"] = Raw(vnode["pcpus"])
    if vnode["jobs"]:
        tree["jobs"] = vnode["jobs"]
    tree["resources_available"] = _resources(vnode["available"])
    tree["resources_assigned"] = _resources(vnode["assigned"])
    if vnode["comment"]:
        comment = vnode["comment"]
        tree["comment"] = comment.replace("\\", "\\\\") if clients == "v23" else comment
    tree.update(resv_enable="True", sharing="default_shared", license="l")
    tree["last_state_change_time"] = Raw(vnode["changed_at"])
    if vnode["used_at"]:
        tree["last_used_time"] = Raw(vnode["used_at"])
    return tree


def _resources(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: Raw(value) if isinstance(value, int) else value for name, value in sorted(values.items())}
