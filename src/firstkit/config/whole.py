"""The whole configuration, and every deployment of it with its references resolved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import model_validator

from firstkit.config.accounting import Accounting, Budget, Limits, Project
from firstkit.config.auth import Auth
from firstkit.config.clusters import Cluster, LocalScheduler, PbsScheduler, SlurmScheduler
from firstkit.config.engines import Engine
from firstkit.config.kinds import Line, ModelName, Name, Section
from firstkit.config.models import Deployment, Model, Scale, Weights
from firstkit.config.server import Server
from firstkit.engines.engine import SPREAD, EngineSpec, ReplicaSpec
from firstkit.engines.registry import OF_FILES
from firstkit.schedulers import pbs_commands, slurm_commands
from firstkit.schedulers.scheduler import Resources


class Config(Section):
    """The whole file."""

    server: Server = Server()
    auth: Auth = Auth()
    limits: Limits = Limits()
    accounting: Accounting = Accounting()
    projects: dict[Line, Project] = {}
    budgets: tuple[Budget, ...] = ()
    clusters: dict[Name, Cluster]
    models: dict[ModelName, Model]

    @model_validator(mode="after")
    def _tunnels_have_a_door(self) -> Config:
        for name, cluster in self.clusters.items():
            if cluster.link.kind == "tunnel" and self.server.pilot_listen is None:
                raise ValueError(f"clusters.{name}.link.kind: 'tunnel' needs server.pilot_listen")
            if cluster.carrier.kind == "ssh" and cluster.link.kind == "socket":
                raise ValueError(f"clusters.{name}.link.kind: 'socket' is for one machine; with ssh: tunnel or direct")
        return self

    @model_validator(mode="after")
    def _refers_to_what_exists(self) -> Config:
        names: dict[str, str] = {}
        for model_name, model in self.models.items():
            for name in (model_name, *model.aliases):
                if name in names:
                    raise ValueError(f"models.{model_name}: the name '{name}' is taken by models.{names[name]}")
                names[name] = model_name
            seen: set[str] = set()
            for i, deployment in enumerate(model.deployments):
                where = f"models.{model_name}.deployments[{i}]"
                self._check_deployment(deployment, where)
                if deployment.cluster in seen:
                    raise ValueError(f"{where}.cluster: '{deployment.cluster}' has a deployment of this model already")
                seen.add(deployment.cluster)
        return self

    @model_validator(mode="after")
    def _budgets_are_of_models(self) -> Config:
        for i, budget in enumerate(self.budgets):
            if budget.model is not None and budget.model not in self.models:
                known = ", ".join(self.models)
                raise ValueError(f"budgets[{i}].model: '{budget.model}' is not a model; allowed: {known}")
        return self

    def _check_deployment(self, deployment: Deployment, where: str) -> None:
        cluster = self.clusters.get(deployment.cluster)
        if cluster is None:
            known = ", ".join(self.clusters) or "none"
            raise ValueError(f"{where}.cluster: '{deployment.cluster}' is not a cluster; allowed: {known}")
        engine = deployment.engine
        if isinstance(engine, str):
            if engine not in cluster.engines:
                known = ", ".join(cluster.engines) or "none are defined"
                raise ValueError(
                    f"{where}.engine: '{engine}' is not an engine of {deployment.cluster}; allowed: {known}"
                )
            engine = cluster.engines[engine]
        if (engine.kind == "external") != (cluster.kind == "external"):
            raise ValueError(
                f"{where}.engine: an engine of kind 'external' and a cluster of kind 'external' go together"
            )
        if engine.kind in OF_FILES and deployment.weights is None:
            raise ValueError(f"{where}.weights: an engine of kind '{engine.kind}' needs the path of the weights")
        if deployment.resources.nodes > 1:
            _check_spread(deployment, engine, cluster.scheduler.kind, where)
        if isinstance(cluster.scheduler, PbsScheduler):
            _check_pbs(deployment.resources.resources(), cluster.scheduler, f"{where}.resources")
        if isinstance(deployment.weights, Weights) and deployment.weights.stage != "none":
            _check_stage(deployment.weights, cluster, deployment.cluster, f"{where}.weights")

    def deployments(self) -> list[ResolvedDeployment]:
        """Every deployment with its references resolved, in the order of the file."""
        return [
            self._resolve(model_name, deployment)
            for model_name, model in self.models.items()
            for deployment in model.deployments
        ]

    def cluster_state_dir(self, name: str) -> Path:
        return self.clusters[name].state_dir or self.server.state_dir / "clusters" / name

    def _resolve(self, model: str, deployment: Deployment) -> ResolvedDeployment:
        cluster = self.clusters[deployment.cluster]
        engine = deployment.engine
        spec = cluster.engines[engine].spec(engine) if isinstance(engine, str) else engine.spec(engine.kind)
        given = deployment.weights
        if not isinstance(given, Weights):
            given = None if given is None else Weights(path=given)
        weights = None if given is None else given.path
        if weights is not None and cluster.models_root is not None:
            weights = str(cluster.models_root / weights)
        return ResolvedDeployment(
            name=f"{model}@{deployment.cluster}",
            model=model,
            cluster=deployment.cluster,
            engine=spec,
            weights=weights,
            revision=None if given is None else given.revision,
            stage="none" if given is None else given.stage,
            args=dict(deployment.args),
            resources=_with_usual(deployment.resources.resources(), cluster.scheduler),
            scale=deployment.scale,
        )


@dataclass(frozen=True, slots=True)
class ResolvedDeployment:
    """A deployment with its engine looked up and its paths made whole. ``name`` is ``model@cluster``."""

    name: str
    model: str
    cluster: str
    engine: EngineSpec
    weights: str | None
    revision: str | None
    args: dict[str, Any]
    resources: Resources
    scale: Scale
    stage: str = "none"

    @property
    def is_external(self) -> bool:
        return self.engine.kind == "external"

    def replica_spec(self, replica_id: str) -> ReplicaSpec:
        """What a pilot is told to run one replica of this deployment."""
        return ReplicaSpec(
            replica_id=replica_id,
            model=self.model,
            deployment=self.name,
            engine=self.engine,
            weights=self.weights,
            revision=self.revision,
            args=self.args,
            needs=self.resources,
            max_in_flight=self.scale.max_in_flight,
            load_timeout_s=self.scale.load_timeout,
            stage=self.stage,
        )


def _check_stage(weights: Weights, cluster: Cluster, name: str, where: str) -> None:
    """Whether copies of these weights have a place on the nodes of the cluster."""
    if cluster.scratch is None:
        raise ValueError(f"{where}.stage: '{weights.stage}' needs clusters.{name}.scratch, a folder of each node")
    if not cluster.scratch.startswith(("/", "$")):
        raise ValueError(f"clusters.{name}.scratch: '{cluster.scratch}' must begin with / or a variable: $TMPDIR")
    if cluster.models_root is None and not weights.path.startswith("/"):
        raise ValueError(f"{where}.path: '{weights.path}' must be absolute to be copied, or below models_root")


def _with_usual(resources: Resources, scheduler: LocalScheduler | SlurmScheduler | PbsScheduler) -> Resources:
    """``resources`` with what the cluster's scheduler section says for all its jobs, where the deployment is silent."""
    if isinstance(scheduler, SlurmScheduler):
        return slurm_commands.with_defaults(resources, slurm_commands.read_defaults(scheduler.model_dump()))
    if isinstance(scheduler, PbsScheduler):
        return pbs_commands.with_defaults(resources, pbs_commands.read_defaults(scheduler.model_dump()))
    return resources


def _check_spread(deployment: Deployment, engine: Engine, scheduler: str, where: str) -> None:
    """Raise ValueError for a replica of several nodes that nobody could start."""
    if scheduler == "local":
        raise ValueError(f"{where}.resources.nodes: more than 1 needs a scheduler of kind 'slurm' or 'pbs'")
    if not deployment.resources.exclusive:
        raise ValueError(f"{where}.resources.exclusive: must be true where a replica has several nodes")
    if engine.kind not in SPREAD:
        raise ValueError(
            f"{where}.engine: an engine of kind '{engine.kind}' runs on one node; on several: {', '.join(SPREAD)}"
        )
    if engine.kind == "command" and not any("{rank}" in argument for argument in engine.argv):
        raise ValueError(f"{where}.engine.argv: {{rank}} is needed where a replica has several nodes")


def _check_pbs(resources: Resources, scheduler: PbsScheduler, where: str) -> None:
    """Raise ValueError for what a job of PBS cannot have: it would be refused only when it is submitted."""
    fault = pbs_commands.fault_of(resources, pbs_commands.read_defaults(scheduler.model_dump()))
    if fault is not None:
        field, sentence = fault
        raise ValueError(f"{where}.{field}: {sentence}")
