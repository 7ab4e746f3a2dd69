"""How the deployments of a cluster stand: the picture that placement decides from, made of rows and forecasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from firstkit.config import ResolvedDeployment
from firstkit.reconciler.autoscale import Policy
from firstkit.reconciler.backoff import retry_at
from firstkit.reconciler.budget import Budget
from firstkit.reconciler.closing import Site, why_too_late
from firstkit.reconciler.forecast import Experience, back_off, job_left_s, wait_s
from firstkit.reconciler.handover import REQUEST_S
from firstkit.reconciler.placement import Place, Queued
from firstkit.reconciler.plan import SHORTEST, Desired
from firstkit.reconciler.survey import ObservedJob, Survey
from firstkit.states import JobState, ReplicaState
from firstkit.store.jobs import ReplicaRow

UNKNOWN_LOAD_S = 120.0
"""How long the first load of a deployment is thought to take when its end is weighed."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One cluster at one moment. ``silent_s``: for how long its scheduler has not answered; None: it does.

    ``known``, ``ended``, ``said``, ``kept``: by deployment, what was learned, its ended replicas (newest first), how
    many seconds a job would wait by its scheduler's word, and how many ran when the controller started.
    """

    survey: Survey
    site: Site = field(default_factory=Site)
    budget: Budget = field(default_factory=Budget)
    silent_s: float | None = None
    handicap_s: float = 0.0
    known: Mapping[str, Experience] = field(default_factory=dict)
    ended: Mapping[str, Sequence[ReplicaRow]] = field(default_factory=dict)
    said: Mapping[str, float | None] = field(default_factory=dict)
    kept: Mapping[str, int] = field(default_factory=dict)
    finish_s: Mapping[str, float] = field(default_factory=dict)
    """By model, how much time a replica must have left to be given a request."""
    elsewhere: Mapping[str, float] = field(default_factory=dict)
    """How long a replica of the same model may take on the other clusters until it serves, where any could start."""
    availability: float = 1.0
    """The share of the last day in which its scheduler answered."""

    @property
    def now(self) -> datetime:
        return self.survey.now

    def experience(self, name: str) -> Experience:
        return self.known.get(name, Experience())

    def warm_s(self, deployment: ResolvedDeployment) -> float:
        """How long a successor may take to be warm: by what nine of ten did, and what the scheduler says now."""
        known, said_s = self.experience(deployment.name), self.said.get(deployment.name)
        warm_s = known.warm_s
        if warm_s is None:
            warm_s = min(UNKNOWN_LOAD_S, deployment.scale.load_timeout)
        return max(warm_s, (said_s or 0.0) + (known.usual_load_s or 0.0))

    def wait_s(self, deployment: ResolvedDeployment) -> float:
        """How long until a replica that is started now begins to load: at once where a running job has room."""
        room = self.survey.rooms.choose(deployment.resources, SHORTEST * self.warm_s(deployment))
        if room and not room.is_waiting:
            return 0.0
        known = self.experience(deployment.name)
        return wait_s(self.said.get(deployment.name), known.usual_wait_s if known.waits else None) or 0.0

    def start_s(self, deployment: ResolvedDeployment) -> float | None:
        """How long until a replica that is started now serves; None before the first load."""
        load_s = self.experience(deployment.name).usual_load_s
        return None if load_s is None else self.wait_s(deployment) + load_s


def policy_of(deployment: ResolvedDeployment) -> Policy:
    scale = deployment.scale
    return Policy(scale.hot, scale.max, scale.max_in_flight, scale.idle_timeout, scale.sustain)


def places(picture: Picture, deployments: Sequence[ResolvedDeployment]) -> dict[str, Place]:
    """By name, how each deployment of the cluster stands."""
    return {deployment.name: _place(picture, deployment) for deployment in deployments}


def _place(picture: Picture, deployment: ResolvedDeployment) -> Place:
    survey = picture.survey
    needs, scale, warm_s = deployment.resources, deployment.scale, picture.warm_s(deployment)
    too_late = why_too_late(
        picture.site, needs.walltime_s, picture.experience(deployment.name).usual_load_s, picture.now
    )
    obstacle = too_late or _obstacle(picture, deployment)
    # Where nothing can be started a successor comes from elsewhere, and takes as long as it takes there.
    successor_s = max(warm_s, picture.elsewhere.get(deployment.name, 0.0)) if obstacle else warm_s
    # One that cannot finish what usually comes is given nothing: the successor has to be there by then.
    successor_s += max(0.0, picture.finish_s.get(deployment.model, 0.0) - REQUEST_S)
    ready, loading, leaving, queued = 0, 0, 0, list[Queued]()
    for row in survey.by_deployment.get(deployment.name, ()):
        job = survey.jobs.get(row.job_id)
        if job is None or not survey.is_alive(row):
            continue
        if picture.site.closed or survey.life(row).is_leaving(successor_s):
            leaving += row.state is ReplicaState.READY
        elif row.state is ReplicaState.READY:
            ready += 1
        elif row.state is ReplicaState.STARTING or job.row.state is JobState.RUNNING:
            loading += 1
        else:
            queued.append(_queued(picture, row, job))
    return Place(
        name=deployment.name,
        cluster=deployment.cluster,
        policy=policy_of(deployment),
        ready=ready,
        loading=loading,
        queued=tuple(sorted(queued, key=lambda one: one.waited_s, reverse=True)),
        leaving=leaving,
        kept=0 if too_late else picture.kept.get(deployment.name, 0),
        new=picture.budget.left(deployment.name, scale, needs) + (survey.rooms.choose(needs) is not None),
        limit=picture.budget.refusal(deployment.name, scale, needs),
        obstacle=obstacle,
        is_closing=bool(too_late),
        wait_s=picture.wait_s(deployment) + picture.handicap_s,
        load_s=picture.experience(deployment.name).usual_load_s,
        warm_s=warm_s,
        successor_s=successor_s,
        availability=picture.availability,
    )


def _queued(picture: Picture, row: ReplicaRow, job: ObservedJob) -> Queued:
    known = picture.experience(row.deployment)
    waited_s = max(0.0, (picture.now - row.created_at).total_seconds())
    left_s = job_left_s(row, job.row, known, picture.now)
    if left_s is None:  # longer than it ever should: as long again is the best guess
        left_s = waited_s
    return Queued(left_s + (known.usual_load_s or 0.0), waited_s, waited_s > known.usual_wait_s)


def _obstacle(picture: Picture, deployment: ResolvedDeployment) -> str:
    """Why demand is better served elsewhere for now; "" where nothing speaks against it."""
    if picture.silent_s is not None:
        return f"the scheduler has been silent for {picture.silent_s:.0f} s"
    return back_off(picture.ended.get(deployment.name, ()), picture.now)


def desired(
    picture: Picture,
    deployment: ResolvedDeployment,
    place: Place,
    wanted: int,
    stand_in: int,
) -> Desired:
    """What a plan is asked for, of a deployment that should have so many."""
    return Desired(
        deployment,
        wanted,
        retry_at(picture.ended.get(deployment.name, ()), picture.now),
        stand_in,
        place.successor_s,
        bool(picture.site.closed),
    )
