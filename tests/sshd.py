"""A real sshd on the loopback, with keys and files of its own, and a cluster behind the forced command of its key."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from firstkit.clusters.installing import install_script, public_key_of
from firstkit.config import Config, parse_config

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
LIMIT_S = 20.0
SETTINGS = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowTcpForwarding yes
Subsystem sftp internal-sftp
LogLevel VERBOSE
"""
FIRST_YAML = """
server: {{pilot_listen: "127.0.0.1:1", state_dir: {folder}/server}}
clusters:
  far:
    scheduler: {{kind: local, cpus: 1, memory_gib: 1}}
    carrier: {{kind: ssh, host: 127.0.0.1, port: {port}, user: {user}, key_file: {folder}/key,
              known_hosts: {folder}/known_hosts, connect_timeout: 5}}
    link: {{kind: tunnel}}
    state_dir: {state_dir}
    models_root: {folder}/models
    engines:
      fake:
        kind: command
        argv: [{python}, -m, firstkit.testing.fake_engine, --socket, "{{socket}}"]
models:
  m: {{deployments: [{{cluster: far, engine: fake, weights: small, resources: {{memory_gib: 0.5}}}}]}}
"""


def need_sshd() -> None:
    if not os.access(SSHD, os.X_OK):
        assert os.environ.get("CI") != "true", "CI needs openssh-server"
        pytest.skip("no sshd is installed")


def make_key(path: Path) -> str:
    """A key pair without passphrase; returns the public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True)
    return path.with_name(f"{path.name}.pub").read_text().strip()


def lock_key(path: Path) -> None:
    """Give a key a passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "pass phrase", "-f", str(path)], check=True)


class Sshd:
    """Listens on a port of its own. ``log`` holds what it says; the connections of its past lives are there too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self.log = folder / "sshd.log"
        host_key = make_key(folder / "host_key")
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key.rpartition(' ')[0]}\n")
        (folder / "authorized_keys").touch()
        (folder / "sshd_config").write_text(SETTINGS.format(port=self.port, folder=folder))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with self.log.open("ab") as log:
            command = [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        give_up_at = time.monotonic() + LIMIT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < give_up_at, "sshd does not listen"
            time.sleep(0.02)

    def children(self) -> list[psutil.Process]:
        """The processes of its connections, and what runs in their sessions."""
        return [] if self._process is None else psutil.Process(self._process.pid).children(recursive=True)

    def kill_connections(self) -> None:
        for child in self.children():
            with contextlib.suppress(psutil.Error):
                child.kill()

    def logins(self) -> int:
        return self.log.read_text().count("Accepted publickey")

    def stop(self) -> None:
        if self._process is not None:
            self.kill_connections()
            self._process.kill()
            self._process.wait()
            self._process = None


class FarCluster:
    """A cluster with the local scheduler behind a gate, set up as ``first cluster install`` does it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state_dir = folder, folder / "state"
        self.sshd = Sshd(folder)
        make_key(folder / "key")
        (folder / "models" / "small").mkdir(parents=True)
        names = {"folder": folder, "state_dir": self.state_dir, "python": sys.executable}
        self.yaml = FIRST_YAML.format(port=self.sshd.port, user=getpass.getuser(), **names)
        self.config: Config = parse_config(self.yaml)
        self.install()

    def install(self) -> str:
        """Run the script of the installation as a person would, and take its line over; returns what it said."""
        script = install_script(self.config, "far", public_key_of(self.folder / "key"))
        command = [sys.executable, "-I", "-"]
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        (self.folder / "authorized_keys").write_text(done.stdout.splitlines()[-1] + "\n")
        return done.stdout


@contextlib.contextmanager
def far_cluster(folder: Path) -> Iterator[FarCluster]:
    need_sshd()
    far = FarCluster(folder)
    far.sshd.start()
    try:
        yield far
    finally:
        far.sshd.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
