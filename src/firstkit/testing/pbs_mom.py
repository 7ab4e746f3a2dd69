"""The mom of one node of the double in ``pbs_lab``: starts the processes of jobs, ends them, says how they ended.

Killed, it leaves the processes of its jobs alone; started
again, it kills them first, as a real one does that is started without ``-p``.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstkit.testing import pbs_jobs as jobs
from firstkit.testing.pbs_server import SETTINGS, SOCKET

LOOK_EVERY_S = 0.05
PATH = "/usr/local/bin:/usr/bin:/bin"
NO_SUCH_PROGRAM = 254


@dataclass
class Running:
    """One job of this node."""

    job: dict[str, Any]
    process: subprocess.Popen[bytes]
    ends_at: float
    kill_at: float | None = None
    is_too_long: bool = False


class Mom:
    def __init__(self, folder: Path, host: str) -> None:
        self._folder, self._host = folder, host
        self._settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text())
        self._notes = folder / "moms" / host
        self._running: dict[int, Running] = {}
        self._unsaid: list[dict[str, Any]] = []
        self._server: socket.socket | None = None
        self._heard = b""

    def run(self) -> None:
        """Until it is killed, or the lab has been removed."""
        self._end_what_was_left()
        while self._notes.exists():
            self._connect()
            self._say()
            self._listen()
            self._look()

    # -- the server ----------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self._server is not None:
            return
        link = socket.socket(socket.AF_UNIX)
        try:
            link.connect(str(self._folder / SOCKET))
            link.sendall(json.dumps({"verb": "mom", "host": self._host}).encode() + b"\n")
        except OSError:
            link.close()
            return
        self._server, self._heard = link, b""

    def _say(self) -> None:
        """Ends are kept until there is a server to be told."""
        while self._unsaid and self._server is not None:
            try:
                self._server.sendall(json.dumps(self._unsaid[0]).encode() + b"\n")
            except OSError:
                self._lose()
                return
            del self._unsaid[0]

    def _listen(self) -> None:
        if self._server is None:
            time.sleep(LOOK_EVERY_S)
            return
        if not select.select([self._server], [], [], LOOK_EVERY_S)[0]:
            return
        try:
            data = self._server.recv(2**16)
        except OSError:
            data = b""
        if not data:
            self._lose()
            return
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _lose(self) -> None:
        if self._server is not None:
            self._server.close()
        self._server = None

    def _obey(self, order: dict[str, Any]) -> None:
        if "run" in order:
            self._start(order["run"])
            return
        running = self._running.get(order["job"])
        if running is not None:
            _signal_session(running.process.pid, order["signal"])
            if order["signal"] == signal.SIGTERM and running.kill_at is None:
                running.kill_at = time.monotonic() + order["kill_after_s"]
        self._unsaid.append({"job": order["job"], "ack": order["ack"]})

    # -- jobs ----------------------------------------------------------------------------------------------------

    def _start(self, job: dict[str, Any]) -> None:
        argv = job["argv"] or ["/bin/bash", "-c", f"/bin/bash {self._script(job)}"]
        try:
            with self._output(job) as output:
                process = subprocess.Popen(
                    argv, env=self._environment(job), cwd=job["jobdir"], stdin=subprocess.DEVNULL, stdout=output,
                    stderr=output, start_new_session=True, umask=int(job["umask"] or "77", 8),
                )  # fmt: skip
        except OSError:
            self._tell_end(job, NO_SUCH_PROGRAM)
            return
        self._running[job["id"]] = Running(job, process, time.monotonic() + job["walltime_s"])
        (self._notes / str(job["id"])).write_text(json.dumps({**_short(job), "session": process.pid}))
        self._unsaid.append({"job": job["id"], "session": process.pid})

    def _script(self, job: dict[str, Any]) -> Path:
        path = self._notes / f"{job['id']}.SC"
        path.write_text(job["script"])
        return path

    def _output(self, job: dict[str, Any]) -> Any:
        """The file of the job's output, written while it runs (``-k doe``); without that, the copy at its end is no
        matter of the double."""
        try:
            return open(job["output"] or os.devnull, "ab", opener=_private)
        except OSError:
            return open(os.devnull, "ab")

    def _environment(self, job: dict[str, Any]) -> dict[str, str]:
        """What a job of a real PBS sees. Nothing says which GPUs are its own."""
        job_id = f"{job['id']}.{job['server']}"
        nodes = self._folder / "aux" / job_id
        nodes.write_text("".join(f"{host}\n" for host in job["hosts"]))
        scratch = self._folder / "tmp" / f"pbs.{job_id}"
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        cpus = str(job["chunks"][0].get("ncpus", 1))
        return {
            "HOME": job["jobdir"], "LOGNAME": job["user"], "USER": job["user"], "SHELL": "/bin/bash", "PATH": PATH,
            **job["env"], "PBS_ENVIRONMENT": "PBS_BATCH", "PBS_JOBID": job_id, "PBS_JOBNAME": job["name"],
            "PBS_NODEFILE": str(nodes), "PBS_QUEUE": job["queue"], "NCPUS": cpus, "OMP_NUM_THREADS": cpus,
            "TMPDIR": str(scratch),
        }  # fmt: skip

    def _look(self) -> None:
        """Who has ended, who has to."""
        now = time.monotonic()
        for running in [*self._running.values()]:
            status = running.process.poll()
            if status is not None:
                _signal_session(running.process.pid, signal.SIGKILL)
                self._tell_end(running.job, self._status(running, status))
            elif running.kill_at is not None and now >= running.kill_at:
                _signal_session(running.process.pid, signal.SIGKILL)
            elif running.kill_at is None and now >= running.ends_at:
                running.is_too_long, running.kill_at = True, now + self._settings["kill_delay_s"]
                _signal_session(running.process.pid, signal.SIGTERM)

    def _status(self, running: Running, status: int) -> int:
        """A script has a shell around it, which dies of the signal whatever the script made of it."""
        if running.is_too_long:
            return jobs.WALLTIME_PASSED
        return status if status >= 0 else 256 - status

    def _tell_end(self, job: dict[str, Any], status: int) -> None:
        self._running.pop(job["id"], None)
        self._forget(job["id"], f"{job['id']}.{job['server']}")
        self._unsaid.append({**_short(job), "status": status})

    def _forget(self, number: int, job_id: str) -> None:
        (self._notes / str(number)).unlink(missing_ok=True)
        (self._notes / f"{number}.SC").unlink(missing_ok=True)
        (self._folder / "aux" / job_id).unlink(missing_ok=True)
        shutil.rmtree(self._folder / "tmp" / f"pbs.{job_id}", ignore_errors=True)

    def _end_what_was_left(self) -> None:
        self._notes.mkdir(parents=True, exist_ok=True)
        for note in self._notes.iterdir():
            if note.suffix == ".SC":
                continue
            left = json.loads(note.read_text())
            _signal_session(left.pop("session"), signal.SIGKILL)
            self._unsaid.append({**left, "status": jobs.MOM_STARTED_ANEW})
            self._forget(left["job"], f"{left['job']}.{self._settings['server']}")


def _short(job: dict[str, Any]) -> dict[str, Any]:
    return {"job": job["id"], "run": job["run_count"]}


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _signal_session(session: int, number: int) -> None:
    """All processes of a session at once, as a mom does it; those that have left it are not found."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if os.getsid(int(name)) == session:
                os.kill(int(name), number)


def run() -> None:
    os.umask(0o077)
    Mom(Path(sys.argv[1]), sys.argv[2]).run()
