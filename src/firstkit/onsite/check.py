"""What ``first cluster check`` learns from the cluster itself: on the login node, and from a trial job on a node."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Optional

from firstkit import __version__
from firstkit.engines.engine import ReplicaSpec
from firstkit.engines.registry import engine_of
from firstkit.errors import ConfigError
from firstkit.onsite.allowed import ALLOWED_FILE, Allowed, NotAllowed, check_replica
from firstkit.wire import WireError, decode

OK, WARNING, FAILED = "ok", "warning", "failed"
TRIAL_RESULT = "trial.json"
LEAST_FREE_BYTES = 1024**3
PACKAGES = {"llamacpp": "xllamacpp", "vllm": "vllm", "sglang": "sglang"}
"""Kind of engine -> what our own Python has to have when the engine names no program."""
OF_ONE_HOST = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "ramfs"})


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``status``: ok, warning or failed; ``fix``: what to do unless it is ok."""

    what: str
    status: str
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Trial:
    """What a trial job looks at: whether it reaches one of ``addresses`` (``host:port``), through ``proxy`` where
    there is one, and what ``replicas`` need."""

    addresses: tuple[str, ...] = ()
    proxy: Optional[str] = None
    replicas: tuple[ReplicaSpec, ...] = ()


@dataclass(frozen=True)
class TrialResult:
    """What a trial job found. It exists: the job ran, and its node shares the state directory."""

    host: str
    python: str
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Site:
    """The cluster as its login node sees it. ``program``: the name of the file that answered, with its hash."""

    program: str
    version: str
    python: str
    host: str
    user: str
    findings: tuple[Finding, ...] = ()
    trial: Optional[TrialResult] = None


def look(
    state_dir: str, allowed: Optional[Allowed], replicas: Sequence[ReplicaSpec], job_id: Optional[str], program: str
) -> Site:
    """Look around here; with ``job_id``, also at what that trial job has written so far."""
    return Site(
        program=os.path.basename(program),
        version=__version__,
        python=f"{platform.python_version()} ({sys.executable})",
        host=os.uname().nodename,
        user=_user(),
        findings=(*_state_dir(state_dir), *_list(allowed), *look_at_replicas(replicas, allowed)),
        trial=None if job_id is None else _trial_result(os.path.join(state_dir, "jobs", job_id, TRIAL_RESULT)),
    )


def look_at_replicas(replicas: Sequence[ReplicaSpec], allowed: Optional[Allowed]) -> Iterator[Finding]:
    """Whether what these replicas need is on this host. Of what is not allowed nothing is told, not even that."""
    for spec in replicas:
        try:
            if allowed is not None:
                check_replica(allowed, spec)
            engine_of(spec.engine).check(spec)
        except NotAllowed as exc:
            yield Finding(spec.deployment, FAILED, exc.message, "run 'first cluster install', or change the list")
            continue
        except ConfigError as exc:
            yield Finding(spec.deployment, FAILED, exc.message, "correct the configuration")
            continue
        yield replace(_program(spec), what=f"{spec.deployment}: program")
        if spec.weights is not None:
            yield replace(_weights(spec.weights), what=f"{spec.deployment}: weights")


def _state_dir(state_dir: str) -> Iterator[Finding]:
    what, jobs = "state directory", os.path.join(state_dir, "jobs")
    try:
        os.makedirs(jobs, mode=0o700, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=jobs, prefix=".check-") as file:
            file.write(b"x")
            file.flush()
        mode, disk = os.stat(jobs).st_mode & 0o777, os.statvfs(jobs)
    except OSError as exc:
        yield Finding(what, FAILED, f"{exc.filename or state_dir}: {exc.strerror}", "make it writable for this user")
        return
    if mode & 0o077:
        yield Finding(what, FAILED, f"{jobs} has mode {mode:04o}", f"chmod 700 {jobs}: files there hold secrets")
        return
    kind = _file_system(state_dir)
    yield Finding(what, OK, f"{state_dir} can be written; file system {kind or 'unknown'}")
    if disk.f_bavail * disk.f_frsize < LEAST_FREE_BYTES:
        yield Finding("disk", WARNING, "less than 1 GiB is free in the state directory", "make room")
    if kind in OF_ONE_HOST:
        fix = "compute nodes have to see it; 'first cluster check --job' proves that"
        yield Finding("shared files", WARNING, f"{state_dir} is on {kind}, a file system of one host", fix)


def _list(allowed: Optional[Allowed]) -> Iterator[Finding]:
    if allowed is None:
        yield Finding(ALLOWED_FILE, OK, "there is none: this carrier's user runs what the configuration says")
    else:
        names = ", ".join(sorted({entry.engine.name for entry in allowed.engines})) or "no engine"
        yield Finding(ALLOWED_FILE, OK, f"allows {names}")


def _program(spec: ReplicaSpec) -> Finding:
    engine, program = spec.engine, spec.engine.program
    if program is None:
        package = PACKAGES.get(engine.kind, engine.kind)
        if engine.setup or find_spec(package) is not None:
            return Finding("", OK, f"the package {package} of {'its setup' if engine.setup else sys.executable}")
        fix = "name the engine's python or binary in the configuration"
        return Finding("", FAILED, f"{sys.executable} has no package {package}", fix)
    if shutil.which(program, path=engine.env.get("PATH")) is not None:
        return Finding("", OK, program)
    if engine.setup and not os.path.isabs(program):
        return Finding("", OK, f"{program}, which its setup has to find")
    return Finding("", FAILED, f"{program} is not on {os.uname().nodename}, or may not be run", "correct the path")


def _weights(path: str) -> Finding:
    if not os.path.exists(path):
        return Finding("", FAILED, f"there is nothing at {path} on {os.uname().nodename}", "put the weights there")
    if not os.access(path, os.R_OK):
        return Finding("", FAILED, f"{path} cannot be read by {_user()}", "let this user read it")
    return Finding("", OK, path)


def _trial_result(path: str) -> Optional[TrialResult]:
    try:
        os.listdir(os.path.dirname(path))  # so that network file systems look again
        with open(path, "rb") as file:
            return decode(TrialResult, file.read())
    except (OSError, WireError):
        return None


def _file_system(path: str) -> str:
    """The kind of file system that holds ``path``; empty: not known."""
    found, length = "", -1
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="replace") as file:
            for line in file:
                _, where, kind = line.split(" ")[:3]
                folder = os.path.join(where.replace("\\040", " "), "")
                if len(where) >= length and os.path.join(os.path.realpath(path), "").startswith(folder):
                    found, length = kind, len(where)
    except (OSError, ValueError):
        return ""
    return found


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
