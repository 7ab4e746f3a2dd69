"""All replicas of one pilot: started once each, given disjoint shares of the job, remembered after their end."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Optional

from firstkit.engines.engine import SPREAD, ReplicaSpec
from firstkit.engines.registry import engine_of
from firstkit.errors import CallFailed, ConfigError
from firstkit.links.messages import Exchange, Open, ReplicaReport, Sink
from firstkit.onsite.allotment import Allotment, DoesNotFit, Share
from firstkit.onsite.allowed import NotAllowed, check_replica, read_allowed
from firstkit.onsite.place import REPLICA_ID
from firstkit.onsite.supervise import KILL_AFTER_S, Replica, Surroundings
from firstkit.states import ReplicaState

logger = logging.getLogger(__name__)

KEPT = 16
"""So many replicas that ended stay in the reports; of earlier ones only the id is kept, against twins."""


class Replicas:
    """Call ``settle`` after every change: it takes back what ended replicas held."""

    def __init__(self, total: Share, around: Surroundings) -> None:
        self._allotment = Allotment(total, max(1, len(around.hosts)))
        self._around = around
        self._replicas: dict[str, Replica] = {}
        self._refused: dict[str, ReplicaReport] = {}
        self._forgotten: set[str] = set()
        self._stops: set[asyncio.Task[None]] = set()

    @property
    def free(self) -> Share:
        return self._allotment.free

    def start(self, spec: ReplicaSpec) -> None:
        """Start a replica, unless this id was started before. Raises CallFailed with what is wrong or lacking."""
        if spec.replica_id in self._replicas or spec.replica_id in self._forgotten:
            return
        if not REPLICA_ID.match(spec.replica_id):
            raise CallFailed("replica_id: up to 64 letters, digits, '-' and '_' are needed.")
        try:
            self._check_allowed(spec)
            engine = engine_of(spec.engine)
            engine.check(spec)
            _check_spread(spec)
            share = self._allotment.take(spec.replica_id, spec.needs)
        except (ConfigError, DoesNotFit, NotAllowed) as exc:
            raise CallFailed(exc.message) from exc
        self._refused.pop(spec.replica_id, None)
        replica = Replica(spec, engine, share, self._around)
        self._replicas[spec.replica_id] = replica
        replica.start()
        self._around.on_change()

    def start_or_report(self, spec: ReplicaSpec) -> None:
        """Start a replica of the job's own file: nobody waits for an answer, so a refusal shows in the reports."""
        try:
            self.start(spec)
        except CallFailed as exc:
            logger.warning("a replica could not be started: %s", exc.message, extra={"action": "replica_refused"})
            self._refused[spec.replica_id] = ReplicaReport(spec.replica_id, ReplicaState.FAILED, reason=exc.message)

    def open(self, request: Open, body: bytes, sink: Sink) -> Optional[Exchange]:
        """Start a request; None when its replica takes none now, or is not ours."""
        replica = self._replicas.get(request.replica_id)
        return None if replica is None else replica.open(request, body, sink)

    def drain(self, replica_id: str) -> None:
        """Raises CallFailed for an id that was never here, as do ``stop`` and ``log_path``."""
        if (replica := self._get(replica_id)) is not None:
            replica.drain()

    def stop(self, replica_id: str, grace_s: float) -> None:
        """Drain for at most ``grace_s`` seconds, then stop; returns at once, reports tell the rest."""
        if (replica := self._get(replica_id)) is not None:
            task = asyncio.get_running_loop().create_task(replica.stop(grace_s))
            self._stops.add(task)
            task.add_done_callback(self._stops.discard)

    async def stop_all(self, grace_s: float, kill_after_s: float = KILL_AFTER_S) -> None:
        """Stop all side by side; returns when no engine runs any more."""
        await asyncio.gather(*(replica.stop(grace_s, kill_after_s) for replica in list(self._replicas.values())))

    def log_path(self, replica_id: str) -> str:
        replica = self._get(replica_id)
        if replica is None:
            raise CallFailed("That replica ended long ago; its log is in the folder of its job.")
        return replica.log_path

    @property
    def has_spread(self) -> bool:
        """Whether a replica of several nodes was here and has ended: its job was for it alone."""
        return any(replica.has_ended and replica.spec.needs.nodes > 1 for replica in self._replicas.values())

    def reports(self) -> tuple[ReplicaReport, ...]:
        return (*self._refused.values(), *(replica.report() for replica in self._replicas.values()))

    def settle(self) -> None:
        ended = [replica_id for replica_id, replica in self._replicas.items() if replica.has_ended]
        for replica_id in ended:
            self._allotment.give_back(replica_id)
        for replica_id in ended[:-KEPT]:
            del self._replicas[replica_id]
            self._forgotten.add(replica_id)

    def _check_allowed(self, spec: ReplicaSpec) -> None:
        """Read anew each time: what the operator takes off the cluster's list starts no more, in running jobs too."""
        job_folder = os.path.dirname(self._around.folder)
        allowed = read_allowed(os.path.dirname(os.path.dirname(job_folder)))
        if allowed is not None:
            check_replica(allowed, spec)

    def _get(self, replica_id: str) -> Optional[Replica]:
        """The replica; None for one that was forgotten or refused."""
        replica = self._replicas.get(replica_id)
        if replica is None and replica_id not in self._forgotten and replica_id not in self._refused:
            raise CallFailed("This pilot has no such replica.")
        return replica


def _check_spread(spec: ReplicaSpec) -> None:
    """Raise ConfigError for an engine that cannot run on several nodes, where it shall."""
    if spec.needs.nodes > 1 and spec.engine.kind not in SPREAD:
        raise ConfigError(
            f"{spec.deployment}: resources.nodes: an engine of kind '{spec.engine.kind}' runs on one node"
        )
