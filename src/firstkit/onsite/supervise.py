"""One replica from start to end: its engine process, its health, its state, the requests that it answers."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Optional

from firstkit.clock import monotonic
from firstkit.engines.engine import Engine, Facts, Place, ReplicaSpec
from firstkit.errors import FirstError
from firstkit.links.messages import Exchange, Open, ReplicaReport, Sink, Upstream
from firstkit.onsite import logfile, probe
from firstkit.onsite.allotment import Share
from firstkit.onsite.children import Child, spawn_logged
from firstkit.onsite.inflight import InFlight
from firstkit.onsite.loadwatch import LoadWatch, Told
from firstkit.onsite.place import LOG, Seat, clear_place, environment, is_port_free, make_place, write_files
from firstkit.onsite.ranks import SILENT_S, OtherRanks
from firstkit.onsite.staging import Staging, staged
from firstkit.schedulers.processes import manner
from firstkit.states import ReplicaState, advance

logger = logging.getLogger(__name__)

KILL_AFTER_S = 10.0
PORT_ATTEMPTS = 3
FORCE_TAILS_S = 0.5
"""The engine client sees by itself that an engine has died; what it has not seen by then is ended by hand."""
TAILS_S = 1.0
OPEN_STATES = (ReplicaState.READY, ReplicaState.DRAINING)


@dataclass(frozen=True)
class Rhythm:
    """When an engine is asked for its health, in seconds, and how many misses in a row are too many. ``load_s``: so
    often for its load. ``silent_s``: after so long without a word a rank on another node is lost."""

    while_loading_s: float = 0.05
    when_ready_s: float = 5.0
    timeout_s: float = 5.0
    misses: int = 3
    load_s: float = 2.0
    silent_s: float = SILENT_S


@dataclass(frozen=True)
class Surroundings:
    """What the replicas of one pilot share. ``folder`` is absolute and holds the folders of all replicas, ``env`` the
    environment that engines get a part of."""

    folder: str
    env: Mapping[str, str]
    on_change: Callable[[], None]
    """The state of a replica, or what it holds, is not what it was."""
    on_traffic: Callable[[], None]
    """The number of requests under way is not what it was."""
    rhythm: Rhythm = Rhythm()
    hosts: tuple[str, ...] = ()
    """The nodes of the job, ours first."""
    interface: Optional[str] = None
    """Over which the ranks of a replica speak; None: that of the host's name."""
    staging: Optional[Staging] = None
    """Makes the copies of weights that replicas want on their node; None: there are none."""


class Replica:
    """A replica with its share of the job. ``start`` it once; it becomes READY, and FAILED or STOPPED, by itself."""

    def __init__(self, spec: ReplicaSpec, engine: Engine, share: Share, around: Surroundings) -> None:
        self.spec = spec
        self.state = ReplicaState.STARTING
        self.has_ended = False
        """The engine's process is gone (or never came), and with it all that the replica held."""
        self._engine = engine
        self._share = share
        self._around = around
        self._folder = os.path.join(around.folder, spec.replica_id)
        self._reason = ""
        self._log_tail = ""
        self._facts = Facts()
        self._files: tuple[str, ...] = ()
        self._load: Optional[LoadWatch] = None
        self._load_s: Optional[float] = None
        self._requests: Optional[InFlight] = None
        self._child: Optional[Child] = None
        self._ranks: Optional[OtherRanks] = None
        self._is_stopping = False
        self._life: Optional[asyncio.Task[None]] = None
        self._here = spec
        """The same, its weights where its engine reads them."""
        self._staging: Optional[asyncio.Task[ReplicaSpec]] = None
        self._doing = ""
        self._started = 0.0

    @property
    def in_flight(self) -> int:
        return 0 if self._requests is None else len(self._requests)

    @property
    def log_path(self) -> str:
        return os.path.join(self._folder, LOG)

    def start(self) -> None:
        self._life = asyncio.get_running_loop().create_task(self._live())

    def open(self, request: Open, body: bytes, sink: Sink) -> Optional[Exchange]:
        """Start a request; None when the replica takes none now."""
        if self.state not in OPEN_STATES or self._requests is None:
            return None
        return self._requests.open(request, body, sink)

    def drain(self) -> None:
        """Tell the gateway to send nothing new. What still comes is served: it was sent before that was heard."""
        self._move(ReplicaState.DRAINING, "")

    async def stop(self, grace_s: float, kill_after_s: float = KILL_AFTER_S) -> None:
        """Drain for at most ``grace_s``, then end the engine; returns when it is gone and its requests have tails.

        Another call may hurry it.
        """
        self.drain()
        if self._requests is not None and not self.has_ended:
            await self._requests.wait_empty(grace_s)
        self._is_stopping = True
        if self._staging is not None:
            self._staging.cancel()
        await self._stop_processes(kill_after_s)
        if self._life is not None:
            await asyncio.wait({self._life})
        if self._requests is not None:
            await self._requests.wait_empty(TAILS_S)

    def report(self) -> ReplicaReport:
        told = Told() if self._load is None else self._load.told
        return ReplicaReport(
            replica_id=self.spec.replica_id,
            state=self.state,
            in_flight=self.in_flight,
            running=told.load.running,
            waiting=told.load.waiting,
            others=told.others,
            cache_use=told.load.cache_use,
            load_s=self._load_s,
            context_length=self._facts.context_length,
            engine_version=self._facts.version,
            revision=self.spec.revision,
            capabilities=tuple(sorted(self._engine.capabilities(self.spec))),
            reason=self._reason,
            log_tail=self._log_tail,
            doing=self._doing,
        )

    # -- the life of the engine --------------------------------------------------------------------------------

    async def _live(self) -> None:
        try:
            reason = await self._run_engine()
        except (FirstError, OSError, ValueError, subprocess.SubprocessError) as exc:
            reason = f"could not be started: {exc}"
        except Exception as exc:  # a boundary: a fault of ours in one replica must not take the others along
            logger.exception("a replica failed", extra={"action": "replica_failed"})
            reason = f"the pilot failed: {type(exc).__name__}"
        if self._ranks is None:
            await self._stop_processes(0.0)
        else:  # those on other nodes take a moment to end, and the gateway shall not wait for it
            if not self._is_stopping:
                self._fail(reason)
            await self._stop_processes(KILL_AFTER_S)
        self._end(reason)

    async def _run_engine(self) -> str:
        """Run the engine to its end; returns how it ended. Started again only when somebody else took its port."""
        self._started = monotonic()
        if self.spec.stage != "none":
            await self._stage()
        for _ in range(PORT_ATTEMPTS):
            if self._is_stopping:
                return "stopped before it was started"
            place = make_place(self._folder, self._engine, self._share, self._seat())
            self._child = self._spawn(place)
            if place.ranks > 1:
                self._ranks = OtherRanks(self._folder, self._hosts, self._around.env, self._around.rhythm.silent_s)
                scratch = None if self._around.staging is None else self._around.staging.scratch
                self._ranks.start(self.spec, place, self._around.interface, scratch)
            code = await self._attend(place, self._child)
            has_served = self._load_s is not None or self.state.is_final
            if has_served or self._is_stopping or not _lost_a_port(place):
                break
            await self._stop_processes(0.0)
        return await self._blame(manner(code))

    @property
    def _hosts(self) -> tuple[str, ...]:
        return self._around.hosts[: self.spec.needs.nodes]

    def _seat(self) -> Optional[Seat]:
        return Seat(0, self._hosts, None, self._around.interface) if len(self._hosts) > 1 else None

    async def _stage(self) -> None:
        """Have the weights copied to this node; cut short by ``stop``."""
        self._staging = asyncio.get_running_loop().create_task(staged(self.spec, self._around.staging, self._say))
        await asyncio.wait({self._staging})
        self._doing = ""
        if not self._staging.cancelled():
            self._here = self._staging.result()

    def _say(self, doing: str) -> None:
        self._doing = doing
        self._around.on_change()

    def _spawn(self, place: Place) -> Child:
        launch = self._engine.launch(self._here, place)
        write_files(self._folder, launch.files)
        self._files = tuple(launch.files)
        env = {**environment(place, self._around.env), **launch.env}
        return spawn_logged(launch.argv, env, self._folder, self._share.bound_cpus, self.log_path)

    async def _attend(self, place: Place, child: Child) -> int:
        """See the engine through to its end; returns its exit code. One that is not well is failed and killed, and so
        is one that has lost another rank."""
        health = asyncio.get_running_loop().create_task(self._watch(place))
        try:
            either: set[asyncio.Future[Any]] = {health, child.ended}
            if self._ranks is not None:
                either.add(self._ranks.lost)
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not child.ended.done():
                if not self._is_stopping:  # an engine that was asked to end need not answer any more
                    await self._give_up(health)
                await self._stop_processes(KILL_AFTER_S)
        finally:
            health.cancel()
        return child.ended.result()

    async def _give_up(self, health: asyncio.Task[str]) -> None:
        if self._ranks is not None and self._ranks.lost.done():
            lost = self._ranks.lost.result()
            self._fail(lost.reason, lost.log)
        else:
            self._fail(await self._blame(health.result()))

    async def _blame(self, reason: str) -> str:
        """Why the replica ended, when its own engine did so for ``reason``: with several ranks, who was the first."""
        if self._ranks is None or self._is_stopping or self.state.is_final:
            return reason
        lost = await self._ranks.blame(reason)
        if lost.log is not None:
            self._log_tail = logfile.read_end(lost.log)
        return lost.reason

    async def _stop_processes(self, grace_s: float) -> None:
        """The engine here and those of other ranks, side by side."""
        ends = [part.stop(grace_s) for part in (self._child, self._ranks) if part is not None]
        await asyncio.gather(*ends)

    async def _watch(self, place: Place) -> str:
        """Returns when the engine must be given up, with the reason."""
        requests = InFlight(self._client(place), self._around.on_traffic)
        path = self._engine.health_path(self.spec)
        while not await self._is_well(place, path):
            if monotonic() - self._started > self.spec.load_timeout_s:
                return f"was not ready after {self.spec.load_timeout_s:g} s"
            await asyncio.sleep(self._around.rhythm.while_loading_s)
        self._load_s = round(monotonic() - self._started, 3)
        self._facts = await self._read_facts(place)
        self._requests = requests
        names, get = self._engine.metric_names, partial(self._get, place)
        self._load = LoadWatch(get, names, lambda: self.in_flight, self._around.on_change)
        self._move(ReplicaState.READY, "")
        watching = asyncio.get_running_loop().create_task(self._load.run(self._around.rhythm.load_s))
        try:
            await self._until_ill(place, path)
        finally:
            watching.cancel()
        return "stopped answering its health check"

    async def _read_facts(self, place: Place) -> Facts:
        answers = {path: await self._get(place, path) for path in self._engine.facts_paths}
        return self._engine.read_facts({path: body for path, (status, body) in answers.items() if status == 200})

    async def _until_ill(self, place: Place, path: str) -> None:
        rhythm, misses = self._around.rhythm, 0
        while misses < rhythm.misses:
            await asyncio.sleep(rhythm.when_ready_s)
            await logfile.rotate(self.log_path)
            misses = 0 if await self._is_well(place, path) else misses + 1

    async def _is_well(self, place: Place, path: str) -> bool:
        status, _ = await self._get(place, path)
        return status == 200

    async def _get(self, place: Place, path: str) -> tuple[int, bytes]:
        folder = os.path.relpath(place.folder)
        return await probe.get(folder, place.address, path, place.key, self._around.rhythm.timeout_s)

    def _client(self, place: Place) -> Upstream:
        # Imported here, while the engine loads: what it takes is not added to a cold start.
        from firstkit.engines.http import EngineClient, Target

        # The name of a socket may have 107 bytes: say it from the job's folder, where this process is.
        folder = os.path.relpath(place.folder)
        return EngineClient(Target(place.address, folder, None, place.key, self._engine.habits))

    # -- states ------------------------------------------------------------------------------------------------

    def _move(self, state: ReplicaState, reason: str) -> None:
        news = advance(self.state, state)
        if news is self.state:
            return
        logger.info(
            "replica %s is %s%s", self.spec.replica_id, news.value, f": {reason}" if reason else "",
            extra={"action": "replica_state"},
        )  # fmt: skip
        self.state = news
        self._reason = reason
        self._around.on_change()

    def _fail(self, reason: str, log: Optional[str] = None) -> None:
        """The engine is dead or given up: the gateway must hear it now, also while its process still has to go.
        ``log``: that of another rank, if that is why."""
        if not self.state.is_final:
            self._log_tail = self._log_tail or logfile.read_end(log or self.log_path)
        self._move(ReplicaState.FAILED, reason)
        if self._requests is not None:
            self._requests.fail(f"the engine failed: {reason}")

    def _end(self, reason: str) -> None:
        """Nothing of the engine runs any more."""
        self.has_ended = True
        if self._here is not self.spec and self._around.staging is not None:
            self._around.staging.release(self._here.weights or "")
        if self._is_stopping:
            self._move(ReplicaState.STOPPED, "")
        else:
            self._log_tail = self._log_tail or logfile.read_end(self.log_path)
            self._move(ReplicaState.FAILED, reason)
        if self._requests is not None:
            asyncio.get_running_loop().call_later(FORCE_TAILS_S, self._requests.fail, f"the engine ended: {reason}")
        clear_place(self._folder, self._files)
        self._around.on_change()


def _lost_a_port(place: Place) -> bool:
    """Whether somebody else has a port that the engine was to have."""
    if place.address.port is not None and not is_port_free(place.address.port):
        return True
    return place.ranks > 1 and not is_port_free(place.head.port, place.head.address)
