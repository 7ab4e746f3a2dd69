"""A pilot in a process of its own, from the zipapp, with a gateway's end of the link in this one."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psutil

from firstkit.clusters.zipapp import install
from firstkit.engines.engine import EngineSpec, ReplicaSpec
from firstkit.links.entrance import Entrance
from firstkit.links.gateway_end import GatewayLink
from firstkit.links.messages import Hello, LinkSpec, Open, Outcome, PilotReport, PilotSpec, Refusal, ReplicaReport
from firstkit.schedulers.scheduler import Resources
from firstkit.states import ReplicaState
from firstkit.wire import encode
from unit.onsite.support import Sink, chat, engines_below
from waiting import until

CORES = sorted(os.sched_getaffinity(0))
TOKEN = "canary-enrolment-token"
ENDLESS = {"tokens": 100000, "token_delay": 0.01}
READY, STOPPED, FAILED = ReplicaState.READY, ReplicaState.STOPPED, ReplicaState.FAILED


def replica(replica_id: str, behaviour: str = "QuickEngine", cpus: int = 1, **options: object) -> ReplicaSpec:
    argv = [sys.executable, "-m", "firstkit.testing.fake_engine", "--behaviour", behaviour, "--socket", "{socket}"]
    for name, value in options.items():
        argv += [f"--{name.replace('_', '-')}", str(value)]
    engine = EngineSpec("command", argv=tuple(argv), capabilities=("chat",))
    return ReplicaSpec(replica_id, "m", "m@here", engine, needs=Resources(cpus_per_node=cpus, memory_bytes=1000))


class Job:
    """One pilot and the gateway that it dials; the LinkOwner of that gateway."""

    def __init__(self, folder: Path, zipapp: Path, job_id: str = "job-1") -> None:
        self.folder = folder
        self.zipapp = zipapp
        self.job_id = job_id
        self.refusal: Refusal | None = None
        self.entrance = Entrance(self)
        self.news: list[str] = []
        self.reports: list[PilotReport] = []
        self.secrets: set[str] = set()
        self._links: list[GatewayLink] = []
        self._server: asyncio.Server | None = None
        self.process: subprocess.Popen[bytes]

    async def listen(self) -> None:
        path = self.folder / "gateway.sock"
        self._server = await asyncio.get_running_loop().create_unix_server(self.entrance.arrive, path)

    async def listen_tunnel(self, context: ssl.SSLContext) -> str:
        """Where pilots elsewhere dial."""
        self._server = await self.entrance.listen(socket.create_server(("127.0.0.1", 0)), context, 5.0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def admit(self, hello: Hello) -> Refusal | None:
        self.secrets |= {hello.secret}
        return self.refusal

    def on_up(self, link: GatewayLink) -> None:
        self.news.append("up")

    def on_down(self, link: GatewayLink) -> None:
        self.news.append("down")

    def on_report(self, link: GatewayLink, report: PilotReport) -> None:
        if link not in self._links:
            self._links.append(link)
        self.reports.append(report)

    def on_lost(self, link: GatewayLink) -> None:
        self.news.append("lost")
        if link in self._links:
            self._links.remove(link)

    @property
    def link(self) -> GatewayLink:
        return self._links[-1]

    def start(
        self,
        *replicas: ReplicaSpec,
        python: str = sys.executable,
        orphan_s: float = 60,
        link: LinkSpec | None = None,
        **env: str,
    ) -> None:
        link = link or LinkSpec(path=str(self.folder / "gateway.sock"))
        spec = PilotSpec(self.job_id, "here", link, TOKEN, replicas, orphan_s)
        (self.folder / "pilot.json").write_bytes(encode(spec))
        env = {"PATH": os.environ["PATH"], "FIRST_JOB_ID": self.job_id, "FIRST_JOB_MEMORY": "10000", **env}
        with (self.folder / "pilot.log").open("ab") as log:
            self.process = subprocess.Popen(
                [python, "-I", str(self.zipapp), "pilot", "."], cwd=self.folder, env=env, stdout=log, stderr=log
            )

    def replica(self, replica_id: str = "rep-1") -> ReplicaReport | None:
        """The latest report of a replica."""
        latest = self.reports[-1].replicas if self.reports else ()
        return next((report for report in latest if report.replica_id == replica_id), None)

    async def until(self, state: ReplicaState, replica_id: str = "rep-1") -> ReplicaReport:
        await until(lambda: (report := self.replica(replica_id)) and report.state is state, f"{replica_id} {state}")
        report = self.replica(replica_id)
        assert report is not None
        return report

    def ask(self, max_tokens: int = 8, replica_id: str = "rep-1") -> Sink:
        sink, body = Sink(), chat(max_tokens)
        self.link.open(Open(replica_id, "POST", "/v1/chat/completions", len(body), stream=True), body, sink)
        return sink

    async def tokens_of(self, sink: Sink) -> None:
        await until(lambda: b"word3" in sink.data, "tokens")

    async def outcome(self, sink: Sink) -> Outcome:
        await until(lambda: sink.tail, "a tail")
        assert sink.tail is not None
        return sink.tail.outcome

    def engines(self) -> list[psutil.Process]:
        return engines_below(self.folder)

    async def exit_status(self) -> int:
        await until(lambda: self.process.poll() is not None, "the pilot's end")
        return self.process.returncode

    def log(self) -> str:
        return (self.folder / "pilot.log").read_text()

    async def lose_gateway(self) -> None:
        if self._server is not None:
            self._server.close()
        (self.folder / "gateway.sock").unlink(missing_ok=True)
        for link in list(self._links):
            link.close()

    async def close(self) -> None:
        await self.lose_gateway()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        await until(lambda: not self.engines(), "the end of all engines")


@contextmanager
def installed() -> Iterator[Path]:
    """The zipapp, placed for as long as the context lasts."""
    folder = tempfile.mkdtemp(prefix="first-", dir="/tmp")
    yield install(folder)
    shutil.rmtree(folder)


@asynccontextmanager
async def made(zipapp: Path, job_id: str = "job-1") -> AsyncIterator[Job]:
    """A job with a folder of its own; nothing listens or runs yet. All of it ends with the context."""
    folder = Path(tempfile.mkdtemp(prefix="first-", dir="/tmp"))
    job = Job(folder, zipapp, job_id)
    yield job
    await job.close()
    shutil.rmtree(folder)
