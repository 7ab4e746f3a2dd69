"""The server and scheduler of the double in ``pbs_lab``: one process, which clients and moms reach by a socket.

All that it knows is in FOLDER/server.json after each
change, so that it may be killed at any time. Ids go on at the next thousand after that, as those of a real one do.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from firstkit.testing import pbs_jobs as jobs
from firstkit.testing import pbs_places as places
from firstkit.testing.pbs_jobs import Job
from firstkit.testing.pbs_places import Part, Refused, Stay, Vnode

SOCKET, STATE, SETTINGS = "server.socket", "server.json", "settings.json"
HISTORY_OFF = "PBS is not configured to maintain job history "
LINE_LIMIT = 2**22


class Server:
    """Jobs, queues and vnodes; ``settings`` as ``PbsLab`` writes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text())
        self.name: str = self.settings["server"]
        self.vnodes = [Vnode(**vnode) for vnode in self.settings["vnodes"]]
        self.jobs: dict[int, Job] = {}
        self.next_id = 1
        self.queues: dict[str, dict[str, Any]] = self.settings["queues"]
        self.flags: dict[str, Any] = {"history": True, "scheduling": True, "loses_answers": False}
        self.moms: dict[str, asyncio.StreamWriter] = {}
        self._answers: dict[tuple[int, int], asyncio.Future[None]] = {}
        self._later: set[asyncio.Task[None]] = set()
        self._load()

    # -- memory --------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        path = self.folder / STATE
        if not path.exists():
            return
        kept = json.loads(path.read_text())
        self.jobs = {job["id"]: job for job in kept["jobs"]}
        self.queues, self.flags = kept["queues"], kept["flags"]
        self.next_id = (kept["next_id"] // 1000 + 1) * 1000
        for vnode, offline, comment in kept["offline"]:
            self.vnode(vnode).is_offline, self.vnode(vnode).comment = offline, comment
        for job in self.jobs.values():
            if jobs.has_nodes(job):
                self._take(job)

    def keep(self) -> None:
        kept = {
            "jobs": [*self.jobs.values()], "queues": self.queues, "flags": self.flags, "next_id": self.next_id,
            "offline": [[vnode.name, vnode.is_offline, vnode.comment] for vnode in self.vnodes],
        }  # fmt: skip
        draft = self.folder / f"{STATE}.new"
        draft.write_text(json.dumps(kept))
        draft.replace(self.folder / STATE)

    def vnode(self, name: str) -> Vnode:
        return next(vnode for vnode in self.vnodes if vnode.name == name)

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        async def run() -> None:
            await asyncio.sleep(delay_s)
            action()
            self.keep()

        task = asyncio.create_task(run())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    def resume(self) -> None:
        """After a start: what was under way goes on, and moms have their time to come back."""
        for job in self.jobs.values():
            if job["state"] == "E":
                self.later(self.settings["exiting_s"], functools.partial(self._finish, job))
            self._is_started(job)
        for host in self.settings["nodes"]:
            self.later(self.settings["node_fail_requeue_s"], functools.partial(self.give_up, host))

    # -- the scheduler -------------------------------------------------------------------------------------------

    def cycle(self) -> None:
        """Start what has a place, in the order of submission; say of the others why not, and when perhaps."""
        if not self.flags["scheduling"]:
            return
        waiting = [job for job in self.jobs.values() if job["state"] == "Q"]
        for job in waiting:
            if not self.queues[job["queue"]]["started"]:
                job["comment"] = "Not Running: Queue not started."
                continue
            placed = places.place(job["chunks"], job["resources"]["place"], self.vnodes)
            if isinstance(placed, str):
                job["comment"] = placed
            else:
                self._start(job, placed)
        if self.settings["estimates"]:
            self._estimate([j for j in waiting if j["state"] == "Q" and self.queues[j["queue"]]["started"]])
        self.keep()

    def _estimate(self, waiting: Sequence[Job]) -> None:
        running = [
            Stay(job["id"], job["stime"] + job["walltime_s"], job["parts"], job["resources"]["place"])
            for job in self.jobs.values()
            if jobs.has_nodes(job)
        ]
        wanted = [(job["id"], job["chunks"], job["resources"]["place"], job["walltime_s"]) for job in waiting]
        expected = places.expected_starts(wanted, running, self.vnodes, time.time())
        for job in waiting:
            start = expected.get(job["id"])
            job["estimated"] = start and {"exec_vnode": places.shown(start.parts), "start_time": start.starts_at}

    def _start(self, job: Job, placed: list[list[Part]]) -> None:
        hosts = [self.vnode(parts[0].vnode).host for parts in placed]
        slots: list[str] = []
        for host, parts in zip(hosts, placed, strict=True):
            cpus = sum(part.counts.get("ncpus", 0) for part in parts)
            slots.append(f"{host}/{len(slots)}" + (f"*{cpus}" if cpus != 1 else ""))
        jobs.start(job, placed, "+".join(slots), self.settings["home"])
        self._take(job)
        self._tell(hosts[0], {"run": {**job, "hosts": hosts, "server": self.name}})
        self.later(self.settings["starting_s"], lambda: self._is_started(job))

    def _is_started(self, job: Job) -> None:
        if job["state"] == "R" and job["substate"] == 41:
            job["substate"] = 42

    def _take(self, job: Job) -> None:
        places.occupy(self.vnodes, job["id"], job["parts"], job["resources"]["place"])

    def _free(self, job: Job) -> None:
        for vnode in self.vnodes:
            if job["id"] in vnode.taken:
                vnode.used_at = int(time.time())
        places.release(self.vnodes, job["id"])

    # -- ends ----------------------------------------------------------------------------------------------------

    def ended(self, number: int, run: int, status: int) -> None:
        """What a mom says of the processes of a job. News of a run that was given up change nothing."""
        job = self.jobs.get(number)
        if job is None or job["state"] != "R" or job["run_count"] != run:
            return
        if status == jobs.MOM_STARTED_ANEW and job["is_rerunnable"] == "True":
            self._free(job)
            jobs.requeue(job, status)
            self.cycle()
            return
        jobs.leave(job, status)
        self.keep()
        self.later(self.settings["exiting_s"], lambda: self._finish(job))

    def _finish(self, job: Job) -> None:
        if job["state"] != "E":
            return
        self._free(job)
        jobs.finish(job)
        self.forget_without_history(job)
        self.cycle()

    def forget_without_history(self, job: Job) -> None:
        if not self.flags["history"]:
            self.jobs.pop(job["id"], None)

    def drop(self, job: Job) -> None:
        """Deleted by force on a node that does not answer."""
        self._free(job)
        jobs.finish_unstarted(job)
        self.forget_without_history(job)
        self.cycle()

    def give_up(self, host: str) -> None:
        """The node has been away for too long: its jobs end here, whatever their processes do there."""
        if host in self.moms:
            return
        for job in [*self.jobs.values()]:
            if job["state"] not in "RE" or host not in _hosts(job):
                continue
            self._free(job)
            if job["is_rerunnable"] == "True":
                jobs.requeue(job, jobs.NODE_LOST)
                continue
            job["exit_status"] = jobs.NODE_LOST
            jobs.finish(job)
            self.forget_without_history(job)
        self.cycle()

    # -- moms ----------------------------------------------------------------------------------------------------

    async def serve_mom(self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.moms[host] = writer
        self._mark(host, True, "")
        try:
            while line := await reader.readline():
                self._hear(json.loads(line))
        finally:
            if self.moms.get(host) is writer:
                del self.moms[host]
                self._mark(host, False, "node down: communication closed")
                self.later(self.settings["node_fail_requeue_s"], lambda: self.give_up(host))

    def _hear(self, news: dict[str, Any]) -> None:
        if "ack" in news:
            waiting = self._answers.pop((news["job"], news["ack"]), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
        elif "session" in news and news["job"] in self.jobs:
            self.jobs[news["job"]]["session"] = news["session"]
            self.keep()
        elif "status" in news:
            self.ended(news["job"], news["run"], news["status"])

    def _mark(self, host: str, is_up: bool, comment: str) -> None:
        for vnode in self.vnodes:
            if vnode.host == host:
                vnode.is_up, vnode.was_up, vnode.changed_at = is_up, True, int(time.time())
                vnode.comment = vnode.comment if vnode.is_offline else comment

    def _tell(self, host: str, message: dict[str, Any]) -> bool:
        if host not in self.moms:
            return False
        self.moms[host].write(json.dumps(message).encode() + b"\n")
        return True

    async def signal(self, job: Job, number: int, kill_after_s: float | None) -> None:
        """Until the mom has done it: one that hangs makes whoever asks wait. Raises Refused where it is gone."""
        token = time.monotonic_ns()
        waiting = asyncio.get_running_loop().create_future()
        self._answers[job["id"], token] = waiting
        host = jobs.host_of(job)
        if not self._tell(host, {"signal": number, "job": job["id"], "kill_after_s": kill_after_s, "ack": token}):
            raise Refused(15070, f"Server could not connect to MOM {self.shown_id(job)}")
        await waiting

    def shown_id(self, job: Job) -> str:
        return f"{job['id']}.{self.name}"


def _hosts(job: Job) -> set[str]:
    return {part.split("/")[0] for part in job["exec_host"].split("+")}


async def main(folder: Path) -> None:
    from firstkit.testing.pbs_requests import Requests

    server = Server(folder)
    requests = Requests(server)
    path = folder / SOCKET
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = await asyncio.start_unix_server(requests.serve, str(path), limit=LINE_LIMIT)
    server.resume()
    async with listener:
        next_cycle_at = time.monotonic() + server.settings["scheduler_iteration_s"]
        while path.exists():  # until the lab has been removed
            await asyncio.sleep(1.0)
            if time.monotonic() > next_cycle_at:
                next_cycle_at += server.settings["scheduler_iteration_s"]
                server.cycle()


def run() -> None:
    os.umask(0o077)
    asyncio.run(main(Path(sys.argv[1])))
