"""Scenario files: what is simulated. Checked like the configuration; every error names the field."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AwareDatetime, Discriminator, Field, Tag, ValidationError, model_validator

from firstkit.config.clusters import Spending
from firstkit.config.kinds import GIB, Count, ModelName, Name, Seconds, Section
from firstkit.config.models import DeploymentResources, Scale
from firstkit.config.whole import ResolvedDeployment
from firstkit.engines.engine import EngineSpec
from firstkit.errors import ConfigError

A_MONDAY = datetime(2026, 3, 2, tzinfo=UTC)


class Spread(Section):
    """Times: half are below ``usual``, nine of ten below ``late``; the logarithm is normally distributed."""

    usual: Seconds = Field(gt=0)
    late: Seconds = Field(gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> Spread:
        _check_order(self)
        return self


class Tokens(Section):
    """Numbers of tokens, distributed in the same way."""

    usual: Count = Field(gt=0)
    late: Count = Field(gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> Tokens:
        _check_order(self)
        return self


def _check_order(section: Spread | Tokens) -> None:
    if section.late < section.usual:
        raise ValueError(f"late: {section.late:g} is less than usual: {section.usual:g}")


class Background(Section):
    """Jobs of others, on whole nodes. ``load``: the share of the cluster that they ask for in the mean; from 1 on the
    queue grows for ever. ``overasked``: they ask for up to so many times what they will use."""

    load: float = Field(default=0.8, ge=0, le=1.5)
    nodes: Tokens = Tokens(usual=2, late=8)
    runs: Spread = Spread(usual=3600, late=4 * 3600)
    overasked: float = Field(default=3.0, ge=1)
    swing: float = Field(default=0.4, ge=0, le=1)


class QueueScheduler(Section):
    """First come, first served, with backfill, over nodes that are shared with others."""

    kind: Literal["queue"] = "queue"
    backfill: bool = True
    others: Background = Background()


class WaitsScheduler(Section):
    """Each job waits for a time that is drawn, and then for room. It cannot say when a job would start."""

    kind: Literal["waits"] = "waits"
    wait: Spread


class Window(Section):
    """A time, from ``after`` the start of the scenario on."""

    after: Seconds
    lasts: Seconds = Field(gt=0)
    message: str = ""


class NodeFailures(Section):
    """``every``: in the mean, how long a node runs until it fails; ``repair``: how long it is away then."""

    every: Seconds = Field(gt=0)
    repair: Seconds = 7200.0


class ClusterSection(Section):
    """A cluster of equal nodes; with ``count`` so many that are alike, named NAME-0, NAME-1, ..."""

    count: int | None = Field(default=None, ge=1, le=1000)
    nodes: int = Field(ge=1, le=100_000)
    cpus_per_node: int = Field(default=32, ge=1)
    gpus_per_node: int = Field(default=4, ge=0)
    memory_gib: float = Field(default=512, gt=0)
    scheduler: Annotated[
        Annotated[QueueScheduler, Tag("queue")] | Annotated[WaitsScheduler, Tag("waits")],
        Discriminator(lambda value: value.get("kind", "queue") if isinstance(value, dict) else value.kind),
    ] = QueueScheduler()
    handicap: Seconds = 0.0
    limits: Spending = Spending()
    silent: tuple[Window, ...] = ()
    maintenance: tuple[Window, ...] = ()
    node_failures: NodeFailures | None = None


class EngineSection(Section):
    """How engines of a model behave. Speeds are of one request: ``tokens_per_s`` when it is alone,
    ``full_tokens_per_s`` when the engine has as many as it takes. ``fails``: share of the loads; ``breaks_every``: in
    the mean."""

    load: Spread = Spread(usual=120, late=240)
    tokens_per_s: float = Field(default=60, gt=0)
    full_tokens_per_s: float | None = Field(default=None, gt=0)
    prompt_tokens_per_s: float = Field(default=5000, gt=0)
    first_token: Seconds = 0.1
    fails: float = Field(default=0.0, ge=0, le=1)
    breaks_every: Seconds | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _slower_when_full(self) -> EngineSection:
        if self.full_tokens_per_s is not None and self.full_tokens_per_s > self.tokens_per_s:
            raise ValueError("full_tokens_per_s: must not be more than tokens_per_s")
        return self


class ModelSection(Section):
    """A model; with ``count`` so many that are alike, named NAME-0, NAME-1, ... ``clusters``: where it may run, in the
    order of preference; absent: everywhere. ``each_on``: each on so many of these, going round."""

    count: int | None = Field(default=None, ge=1, le=10_000)
    clusters: tuple[Name, ...] | None = None
    each_on: int | None = Field(default=None, ge=1)
    popularity: float | None = Field(default=None, ge=0)
    prompt: Tokens | None = None
    answer: Tokens | None = None
    engine: EngineSection = EngineSection()
    resources: DeploymentResources = DeploymentResources(walltime=6 * 3600)
    scale: Scale = Scale()


class Daily(Section):
    """More by ``swing`` than the mean at ``peak_hour`` (UTC), less by as much twelve hours later."""

    peak_hour: float = Field(default=14, ge=0, lt=24)
    swing: float = Field(default=0.0, ge=0, le=1)


class Bursts(Section):
    """``per_day`` times a day one model is asked ``factor`` times as much as usual, while it ``lasts``."""

    per_day: float = Field(gt=0)
    factor: float = Field(default=5, ge=1)
    lasts: Seconds = Field(default=600, gt=0)


class Load(Section):
    """What is asked. ``trace``: a CSV file, beside the scenario, instead of all that is drawn."""

    trace: Path | None = None
    requests_per_hour: float = Field(default=100, ge=0)
    zipf: float = Field(default=1.0, ge=0, le=5)
    daily: Daily = Daily()
    weekend: float = Field(default=1.0, ge=0, le=10)
    bursts: Bursts | None = None
    prompt: Tokens = Tokens(usual=500, late=4000)
    answer: Tokens = Tokens(usual=250, late=1000)
    projects: int = Field(default=5, ge=1, le=100_000)
    users_per_project: int = Field(default=4, ge=1, le=100_000)
    patience: Seconds = Field(default=1800, gt=0)
    max_waiting: int = Field(default=1000, ge=1)


class Scenario(Section):
    """The whole file."""

    name: Name
    about: str = ""
    seed: int = 1
    start: AwareDatetime = A_MONDAY
    duration: Seconds = Field(default=86400.0, gt=0)
    pass_every: Seconds = Field(default=15.0, ge=1)
    look_every: Seconds = Field(default=5.0, ge=1)
    clusters: dict[Name, ClusterSection] = Field(min_length=1)
    models: dict[ModelName, ModelSection] = Field(min_length=1)
    load: Load = Load()

    @model_validator(mode="after")
    def _refers_to_what_exists(self) -> Scenario:
        for name, model in self.models.items():
            for cluster in model.clusters or ():
                if cluster not in self.clusters:
                    known = ", ".join(self.clusters)
                    raise ValueError(f"models.{name}.clusters: '{cluster}' is not a cluster; allowed: {known}")
            self._fits_somewhere(name, model)
        return self

    def _fits_somewhere(self, name: str, model: ModelSection) -> None:
        needs = model.resources
        for cluster in model.clusters or self.clusters:
            there = self.clusters[cluster]
            found = [
                ("nodes", needs.nodes, there.nodes),
                ("gpus_per_node", needs.gpus_per_node, there.gpus_per_node),
                ("cpus_per_node", needs.cpus_per_node, there.cpus_per_node),
                ("memory_gib", needs.memory_gib, there.memory_gib),
            ]
            for field, asked, most in found:
                if asked > most:
                    raise ValueError(f"models.{name}.resources.{field}: {asked:g} is more than {cluster} has: {most:g}")


@dataclass(frozen=True, slots=True)
class SimModel:
    """One model with all that is drawn for it. ``deployments``: in the order of preference."""

    name: str
    weight: float
    prompt: Tokens
    answer: Tokens
    engine: EngineSection
    deployments: tuple[ResolvedDeployment, ...]


def load_scenario(path: Path) -> Scenario:
    """Read and check a scenario; raises ConfigError with every fault in it."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}") from exc
    except (yaml.YAMLError, RecursionError, ValueError) as exc:
        raise ConfigError(f"{path}: not valid YAML: {exc}") from exc
    found = parse_scenario(data, str(path))
    trace = found.load.trace
    if trace is not None and not trace.is_absolute():
        load = found.load.model_copy(update={"trace": path.parent / trace})
        return found.model_copy(update={"load": load})
    return found


def parse_scenario(data: Any, source: str = "scenario") -> Scenario:
    """Check a scenario that was read; raises ConfigError with every fault in it."""
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: must be a mapping with the keys {', '.join(Scenario.model_fields)}")
    try:
        return Scenario.model_validate(data)
    except ValidationError as exc:
        faults = "\n".join(f"  {_sentence(error)}" for error in exc.errors(include_url=False))
        raise ConfigError(f"{source} is not valid:\n{faults}") from exc


def _sentence(error: Any) -> str:
    """One validation error as ``path: value: what is allowed``."""
    parts = [part for part in error["loc"] if part not in ("queue", "waits", "[key]")]
    where = ".".join(str(part) for part in parts)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key"
    if error["type"] == "missing":
        return f"{where}: missing"
    if error["type"] == "value_error" and isinstance(error["input"], dict):
        return f"{where}.{message}" if where else message
    return f"{where}: {error['input']!r} is not allowed: {message}"


# -- what a scenario stands for ----------------------------------------------------------------------------------------


def clusters_of(scenario: Scenario) -> dict[str, ClusterSection]:
    """Every single cluster by its name."""
    return {name: section for group, section in scenario.clusters.items() for name in _names(group, section.count)}


def models_of(scenario: Scenario) -> list[SimModel]:
    """Every single model, the most popular ones first unless ``popularity`` says otherwise."""
    found: list[SimModel] = []
    for group, section in scenario.models.items():
        where = [name for one in section.clusters or scenario.clusters for name in _members(scenario, one)]
        for number, name in enumerate(_names(group, section.count)):
            weight = section.popularity
            if weight is None:
                weight = 1 / (len(found) + 1) ** scenario.load.zipf
            found.append(
                SimModel(
                    name,
                    weight,
                    section.prompt or scenario.load.prompt,
                    section.answer or scenario.load.answer,
                    section.engine,
                    tuple(_deployments(name, section, _round(where, section.each_on, number))),
                )
            )
    return found


def _round(names: list[str], count: int | None, number: int) -> list[str]:
    """So many of the names, from another place on for each ``number``."""
    if count is None or count >= len(names):
        return names
    first = number * count
    return [names[(first + i) % len(names)] for i in range(count)]


def _names(group: str, count: int | None) -> list[str]:
    return [group] if count is None else [f"{group}-{i}" for i in range(count)]


def _members(scenario: Scenario, group: str) -> list[str]:
    return _names(group, scenario.clusters[group].count)


def _deployments(model: str, section: ModelSection, clusters: list[str]) -> Iterator[ResolvedDeployment]:
    for cluster in clusters:
        yield ResolvedDeployment(
            name=f"{model}@{cluster}",
            model=model,
            cluster=cluster,
            engine=EngineSpec("command", argv=("simulated",)),
            weights=None,
            revision=None,
            args={},
            resources=section.resources.resources(),
            scale=section.scale,
        )


def memory_bytes(section: ClusterSection) -> int:
    """Of one node."""
    return int(section.memory_gib * GIB)
