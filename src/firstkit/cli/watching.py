"""How far a model is on its way to live, read from the gateway's status: a function of values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from firstkit.cli.showing import eta
from firstkit.states import JobState, ReplicaState

UNHAPPY_ENDS = frozenset(state for state in JobState if state.is_final) - {JobState.COMPLETED, JobState.CANCELLED}


@dataclass(frozen=True)
class Look:
    """``stage`` changes when something happened, ``detail`` with every look. ``trouble``: it will not become live."""

    stage: str
    detail: str = ""
    is_live: bool = False
    trouble: str = ""
    log: str = ""


def look(status: dict[str, Any] | None, model: str, since: datetime | None) -> Look:
    """What there is to say. ``status``: None while no gateway answers.

    Troubles from before ``since`` do not count; None: from before the start of the gateway.
    """
    if status is None:
        return Look("The gateway is starting")
    since = since or datetime.fromisoformat(status["started_at"])
    row = next((row for row in status["models"] if row["id"] == model), None)
    if row is None:
        return Look(f"{model} is unknown to the gateway", trouble=f"the gateway does not know the model '{model}'.")
    if row["status"] == "live":
        return Look(f"{model} is live", is_live=True)
    replicas = [row for row in status["replicas"] if row["model"] == model]
    living = [row for row in replicas if not ReplicaState(row["state"]).is_final]
    if not living and (failed := _newest(replicas, {ReplicaState.FAILED}, since)):
        words = f"the engine of '{model}' failed: {failed['reason'] or 'no reason is known'}"
        return Look(f"{model} failed", trouble=f"{words.rstrip('.')}.", log=failed["log_tail"] or "")
    if not living and (failed := _newest(status["jobs"], UNHAPPY_ENDS, since)):
        words = f"the job {failed['id']} is {failed['state']}: {failed['reason'] or 'no reason is known'}"
        return Look("The job failed", trouble=f"{words.rstrip('.')}.")
    if status["controller"] != "connected":
        return Look("The controller is starting")
    return _stage(status, row, living)


def _stage(status: dict[str, Any], row: dict[str, Any], living: list[dict[str, Any]]) -> Look:
    detail = eta(row["eta_s"]) if row["eta_s"] is not None else ""
    coming = [replica for replica in living if replica["state"] in (ReplicaState.QUEUED, ReplicaState.STARTING)]
    if not coming:
        return Look(f"{row['id']} is {row['status']}", row["reason"] or detail)
    replica = max(coming, key=lambda replica: replica["created_at"])
    job = next((job for job in status["jobs"] if job["id"] == replica["job_id"]), None)
    if replica["state"] == ReplicaState.QUEUED and job is not None:
        return Look(f"The job {job['id']} is {job['state']}", job["reason"] or detail)
    return Look(f"The replica {replica['id']} is {replica['state']}", detail)


def _newest(rows: list[dict[str, Any]], states: Any, since: datetime) -> dict[str, Any] | None:
    """The last of the rows in ``states`` that were made since; None: there is none."""
    found = [row for row in rows if row["state"] in states and datetime.fromisoformat(row["created_at"]) >= since]
    return max(found, key=lambda row: row["created_at"], default=None)
