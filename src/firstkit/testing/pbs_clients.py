"""qsub, qstat, qselect, qdel and pbsnodes of the double in ``pbs_lab``: exit statuses and texts are those of the
recordings in ``tests/unit/schedulers/pbs``."""

from __future__ import annotations

import getopt
import json
import os
import pwd
import re
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from firstkit.testing import pbs_asked as asked
from firstkit.testing import pbs_layout as layout
from firstkit.testing.pbs_asked import SaidNo, Unscripted

NO_SERVER = 15010
HISTORY_OFF_NUMBER = 15140
QSTAT_USAGE = """\
usage: 
qstat [-f] [-J] [-p] [-t] [-x] [-E] [-F format | -w] [-D delim] [ job_identifier... | destination... ]
qstat [-a|-i|-r|-H|-T] [-J] [-t] [-u user] [-n] [-s] [-G|-M] [-1] [-w]
\t[ job_identifier... | destination... ]
qstat -Q [-f] [-F format] [-D delim] [ destination... ]
qstat -q [-G|-M] [ destination... ]
qstat -B [-f] [-F format] [-D delim] [ server_name... ]
qstat --version
"""  # noqa: W291
QSELECT_USAGE = """\
usage: qselect [-a [op]date_time] [-A account_string] [-c [op]interval]
\t[-h hold_list] [-H] [-J] [-l resource_list] [-N name] [-p [op]priority]
\t[-q destination] [-r y|n] [-s states] [-t subopt[op]date_time] [-T] [-P project_name]
\t[-x] [-u user_name]
       qselect --version
"""
QDEL_USAGE = "usage:\n\tqdel [-W force|suppress_email=X] [-x] job_identifier...\n\tqdel --version\n"


class ServerDown(Exception):
    """Nobody listens where the server should."""


class Client:
    """One run of one command. ``folder`` is that of the lab; USER may be changed by PBS_LAB_USER, for tests."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder = folder
        self.settings: dict[str, Any] = json.loads((folder / "settings.json").read_text())
        self.server: str = self.settings["server"]
        self.clients: str = self.settings["clients"]
        self.user = env.get("PBS_LAB_USER") or pwd.getpwuid(os.geteuid()).pw_name
        self.env = env

    def connect(self) -> socket.socket:
        link = socket.socket(socket.AF_UNIX)
        try:
            link.connect(str(self.folder / "server.socket"))
        except OSError:
            raise ServerDown from None
        return link

    def ask(self, verb: str, **request: Any) -> dict[str, Any]:
        """The server's answer; waits for as long as it takes."""
        with self.connect() as link:
            return _talk(link, {"verb": verb, "user": self.user, **request})

    def number(self, text: str) -> int | None:
        """The number in a job id; None where it is ill formed or of another server."""
        match = re.match(r"(\d+)(\.(.+))?\Z", text)
        return int(match[1]) if match and match[3] in (None, self.server) else None


def _talk(link: socket.socket, message: Mapping[str, Any]) -> dict[str, Any]:
    link.sendall(json.dumps(message).encode() + b"\n")
    data = b""
    while not data.endswith(b"\n"):
        more = link.recv(2**20)
        if not more:
            raise ServerDown
        data += more
    return dict(json.loads(data))


# -- qsub --------------------------------------------------------------------------------------------------------------


def qsub(client: Client, argv: Sequence[str]) -> int:
    request = asked.submission(argv, "" if "--" in argv else sys.stdin.read(), client.user, client.env, os.getcwd())
    try:
        answer = _submit(client, request) if request["is_direct"] else _submit_in_background(client, request)
    except ServerDown:
        # The release that is called v23 cut the name of the server short.
        name = client.server[:-1] if client.clients == "v23" else client.server
        raise SaidNo(162, f"Connection refused\nqsub: cannot connect to server {name} (errno={NO_SERVER})\n") from None
    if "error" in answer:
        number, words = answer["error"]
        raise SaidNo(number % 256, f"qsub: {words}\n")
    if not request["is_quiet"]:
        print(answer["id"])
    return 0


def _submit(client: Client, request: Mapping[str, Any]) -> dict[str, Any]:
    with client.connect() as link:
        answer = _talk(link, {"verb": "submit", "user": client.user, "asked": request})
        return answer if "error" in answer else _talk(link, {"commit": True})


def _submit_in_background(client: Client, request: Mapping[str, Any]) -> dict[str, Any]:
    """By a process that outlives this one: killed while it waits, the job is submitted all the same, later."""
    client.connect().close()
    here, there = os.pipe()
    if os.fork() == 0:
        os.setsid()
        os.close(here)
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        try:
            answer = _submit(client, request)
        except ServerDown:
            answer = {"error": [NO_SERVER, "Connection refused"]}
        try:
            os.write(there, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(there)
    with open(here, "rb") as pipe:
        return dict(json.loads(pipe.read() or b'{"error": [15010, "Connection refused"]}'))


# -- qstat -------------------------------------------------------------------------------------------------------------


def qstat(client: Client, argv: Sequence[str]) -> int:
    try:
        options, ids = getopt.getopt(list(argv), "aBD:EfF:GHiJMnpqQrstTu:wx1")
    except getopt.GetoptError as error:
        raise SaidNo(2, f"qstat: invalid option -- '{error.opt}'\n{QSTAT_USAGE}") from None
    values = dict(options)
    if "-F" in values and ("-f" not in values or "-u" in values):
        raise SaidNo(2, f"qstat: conflicting options.\n{QSTAT_USAGE}")
    form = values.get("-F")
    if form not in ("json", "dsv") or set(values) - {"-f", "-F", "-D", "-x"}:
        raise Unscripted(f"qstat {' '.join(argv)}")
    status, numbers = 0, []
    for text in ids:
        number = client.number(text)
        if number is None:
            sys.stderr.write(f"qstat: illegally formed job identifier: {text}\n")
            status = 1
        else:
            numbers.append(number)
    jobs: list[dict[str, Any]] = []
    if numbers or not ids:
        try:
            answer = client.ask("status", ids=numbers, history="-x" in values)
        except ServerDown:
            _print_jobs(client, form, "|", [])
            words = f"Connection refused\nqstat: cannot connect to server {client.server} (errno={NO_SERVER})\n"
            raise SaidNo(255, words) from None
        jobs = answer["found"]
        for number, words in answer["errors"]:
            sys.stderr.write(f"qstat: {words}\n")
            status = number % 256
    if form == "json" and client.clients == "master" and ids:
        jobs = jobs[:1]
    _print_jobs(client, form, values.get("-D", "|"), jobs)
    return status


def _print_jobs(client: Client, form: str, delimiter: str, jobs: Sequence[Mapping[str, Any]]) -> None:
    """JSON has its head whatever went wrong; of several ids ``master`` has only the first job in it."""
    listed = {f"{job['id']}.{client.server}": layout.job_attributes(job, client.server) for job in jobs}
    if form == "dsv":
        text = "".join(layout.dsv(job_id, attributes, delimiter) for job_id, attributes in listed.items())
        _write(text.encode(errors="surrogateescape"))
        return
    trees = {job_id: layout.job_tree(attributes, client.clients) for job_id, attributes in listed.items()}
    _write(layout.document(client.server, "Jobs", trees, client.clients))


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


# -- qselect, qdel, pbsnodes -------------------------------------------------------------------------------------------


def qselect(client: Client, argv: Sequence[str]) -> int:
    try:
        options, rest = getopt.getopt(list(argv), "a:A:c:h:HJl:N:p:P:q:r:s:t:Tu:x")
    except getopt.GetoptError as error:
        raise SaidNo(2, f"qselect: invalid option -- '{error.opt}'\n{QSELECT_USAGE}") from None
    values = dict(options)
    if rest or set(values) - {"-A", "-N", "-P", "-q", "-s", "-u", "-x"}:
        raise Unscripted(f"qselect {' '.join(argv)}")
    if not set(values.get("-s", "")) <= set("BEFHMQRSTUWX"):
        raise SaidNo(2, f"qselect: illegal -s value\n{QSELECT_USAGE}")
    names = {"-A": "account", "-N": "name", "-P": "project", "-q": "queue", "-s": "state", "-u": "user"}
    where = {names[option]: value for option, value in values.items() if option in names}
    try:
        answer = client.ask("select", where=where, history="-x" in values)
    except ServerDown:
        words = f"qselect: cannot connect to server {client.server[:-1]} (errno={NO_SERVER})"
        raise SaidNo(162, f"Connection refused\n{words}\n") from None
    if "error" in answer:
        number, words = answer["error"]
        raise SaidNo(0 if number == HISTORY_OFF_NUMBER else number % 256, f"qselect: {words}\n")
    for job_id in answer["found"]:
        print(job_id)
    return 0


def qdel(client: Client, argv: Sequence[str]) -> int:
    options, ids = getopt.getopt(list(argv), "W:x")
    if not ids:
        raise SaidNo(2, QDEL_USAGE)
    if any(option != ("-W", "force") for option in options):
        raise Unscripted(f"qdel {' '.join(argv)}")
    status = 0
    for text in ids:
        number = client.number(text)
        if number is None:
            sys.stderr.write(f"qdel: illegally formed job identifier: {text}\n")
            status = 1
            continue
        try:
            answer = client.ask("delete", id=number, force=bool(options))
        except ServerDown:
            raise SaidNo(162, f"Connection refused\nCouldn't connect to cluster: {client.server}\n") from None
        if "error" in answer:
            status = answer["error"][0] % 256
            sys.stderr.write(f"qdel: {answer['error'][1]}\n")
    return status


def pbsnodes(client: Client, argv: Sequence[str]) -> int:
    options, names = getopt.getopt(list(argv), "avF:jSlo:r:C:")
    values = dict(options)
    for option in ("-o", "-r"):
        if option in values:
            raise SaidNo(1, f"Error marking node {values[option]} - Unauthorized Request \n")
    if values.get("-F") != "json" or not (options[1:] or names) or set(values) - {"-a", "-v", "-F"}:
        raise Unscripted(f"pbsnodes {' '.join(argv)}")
    try:
        found = client.ask("nodes", names=names)["found"]
    except ServerDown:
        words = f"pbsnodes: cannot connect to server {client.server}, error={NO_SERVER}"
        raise SaidNo(1, f"Connection refused\n{words}\n") from None
    trees: dict[str, Any] = {name: layout.node_tree(vnode, client.clients) for name, vnode in found.items()}
    for name in names:
        if name not in found:
            trees[name] = {"Error" if client.clients == "v23" else name: "Unknown node "}
    _write(layout.document(client.server, "nodes", trees, client.clients))
    return 0


PROGRAMS: dict[str, Callable[[Client, Sequence[str]], int]] = {
    "qsub": qsub, "qstat": qstat, "qselect": qselect, "qdel": qdel, "pbsnodes": pbsnodes,
}  # fmt: skip


def main(program: str, folder: str) -> int:
    """What the programs in the lab's folder call."""
    try:
        if sys.argv[1:] == ["--version"]:
            print(f"pbs_version = {layout.VERSION}")
            return 0
        return PROGRAMS[program](Client(Path(folder), os.environ), sys.argv[1:])
    except SaidNo as no:
        sys.stdout.flush()
        sys.stderr.write(no.words)
        return no.status
