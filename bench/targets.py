"""The gateways that are measured side by side, each started on a core of its own and ended by its pid."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import yaml

from firstkit import __version__
from firstkit.config import parse_config
from firstkit.errors import ConfigError
from measure import BIN, MODEL, Cores, CoreTime, Load, Run, build, cpu_s, on_core, rss_bytes, under_load

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from lab import Lab, free_port, wait_for

VLLM_ROUTER = "0.1.17"
SETTLE_S, SETTLE_LIMIT_S, SETTLED_SHARE = 0.1, 20.0, 0.04
MANY = 10_000_000
"""A limit that is checked for every request and refuses none: the highest that there is."""
WITH_LIMITS = {"limits": {"requests_per_minute_per_key": MANY, "concurrency_per_key": MANY}}
NGINX = """
worker_processes 1;
worker_rlimit_nofile 16384;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    client_max_body_size 32m;
    keepalive_requests 1000000;
    upstream engine {{
        server 127.0.0.1:{engine};
        keepalive 1024;
        keepalive_requests 1000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://engine;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_request_buffering off;
            proxy_buffering off;
        }}
    }}
}}
"""


class Skip(Exception):
    """This gateway cannot be measured here; the words say why."""


class Target:
    """One gateway. ``start`` it once; ``close`` ends all that it started, also after a start that failed."""

    name = ""
    is_behind_pilot = False

    def __init__(self, cores: Cores, engine_port: int) -> None:
        self.cores = cores
        self.engine_port = engine_port
        self.port = free_port()
        self.key = ""
        self.process: subprocess.Popen[bytes] | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="first-bench-", dir="/tmp"))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Start on the gateway's core and wait until it answers; raises Skip."""
        raise NotImplementedError

    def version(self) -> tuple[str, str]:
        """What to call the program, and its version."""
        return self.name, ""

    def pids(self) -> list[int]:
        """The gateway's own processes."""
        assert self.process is not None
        main = psutil.Process(self.process.pid)
        return [main.pid, *(child.pid for child in main.children(recursive=True))]

    def beside(self) -> dict[str, list[int]]:
        """Processes that work for the gateway on the other core."""
        return {}

    def close(self) -> None:
        _end(self.process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def spawn(self, *words: str) -> None:
        """Run the gateway's command, with its output in a file of its folder, until it answers at /health."""
        with on_core(self.cores.gateway), (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(f"{self.name} answers", lambda: self._has_ended() or answers(self.port))

    def _has_ended(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise Skip(f"it ended at once: {(self.folder / 'log').read_text()[-500:]}")
        return False

    # -- measuring ---------------------------------------------------------------------------------------------

    def run(self, load: Load, *, samples_memory: bool = False) -> Run:
        """Put ``load`` on this gateway and wait until it has come to rest."""
        pids, beside = self.pids(), self.beside()
        before_s = cpu_s(pids)
        beside_s = {part: cpu_s(theirs) for part, theirs in beside.items()}
        core, started = CoreTime.read(self.cores.gateway), time.monotonic()
        rss_before = rss_peak = rss_bytes(pids)
        with under_load(self.url, self.key, load) as loading:
            while samples_memory and not loading.is_over:
                rss_peak = max(rss_peak, rss_bytes(pids))
                time.sleep(SETTLE_S)
        _settle(pids)
        spent_s, elapsed_s = cpu_s(pids) - before_s, time.monotonic() - started
        after = CoreTime.read(self.cores.gateway)
        return Run(
            load=loading.found,
            cpu_s=spent_s,
            beside_s={part: cpu_s(beside[part]) - was_s for part, was_s in beside_s.items()},
            rss_before=rss_before,
            rss_peak=rss_peak,
            others_share=max(0.0, after.busy_s - core.busy_s - spent_s) / elapsed_s,
            stolen_share=(after.stolen_s - core.stolen_s) / elapsed_s,
        )


class Engine(Target):
    """The engine that all but pilots share. Asked itself it is ``direct``: what no gateway can be faster than."""

    name = "direct"

    def __init__(self, cores: Cores) -> None:
        super().__init__(cores, 0)

    def start(self) -> None:
        with on_core(self.cores.rest):
            self.process = subprocess.Popen([str(build("mock_engine")), "--port", str(self.port), "--model", MODEL])
        wait_for("the engine answers", lambda: answers(self.port))


class Nginx(Target):
    name = "nginx"

    def start(self) -> None:
        program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
        if program is None:
            raise Skip("it is not installed: apt-get install nginx-light")
        path = self.folder / "nginx.conf"
        path.write_text(NGINX.format(folder=self.folder, port=self.port, engine=self.engine_port))
        self.folder.chmod(0o755)  # its worker is another user where we are root
        self.spawn(program, "-p", str(self.folder), "-c", str(path), "-g", "daemon off;")

    def version(self) -> tuple[str, str]:
        assert self.process is not None
        program = psutil.Process(self.process.pid).exe()
        found = subprocess.run([program, "-v"], capture_output=True, text=True, check=True)
        return self.name, found.stderr.strip().rpartition("/")[2]


class VllmRouter(Target):
    """With its cheapest policy, and without a line in its log for every request."""

    name = "vllm-router"

    def start(self) -> None:
        program = self._installed()
        self.spawn(
            str(program), "--host", "127.0.0.1", "--port", str(self.port),
            "--worker-urls", f"http://127.0.0.1:{self.engine_port}",
            "--policy", "round_robin", "--log-level", "error", "--prometheus-port", str(free_port()),
        )  # fmt: skip

    def version(self) -> tuple[str, str]:
        return self.name, VLLM_ROUTER

    @staticmethod
    def _installed() -> Path:
        """The command, in a virtual environment of its own that is made at first use."""
        folder = BIN / f"vllm-router-{VLLM_ROUTER}"
        program = folder / "bin" / "vllm-router"
        if not program.exists():
            python = str(folder / "bin" / "python")
            try:
                subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
                words = [python, "-I", "-m", "pip", "install", "--quiet", f"vllm-router=={VLLM_ROUTER}"]
                subprocess.run(words, check=True, capture_output=True)
            except subprocess.CalledProcessError as error:
                shutil.rmtree(folder, ignore_errors=True)
                raise Skip(f"it cannot be installed: {error.stderr.decode()[-300:]}") from error
        return program


class First(Target):
    """This project: keys, limits, admission, metrics and ledger on, SQLite. On the other core: the controller, which
    loads the ledger."""

    def __init__(self, cores: Cores, engine_port: int) -> None:
        super().__init__(cores, engine_port)
        self.lab: Lab | None = None

    def deployment(self) -> dict[str, Any]:
        raise NotImplementedError

    def configuration(self) -> dict[str, Any]:
        """What the configuration has beyond that of a lab; raises Skip when this version refuses it."""
        return WITH_LIMITS

    def start(self) -> None:
        more = self.configuration()
        self.lab = lab = Lab.make({MODEL: {"deployments": [self.deployment()]}}, max_waiting=4096)
        lab.config_path.write_text(yaml.safe_dump(merged(yaml.safe_load(lab.config_path.read_text()), more)))
        self.port, self.key = lab.port, lab.key
        with on_core(self.cores.gateway):
            lab.start_gateway()
        self.process = lab.gateway
        with on_core(self.cores.rest):
            lab.start_controller()

    def beside(self) -> dict[str, list[int]]:
        assert self.lab is not None
        assert self.lab.controller is not None
        return {"controller": [self.lab.controller.pid]}

    def version(self) -> tuple[str, str]:
        return "FIRST", f"{__version__} (uvicorn {version('uvicorn')}, uvloop {version('uvloop')})"

    def close(self) -> None:
        if self.lab is not None:
            self.lab.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class External(First):
    name = "external"

    def deployment(self) -> dict[str, Any]:
        engine = {"kind": "external", "url": f"http://127.0.0.1:{self.engine_port}/v1"}
        return {"cluster": "outside", "engine": engine, "scale": {"max_in_flight": 4096}}


class BehindPilot(First):
    """The same engine, run by a pilot that dials the gateway's UNIX socket. Its job is on the other core."""

    name = "pilot"
    is_behind_pilot = True

    def deployment(self) -> dict[str, Any]:
        engine = {"kind": "command", "argv": [str(build("mock_engine")), "--port", "{port}", "--model", MODEL]}
        resources = {"cpus_per_node": 1, "memory_gib": 0.1}
        scale = {"hot": 1, "max": 1, "max_in_flight": 4096}
        return {"cluster": "here", "engine": engine, "resources": resources, "scale": scale}

    def start(self) -> None:
        super().start()
        assert self.lab is not None
        self.lab.wait_live(MODEL)

    def beside(self) -> dict[str, list[int]]:
        assert self.lab is not None
        return {"pilot": [process.pid for process in self.lab.pilots()], **super().beside()}


class Tunnel(BehindPilot):
    """The same over TLS: the pilot dials the gateway's pilot port."""

    name = "tunnel"

    def configuration(self) -> dict[str, Any]:
        tunnel = {
            "server": {"pilot_listen": f"127.0.0.1:{free_port()}"},
            "clusters": {"here": {"link": {"kind": "tunnel"}}},
        }
        if (words := refusal(tunnel)) is not None:
            raise Skip(f"its configuration is refused: {words}")
        return merged(super().configuration(), tunnel)


def refusal(more: dict[str, Any]) -> str | None:
    """The first thing that is wrong with a configuration that has ``more``; None when it is accepted."""
    plain: dict[str, Any] = {"clusters": {"here": {}}, "models": {}}
    try:
        parse_config(yaml.safe_dump(merged(plain, more)))
    except ConfigError as error:
        return error.message.splitlines()[1].partition(";")[0].strip()
    return None


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Mappings of mappings as one; where both have a value, the other's."""
    found = dict(one)
    for name, value in other.items():
        both = isinstance(value, dict) and isinstance(found.get(name), dict)
        found[name] = merged(found[name], value) if both else value
    return found


def answers(port: int) -> bool:
    """Whether somebody answers GET /health on this port with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    return False


def _settle(pids: list[int]) -> None:
    """Wait until nothing is done any more for clients that have gone, or whoever is next would pay for it."""
    deadline, before_s = time.monotonic() + SETTLE_LIMIT_S, cpu_s(pids)
    while time.monotonic() < deadline:
        time.sleep(SETTLE_S)
        now_s = cpu_s(pids)
        if now_s - before_s < SETTLED_SHARE * SETTLE_S:
            return
        before_s = now_s


def _end(process: subprocess.Popen[bytes] | None) -> None:
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
