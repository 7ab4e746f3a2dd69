"""The states of jobs and replicas, with their legal moves; what users see of a model."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar


class JobState(str, Enum):
    """Life of one allocation in a scheduler. Silence is no state: see ``observed_at``."""

    PLANNED = "PLANNED"
    SUBMITTING = "SUBMITTING"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    ENDING = "ENDING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    NODE_FAIL = "NODE_FAIL"
    PREEMPTED = "PREEMPTED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    VANISHED = "VANISHED"
    REJECTED = "REJECTED"

    @property
    def is_final(self) -> bool:
        return self not in _JOB_RANK


class ReplicaState(str, Enum):
    """Life of one running engine."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    READY = "READY"
    DRAINING = "DRAINING"
    STOPPED = "STOPPED"
    FAILED = "FAILED"

    @property
    def is_final(self) -> bool:
        return self not in _REPLICA_RANK


class ModelStatus(str, Enum):
    """What users see of a model."""

    LIVE = "live"
    STARTING = "starting"
    QUEUED = "queued"
    OFFLINE = "offline"


_JOB_RANK = {
    JobState.PLANNED: 0,
    JobState.SUBMITTING: 1,
    JobState.PENDING: 2,
    JobState.RUNNING: 3,
    JobState.ENDING: 4,
}
_REPLICA_RANK = {
    ReplicaState.QUEUED: 0,
    ReplicaState.STARTING: 1,
    ReplicaState.READY: 2,
    ReplicaState.DRAINING: 3,
}
_FINAL_RANK = 9

LIVE_JOB_STATES = tuple(_JOB_RANK)
LIVE_REPLICA_STATES = tuple(_REPLICA_RANK)

State = TypeVar("State", JobState, ReplicaState)


def _rank(state: JobState | ReplicaState) -> int:
    if isinstance(state, JobState):
        return _JOB_RANK.get(state, _FINAL_RANK)
    return _REPLICA_RANK.get(state, _FINAL_RANK)


def may_move(current: State, news: State) -> bool:
    """Whether ``news`` is later than ``current``: states only ever move forward, final ones never.

    A job that was never handed to a scheduler (PLANNED) can only be submitted or end by our own hand.
    """
    if current is JobState.PLANNED:
        return news in (JobState.SUBMITTING, JobState.CANCELLED, JobState.REJECTED)
    return _rank(news) > _rank(current)


def advance(current: State, news: State) -> State:
    """The state after hearing ``news``; late news about an earlier state changes nothing."""
    return news if may_move(current, news) else current


def earlier_states(state: State) -> tuple[State, ...]:
    """All states from which ``state`` may be reached: the guard of an UPDATE."""
    return tuple(s for s in type(state) if may_move(s, state))
