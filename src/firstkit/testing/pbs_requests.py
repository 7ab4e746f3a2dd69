"""What clients ask of the server of the double in ``pbs_lab``: one line of JSON there, one back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Callable
from typing import Any

from firstkit.testing import pbs_jobs as jobs
from firstkit.testing import pbs_layout as layout
from firstkit.testing.pbs_jobs import Job
from firstkit.testing.pbs_places import Refused, seconds
from firstkit.testing.pbs_server import HISTORY_OFF, Server

HISTORY_OFF_NUMBER = 15140
HOOK_SAID_NO = 15136
FINISHED_LONG = "Job has finished, use -x or -H to obtain historical job information"


class Requests:
    """One server's answers. Errors travel as ``{"error": [number, words]}``."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            line = await reader.readline()
            if line:
                await self._serve(json.loads(line), reader, writer)
        writer.close()

    async def _serve(self, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if request["verb"] == "mom":
            await self._server.serve_mom(request["host"], reader, writer)
            return
        try:
            if request["verb"] == "submit":
                answer = await self._submit(request, reader, writer)
            else:
                answer = await getattr(self, f"_{request['verb']}")(request)
        except Refused as refused:
            answer = {"error": [refused.number, refused.words]}
        if answer is not None:
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()

    # -- submit --------------------------------------------------------------------------------------------------

    async def _submit(
        self, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> dict[str, Any] | None:
        """In two steps: whoever is killed before the second has no job."""
        server = self._server
        asked = {**request["asked"], "queue": request["asked"]["queue"] or server.settings["default_queue"]}
        asked["env"]["PBS_O_QUEUE"] = asked["queue"]
        asked["variables"] += [["PBS_O_QUEUE", asked["queue"]], ["PBS_O_HOST", server.name]]
        self._check_queue(asked)
        job = jobs.new_job(0, asked, server.settings["traits"], server.settings["job_resources"])
        self._check_limits(job)
        writer.write(b"{}\n")
        if not await reader.readline():
            return None
        job["id"] = server.next_id
        server.next_id += 1
        server.jobs[job["id"]] = job
        server.keep()
        if not asked["is_held"]:
            asyncio.get_running_loop().call_soon(server.cycle)
        if server.flags["loses_answers"]:
            await asyncio.Event().wait()
        return {"id": server.shown_id(job)}

    def _check_queue(self, asked: dict[str, Any]) -> None:
        queue = self._server.queues.get(asked["queue"])
        if queue is None:
            raise Refused(15018, "Unknown queue")
        if queue["users"] is not None and asked["user"] not in queue["users"]:
            raise Refused(15007, "Unauthorized Request ")
        if not queue["enabled"]:
            raise Refused(15021, "Queue is not enabled")
        hook = self._server.settings["hook"]
        if hook and hook["needs"] == "account" and not asked["account"]:
            raise Refused(HOOK_SAID_NO, hook["words"])

    def _check_limits(self, job: Job) -> None:
        queue = self._server.queues[job["queue"]]
        alive = [j for j in self._server.jobs.values() if j["queue"] == job["queue"] and not jobs.is_over(j)]
        if queue["max_queued"] is not None and sum(j["user"] == job["user"] for j in alive) >= queue["max_queued"]:
            raise Refused(15142, "would exceed queue generic's per-user limit")
        least, most = queue["min_walltime"], queue["max_walltime"]
        is_too_long = most is not None and job["walltime_s"] > seconds(most)
        is_too_short = least is not None and job["walltime_s"] < seconds(least)
        has_too_many = queue["max_gpus"] is not None and job["resources"].get("ngpus", 0) > queue["max_gpus"]
        if is_too_long or is_too_short or has_too_many:
            raise Refused(15036, "Job violates queue and/or server resource limits")

    # -- look ----------------------------------------------------------------------------------------------------

    async def _status(self, request: dict[str, Any]) -> dict[str, Any]:
        """``found`` in the order in which they were asked for, ``errors`` as number and words for each other one."""
        server, wants_history = self._server, request["history"]
        found: list[dict[str, Any]] = []
        errors: list[list[Any]] = []
        if wants_history and not server.flags["history"]:
            ids = [f"{number}.{server.name}" for number in request["ids"]] or [""]
            return {"found": [], "errors": [[0, f"{HISTORY_OFF}{job_id}"] for job_id in ids]}
        for number in request["ids"]:
            job = server.jobs.get(number)
            if job is None:
                errors.append([15001, f"Unknown Job Id {number}.{server.name}"])
            elif jobs.is_over(job) and not wants_history:
                errors.append([15139, f"{server.shown_id(job)} {FINISHED_LONG}"])
            else:
                found.append(job)
        if not request["ids"]:
            found = [job for job in server.jobs.values() if wants_history or not jobs.is_over(job)]
        return {"found": [self._shown(job) for job in found], "errors": errors}

    def _shown(self, job: Job) -> dict[str, Any]:
        if job["state"] == "R" and job["substate"] == 42 and job["resources_used"] is None:
            return {**job, "resources_used": jobs.used(job, int(time.time()))}
        return job

    async def _select(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["history"] and not self._server.flags["history"]:
            raise Refused(HISTORY_OFF_NUMBER, HISTORY_OFF)
        wanted = {name: value for name, value in request["where"].items() if value is not None}
        states = wanted.pop("state", None)
        found = [
            self._server.shown_id(job)
            for job in self._server.jobs.values()
            if (request["history"] or not jobs.is_over(job))
            and (states is None or job["state"] in states)
            and all(job[name] == value for name, value in wanted.items())
        ]
        return {"found": found}

    async def _nodes(self, request: dict[str, Any]) -> dict[str, Any]:
        vnodes = [vnode for vnode in self._server.vnodes if vnode.name in request["names"] or not request["names"]]
        return {
            "found": {
                vnode.name: {
                    "host": vnode.host, "state": vnode.state, "comment": vnode.comment, "pcpus": vnode.counts["ncpus"],
                    "jobs": [f"{number}.{self._server.name}" for number in vnode.taken],
                    "available": {
                        "arch": "linux", "host": vnode.host, "vnode": vnode.name, **vnode.traits,
                        **_sizes(vnode.counts, jobs.memory_text),
                    },
                    "assigned": _sizes({name: vnode.assigned(name) for name in vnode.counts if vnode.assigned(name)}),
                    "changed_at": vnode.changed_at, "used_at": vnode.used_at,
                }
                for vnode in vnodes
            }
        }  # fmt: skip

    # -- delete --------------------------------------------------------------------------------------------------

    async def _delete(self, request: dict[str, Any]) -> dict[str, Any]:
        server = self._server
        job = server.jobs.get(request["id"])
        if job is None:
            raise Refused(15001, f"Unknown Job Id {request['id']}.{server.name}")
        shown = server.shown_id(job)
        if request["user"] != job["user"]:
            raise Refused(15007, f"Unauthorized Request  {shown}")
        if jobs.is_over(job):
            raise Refused(15139, f"Job has finished {shown}")
        if job["state"] in "QHW":
            jobs.finish_unstarted(job)
            server.forget_without_history(job)
            server.keep()
            return {}
        if job["state"] == "E" and not request["force"]:
            raise Refused(15016, f"Request invalid for state of job {shown}")
        if job["state"] == "R":
            await self._end(job, request)
        return {}

    async def _end(self, job: Job, request: dict[str, Any]) -> None:
        server = self._server
        number = signal.SIGKILL if request["force"] else signal.SIGTERM
        before = dict(job)
        jobs.note_deletion(job, f"{request['user']}@{server.name}")
        try:
            await server.signal(job, number, server.settings["kill_delay_s"])
        except Refused:
            job.update(before)
            if not request["force"]:
                raise
            server.drop(job)
        server.keep()

    # -- what only an administrator does -------------------------------------------------------------------------

    async def _set(self, request: dict[str, Any]) -> dict[str, Any]:
        server = self._server
        server.flags.update(request.get("flags", {}))
        if not server.flags["history"]:
            for job in [job for job in server.jobs.values() if jobs.is_over(job)]:
                del server.jobs[job["id"]]
        for name, values in request.get("queues", {}).items():
            server.queues.setdefault(name, dict(server.queues[server.settings["default_queue"]])).update(values)
        for vnode in server.vnodes:
            if vnode.host == request.get("host"):
                vnode.is_offline, vnode.comment = request["is_offline"], request["comment"]
        if request.get("cycle", True):
            server.cycle()
        server.keep()
        return {}

    async def _hold(self, request: dict[str, Any]) -> dict[str, Any]:
        job = self._server.jobs[request["id"]]
        is_held = request["is_held"]
        job.update(holds="u" if is_held else "")
        if job["state"] in "QH":
            job.update(state="H" if is_held else "Q", substate=20 if is_held else 10)
        self._server.cycle()
        return {}

    async def _ping(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"version": layout.VERSION}


def _sizes(counts: dict[str, int], memory: Callable[[int], str] = "{}kb".format) -> dict[str, Any]:
    return {name: (memory(count) if name == "mem" else count) for name, count in counts.items()}
