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
from firstkit.onsite.children import Child, spawn
from firstkit.onsite.inflight import InFlight
from firstkit.onsite.loadwatch import LoadWatch, Told
from firstkit.onsite.place import LOG, clear_place, environment, is_port_free, make_place, write_files
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
    often for its load."""

    while_loading_s: float = 0.05
    when_ready_s: float = 5.0
    timeout_s: float = 5.0
    misses: int = 3
    load_s: float = 2.0


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
        self._is_stopping = False
        self._life: Optional[asyncio.Task[None]] = None

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
        if self._child is not None:
            await self._child.stop(kill_after_s)
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
        if self._child is not None:
            await self._child.stop(0.0)
        self._end(reason)

    async def _run_engine(self) -> str:
        """Run the engine to its end; returns how it ended. Started again only when somebody else took its port."""
        for _ in range(PORT_ATTEMPTS):
            if self._is_stopping:
                return "stopped before it was started"
            place = make_place(self._folder, self._engine, self._share)
            self._child = self._spawn(place)
            code = await self._attend(place, self._child)
            port = place.address.port
            if self._load_s is not None or self._is_stopping or port is None or is_port_free(port):
                break
        return manner(code)

    def _spawn(self, place: Place) -> Child:
        launch = self._engine.launch(self.spec, place)
        write_files(self._folder, launch.files)
        self._files = tuple(launch.files)
        env = {**environment(place, self._around.env), **launch.env}
        output = logfile.open_log(self.log_path)
        try:
            return spawn(launch.argv, env, self._folder, self._share.bound_cpus, output)
        finally:
            os.close(output)

    async def _attend(self, place: Place, child: Child) -> int:
        """See the engine through to its end; returns its exit code. One that is not well is failed and killed."""
        health = asyncio.get_running_loop().create_task(self._watch(place))
        try:
            either: set[asyncio.Future[Any]] = {health, child.ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not child.ended.done():
                if not self._is_stopping:  # an engine that was asked to end need not answer any more
                    self._fail(health.result())
                await child.stop(KILL_AFTER_S)
        finally:
            health.cancel()
        return child.ended.result()

    async def _watch(self, place: Place) -> str:
        """Returns when the engine must be given up, with the reason."""
        started = monotonic()
        requests = InFlight(self._client(place), self._around.on_traffic)
        path = self._engine.health_path(self.spec)
        while not await self._is_well(place, path):
            if monotonic() - started > self.spec.load_timeout_s:
                return f"was not ready after {self.spec.load_timeout_s:g} s"
            await asyncio.sleep(self._around.rhythm.while_loading_s)
        self._load_s = round(monotonic() - started, 3)
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

    def _fail(self, reason: str) -> None:
        """The engine is dead or given up: the gateway must hear it now, also while its process still has to go."""
        if not self.state.is_final:
            self._log_tail = logfile.read_end(self.log_path)
        self._move(ReplicaState.FAILED, reason)
        if self._requests is not None:
            self._requests.fail(f"the engine failed: {reason}")

    def _end(self, reason: str) -> None:
        """Nothing of the engine runs any more."""
        self.has_ended = True
        if self._is_stopping:
            self._move(ReplicaState.STOPPED, "")
        else:
            self._log_tail = self._log_tail or logfile.read_end(self.log_path)
            self._move(ReplicaState.FAILED, reason)
        if self._requests is not None:
            asyncio.get_running_loop().call_later(FORCE_TAILS_S, self._requests.fail, f"the engine ended: {reason}")
        clear_place(self._folder, self._files)
        self._around.on_change()
