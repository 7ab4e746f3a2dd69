"""nginx and HAProxy in front of a gateway, each as one process on a free port with all its files in one folder."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from faults.tools import program
from faults.wire import Wire
from lab import free_port, wait_for

NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log warn;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 64m;
    ignore_invalid_headers off;
    underscores_in_headers on;
    upstream gateway {{
        server 127.0.0.1:{gateway};
        keepalive 1;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://gateway;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Connection "";
            proxy_request_buffering {buffering};
            proxy_next_upstream off;
        }}
    }}
}}
"""
HAPROXY = """
global
    log stderr local0 notice
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    {option}
frontend clients
    bind 127.0.0.1:{port}
    default_backend gateway
backend gateway
    http-reuse always
    server one 127.0.0.1:{gateway} pool-max-conn 1
"""


@dataclass(frozen=True)
class Kind:
    """A program, and how it is set up: as its manual says, or as leniently as it can be."""

    name: str
    package: str
    text: str
    settings: tuple[tuple[str, str], ...]
    is_lenient: bool = False

    def command(self, path: str, configuration: Path) -> list[str]:
        if self.package == "nginx":
            return [path, "-p", str(configuration.parent), "-c", str(configuration), "-e", "stderr"]
        return [path, "-db", "-f", str(configuration)]


KINDS = (
    Kind("nginx, bodies held", "nginx", NGINX, (("buffering", "on"),)),
    Kind("nginx, bodies passed on", "nginx", NGINX, (("buffering", "off"),), is_lenient=True),
    Kind("haproxy", "haproxy", HAPROXY, (("option", "option http-keep-alive"),)),
    Kind("haproxy, lenient", "haproxy", HAPROXY, (("option", "option accept-invalid-http-request"),), is_lenient=True),
)


@dataclass
class Proxy:
    """One that runs. ``gateway`` is the port that it passes requests on to."""

    port: int
    gateway: int
    process: subprocess.Popen[bytes]

    def behind(self) -> set[int]:
        """Its own ports of the connections that it holds to the gateway."""
        found = psutil.Process(self.process.pid).net_connections("tcp")
        return {one.laddr.port for one in found if one.raddr and one.raddr.port == self.gateway}


@contextlib.contextmanager
def proxy(kind: Kind, gateway: int) -> Iterator[Proxy]:
    """A proxy of ``kind`` in front of the port ``gateway``."""
    path = program(kind.package, kind.package)
    with tempfile.TemporaryDirectory(prefix="first-", dir="/tmp") as folder:
        port = free_port()
        configuration = Path(folder) / "proxy.conf"
        configuration.write_text(kind.text.format(folder=folder, gateway=gateway, port=port, **dict(kind.settings)))
        with (Path(folder) / "output").open("wb") as output:
            process = subprocess.Popen(kind.command(path, configuration), stdout=output, stderr=output)
        try:
            wait_for(f"{kind.name} answers", lambda: answers(port) or died(process, Path(folder)))
            yield Proxy(port, gateway, process)
        finally:
            process.terminate()
            process.wait(10)


def answers(port: int) -> bool:
    try:
        with Wire(port) as wire:
            wire.send(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            return wire.answer().status == 200
    except (OSError, EOFError):
        return False


def died(process: subprocess.Popen[bytes], folder: Path) -> bool:
    assert process.poll() is None, (folder / "output").read_text()
    return False
