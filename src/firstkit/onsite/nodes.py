"""The nodes of a job: their names, this node's address among them, the command that starts a program on the others."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

from firstkit.errors import FirstError

logger = logging.getLogger(__name__)

SIOCGIFADDR = 0x8915
PBS_BIN = "/opt/pbs/bin"
MOST_HOSTS = 100_000
_GROUP = re.compile(r"\[([0-9,-]+)\]")
_PART = r"(?:[^,\[\]]|\[[^\]]*\])+"
_PARTS, _LIST = re.compile(_PART), re.compile(f"(?:{_PART}(?:,{_PART})*)?\\Z")


class NoNodes(FirstError):
    """The other nodes of this job cannot be used: the message says why."""


@dataclass(frozen=True)
class Spot:
    """Where a node is reached by the others of its job."""

    address: str
    interface: str


def hosts_of(env: Mapping[str, str]) -> tuple[str, ...]:
    """The nodes of the job with this environment, ours first, each once: ours alone where the list is none."""
    try:
        hosts = tuple(dict.fromkeys(_listed(env)))
    except (NoNodes, OSError, UnicodeDecodeError) as exc:
        logger.warning("the nodes of this job are not known: %s", exc, extra={"action": "nodes_unknown"})
        hosts = ()
    return hosts or (socket.gethostname(),)


def _listed(env: Mapping[str, str]) -> list[str]:
    if "SLURM_JOB_ID" in env:
        return expand(env.get("SLURM_JOB_NODELIST", ""))
    if "PBS_NODEFILE" not in env:
        return []
    with open(env["PBS_NODEFILE"], encoding="utf-8") as file:
        return file.read().split()


def expand(text: str) -> list[str]:
    """The names in a list as Slurm writes it: ``n[01-03,7],login``. Raises NoNodes where it cannot be read."""
    names: list[str] = []
    for part in _PARTS.findall(text) if _LIST.match(text) else [text]:
        names += _expand_one(part)
        _check_count(len(names), text)
    return names


def _expand_one(part: str) -> list[str]:
    group = _GROUP.search(part)
    if group is None:
        if "[" in part or "]" in part:
            raise NoNodes(f"not a list of nodes: {part[:100]!r}")
        return [part] if part else []
    rest = _expand_one(part[group.end() :]) or [""]
    numbers = list(_numbers(group.group(1)))
    _check_count(len(numbers) * len(rest), part)
    return [part[: group.start()] + number + tail for number in numbers for tail in rest]


def _check_count(count: int, text: str) -> None:
    if count > MOST_HOSTS:
        raise NoNodes(f"too many nodes: {text[:100]!r}")


def _numbers(text: str) -> Iterator[str]:
    """``01-03,7``: 01, 02, 03, 7."""
    for item in text.split(","):
        first, dash, last = item.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or int(last or first) - int(first) > MOST_HOSTS:
            raise NoNodes(f"not a list of nodes: {text[:100]!r}")
        for number in range(int(first), int(last or first) + 1):
            yield str(number).zfill(len(first))


def launcher(env: Mapping[str, str], others: int, cpus: int, argv: Sequence[str]) -> list[str]:
    """The command that runs ``argv`` once on each of the ``others``, the nodes of this job but ours.

    Slurm: ``--relative=1`` counts from the node of the batch script on; all memory and GPUs that the job has there.
    ``--overlap``: what a step of before still holds is no reason to wait. PBS: pbsdsh, which is part of it and speaks
    to it alone, whereas each mpiexec has options of its own; it starts one on our node too, which ends at once.
    Raises NoNodes.
    """
    if "SLURM_JOB_ID" in env:
        counts = [f"--nodes={others}", f"--ntasks={others}", "--ntasks-per-node=1", f"--cpus-per-task={max(1, cpus)}"]
        manner = ["--relative=1", "--overlap", "--mem=0", "--kill-on-bad-exit=1", "--input=none", "--export=ALL"]
        return ["srun", *counts, *manner, *argv]
    if "PBS_JOBID" in env:
        folders = [env.get("PATH", os.defpath), os.path.join(env.get("PBS_EXEC", "/opt/pbs"), "bin"), PBS_BIN]
        program = shutil.which("pbsdsh", path=os.pathsep.join(folders))
        if program is None:
            raise NoNodes("pbsdsh, which starts the ranks on the other nodes, is not on PATH, nor in PBS_EXEC/bin")
        return [program, "--", *argv]
    raise NoNodes("only jobs of Slurm and PBS have other nodes")


def rank_of(env: Mapping[str, str], hosts: Sequence[str], name: str) -> Optional[int]:
    """Our number among the ranks, on the host ``name``: what the launcher says, else where the host stands in the list.
    None: we are none of the others."""
    if "SLURM_STEP_ID" in env and env.get("SLURM_PROCID", "").isdigit():
        rank = int(env["SLURM_PROCID"]) + 1
        return rank if rank < len(hosts) else None
    short = [host.split(".")[0] for host in hosts]
    rank = short.index(name.split(".")[0]) if name.split(".")[0] in short else 0
    return rank or None


def spot(interface: Optional[str]) -> Spot:
    """This node's address on ``interface``, or that of its own name and the interface that has it. Raises NoNodes."""
    if interface is not None:
        address = _address_on(interface)
        if address is None:
            raise NoNodes(f"the interface '{interface}' has no IPv4 address on {socket.gethostname()}")
        return Spot(address, interface)
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError as exc:
        raise NoNodes(f"{_unnamed()} has no address; name the cluster's interface in the configuration") from exc
    if address.startswith("127."):
        raise NoNodes(f"{_unnamed()} is {address}, where no other node reaches it; name the cluster's interface")
    for _, name in socket.if_nameindex():
        if _address_on(name) == address:
            return Spot(address, name)
    raise NoNodes(f"{_unnamed()} is {address}, which no interface has; name the cluster's interface")


def _unnamed() -> str:
    return f"the name of this node, {socket.gethostname()},"


def _address_on(interface: str) -> Optional[str]:
    """The IPv4 address of an interface; None where it has none, or there is no such interface."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])
