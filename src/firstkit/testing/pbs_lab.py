"""A double of PBS, for tests and for trying things out where there is none: nothing of PBS, nothing outside a folder.

The programs in ``FOLDER/bin`` (qsub, qstat, qselect, qdel, pbsnodes) say what those of a real OpenPBS said when they
were recorded, with the same exit statuses, in the two dialects of its clients. Jobs are real processes; a server and a
mom for each node look after them, and can be killed, stopped and started like real ones. What has not been recorded is
refused: ``the double of PBS has no script for ...`` (exit status 99). Times are shorter than those of a real one.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from firstkit.schedulers.processes import ProcessId, process_id, send_signal
from firstkit.testing.pbs_clients import PROGRAMS
from firstkit.testing.pbs_server import SETTINGS, SOCKET, STATE

START_LIMIT_S = 20.0
STOP_LIMIT_S = 15.0
GIB_KB = 1024**2
QUEUE = {
    "enabled": True, "started": True, "users": None, "min_walltime": None, "max_walltime": None, "max_gpus": None,
    "max_queued": None,
}  # fmt: skip
"""What a queue lets in: ``users`` by name, walltimes as HH:MM:SS, jobs of one user; None: no limit."""
_PROGRAM = """\
#!{python} -IS
import sys

sys.path.insert(0, {source!r})
from firstkit.testing.pbs_clients import main

sys.exit(main({name!r}, {folder!r}))
"""
_SOURCE = str(Path(__file__).parents[2])


class LabError(Exception):
    """The lab could not do what it should; the message says why."""


class PbsLab:
    """One cluster below ``folder``; ``start`` it, ``stop`` it, and in between let its parts fail.

    ``env`` is what commands need to reach it. ``clients``: "master" or "v23", whose output differs. ``vnodes``: into
    how many a host is divided; with more than one, the host itself is a vnode with nothing. ``traits``: resources of
    all nodes that are no counts, as ``{"gputype": "a100"}``. ``job_resources``: names beside select and walltime that
    jobs may give, as filesystems. ``estimates``: whether the scheduler says when waiting jobs may start.
    """

    def __init__(
        self,
        folder: Path,
        nodes: int = 2,
        cpus: int = 16,
        gpus_per_node: int = 4,
        clients: str = "master",
        *,
        server: str = "hpc-head",
        node_prefix: str = "hpc-n",
        vnodes: int = 1,
        memory_gib: int = 64,
        queues: Mapping[str, Mapping[str, Any]] | None = None,
        traits: Mapping[str, str] | None = None,
        job_resources: Sequence[str] = (),
        hook: Mapping[str, str] | None = None,
        estimates: bool = True,
        kill_delay_s: float = 10.0,
        node_fail_requeue_s: float = 2.0,
        starting_s: float = 0.2,
        exiting_s: float = 0.1,
        scheduler_iteration_s: float = 600.0,
    ) -> None:
        self.folder = folder.absolute()
        self.server, self.clients = server, clients
        self.nodes = [f"{node_prefix}{number}" for number in range(1, nodes + 1)]
        self.home = self.folder / "home"
        programs = self.folder / "bin"
        self.env = {"PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
        made = {name: {**QUEUE, **queue} for name, queue in (queues or {"workq": {}}).items()}
        shape = {"ncpus": cpus, "ngpus": gpus_per_node, "mem": memory_gib * GIB_KB}
        self._settings: dict[str, Any] = {
            "server": server, "clients": clients, "nodes": self.nodes, "home": str(self.home), "queues": made,
            "default_queue": next(iter(made)), "traits": dict(traits or {}), "job_resources": list(job_resources),
            "hook": hook, "estimates": estimates, "kill_delay_s": kill_delay_s, "starting_s": starting_s,
            "exiting_s": exiting_s, "node_fail_requeue_s": node_fail_requeue_s,
            "scheduler_iteration_s": scheduler_iteration_s,
            "vnodes": _vnodes(self.nodes, shape, vnodes, dict(traits or {})),
        }  # fmt: skip
        self._processes: dict[str, ProcessId] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def __repr__(self) -> str:
        return f"<PbsLab {self.server} in {self.folder}>"

    # -- its life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Write the programs, start server and moms, and wait until every node is free. Raises LabError."""
        self._write_files()
        try:
            self.start_server()
            for node in self.nodes:
                self.start_node(node)
            _wait(lambda: set(self.node_states().values()) == {"free"}, START_LIMIT_S, "all nodes are free")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all jobs and daemons. The folder, with the logs, stays."""
        for name in [*self._processes]:
            self._end(name, signal.SIGKILL)
        _wait(lambda: not [_kill(pid) for pid in self.left_behind()], STOP_LIMIT_S, "all processes of jobs are gone")

    def end_jobs(self) -> None:
        """Delete all jobs and wait until they have gone."""
        for job in self.jobs():
            self.call("qdel", "-W", "force", job["id"], user=job["user"])
        _wait(lambda: not self.jobs(), STOP_LIMIT_S, "all jobs gone")

    # -- what may go wrong ---------------------------------------------------------------------------------------

    def kill_server(self) -> None:
        """Commands are refused; jobs go on. The ids of later jobs begin at the next thousand."""
        self._end("server", signal.SIGKILL)

    def start_server(self) -> None:
        """Start the server and wait until it answers. Jobs are known to it again; nodes come back by themselves."""
        self._spawn("server", "pbs_server", str(self.folder))
        _wait(self._answers, START_LIMIT_S, "the server answers")

    def stop_answering(self) -> None:
        """The server lives but does not answer: commands hang."""
        send_signal(self._processes["server"], signal.SIGSTOP)

    def answer_again(self) -> None:
        send_signal(self._processes["server"], signal.SIGCONT)

    def lose_answers(self, is_on: bool = True) -> None:
        """Jobs are made, but the server does not tell qsub, which waits until it is killed."""
        self._ask("set", flags={"loses_answers": is_on})

    def set_history(self, is_on: bool) -> None:
        """Without history, jobs that have ended are forgotten, also those of before."""
        self._ask("set", flags={"history": is_on})

    def set_scheduling(self, is_on: bool) -> None:
        self._ask("set", flags={"scheduling": is_on})

    def set_queue(self, name: str, **values: Any) -> None:
        """Make or change a queue; ``values`` as in QUEUE."""
        self._ask("set", queues={name: values})

    def set_node(self, node: str, *, is_offline: bool, comment: str = "") -> None:
        """Out of service for new jobs, or back. As with a real one, nothing starts by itself when it is back."""
        self._ask("set", host=node, is_offline=is_offline, comment=comment, cycle=False)

    def run_scheduler(self) -> None:
        """A scheduling cycle, which otherwise comes with a new job, with the end of one, and every ten minutes."""
        self._ask("set")

    def hold(self, job_id: str, is_held: bool = True) -> None:
        """As an administrator does: the job does not start."""
        self._ask("hold", id=int(job_id.split(".")[0]), is_held=is_held)

    def kill_node(self, node: str) -> None:
        """End the mom of a node: its processes live on, and the server gives its jobs up after a while."""
        self._end(f"mom-{node}", signal.SIGKILL)

    def start_node(self, node: str) -> None:
        """Start the mom of a node, which first kills what its predecessor left."""
        self._spawn(f"mom-{node}", "pbs_mom", str(self.folder), node)
        if self._answers():
            _wait(lambda: "down" not in self.node_states()[node], START_LIMIT_S, f"{node} is up")

    def hang_node(self, node: str) -> None:
        """Its mom does not answer, and nobody notices; a qdel of its jobs hangs."""
        send_signal(self._processes[f"mom-{node}"], signal.SIGSTOP)

    def wake_node(self, node: str) -> None:
        send_signal(self._processes[f"mom-{node}"], signal.SIGCONT)

    # -- looking in ----------------------------------------------------------------------------------------------

    def node_states(self) -> dict[str, str]:
        """State by vnode, as pbsnodes says it."""
        return {name: vnode["state"] for name, vnode in self._ask("nodes", names=[])["found"].items()}

    def jobs(self, *, history: bool = False) -> list[dict[str, Any]]:
        """Jobs in the server's own words, with ``id`` as the commands print it."""
        known = json.loads((self.folder / STATE).read_text())["jobs"] if (self.folder / STATE).exists() else []
        return [{**job, "id": f"{job['id']}.{self.server}"} for job in known if history or job["state"] != "F"]

    def ids(self, name: str) -> list[str]:
        """Of all jobs of that name, in any state: nothing that was ever submitted hides from it."""
        return [job["id"] for job in self.jobs(history=True) if job["name"] == name]

    def left_behind(self) -> list[int]:
        """Pids of what jobs of this lab started and is still there."""
        marker = f"\0PBS_NODEFILE={self.folder}/".encode()
        found = []
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                if marker in b"\0" + Path("/proc", name, "environ").read_bytes():
                    found.append(int(name))
        return found

    def run(self, *argv: str, user: str | None = None) -> str:
        """Standard output of a command on this cluster, also in another user's name. Raises LabError when it fails."""
        done = self.call(*argv, user=user)
        if done.returncode != 0:
            raise LabError(f"{' '.join(argv)}: exit status {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip()

    def call(self, *argv: str, user: str | None = None) -> subprocess.CompletedProcess[str]:
        """The same, whatever comes of it."""
        env = {**os.environ, **self.env, **({"PBS_LAB_USER": user} if user else {})}
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False, cwd=self.home)

    # -- inside --------------------------------------------------------------------------------------------------

    def _write_files(self) -> None:
        for name in ("bin", "home", "aux", "tmp", "moms", "log"):
            (self.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.folder / SETTINGS).write_text(json.dumps(self._settings))
        for name in PROGRAMS:
            path = self.folder / "bin" / name
            path.write_text(_PROGRAM.format(python=sys.executable, source=_SOURCE, name=name, folder=str(self.folder)))
            path.chmod(0o700)

    def _spawn(self, name: str, module: str, *argv: str) -> None:
        start = f"import sys; sys.path.insert(0, {_SOURCE!r}); from firstkit.testing.{module} import run; run()"
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-IS", "-c", start, *argv], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        self._children[name] = child
        self._processes[name] = process_id(child.pid)

    def _end(self, name: str, number: int) -> None:
        process, child = self._processes.pop(name, None), self._children.pop(name, None)
        if process is None or child is None:
            return
        send_signal(process, number)
        send_signal(process, signal.SIGCONT)
        child.wait(STOP_LIMIT_S)

    def _ask(self, verb: str, **request: Any) -> dict[str, Any]:
        """What no command of a user can ask for."""
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(STOP_LIMIT_S)
            link.connect(str(self.folder / SOCKET))
            link.sendall(json.dumps({"verb": verb, "user": _user(), **request}).encode() + b"\n")
            return dict(json.loads(link.makefile().readline()))

    def _answers(self) -> bool:
        try:
            return bool(self._ask("ping"))
        except (OSError, ValueError):
            return False


def _vnodes(hosts: Sequence[str], shape: Mapping[str, int], count: int, traits: dict[str, str]) -> list[dict[str, Any]]:
    """A host of one vnode is that vnode; of several, they share what it has, and it has nothing itself."""
    if count == 1:
        return [{"name": host, "host": host, "counts": dict(shape), "traits": traits} for host in hosts]
    share = {name: amount // count for name, amount in shape.items()}
    bare = [{"name": host, "host": host, "counts": {"ncpus": 0, "mem": 0}} for host in hosts]
    parts = [(host, f"{host}[{number}]") for host in hosts for number in range(count)]
    return [*bare, *({"name": name, "host": host, "counts": share, "traits": traits} for host, name in parts)]


def _user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def _kill(pid: int) -> int:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return pid


def _wait(condition: Callable[[], object], limit_s: float, what: str) -> None:
    give_up_at = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > give_up_at:
            raise LabError(f"waited {limit_s:g} s in vain: {what}")
        time.sleep(0.02)
