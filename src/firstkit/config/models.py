"""Sections ``models``: what clients may name, and where and how it runs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from firstkit.config.accounting import ModelLimits
from firstkit.config.auth import Access
from firstkit.config.clusters import Directive
from firstkit.config.engines import Engine
from firstkit.config.kinds import GIB, Line, ModelName, Name, Seconds, Section
from firstkit.schedulers.scheduler import Resources


class Weights(Section):
    """Where the weights are on the cluster: a path, absolute or below ``models_root``, and the revision they are of.
    ``stage``: whether engines read them there, or in a copy that each job makes on its nodes."""

    path: str
    stage: Literal["none", "node-local"] = "none"
    revision: Line | None = Field(default=None, max_length=200)


class DeploymentResources(Section):
    """What one replica needs. With ``exclusive`` its job takes the whole node and further replicas may join it."""

    nodes: int = Field(default=1, ge=1)
    gpus_per_node: int = Field(default=0, ge=0)
    cpus_per_node: int = Field(default=1, ge=1)
    memory_gib: float = Field(default=1.0, gt=0)
    exclusive: bool = False
    walltime: Seconds | None = Field(default=None, ge=10)
    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    directives: tuple[Directive, ...] = ()

    def resources(self) -> Resources:
        return Resources(
            nodes=self.nodes,
            cpus_per_node=self.cpus_per_node,
            gpus_per_node=self.gpus_per_node,
            memory_bytes=int(self.memory_gib * GIB),
            exclusive=self.exclusive,
            walltime_s=None if self.walltime is None else int(self.walltime),
            partition=self.partition,
            account=self.account,
            qos=self.qos,
            constraint=self.constraint,
            directives=self.directives,
        )


class Scale(Section):
    """How many replicas: ``hot`` always, up to ``max`` when they are full for ``sustain``, down to ``hot`` after
    ``idle_timeout`` without need."""

    hot: int = Field(default=0, ge=0)
    max: int = Field(default=1, ge=1)
    max_in_flight: int = Field(default=8, ge=1, le=1_000_000)
    idle_timeout: Seconds = 7200.0
    load_timeout: Seconds = 1800.0
    sustain: Seconds = 10.0
    node_hours_per_day: float | None = Field(default=None, gt=0)
    submissions_per_hour: int = Field(default=60, ge=1)

    @model_validator(mode="after")
    def _hot_below_max(self) -> Scale:
        if self.hot > self.max:
            raise ValueError(f"hot: {self.hot} is more than max: {self.max}")
        return self


class Deployment(Section):
    """Desired state: this model on this cluster with this engine."""

    cluster: Name
    engine: Name | Engine
    weights: str | Weights | None = None
    args: dict[str, str | int | float | bool] = {}
    resources: DeploymentResources = DeploymentResources()
    scale: Scale = Scale()


class Model(Section):
    """What clients name in ``model``."""

    aliases: tuple[ModelName, ...] = ()
    description: str = ""
    access: Access | None = None
    limits: ModelLimits = ModelLimits()
    default_max_tokens: int = Field(default=8192, ge=1, le=10_000_000)
    deployments: tuple[Deployment, ...] = Field(min_length=1)
