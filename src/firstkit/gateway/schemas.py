"""What the routes about models, clusters and jobs answer, as the OpenAPI document shows it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from firstkit.states import ModelStatus


class Answer(BaseModel):
    """Part of an answer."""

    model_config = ConfigDict(use_enum_values=True)


class Maintenance(Answer):
    """A time during which a cluster is left."""

    start: datetime
    end: datetime
    message: str = ""


class Room(Answer):
    """What a cluster has, of everybody, and what of it is free."""

    nodes: int
    gpus: int
    free_nodes: int
    free_gpus: int


class Queue(Answer):
    """Jobs of FIRST on a cluster, those of models that you may use."""

    pending: int = 0
    running: int = 0


class Overall(Answer):
    """How far a model is. ``eta_s``: seconds until it is live; of one that is offline, after a request."""

    status: ModelStatus
    eta_s: float | None
    reason: str


class OnCluster(Answer):
    """How far a model is on one cluster. ``position``: of its first job in the scheduler's queue, 1 for the next."""

    name: str
    status: ModelStatus
    eta_s: float | None
    position: int | None
    reason: str


class OfModel(Answer):
    """The same, with the name of the model."""

    id: str
    status: ModelStatus
    eta_s: float | None
    position: int | None
    reason: str


class Availability(Answer):
    """The share of the minutes in which a scheduler answered, of those in which it was asked; null: it was not."""

    day: float | None = None
    week: float | None = None


class QueueForecast(Answer):
    """What is known of a cluster's queue, and how well its forecasts came true. In seconds; null: nobody knows."""

    wait_s: float | None = Field(default=None, description="What a job that is submitted now is forecast to wait.")
    late_wait_s: float | None = Field(default=None, description="What nine of ten are forecast not to exceed.")
    error_s: float | None = Field(default=None, description="By how much forecasts were off, on average.")
    coverage: float | None = Field(default=None, description="The share of waits within what nine of ten should be.")
    waits: int = Field(default=0, description="So many waits are remembered.")


Status = Literal["open", "drained", "maintenance", "silent"]


class ClusterInfo(Answer):
    """One cluster, as users see it."""

    id: str
    object: Literal["cluster"] = "cluster"
    status: Status
    message: str
    scheduler: str | None = Field(description="The kind of its scheduler; null: others run what is there.")
    models: list[OfModel]
    capacity: Room | None = Field(description="Null: not known, or none of ours.")
    queue: Queue
    maintenance: Maintenance | None = Field(description="The present one, or the next.")
    availability: Availability
    forecast: QueueForecast


class ClusterList(Answer):
    """All clusters that you may use."""

    object: Literal["list"] = "list"
    data: list[ClusterInfo]


class DrainedInfo(Answer):
    """Since when a cluster is drained, and by whom."""

    at: datetime
    actor: str
    message: str


class Spent(Answer):
    """What FIRST takes of a cluster now, and took of it today, a day of UTC."""

    nodes: float = 0
    node_hours_today: float = 0.0


class Most(Answer):
    """What FIRST may take of a cluster. Null: as much as the scheduler gives."""

    nodes: int | None
    node_hours_per_day: float | None


class ClusterState(Answer):
    """One cluster, as operators see it."""

    id: str
    kind: Literal["batch", "external"]
    status: Status
    message: str
    scheduler: str | None
    carrier: str | None
    link: str | None
    scheduler_status: Literal["answering", "silent", "unknown"]
    reason: str = Field(description="What the scheduler, or the way to it, said when it did not answer.")
    asked_at: datetime | None = Field(description="When it answered last.")
    capacity: dict[str, Any] | None
    drained: DrainedInfo | None
    maintenance: Maintenance | None
    queue: Queue
    spent: Spent
    limits: Most


class JobInfo(Answer):
    """One replica that runs, starts or waits, in its job."""

    id: str
    object: Literal["job"] = "job"
    model: str
    cluster: str
    status: Literal["live", "starting", "queued", "ending"]
    position: int | None = Field(description="Place of its job in the scheduler's queue, 1 for the next.")
    starts_at: datetime | None = Field(description="When the scheduler means to start the job.")
    eta_s: float | None = Field(description="Seconds until it takes requests.")
    reason: str
    ends_at: datetime | None = Field(description="When it ends at the latest.")
    left_s: float | None = Field(description="Seconds until then.")
    since: datetime | None = Field(description="When it came to this status.")


class JobList(Answer):
    """A page of what runs, starts and waits; the oldest first."""

    object: Literal["list"] = "list"
    data: list[JobInfo]
    has_more: bool = Field(description="More follow after the last of these: ask again with `after` and its id.")


class Privacy(Answer):
    """What becomes of prompts and answers: the rule that is in force."""

    stores_prompts: bool = Field(description="Whether the service keeps any, beyond the time that it takes to answer.")
    kept_s: float = Field(
        description="How long answers of /v1/responses are kept for their owner alone, with what was said before them; "
        "not those of requests with store: false. In seconds; 0: not at all."
    )
    leaves: bool = Field(description="Whether a request may go to a service that others run, by their own rules.")
    rule: str = Field(description="The same as a sentence.")


class ModelFacts(Answer):
    """What FIRST knows of a model."""

    status: ModelStatus
    eta_s: float | None
    reason: str
    clusters: list[OnCluster]
    replicas_ready: int
    context_length: int | None
    capabilities: list[str]
    aliases: list[str]
    description: str
    privacy: Privacy


class ModelInfo(Answer):
    """A model as OpenAI lists them, and what FIRST knows of it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    first: ModelFacts


class ModelList(Answer):
    """All models that you may use."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class Demand(Answer):
    """Requests of a model that may go to the same clusters; null: to any."""

    clusters: list[str] | None
    waiting: int
    in_flight: int
    idle_s: float | None


class Explained(Answer):
    """What is wanted of a model on one cluster, why, and what it waits for."""

    cluster: str
    status: ModelStatus
    eta_s: float | None
    position: int | None
    reason: str
    wanted: int
    why: list[str]
    waits_for: list[str]
    replicas: dict[str, int]
    ready: int
    in_flight: int
    start_in_s: float | None = Field(description="Seconds until one more replica would be live.")
    state: ClusterState


class Explanation(Answer):
    """What is wanted of a model, why, and what it waits for."""

    model: str
    status: ModelStatus
    eta_s: float | None
    reason: str
    controller: Literal["connected", "silent"]
    ready: int
    in_flight: int
    waiting: int
    demand: list[Demand]
    clusters: list[Explained]


class RequestInfo(Answer):
    """What became of one request to a model. What is not known yet, or is known to nobody, is null."""

    id: str
    object: Literal["request"] = "request"
    status: Literal["in_progress", "complete", "rejected", "failed", "timeout", "cancelled", "lost"]
    model: str
    endpoint: str = Field(description="The path, without what all have in common.")
    cluster: str | None = None
    replica: str | None = None
    engine: str | None = Field(default=None, description="The engine and its version.")
    revision: str | None = Field(default=None, description="Of the weights, as the operator names it.")
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    estimated: bool | None = Field(default=None, description="Whether the tokens are an estimate.")
    queue_s: float | None = Field(default=None, description="Seconds until a replica took it.")
    ttft_s: float | None = Field(default=None, description="Seconds until the first token.")
    duration_s: float | None = Field(default=None, description="Seconds from there to the end of its answer.")
    at: datetime = Field(description="When it came.")
