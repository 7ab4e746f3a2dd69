"""A PostgreSQL server of the test session's own: in a temporary folder, on a UNIX socket, gone with the session."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

LIMIT_S = 30.0


class Missing(Exception):
    """PostgreSQL cannot be run here; the message says why."""


def binaries() -> Path:
    """The folder with initdb, postgres and psql; raises Missing."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if all((folder / name).exists() for name in ("initdb", "postgres", "psql")):
            return folder
    raise Missing("initdb, postgres and psql are neither on PATH nor in /usr/lib/postgresql/*/bin")


def _person() -> dict[str, Any]:
    """Whom the server runs as, since it refuses to run as root: arguments for subprocess."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise Missing("PostgreSQL refuses to run as root, and there is neither a user 'postgres' nor 'nobody'")


class Server:
    """Started when made; ``create`` gives the URL of a fresh database, ``stop`` leaves nothing behind."""

    def __init__(self) -> None:
        self._bin = binaries()
        self._person = _person()
        self.folder = Path(tempfile.mkdtemp(prefix="first-", dir="/tmp"))
        self._names = count(1)
        self.process: subprocess.Popen[bytes] | None = None
        try:
            if self._person:
                os.chown(self.folder, self._person["user"], self._person["group"])
            initdb = [self._bin / "initdb", "-D", self.folder / "data", "-U", "first", "-A", "trust", "--no-sync"]
            self._run([*initdb, "-E", "UTF8", "--locale=C.UTF-8"], **self._person)
            self.start()
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = ["-k", self.folder, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=200"]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "INT", self._bin / "postgres", "-D", self.folder / "data", *options],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **self._person,
            )
        deadline = time.monotonic() + LIMIT_S
        while not self._answers():
            log_text = (self.folder / "log").read_text(errors="replace")
            assert self.process.poll() is None, f"PostgreSQL does not start: {log_text[-2000:]}"
            assert time.monotonic() < deadline, f"PostgreSQL does not answer: {log_text[-2000:]}"
            time.sleep(0.05)

    def kill(self, how: int = signal.SIGINT) -> None:
        """End the server process: SIGINT cuts all connections and shuts down in order."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(LIMIT_S)
            self.process = None

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def create(self, template: str | None = None) -> str:
        """``template``: the name of a database that is copied, to which nobody is connected."""
        name = f"first_{next(self._names)}"
        self.sql(f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else ""))
        return f"postgresql://first@/{name}?host={self.folder}"

    def drop(self, url: str) -> None:
        self.sql(f"DROP DATABASE {name_of(url)} WITH (FORCE)")

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run one statement; returns what psql prints, unaligned and without headings."""
        psql = [self._bin / "psql", "-h", self.folder, "-U", "first", "-d", database, "-v", "ON_ERROR_STOP=1"]
        return self._run([*psql, "-qAtXc", statement])

    def _answers(self) -> bool:
        psql = [self._bin / "psql", "-h", self.folder, "-U", "first", "-d", "postgres", "-qAtXc", "SELECT 1"]
        return subprocess.run(psql, check=False, capture_output=True, cwd="/").returncode == 0

    def _run(self, command: list[Any], **person: Any) -> str:
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/", **person)
        assert done.returncode == 0, f"{command[0]}: {done.stderr}"
        return done.stdout.strip()


def name_of(url: str) -> str:
    """Of the database at a URL that ``create`` gave."""
    return url.removeprefix("postgresql://first@/").partition("?")[0]
