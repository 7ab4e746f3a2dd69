"""The other ranks of a replica of several nodes, as the pilot sees them: one launcher starts them, files say how it is.

In the folder of the replica: ``ranks.json`` (who they are, for as long as the replica lives; the pilot touches it), and
for each rank but the first a folder ``rank-N`` with ``note.json`` (where it runs, how it ended; it touches that) and
its log. All is 0600 in folders of 0700, on the file system that login and compute nodes share.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Optional

from firstkit.engines.engine import Head, Place, ReplicaSpec
from firstkit.engines.launching import self_path
from firstkit.ids import new_secret
from firstkit.onsite import logfile
from firstkit.onsite.allotment import GPU_VARIABLES
from firstkit.onsite.children import Child, spawn_logged
from firstkit.onsite.nodes import launcher
from firstkit.onsite.place import LOG, kept_environment
from firstkit.schedulers.processes import manner
from firstkit.schedulers.records import write_file
from firstkit.wire import WireError, decode, encode

RANKS, NOTE, CLAIM, LAUNCHER_LOG = "ranks.json", "note.json", "claim", "ranks.log"
TICK_S = 0.5
SILENT_S = 60.0
"""After so long without a touch the other side is gone. Counted in ticks: a job that is suspended ages nobody."""
TOUCHES = 12
"""So many touches fit into that."""
LAST_WORDS_S = 1.5
"""How long the end of one rank waits for the word of another which may be why."""
LAUNCHER_STOP_S = 1.0
_OF_JOB = re.compile(r"FIRST_JOB_[A-Z]+\Z")


@dataclass(frozen=True)
class Party:
    """What each rank has to know. ``attempt``: a launcher of before may be late. ``env``: what a rank needs of the
    pilot's environment where its launcher gives it none; nothing secret."""

    attempt: str
    spec: ReplicaSpec
    hosts: tuple[str, ...]
    head: Head
    gpus: tuple[str, ...] = ()
    interface: Optional[str] = None
    silent_s: float = SILENT_S
    env: dict[str, str] = field(default_factory=dict)
    scratch: Optional[str] = None


@dataclass(frozen=True)
class Note:
    """What a rank says of itself. ``at``: seconds since 1970, of its end if it ``ended``, which is how."""

    attempt: str
    host: str
    at: float
    ended: Optional[str] = None


@dataclass(frozen=True)
class Lost:
    """A rank that is no more. ``log``: of the engine there, if it is another rank's."""

    reason: str
    log: Optional[str] = None


class Silence:
    """How long a file was not touched, counted in looks at it."""

    def __init__(self, path: str, limit_s: float, tick_s: float) -> None:
        self._path = path
        self._limit = max(1, round(limit_s / tick_s))
        self._seen: Optional[int] = None
        self._looks = 0

    def is_too_long(self) -> bool:
        """Call it once each tick. A file that was never there is not silent."""
        try:
            with open(self._path, "rb") as file:  # opened, since a shared file system may remember what stat said
                touched: Optional[int] = os.fstat(file.fileno()).st_mtime_ns
        except OSError:
            touched = self._seen
        self._looks = 0 if touched != self._seen or touched is None else self._looks + 1
        self._seen = touched
        return self._looks >= self._limit


class OtherRanks:
    """Ranks 1 and up of one replica, in ``folder``. ``lost`` is told once, when the first of them is gone."""

    def __init__(self, folder: str, hosts: tuple[str, ...], env: Mapping[str, str], silent_s: float = SILENT_S) -> None:
        self.lost: asyncio.Future[Lost] = asyncio.get_running_loop().create_future()
        self._folder = folder
        self._hosts = hosts
        self._env = env
        self._silent_s = silent_s
        self._silences = {
            rank: Silence(os.path.join(self._rank_folder(rank), NOTE), silent_s, TICK_S)
            for rank in range(1, len(hosts))
        }
        self._attempt = new_secret()
        self._launcher: Optional[Child] = None
        self._watching: Optional[asyncio.Task[None]] = None

    def start(self, spec: ReplicaSpec, place: Place, interface: Optional[str], scratch: Optional[str] = None) -> None:
        """Write down who they are, and launch them. Raises OSError, NoNodes or subprocess.SubprocessError."""
        for path in glob.glob(os.path.join(glob.escape(self._folder), "rank-*", "*.*")):
            if os.path.basename(path).startswith((NOTE, f"{CLAIM}.")):
                os.unlink(path)
        env = {name: value for name, value in self._env.items() if _OF_JOB.match(name)}
        env.update(kept_environment(self._env))
        env.update({name: self._env[name] for name in GPU_VARIABLES if name in self._env})
        party = Party(self._attempt, spec, self._hosts, place.head, place.gpus, interface, self._silent_s, env, scratch)
        write_file(os.path.join(self._folder, RANKS), encode(party))
        program = [sys.executable, "-I", self_path(), "rank", os.getcwd(), spec.replica_id]
        argv = launcher(self._env, len(self._hosts) - 1, spec.needs.cpus_per_node, program)
        self._launcher = spawn_logged(argv, self._env, self._folder, (), os.path.join(self._folder, LAUNCHER_LOG))
        self._watching = asyncio.get_running_loop().create_task(self._watch(self._launcher))

    async def stop(self, grace_s: float) -> None:
        """Tell them by the file system, which they reach when the launcher does not; then end the launcher too."""
        if self._watching is not None:
            self._watching.cancel()
        with contextlib.suppress(OSError):  # the launch failed before, or the file system did: they miss our touch
            os.unlink(os.path.join(self._folder, RANKS))
        if self._launcher is not None:
            await asyncio.wait({self._launcher.ended}, timeout=grace_s)
            await self._launcher.stop(LAUNCHER_STOP_S)

    async def blame(self, first: str) -> Lost:
        """How the replica ended, when its rank 0 did so ``first``: perhaps only because another did before."""
        at, give_up_at = time.time(), time.monotonic() + LAST_WORDS_S
        while not self.lost.done() and time.monotonic() < give_up_at:
            await asyncio.sleep(TICK_S / 10)
            self._hear()
        own = f"rank 0 on {self._hosts[0]}: {first}"
        if not self.lost.done():
            absent = [f"; rank {rank} on {self._hosts[rank]} has not come" for rank in self._absent()]
            return Lost(own + "".join(absent[:1]))
        notes = [note for note in map(self._note, self._silences) if note is not None and note.ended is not None]
        if notes and min(note.at for note in notes) > at:
            return Lost(f"{own}; {self.lost.result().reason}")
        return Lost(f"{self.lost.result().reason}; {own}", self.lost.result().log)

    async def _watch(self, child: Child) -> None:
        touched_at = 0.0
        while not self.lost.done():
            if time.monotonic() - touched_at >= self._silent_s / TOUCHES:
                touched_at = time.monotonic()
                touch(os.path.join(self._folder, RANKS))
            await asyncio.wait({child.ended}, timeout=TICK_S)
            self._hear()
            for rank, silence in self._silences.items():
                if silence.is_too_long():
                    self._lose(self._lost(rank, "is silent; its node may be lost"))
            if child.ended.done():
                self._lose(self._without_a_word(manner(child.ended.result())))

    def _hear(self) -> None:
        """Whether one of them says that it has ended."""
        notes = [(note.at, rank, note.ended) for rank in self._silences if (note := self._note(rank)) is not None]
        ended = [(at, rank, reason) for at, rank, reason in notes if reason is not None]
        if ended:
            _, rank, reason = min(ended)
            self._lose(self._lost(rank, reason))

    def _absent(self) -> list[int]:
        return [rank for rank in self._silences if self._note(rank) is None]

    def _without_a_word(self, how: str) -> Lost:
        """The launcher has ended, and with it all ranks: those that left no word are why."""
        for rank in self._silences:
            note = self._note(rank)
            if note is not None and note.ended is None:
                return self._lost(rank, f"ended without a word (its launcher: {how})")
        said = logfile.read_end(os.path.join(self._folder, LAUNCHER_LOG), 3, 300).replace("\n", " ")
        if absent := self._absent():
            return self._lost(absent[0], f"did not start (its launcher: {how}) {said}".strip())
        return Lost(f"the launcher of the other ranks ended: {how} {said}".strip())

    def _lose(self, lost: Lost) -> None:
        if not self.lost.done():
            self.lost.set_result(lost)

    def _lost(self, rank: int, reason: str) -> Lost:
        note = self._note(rank)
        host = self._hosts[rank] if note is None else note.host
        return Lost(f"rank {rank} on {host}: {reason}", os.path.join(self._rank_folder(rank), LOG))

    def _note(self, rank: int) -> Optional[Note]:
        try:
            with open(os.path.join(self._rank_folder(rank), NOTE), "rb") as file:
                note = decode(Note, file.read())
        except (OSError, WireError):
            return None  # it has not come so far; written as a whole, it is never half a note
        return note if note.attempt == self._attempt else None

    def _rank_folder(self, rank: int) -> str:
        return rank_folder(self._folder, rank)


def rank_folder(folder: str, rank: int) -> str:
    return os.path.join(folder, f"rank-{rank}")


def touch(path: str) -> None:
    """Say that we live. What could not be written is missed by the others only if that lasts."""
    with contextlib.suppress(OSError):
        os.utime(path)
