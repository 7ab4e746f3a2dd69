"""What people see of models, clusters and jobs: made of what the gateway, the controller and the store know."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TypeVar

from firstkit.gateway import schemas
from firstkit.gateway.state import Gateway
from firstkit.states import JobState, ModelStatus, ReplicaState
from firstkit.store.clusters import Drained
from firstkit.store.running import Running

T = TypeVar("T")
N = TypeVar("N")
SILENT = "The scheduler is not answering. What runs there goes on; nothing is started."
WAITING_STATES = (JobState.PLANNED, JobState.SUBMITTING, JobState.PENDING)
JobCounts = Mapping[tuple[str, JobState], int]
"""Living jobs by cluster and state."""
_NODES = re.compile(r"[,;]?\s*\b\w*[Nn]odes?:[^\s;]*")
_STATUS = {ReplicaState.READY: "live", ReplicaState.STARTING: "starting", ReplicaState.DRAINING: "ending"}


def without_nodes(reason: str) -> str:
    """A reason without the names of nodes, which schedulers write into theirs."""
    return _NODES.sub("", reason).strip() if "ode" in reason else reason


def _rule(kept_s: float, leaves: bool) -> str:
    """What is said of privacy, from what is done."""
    said = "Prompts and answers are not stored; who asked, when, and how many tokens it took, is."
    if kept_s:
        said += f" Answers of /v1/responses are kept for {kept_s:g} s with their prompts, unless 'store' is false."
    return f"{said} Requests may go to a service that others run, by its own rules." if leaves else said


async def each(items: Iterable[N], make: Callable[[N], T]) -> list[T]:
    """``make`` of each, with a turn for others after every one: a federation is large, and tokens do not wait."""
    made = []
    for item in items:
        made.append(make(item))
        await asyncio.sleep(0)
    return made


class View:
    """What somebody may see who may use the clusters ``within``, at one moment. Made for one answer."""

    def __init__(self, gateway: Gateway, within: frozenset[str] | None, at: datetime, *, is_operator: bool) -> None:
        """``is_operator``: whether names of nodes are shown."""
        self.gateway = gateway
        self.within = within
        self.at = at
        self._is_operator = is_operator
        self._live: dict[str, set[str]] = {}

    # -- models ------------------------------------------------------------------------------------------------

    def clusters_of(self, model: str) -> list[str]:
        """The clusters with a deployment of ``model``, in the order of the configuration."""
        names = [deployment.cluster for deployment in self.gateway.config.models[model].deployments]
        return names if self.within is None else [name for name in names if name in self.within]

    def overall(self, model: str) -> schemas.Overall:
        """How far a model is on any of the clusters. Where all of them are closed, that is why."""
        outlook = self.gateway.forecasts.outlook(model, self.within)
        why = self.gateway.table.calendar.why_all_closed(self.clusters_of(model), self.at.timestamp())
        return schemas.Overall(
            status=outlook.status,
            eta_s=None if why else outlook.eta_left_s,
            reason=self._told(why or outlook.reason),
        )

    def on(self, model: str, cluster: str) -> schemas.OnCluster:
        """How far a model is on one cluster. What takes no requests will not come to any."""
        if cluster in self._live_clusters(model):
            return schemas.OnCluster(name=cluster, status=ModelStatus.LIVE, eta_s=0.0, position=None, reason="")
        outlook = self.gateway.forecasts.outlook(model, frozenset((cluster,)))
        said = self.gateway.forecasts.explain(model).get(cluster, {})
        why_closed = self.gateway.table.calendar.why_closed(cluster, self.at.timestamp())
        return schemas.OnCluster(
            name=cluster,
            status=outlook.status,
            eta_s=None if why_closed else outlook.eta_left_s,
            position=said.get("position") if outlook.status is ModelStatus.QUEUED else None,
            reason=self._told(why_closed or outlook.reason),
        )

    def model_info(self, model: str) -> schemas.ModelInfo:
        """A model as its users see it."""
        clusters, entry = self.clusters_of(model), self.gateway.config.models[model]
        known, live = self.overall(model), self.gateway.table.pools[model].live(self.within)
        return schemas.ModelInfo(
            id=model,
            created=int(self.gateway.started_at.timestamp()),
            owned_by="first",
            first=schemas.ModelFacts(
                status=known.status,
                eta_s=known.eta_s,
                reason=known.reason,
                clusters=[self.on(model, cluster) for cluster in clusters],
                replicas_ready=len(live),
                context_length=max((route.context_length or 0 for route in live), default=0) or None,
                capabilities=sorted(self.gateway.capabilities(model)),
                aliases=list(entry.aliases),
                description=entry.description,
                privacy=self._privacy(clusters),
            ),
        )

    def _privacy(self, clusters: Iterable[str]) -> schemas.Privacy:
        kept_s = self.gateway.stored.keep_s
        leaves = any(self.gateway.config.clusters[cluster].kind == "external" for cluster in clusters)
        return schemas.Privacy(stores_prompts=kept_s > 0, kept_s=kept_s, leaves=leaves, rule=_rule(kept_s, leaves))

    def _told(self, reason: str) -> str:
        return reason if self._is_operator else without_nodes(reason)

    def _live_clusters(self, model: str) -> set[str]:
        if model not in self._live:
            self._live[model] = {route.cluster for route in self.gateway.table.pools[model].live(self.within)}
        return self._live[model]

    # -- clusters ----------------------------------------------------------------------------------------------

    def maintenance(self, cluster: str) -> schemas.Maintenance | None:
        """The one that is under way, or the next."""
        window = self.gateway.table.calendar.maintenance(cluster, self.at.timestamp())
        if window is None:
            return None
        return schemas.Maintenance(
            start=datetime.fromtimestamp(window.start, UTC),
            end=datetime.fromtimestamp(window.end, UTC),
            message=window.message,
        )

    def cluster_state(self, name: str, counts: JobCounts) -> schemas.ClusterState:
        """One cluster as operators see it."""
        cluster, drain = self.gateway.config.clusters[name], self.gateway.closures.drained.get(name)
        said, maintenance = self._facts(name), self.maintenance(name)
        is_batch = cluster.kind == "batch"
        status, message = _status(drain, maintenance, said.get("scheduler") == "silent", self.at)
        return schemas.ClusterState(
            id=name,
            kind=cluster.kind,
            status=status,
            message=message,
            scheduler=cluster.scheduler.kind if is_batch else None,
            carrier=cluster.carrier.kind if is_batch else None,
            link=cluster.link.kind if is_batch else None,
            scheduler_status=said.get("scheduler", "unknown"),
            reason=said.get("reason", ""),
            asked_at=said.get("asked_at"),
            capacity=said.get("capacity"),
            drained=None if drain is None else schemas.DrainedInfo(**asdict(drain)),
            maintenance=maintenance,
            queue=_queue(name, counts),
            spent=schemas.Spent(**said.get("spent", {})),
            limits=schemas.Most(nodes=cluster.limits.nodes, node_hours_per_day=cluster.limits.node_hours_per_day),
        )

    def cluster_info(self, state: schemas.ClusterState, models: Collection[str]) -> schemas.ClusterInfo:
        """The same as its users see it, with those of ``models`` that it has."""
        capacity, facts = state.capacity, self._facts(state.id)
        places = [
            (model, self.on(model, state.id)) for model in models if state.id in self.gateway.reach.deployments[model]
        ]
        return schemas.ClusterInfo(
            id=state.id,
            status=state.status,
            message=state.message,
            scheduler=state.scheduler,
            models=[
                schemas.OfModel(
                    id=model, status=place.status, eta_s=place.eta_s, position=place.position, reason=place.reason
                )
                for model, place in places
            ],
            capacity=None if capacity is None else schemas.Room.model_validate(capacity),
            queue=state.queue,
            maintenance=state.maintenance,
            availability=availability(facts),
            forecast=queue_forecast(facts),
        )

    def _facts(self, name: str) -> Mapping[str, Any]:
        """What the controller says of a cluster; nothing while it is away: what is free, and who answers, changes
        fast."""
        return self.gateway.forecasts.cluster_facts(name) if self.gateway.wake.is_connected else {}

    # -- jobs --------------------------------------------------------------------------------------------------

    def end_of(self, cluster: str, ends_at: datetime | None) -> datetime | None:
        """When a replica ends at the latest: with its job, or where the next maintenance of its cluster begins."""
        maintenance = self.maintenance(cluster)
        return min((end for end in (ends_at, maintenance and maintenance.start) if end), default=None)

    def job_info(self, row: Running) -> schemas.JobInfo:
        """A replica and its job, as users see them."""
        waits = row.job_state in WAITING_STATES
        status: Any = _job_status(row, waits)
        end = self.end_of(row.cluster, row.ends_at)
        since = {"live": row.ready_at, "starting": row.started_at, "queued": row.created_at}
        return schemas.JobInfo(
            id=row.id,
            model=row.model,
            cluster=row.cluster,
            status=status,
            position=row.position if waits else None,
            starts_at=row.starts_at if waits else None,
            eta_s=self._eta_s(row, status),
            reason=self._told(row.job_reason) if waits else "",
            ends_at=end,
            left_s=None if end is None else max(0.0, (end - self.at).total_seconds()),
            since=since.get(status),
        )

    def _eta_s(self, row: Running, status: str) -> float | None:
        """The forecast is that of the model on the cluster: it says nothing of a further replica."""
        if status == "live":
            return 0.0
        outlook = self.gateway.forecasts.outlook(row.model, frozenset((row.cluster,)))
        return outlook.eta_left_s if outlook.status.value == status else None

    # -- why ---------------------------------------------------------------------------------------------------

    def explanation(self, model: str, states: Collection[schemas.ClusterState]) -> schemas.Explanation:
        """What is wanted of ``model``, why, and what it waits for. ``states``: of its clusters."""
        gateway, known, pool = self.gateway, self.overall(model), self.gateway.table.pools[model]
        return schemas.Explanation(
            model=model,
            status=known.status,
            eta_s=known.eta_s,
            reason=known.reason,
            controller="connected" if gateway.wake.is_connected else "silent",
            ready=len(pool.live()),
            in_flight=pool.in_flight,
            waiting=gateway.room.waiting(model),
            demand=[schemas.Demand(**entry) for entry in gateway.room.demand()[model]],
            clusters=[self._explained(model, state) for state in states],
        )

    def _explained(self, model: str, state: schemas.ClusterState) -> schemas.Explained:
        place, said = self.on(model, state.id), self.gateway.forecasts.explain(model).get(state.id, {})
        routes = [route for route in self.gateway.table.pools[model].routes if route.cluster == state.id]
        return schemas.Explained(
            cluster=state.id,
            status=place.status,
            eta_s=place.eta_s,
            position=place.position,
            reason=place.reason,
            wanted=said.get("wanted", 0),
            why=said.get("why", []),
            waits_for=said.get("waits_for", []),
            replicas=said.get("replicas", {}),
            ready=sum(route.is_live for route in routes),
            in_flight=sum(route.in_flight for route in routes),
            start_in_s=said.get("start_in_s"),
            state=state,
        )


def availability(facts: Mapping[str, Any]) -> schemas.Availability:
    """How often a scheduler answered, from what the controller says of its cluster."""
    return schemas.Availability(**facts.get("availability", {}))


def queue_forecast(facts: Mapping[str, Any]) -> schemas.QueueForecast:
    """How long jobs wait and how well that was forecast, from what the controller says of a cluster."""
    return schemas.QueueForecast(
        wait_s=facts.get("wait_s"),
        late_wait_s=facts.get("late_wait_s"),
        error_s=facts.get("wait_error_s"),
        coverage=facts.get("wait_coverage"),
        waits=facts.get("waits", 0),
    )


def _status(
    drain: Drained | None, maintenance: schemas.Maintenance | None, is_silent: bool, at: datetime
) -> tuple[schemas.Status, str]:
    """What a drain says goes first, since nothing but an operator ends it."""
    if drain is not None:
        return "drained", drain.message
    if maintenance is not None and maintenance.start <= at:
        return "maintenance", maintenance.message
    return ("silent", SILENT) if is_silent else ("open", "")


def _queue(name: str, counts: JobCounts) -> schemas.Queue:
    ours = Counter({state: count for (cluster, state), count in counts.items() if cluster == name})
    pending = sum(ours[state] for state in WAITING_STATES)
    return schemas.Queue(pending=pending, running=ours.total() - pending)


def _job_status(row: Running, waits: bool) -> str:
    if row.job_state is JobState.ENDING:
        return "ending"
    if row.state is ReplicaState.QUEUED:
        return "queued" if waits else "starting"
    return _STATUS[row.state]
