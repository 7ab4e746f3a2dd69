"""A whole FIRST of real processes for one test: gateway, controller, jobs, pilots, engines; nothing left behind.

Processes are known by their pid or by the job id in their environment, and only those are ever signalled.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import yaml
from sqlalchemy import select

from firstkit.auth import api_keys
from firstkit.auth.permissions import Scope
from firstkit.clusters.carrier import cluster_client
from firstkit.config import load_config
from firstkit.errors import SchedulerSilent
from firstkit.store.database import Database
from firstkit.store.tables import jobs, replicas, usage

T = TypeVar("T")
LIMIT_S = 60.0
BREAK, LONGEST_BREAK_S = 4, 0.5
"""So many times what a look costs passes until the next: what is waited for needs the processors, too."""


def wait_for(what: str, condition: Callable[[], T], limit_s: float = LIMIT_S) -> T:
    """The first true value of ``condition``; fails the test, naming ``what``, after ``limit_s``."""
    deadline = time.monotonic() + limit_s
    while True:
        asked_at = time.monotonic()
        if value := condition():
            return value
        now = time.monotonic()
        assert now < deadline, f"waited {limit_s:g} s in vain: {what}"
        time.sleep(min(max(0.02, BREAK * (now - asked_at)), LONGEST_BREAK_S))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fake_engine(behaviour: str = "QuickEngine", **options: object) -> dict[str, Any]:
    """A ``command`` engine that runs a shipped fake; options as of ``firstkit.testing.fake_engine``."""
    argv = [sys.executable, "-m", "firstkit.testing.fake_engine", "--behaviour", behaviour, "--socket", "{socket}"]
    for name, value in options.items():
        argv += [f"--{name.replace('_', '-')}", str(value)]
    return {"kind": "command", "argv": argv}


def one_model(engine: dict[str, Any], **deployment: Any) -> dict[str, Any]:
    """The ``models`` section with one model ``m`` on the local cluster ``here``."""
    resources = {"cpus_per_node": 1, "memory_gib": 0.1}
    return {"m": {"deployments": [{"cluster": "here", "engine": engine, "resources": resources, **deployment}]}}


ALL = tuple(scope.value for scope in Scope)


@dataclass
class Lab:
    """One FIRST in a folder of its own. ``start`` and ``kill_*`` as often as the test likes; ``close`` at the end."""

    folder: Path
    config_path: Path
    port: int
    gateway: subprocess.Popen[bytes] | None = None
    controller: subprocess.Popen[bytes] | None = None
    key: str = ""
    _runner: asyncio.Runner | None = None
    _db: Database | None = None

    @classmethod
    def make(
        cls,
        models: dict[str, Any],
        database_url: str | None = None,
        clusters: dict[str, Any] | None = None,
        sections: dict[str, Any] | None = None,
        **server: Any,
    ) -> Lab:
        """``clusters``: beside one without any setting, ``here``, and one for services of others, ``outside``.
        ``sections``: others of the configuration."""
        folder = Path(tempfile.mkdtemp(prefix="first-", dir="/tmp"))
        port = free_port()
        config: dict[str, Any] = {
            "server": {"listen": f"127.0.0.1:{port}", "state_dir": str(folder / "state"), **server},
            "clusters": {"here": {}, "outside": {"kind": "external"}, **(clusters or {})},
            "models": models,
            **(sections or {}),
        }
        if database_url:
            config["server"]["database"] = database_url
        path = folder / "first.yaml"
        path.write_text(yaml.safe_dump(config))
        lab = cls(folder, path, port)
        lab.key = asyncio.run(lab._make_key("lab"))
        return lab

    async def _make_key(self, name: str, scopes: tuple[str, ...] = ALL) -> str:
        async with self.database() as db:
            return (await api_keys.create(db, name, user="tester", project="lab", scopes=scopes))[0]

    def make_key(self, name: str, scopes: tuple[str, ...]) -> str:
        return asyncio.run(self._make_key(name, scopes))

    @contextlib.asynccontextmanager
    async def database(self) -> Any:
        self.config.server.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        db = await Database.open(self.config.server.database_url)
        try:
            yield db
        finally:
            await db.close()

    @property
    def config(self) -> Any:
        return load_config(self.config_path)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    # -- processes ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.start_gateway()
        self.start_controller()

    def start_gateway(self) -> None:
        self.gateway = self._spawn("firstkit.gateway")
        wait_for("the gateway answers", lambda: self.gateway_answers() or self._died(self.gateway))

    def start_controller(self) -> None:
        self.controller = self._spawn("firstkit.reconciler")

    def _spawn(self, module: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{module}.log").open("ab")
        with log:
            return subprocess.Popen(
                [sys.executable, "-m", module, "--config", str(self.config_path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _died(self, process: subprocess.Popen[bytes] | None) -> bool:
        assert process is not None
        assert process.poll() is None, self.logs()
        return False

    def gateway_answers(self) -> bool:
        try:
            return self.get("/health", socket_path=None)[0] == 200
        except OSError:
            return False

    def kill_gateway(self) -> None:
        assert self.gateway is not None
        self.gateway.kill()
        self.gateway.wait()

    def kill_controller(self) -> None:
        assert self.controller is not None
        self.controller.kill()
        self.controller.wait()

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-6000:]}" for path in sorted(self.folder.glob("*.log")))

    def processes(self, needle: str = "") -> list[psutil.Process]:
        """Living processes of this lab's jobs whose command line holds ``needle``."""
        found = []
        config = self.config
        folders = tuple(str(config.cluster_state_dir(name) / "jobs") for name in self._batch_clusters(config))
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                command = " ".join(process.cmdline())
                if process.cwd().startswith(folders) and needle in command:
                    found.append(process)
        return found

    def engines(self) -> list[psutil.Process]:
        return self.processes("fake_engine") + self.processes("llamacpp-server")

    def pilots(self) -> list[psutil.Process]:
        return self.processes(" pilot ")

    # -- looking in --------------------------------------------------------------------------------------------

    def get(self, path: str, socket_path: Path | None = None, **headers: str) -> tuple[int, bytes]:
        connection: http.client.HTTPConnection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        if socket_path is not None:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(socket_path))
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def status(self) -> dict[str, Any]:
        status, body = self.get("/admin/status", self.config.server.path("admin.sock"))
        assert status == 200, body
        return json.loads(body)

    def model_status(self, model: str = "m") -> str:
        return next(row["status"] for row in self.status()["models"] if row["id"] == model)

    def wait_live(self, model: str = "m", limit_s: float = LIMIT_S) -> None:
        try:
            wait_for(f"{model} is live", lambda: self.model_status(model) == "live", limit_s)
        except AssertionError as failure:
            raise AssertionError(f"{failure}\n{json.dumps(self.status(), indent=1)}\n{self.logs()}") from None

    def rows(self, table: Any) -> list[Any]:
        async def read() -> list[Any]:
            if self._db is None:
                self._db = await Database.open(self.config.server.database_url)
            async with self._db.read() as conn:
                return list((await conn.execute(select(table))).mappings())

        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(read())

    def usage(self) -> list[Any]:
        return self.rows(usage)

    def jobs(self) -> list[Any]:
        return self.rows(jobs)

    def replicas(self) -> list[Any]:
        return self.rows(replicas)

    # -- the end -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        for process in (self.gateway, self.controller):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in (self.gateway, self.controller):
            if process is not None:
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        if self._runner is not None:
            with self._runner as runner:
                if self._db is not None:
                    runner.run(self._db.close())
        asyncio.run(self._cancel_jobs())
        wait_for("all processes of the lab's jobs are gone", lambda: not self.processes())
        shutil.rmtree(self.folder)

    async def _cancel_jobs(self) -> None:
        config = self.config
        for name in self._batch_clusters(config):
            client = cluster_client(config, name)
            with contextlib.suppress(SchedulerSilent):  # a test may have left it dead; its jobs are looked for below
                for job_id, news in (await client.poll()).items():
                    if not news.state.is_final:
                        await client.cancel(job_id)

    @staticmethod
    def _batch_clusters(config: Any) -> list[str]:
        return [name for name, cluster in config.clusters.items() if cluster.kind == "batch"]


@contextlib.contextmanager
def running(models: dict[str, Any], database_url: str | None = None, **options: Any) -> Iterator[Lab]:
    """A lab with gateway and controller started; ``options`` as of ``Lab.make``."""
    lab = Lab.make(models, database_url, **options)
    try:
        lab.start()
        yield lab
    finally:
        lab.close()


def pid_is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def environment_of(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_bytes().replace(b"\0", b"\n").decode(errors="replace")
