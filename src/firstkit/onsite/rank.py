"""``rank FOLDER REPLICA``: one of the other ranks of a replica, on its own node. It runs the engine there.

Its launcher (srun, pbsdsh) starts it, and the files of the replica tell it all: see ``ranks``. It ends when they say
that the replica is over, when its launcher or the pilot is gone, or when its engine ends. Its engine dies with it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from firstkit.engines.engine import ReplicaSpec
from firstkit.engines.registry import engine_of
from firstkit.errors import FirstError
from firstkit.onsite import logfile
from firstkit.onsite.allotment import GPU_VARIABLES, Share
from firstkit.onsite.children import Child, spawn_logged
from firstkit.onsite.job import read_job
from firstkit.onsite.nodes import rank_of
from firstkit.onsite.place import LOG, REPLICA_ID, Seat, clear_place, environment, make_place, write_files
from firstkit.onsite.ranks import (
    CLAIM,
    NOTE,
    RANKS,
    TICK_S,
    TOUCHES,
    Note,
    Party,
    Silence,
    rank_folder,
    touch,
)
from firstkit.onsite.staging import Staging, staged
from firstkit.schedulers.processes import manner
from firstkit.schedulers.records import write_file
from firstkit.wire import WireError, decode, encode

logger = logging.getLogger("firstkit.rank")

STOP_S = 5.0
ROTATE_S = 5.0


class Rank:
    """One rank in ``folder``, that of its replica. ``run`` it once."""

    def __init__(self, folder: str, party: Party, rank: int, host: str, env: Mapping[str, str]) -> None:
        self._replica_folder = folder
        self._folder = rank_folder(folder, rank)
        self._party = party
        self._rank = rank
        self._host = host
        self._env = env
        self._parent = os.getppid()
        self._told = asyncio.Event()
        self._silence = Silence(os.path.join(folder, RANKS), party.silent_s, TICK_S)
        self._files: tuple[str, ...] = ()

    async def run(self) -> int:
        """The exit status: 0 when the replica is over, 1 when this rank is why."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told.set)
        self._say(None)
        staging = Staging(self._party.scratch, f"{os.path.basename(os.getcwd())}-{self._rank}", self._env)
        try:
            reason = await self._run_engine(staging)
        except (FirstError, OSError, ValueError, subprocess.SubprocessError) as exc:
            reason = f"could not be started: {exc}"
        await staging.close()
        is_over = self._is_over()
        if not is_over:
            self._say(reason)
        clear_place(self._folder, self._files)
        return 0 if is_over else 1

    async def _run_engine(self, staging: Staging) -> str:
        """Copy the weights to this node where the replica wants that, then run the engine; returns why it ended."""
        copying = asyncio.ensure_future(staged(self._party.spec, staging, lambda _: None))
        await self._attend(copying)
        if not copying.done():
            copying.cancel()
            await asyncio.wait({copying})
            return self._reason(None)
        child = self._spawn(copying.result())
        await self._attend(child.ended)
        reason = self._reason(child)
        await child.stop(STOP_S)
        return reason

    def _reason(self, child: Optional[Child]) -> str:
        if child is not None and child.ended.done():
            return manner(child.ended.result())
        return "was told to end by its scheduler" if self._told.is_set() else "its pilot or its launcher was gone"

    def _spawn(self, spec: ReplicaSpec) -> Child:
        engine = engine_of(spec.engine)
        seat = Seat(self._rank, self._party.hosts, self._party.head, self._party.interface)
        share = self._share()
        place = make_place(self._folder, engine, share, seat)
        launch = engine.launch(spec, place)
        write_files(self._folder, launch.files)
        self._files = tuple(launch.files)
        env = {**environment(place, self._env), **launch.env}
        return spawn_logged(launch.argv, env, self._folder, share.bound_cpus, os.path.join(self._folder, LOG))

    def _share(self) -> Share:
        """Cores of this node, and the GPUs that are shown here, else those with the names of the first node's."""
        needs, here = self._party.spec.needs, read_job(self._env).total
        gpus = here.gpus[: needs.gpus_per_node] or self._party.gpus
        return Share(here.cpus[: max(1, needs.cpus_per_node)], gpus, needs.memory_bytes, here.is_bound)

    async def _attend(self, work: asyncio.Future[Any]) -> None:
        """Until the engine, or the copy of its weights, has ended, or shall."""
        told = asyncio.ensure_future(self._told.wait())
        either: set[asyncio.Future[Any]] = {work, told}
        touched_at = rotated_at = time.monotonic()
        while not (work.done() or told.done() or self._is_over() or self._is_alone()):
            await asyncio.wait(either, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
            now = time.monotonic()
            if now - touched_at >= self._party.silent_s / TOUCHES:
                touched_at = now
                touch(os.path.join(self._folder, NOTE))
            if now - rotated_at >= ROTATE_S:
                rotated_at = now
                await logfile.rotate(os.path.join(self._folder, LOG))
        told.cancel()

    def _is_over(self) -> bool:
        """Whether the pilot has taken the file away, or has begun anew."""
        try:
            return _read(self._replica_folder).attempt != self._party.attempt
        except FileNotFoundError:
            return True
        except (OSError, WireError):
            return False  # the file system is not answering: the pilot's silence decides

    def _is_alone(self) -> bool:
        return os.getppid() != self._parent or self._silence.is_too_long()

    def _say(self, ended: Optional[str]) -> None:
        note = Note(self._party.attempt, self._host, time.time(), ended)
        try:
            write_file(os.path.join(self._folder, NOTE), encode(note))
        except OSError as exc:
            logger.warning("the pilot cannot be told: %s", exc.strerror, extra={"action": "rank_note"})


def main(argv: Sequence[str]) -> int:
    """``FOLDER REPLICA``: be the rank of this host; returns the exit status."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    if len(argv) != 2 or not os.path.isabs(argv[0]) or not REPLICA_ID.match(argv[1]):
        sys.stderr.write("usage: first-onsite rank FOLDER REPLICA\n")
        return 2
    os.umask(0o077)
    try:
        os.chdir(argv[0])
        folder = os.path.abspath(os.path.join("replicas", argv[1]))
        party = _read(folder)
        host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        rank = rank_of(os.environ, party.hosts, host)
        if rank is None or not _claim(rank_folder(folder, rank), party.attempt):
            return 0  # the pilot's own node, or a second start on this one
    except FileNotFoundError:
        return 0  # the replica is over already
    except (OSError, WireError) as exc:
        logger.error("this rank cannot run: %s", exc, extra={"action": "rank_refused"})  # noqa: TRY400
        return 2
    return asyncio.run(_serve(folder, party, rank, host))


async def _serve(folder: str, party: Party, rank: int, host: str) -> int:
    return await Rank(folder, party, rank, host, rank_environment(party, os.environ)).run()


def rank_environment(party: Party, env: Mapping[str, str]) -> dict[str, str]:
    """Ours with what the pilot had, which wins but for GPUs: of those the scheduler may show others here."""
    shows = any(name in env for name in GPU_VARIABLES)
    theirs = {name: value for name, value in party.env.items() if not shows or name not in GPU_VARIABLES}
    return {**env, **theirs}


def _read(folder: str) -> Party:
    with open(os.path.join(folder, RANKS), "rb") as file:
        return decode(Party, file.read())


def _claim(folder: str, attempt: str) -> bool:
    """Whether this rank is ours: a launcher may start several on one host."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    try:
        os.close(os.open(os.path.join(folder, f"{CLAIM}.{attempt}"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    return True
