"""The place of one replica: its folder, its address and key, and the environment in which its engine runs."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Mapping

from firstkit.engines.engine import Address, Engine, Place
from firstkit.ids import new_secret
from firstkit.onsite.allotment import Share, gpu_environment

SOCKET = "engine.sock"
LOG = "engine.log"
KEY_FILE = "engine.key"
_OURS = frozenset({SOCKET, KEY_FILE, "tmp", "cache"})
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
REPLICA_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")
"""Ids become names of folders."""
_KEPT = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH"}
    | {"BASH_ENV", "FIRST_JOB_ID", "FIRST_JOB_END"}
)
_KEPT_OF_MODULES = ("MODULE", "LMOD_", "BASH_FUNC_ml", "BASH_FUNC_module", "_ModuleTable")
"""Environment modules, which the ``setup`` of an engine may load."""
_TMPDIR_LENGTH = 60
"""Engines make sockets of up to 40 characters in TMPDIR; the kernel takes paths of 107."""


def make_place(folder: str, engine: Engine, share: Share) -> Place:
    """Make ``folder`` (absolute) with all that belongs there, and find an address. Raises OSError."""
    for path in (folder, os.path.join(folder, "tmp"), os.path.join(folder, "cache")):
        os.makedirs(path, mode=0o700, exist_ok=True)
    cpus = share.cpus if share.is_bound else share.cpus[: len(os.sched_getaffinity(0))]
    if engine.takes_socket:
        return Place(folder, cpus, share.gpus, Address(socket=SOCKET), is_bound=share.is_bound)
    key, key_file = new_secret(), os.path.join(folder, KEY_FILE)
    with open(key_file, "w", encoding="ascii", opener=_private) as file:
        file.write(key)
    return Place(folder, cpus, share.gpus, Address(port=free_port()), key, key_file, share.is_bound)


def write_files(folder: str, files: Mapping[str, str]) -> None:
    """Write what an engine wants to read there, for this user alone. Raises ValueError for a name that is no name of a
    file in that folder, or belongs to something else, and OSError."""
    for name in files:
        if not _FILE_NAME.match(name) or name in _OURS or name.startswith(LOG):
            raise ValueError(f"{name[:100]!r} is no name for a file of an engine")
    for name, text in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8", opener=_private) as file:
            file.write(text)


def clear_place(folder: str, files: Iterable[str] = ()) -> None:
    """Remove what an ended engine has no use for, its ``files`` too; its log stays. What cannot be removed stays as
    well."""
    import shutil

    for name in (SOCKET, KEY_FILE, *files):
        try:
            os.unlink(os.path.join(folder, name))
        except OSError:
            continue  # not there: the engine had the other kind of address, or never came so far
    for name in ("tmp", "cache"):
        shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


def environment(place: Place, env: Mapping[str, str]) -> dict[str, str]:
    """What an engine gets of the pilot's environment ``env``, and what is its own. The rest may be secrets."""
    kept = {name: value for name, value in env.items() if name in _KEPT or name.startswith(_KEPT_OF_MODULES)}
    return {
        **kept,
        **gpu_environment(env, place.gpus),
        "TMPDIR": _tmpdir(place.folder),
        "XDG_CACHE_HOME": os.path.join(place.folder, "cache"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has now. Somebody may take it before the engine does: see ``is_port_free``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_port_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _tmpdir(folder: str) -> str:
    """The folder's ``tmp``; where that name is too long, a short name for the same, good while this process lives."""
    path = os.path.join(folder, "tmp")
    if len(path) <= _TMPDIR_LENGTH:
        return path
    return os.path.join(f"/proc/{os.getpid()}/cwd", os.path.relpath(path))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_TRUNC, 0o600)
