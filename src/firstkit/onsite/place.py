"""The place of one replica: its folder, its address and key, and the environment in which its engine runs."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Optional

from firstkit.engines.engine import Address, Engine, Head, Place
from firstkit.ids import new_secret
from firstkit.onsite.allotment import Share, gpu_environment
from firstkit.onsite.nodes import spot

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


@dataclass(frozen=True)
class Seat:
    """Which rank of a replica of several nodes a place is for. ``hosts``: of all ranks. ``head``: where rank 0 awaits
    the others; None: it is this one's to choose."""

    rank: int
    hosts: tuple[str, ...]
    head: Optional[Head] = None
    interface: Optional[str] = None


def make_place(folder: str, engine: Engine, share: Share, seat: Optional[Seat] = None) -> Place:
    """Make ``folder`` (absolute) with all that belongs there, and find an address, and a seat among the ranks.

    Raises OSError, and NoNodes where this node has no address among the others.
    """
    place = _place(folder, engine, share)
    if seat is None:
        return place
    here = spot(seat.interface)
    head = seat.head or Head(here.address, free_port(here.address))
    return replace(
        place, rank=seat.rank, ranks=len(seat.hosts), head=head, host_address=here.address, interface=here.interface
    )


def _place(folder: str, engine: Engine, share: Share) -> Place:
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
    return {
        **kept_environment(env),
        **gpu_environment(env, place.gpus),
        **_rank_environment(place),
        "TMPDIR": _tmpdir(place.folder),
        "XDG_CACHE_HOME": os.path.join(place.folder, "cache"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def kept_environment(env: Mapping[str, str]) -> dict[str, str]:
    """What of ``env`` is for everybody: paths, language, environment modules."""
    return {name: value for name, value in env.items() if name in _KEPT or name.startswith(_KEPT_OF_MODULES)}


def _rank_environment(place: Place) -> dict[str, str]:
    """What keeps the traffic of ranks on their interface; the equals sign: that very one, and none whose name begins
    so."""
    if place.ranks == 1:
        return {}
    return {"NCCL_SOCKET_IFNAME": f"={place.interface}", "GLOO_SOCKET_IFNAME": place.interface}


def free_port(address: str = "127.0.0.1") -> int:
    """A port there that nobody has now. Somebody may take it before the engine does: see ``is_port_free``."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def is_port_free(port: int, address: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
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
