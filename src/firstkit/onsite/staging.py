"""Weights on the disk of the node: one copy for all replicas of a job, made by a process beside the pilot.

The pilot has one thread and carries tokens: whatever may wait for a disk is done by that process (``copying.py``).
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Optional

from firstkit.engines.engine import ReplicaSpec
from firstkit.engines.launching import self_path
from firstkit.errors import FirstError
from firstkit.onsite.children import Child, spawn
from firstkit.onsite.copying import Word, remove_unfinished
from firstkit.onsite.scratch import Scratch, ScratchUnfit, claim, filled_in
from firstkit.schedulers.processes import manner
from firstkit.wire import WireError, decode

NODE_LOCAL = "node-local"
CLEAN_S = 30.0
"""How long a process that is given up may take to remove what it has copied; it is not done here, for large files take
seconds to remove."""
_KEPT = ("PATH", "LD_LIBRARY_PATH", "HOME", "LANG", "LC_ALL", "FIRST_JOB_ID")
_LINE_BYTES = 1024**2
_WORDS = 300
Tell = Callable[[str], None]


class StagingFailed(FirstError):
    """The weights could not be copied to the node."""


class Staging:
    """The copies of one job on this node, in a folder below ``scratch``, where variables of ``env`` are filled in.

    Copies are made one after the other. They stay for the next replica of the same weights; one that nobody uses goes
    when another needs its room, and all of them when the job ends.
    """

    def __init__(self, scratch: Optional[str], job_id: str, env: Mapping[str, str]) -> None:
        self.scratch = scratch
        self._job_id = job_id
        self._env = env
        self._claimed: Optional[Scratch] = None
        self._turn = asyncio.Lock()
        self._running: dict[str, _Copy] = {}
        self._tasks: set[asyncio.Task[str]] = set()
        self._uses: Counter[str] = Counter()

    async def stage(self, path: str, on_progress: Tell) -> str:
        """The path of a copy of ``path``, a file or folder, to use until it is given to ``release``.

        Who comes while it is made waits for the same one; when all who wait are cancelled, the copy is given up.
        ``on_progress`` gets some words, at most one time a second. Raises StagingFailed.
        """
        copy = self._running.get(path)
        if copy is None:
            copy = self._running[path] = _Copy()
            copy.task = asyncio.get_running_loop().create_task(self._make(path, copy))
            self._tasks.add(copy.task)
            copy.task.add_done_callback(self._ended)
        copy.listeners.append(on_progress)
        try:
            return await asyncio.shield(copy.task)
        except asyncio.CancelledError:
            self._leave(path, copy, on_progress)
            raise

    def release(self, copy: str) -> None:
        """One replica has no use for this copy any more."""
        self._uses[copy] -= 1

    async def close(self) -> None:
        """Give up what is under way and remove all copies. Nothing may use one any more."""
        for path, copy in list(self._running.items()):
            self._give_up(path, copy)
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._claimed is not None:
            self._claimed.remove()
            self._claimed = None

    def _ended(self, task: asyncio.Task[str]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # nobody may be left to hear it

    def _leave(self, path: str, copy: _Copy, listener: Tell) -> None:
        if copy.is_made:
            self.release(copy.task.result())
            return
        copy.listeners.remove(listener)
        if not copy.listeners and not copy.is_given_up:
            self._give_up(path, copy)

    def _give_up(self, path: str, copy: _Copy) -> None:
        """Once: a second cancellation would not wait for the process. Who comes now waits for a new copy, which waits
        until this one is out of the way."""
        copy.is_given_up = True
        self._forget(path, copy)
        copy.task.cancel()

    def _forget(self, path: str, copy: _Copy) -> None:
        if self._running.get(path) is copy:
            del self._running[path]

    async def _make(self, path: str, copy: _Copy) -> str:
        try:
            async with self._turn:
                made = await self._run(path, copy.tell)
                self._uses[made] += len(copy.listeners)
                return made
        except (ScratchUnfit, OSError, ValueError) as exc:
            raise StagingFailed(f"its weights cannot be copied: {exc}") from exc
        finally:
            self._forget(path, copy)

    async def _run(self, path: str, tell: Tell) -> str:
        """Have a process make the copy; returns where it is."""
        if self._claimed is None:
            if self.scratch is None:
                raise ScratchUnfit("This cluster has no scratch folder for copies of weights.")
            self._claimed = claim(filled_in(self.scratch, self._env), self._job_id)
        folder = self._claimed.folder
        unused = [os.path.dirname(copy) for copy, uses in self._uses.items() if uses <= 0]
        env = {name: self._env[name] for name in _KEPT if name in self._env}
        argv = [sys.executable, "-I", self_path(), "stage", path, folder, *unused]
        last = Word()
        try:
            async with _speaking(argv, env) as (child, lines):
                async for word in lines:
                    last = word
                    if word.doing:
                        tell(word.doing)
                code = await child.ended
        finally:
            remove_unfinished(folder)
        if last.path is None:
            raise StagingFailed(f"its weights cannot be copied: {last.fault or f'the copy ended: {manner(code)}'}")
        return last.path


class _Copy:
    """One copy that is being made, and who waits for it."""

    def __init__(self) -> None:
        self.listeners: list[Tell] = []
        self.is_given_up = False
        self.task: asyncio.Task[str]

    @property
    def is_made(self) -> bool:
        return self.task.done() and not self.task.cancelled() and self.task.exception() is None

    def tell(self, words: str) -> None:
        for listener in self.listeners:
            listener(words)


async def staged(spec: ReplicaSpec, staging: Optional[Staging], on_progress: Tell) -> ReplicaSpec:
    """``spec`` itself, or with the path of a copy where it asks for one: then the caller gives ``weights`` back by
    ``release``. Raises StagingFailed, also when it takes longer than the replica may take to load."""
    if spec.stage == "none" or not spec.weights:
        return spec
    if spec.stage != NODE_LOCAL or staging is None:
        raise StagingFailed(f"its weights cannot be copied: there is no way {spec.stage!r} in this version.")
    try:
        copy = await asyncio.wait_for(staging.stage(spec.weights, on_progress), spec.load_timeout_s)
    except asyncio.TimeoutError:
        raise StagingFailed(f"its weights were not copied after {spec.load_timeout_s:g} s") from None
    return replace(spec, weights=copy)


@asynccontextmanager
async def _speaking(argv: list[str], env: Mapping[str, str]) -> AsyncIterator[tuple[Child, AsyncIterator[Word]]]:
    """A process with what it says; it has ended when this does."""
    reading, writing = os.pipe()
    try:
        child = spawn(argv, env, os.getcwd(), (), writing)
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    try:
        loop, stream = asyncio.get_running_loop(), asyncio.StreamReader(limit=_LINE_BYTES)
        pipe = os.fdopen(reading, "rb", buffering=0)
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), pipe)
        try:
            yield child, _words(stream)
        finally:
            transport.close()
    finally:
        await child.stop(CLEAN_S)


async def _words(stream: asyncio.StreamReader) -> AsyncIterator[Word]:
    """Each line of the process; what is no ``Word`` is taken for the last words of one that breaks down."""
    while line := await stream.readline():
        try:
            yield decode(Word, line)
        except WireError:
            yield Word(fault=line.decode(errors="replace").strip()[:_WORDS])
