"""The options of qsub, as qsub reads them, for the double in ``pbs_lab``. Pure but for the script that it reads.

Options of which no recording exists are not guessed at: ``Unscripted``.
"""

from __future__ import annotations

import getopt
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

QSUB_USAGE = """\
usage: qsub [-a date_time] [-A account_string] [-c interval]
\t[-C directive_prefix] [-e path] [-f ] [-h ] [-I [-X]] [-j oe|eo] [-J X-Y[:Z]]
\t[-k keep] [-l resource_list] [-m mail_options] [-M user_list]
\t[-N jobname] [-o path] [-p priority] [-P project] [-q queue] [-r y|n]
\t[-R o|e|oe] [-S path] [-u user_list] [-W otherattributes=value...]
\t[-v variable_list] [-V ] [-z] [script | -- command [arg1 ...]]
       qsub --version
"""
_OPTIONS = "a:A:c:C:e:fhIj:J:k:l:m:M:N:o:p:P:q:r:R:S:u:v:VW:Xz"
_SCRIPTED = frozenset(f"-{letter}" for letter in "AfhjklNoPqrvWzC")
_NAME = re.compile(r"[A-Za-z0-9_.+][A-Za-z0-9_.+-]*\Z")
NAME_LIMIT = 230


class SaidNo(Exception):
    """The command ends without asking the server: its exit status and what it says."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


class Unscripted(SaidNo):
    """A real command may do this; the double does not."""

    def __init__(self, what: str) -> None:
        super().__init__(99, f"the double of PBS has no script for {what}\n")


def submission(argv: Sequence[str], stdin: str, user: str, env: Mapping[str, str], cwd: str) -> dict[str, Any]:
    """What the server is asked for; ``is_direct`` (-f) and ``is_quiet`` (-z) stay with the client."""
    try:
        options, rest = getopt.getopt(list(argv), _OPTIONS)
    except getopt.GetoptError as error:
        raise SaidNo(2, f"qsub: invalid option -- '{error.opt}'\n{QSUB_USAGE}") from None
    for option, _ in options:
        if option not in _SCRIPTED:
            raise Unscripted(f"qsub {option}")
    values = dict(options)
    is_command = bool(rest) and argv[len(argv) - len(rest) - 1] == "--"
    script = "" if is_command else _script(rest, stdin)
    asked: dict[str, Any] = {
        "user": user, "name": _name(values, rest), "account": values.get("-A"),
        "project": values.get("-P", "_pbs_project_default"), "queue": values.get("-q"),
        "join": values.get("-j", "n"), "keep": values.get("-k", "n"), "output": values.get("-o"),
        "umask": _umask(values.get("-W")), "is_rerunnable": "False" if values.get("-r") == "n" else "True",
        "is_held": "-h" in values, "resources": _resources([value for name, value in options if name == "-l"]),
        "argv": rest if is_command else None, "script": script, "submit_arguments": " ".join(argv),
        "is_direct": "-f" in values, "is_quiet": "-z" in values,
    }  # fmt: skip
    if asked["project"] and '"' in asked["project"]:
        raise SaidNo(166, "qsub: Illegal attribute or resource value project\n")
    given = _variables(values.get("-v", ""), env)
    origin = _origin(env, user, cwd)
    asked["env"] = {**origin, **dict(given)}
    shown = [(name, _as_shown(value)) for name, value in given]
    asked["variables"] = [[name, value] for name, value in [*_listed(origin), *shown]]
    return asked


def _name(values: Mapping[str, str], rest: Sequence[str]) -> str:
    if "-N" not in values:
        return Path(rest[0]).name if rest else "STDIN"
    name = values["-N"]
    if not _NAME.match(name):
        raise SaidNo(2, f"qsub: illegal -N value\n{QSUB_USAGE}")
    if len(name) > NAME_LIMIT:
        raise SaidNo(2, "qsub: Job name is too long \n")
    return name


def _script(rest: Sequence[str], stdin: str) -> str:
    if not rest:
        return stdin
    try:
        return Path(rest[0]).read_text()
    except OSError:
        raise SaidNo(1, "qsub: script file:: No such file or directory\n") from None


def _umask(attributes: str | None) -> str | None:
    if attributes is None:
        return None
    name, _, value = attributes.partition("=")
    if name != "umask":
        raise SaidNo(154, "qsub: Error (15002) submitting job\n")
    return value.lstrip("0") or "0"


def _resources(lists: Sequence[str]) -> dict[str, str]:
    """``-l a=b,c=d``; a select statement leaves no place for counts beside it."""
    found: dict[str, str] = {}
    for text in lists:
        for item in text.split(","):
            name, _, value = item.partition("=")
            found[name] = value
    if "select" in found:
        for name in ("ncpus", "ngpus", "mem"):
            if name in found:
                words = f'"-lresource=" cannot be used with "select" or "place", resource is: {name}'
                raise SaidNo(5, f"qsub: {words}\n")
    return found


def _variables(text: str, env: Mapping[str, str]) -> list[tuple[str, str]]:
    """``A=1,B``: a comma within a value has a backslash before it, or quotes around; double quotes are lost."""
    if text.count("'") % 2:
        raise SaidNo(1, "qsub: cannot send environment with the job\n")
    found: dict[str, str] = {}
    for item in re.findall(r"(?:'[^']*'|\"[^\"]*\"|\\.|[^,])+", text, re.DOTALL):
        name, is_given, value = item.partition("=")
        value = re.sub(r"\\,", ",", value.replace('"', "").replace("'", "")) if is_given else env.get(name, "")
        found[name] = value
    return [*found.items()]


def _as_shown(value: str) -> str:
    return value.replace("\\", "\\" * 4).replace(",", "\\,")


def _origin(env: Mapping[str, str], user: str, cwd: str) -> dict[str, str]:
    return {
        "PBS_O_HOME": env.get("HOME", ""), "PBS_O_LANG": env.get("LANG", "C.UTF-8"), "PBS_O_LOGNAME": user,
        "PBS_O_PATH": env.get("PATH", ""), "PBS_O_SHELL": env.get("SHELL", "/bin/bash"), "PBS_O_WORKDIR": cwd,
        "PBS_O_SYSTEM": "Linux",
    }  # fmt: skip


def _listed(origin: Mapping[str, str]) -> list[tuple[str, str]]:
    """In the order in which PBS shows them, with two that jobs do not see."""
    listed = [*origin.items()]
    more = [("PBS_O_INTERACTIVE_AUTH_METHOD", "resvport"), ("PBS_O_INTERACTIVE_ENCRYPT_METHOD", "")]
    return [*listed[:5], *more, *listed[5:]]
