"""One YAML file, cast once: every error names the path, the value and what is allowed. No secret has a default."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from firstkit.engines.engine import EngineSpec, ReplicaSpec
from firstkit.errors import ConfigError
from firstkit.paths import default_state_dir
from firstkit.schedulers.scheduler import Resources

if TYPE_CHECKING:
    from yaml import SafeLoader
else:
    SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # that of libyaml reads a hundred models in no time

GIB = 1024**3
SOCKET_PATH_LIMIT = 107
"""Longest path of a UNIX socket on Linux, in bytes."""
LONGEST_SOCKET = "/controller.sock"
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(value: Any) -> Any:
    """``90``, ``90s``, ``1.5h``: seconds."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("must be a duration such as 90s, 5m, 24h or 7d")
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", value.strip())
        if not match:
            raise ValueError("must be a duration such as 90s, 5m, 24h or 7d")
        return float(match[1]) * _UNITS[match[2] or "s"]
    return value


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
        raise ValueError("must be letters, digits, '.', '_' or '-', at most 100, starting with a letter or digit")
    return value


def _model_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}", value):
        raise ValueError("must be letters, digits or any of ._:/@+- , at most 200, starting with a letter or digit")
    return value


def _listen(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("must be HOST:PORT, for example 127.0.0.1:8000")
    return value


LONGEST_S = 100 * 365 * 86400.0
Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=LONGEST_S)]
Name = Annotated[str, AfterValidator(_name)]
ModelName = Annotated[str, AfterValidator(_model_name)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, allow_inf_nan=False)


def _folder(value: Path) -> Path:
    if "\0" in str(value):
        raise ValueError("must be a path")
    return value


class Server(_Section):
    """Where the gateway listens and keeps its state, and how long requests may wait."""

    listen: Annotated[str, AfterValidator(_listen)] = "127.0.0.1:8000"
    pilot_listen: Annotated[str, AfterValidator(_listen)] | None = None
    pilot_urls: tuple[Annotated[str, AfterValidator(_listen)], ...] = ()
    state_dir: Annotated[Path, AfterValidator(_folder)] = Path()
    database: str | None = None
    hold: Seconds = 2.0
    max_wait: Seconds = 300.0
    max_waiting: int = Field(default=256, ge=1)
    idle_timeout: Seconds = Field(default=300.0, gt=0)
    total_timeout: Seconds = Field(default=3600.0, gt=0)
    orphan_timeout: Seconds = Field(default=1800.0, gt=0)

    @model_validator(mode="after")
    def _pilots_find_it(self) -> Server:
        host = (self.pilot_listen or "").rpartition(":")[0].strip("[]")
        if self.pilot_urls and self.pilot_listen is None:
            raise ValueError("pilot_urls: pilot_listen is needed with it")
        if host in ("0.0.0.0", "::", "*") and not self.pilot_urls:  # noqa: S104 - a comparison
            raise ValueError("pilot_urls: needed where pilot_listen is a wildcard: HOST:PORT as pilots reach it")
        return self

    @property
    def pilot_addresses(self) -> tuple[str, ...]:
        """What pilots dial, in this order."""
        return self.pilot_urls or ((self.pilot_listen,) if self.pilot_listen else ())

    @property
    def host(self) -> str:
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.listen.rpartition(":")[2])

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.state_dir / 'first.db'}"

    def path(self, name: str) -> Path:
        return self.state_dir / name


class Auth(_Section):
    """Who may come in. This version knows API keys."""

    api_keys: Literal[True] = True


class Limits(_Section):
    """What one key may do; absent: as much as it likes."""

    requests_per_minute_per_key: int | None = Field(default=None, ge=1, le=10_000_000)
    concurrency_per_key: int | None = Field(default=None, ge=1, le=10_000_000)


class LocalScheduler(_Section):
    """Jobs as process groups on this machine. Sizes default to what the machine has."""

    kind: Literal["local"] = "local"
    cpus: int | None = Field(default=None, ge=1)
    memory_gib: float | None = Field(default=None, gt=0)
    gpus: int = Field(default=0, ge=0)


class LocalCarrier(_Section):
    """Scheduler commands run as subprocesses of the controller."""

    kind: Literal["local"] = "local"


class Link(_Section):
    """How pilots reach the gateway: ``socket``, a UNIX socket on this machine; ``tunnel``, TLS to its pilot port."""

    kind: Literal["socket", "tunnel"] = "socket"


class Engine(_Section):
    """An engine: how the program of some kind is started here, or where a service is."""

    kind: Literal["llamacpp", "vllm", "command", "external"]
    python: str | None = None
    binary: str | None = None
    argv: tuple[str, ...] = ()
    env: dict[str, str] = {}
    setup: str | None = None
    health: str = "/health"
    capabilities: tuple[Literal["chat", "completions", "embeddings"], ...] = ()
    url: str | None = None
    model: str | None = None
    api_key_env: str | None = None

    @model_validator(mode="after")
    def _fits_kind(self) -> Engine:
        if self.kind == "command" and not self.argv:
            raise ValueError("argv: an engine of kind 'command' needs the program and its arguments")
        if self.kind == "external" and not (self.url or "").startswith(("http://", "https://")):
            raise ValueError("url: an engine of kind 'external' needs an http:// or https:// address")
        if self.kind != "external" and (self.url or self.api_key_env):
            raise ValueError("url and api_key_env are for engines of kind 'external'")
        if self.kind != "command" and self.argv:
            raise ValueError("argv is for engines of kind 'command'; give options of the engine under 'args'")
        return self

    def spec(self, name: str) -> EngineSpec:
        return EngineSpec(name=name, **self.model_dump())


class Cluster(_Section):
    """One system with one batch scheduler, or ``kind: external`` for services that others run."""

    kind: Literal["batch", "external"] = "batch"
    scheduler: LocalScheduler = LocalScheduler()
    carrier: LocalCarrier = LocalCarrier()
    link: Link = Link()
    env: dict[str, str] = {}
    state_dir: Path | None = None
    models_root: Path | None = None
    engines: dict[Name, Engine] = {}


class Weights(_Section):
    """Where the weights are on the cluster: a path, absolute or below ``models_root``, and the revision they are of."""

    path: str
    revision: str | None = None


class DeploymentResources(_Section):
    """What one replica needs. With ``exclusive`` its job takes the whole node and further replicas may join it."""

    nodes: int = Field(default=1, ge=1, le=1)
    gpus_per_node: int = Field(default=0, ge=0)
    cpus_per_node: int = Field(default=1, ge=1)
    memory_gib: float = Field(default=1.0, gt=0)
    exclusive: bool = False
    walltime: Seconds | None = Field(default=None, ge=10)

    def resources(self) -> Resources:
        return Resources(
            nodes=self.nodes,
            cpus_per_node=self.cpus_per_node,
            gpus_per_node=self.gpus_per_node,
            memory_bytes=int(self.memory_gib * GIB),
            exclusive=self.exclusive,
            walltime_s=None if self.walltime is None else int(self.walltime),
        )


class Scale(_Section):
    """How many replicas: ``hot`` always, up to ``max`` with demand, down to ``hot`` after ``idle_timeout``."""

    hot: int = Field(default=0, ge=0)
    max: int = Field(default=1, ge=1)
    max_in_flight: int = Field(default=8, ge=1, le=1_000_000)
    idle_timeout: Seconds = 7200.0
    load_timeout: Seconds = 1800.0

    @model_validator(mode="after")
    def _hot_below_max(self) -> Scale:
        if self.hot > self.max:
            raise ValueError(f"hot: {self.hot} is more than max: {self.max}")
        return self


class Deployment(_Section):
    """Desired state: this model on this cluster with this engine."""

    cluster: Name
    engine: Name | Engine
    weights: str | Weights | None = None
    args: dict[str, str | int | float | bool] = {}
    resources: DeploymentResources = DeploymentResources()
    scale: Scale = Scale()


class Model(_Section):
    """What clients name in ``model``."""

    aliases: tuple[ModelName, ...] = ()
    description: str = ""
    deployments: tuple[Deployment, ...] = Field(min_length=1)


class Config(_Section):
    """The whole file."""

    server: Server = Server()
    auth: Auth = Auth()
    limits: Limits = Limits()
    clusters: dict[Name, Cluster]
    models: dict[ModelName, Model]

    @model_validator(mode="after")
    def _tunnels_have_a_door(self) -> Config:
        for name, cluster in self.clusters.items():
            if cluster.link.kind == "tunnel" and self.server.pilot_listen is None:
                raise ValueError(f"clusters.{name}.link.kind: 'tunnel' needs server.pilot_listen")
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
        if engine.kind in ("llamacpp", "vllm") and deployment.weights is None:
            raise ValueError(f"{where}.weights: an engine of kind '{engine.kind}' needs the path of the weights")

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
        weights = deployment.weights.path if isinstance(deployment.weights, Weights) else deployment.weights
        if weights is not None and cluster.models_root is not None:
            weights = str(cluster.models_root / weights)
        return ResolvedDeployment(
            name=f"{model}@{deployment.cluster}",
            model=model,
            cluster=deployment.cluster,
            engine=spec,
            weights=weights,
            args=dict(deployment.args),
            resources=deployment.resources.resources(),
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
    args: dict[str, Any]
    resources: Resources
    scale: Scale

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
            args=self.args,
            needs=self.resources,
            max_in_flight=self.scale.max_in_flight,
            load_timeout_s=self.scale.load_timeout,
        )


def load_config(path: Path) -> Config:
    """Read and check a configuration file; raises ConfigError with every fault in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}") from exc
    return parse_config(text, str(path))


def parse_config(text: str, source: str = "configuration") -> Config:
    """Check the YAML text of a configuration; raises ConfigError with every fault in it."""
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader, see below
    except (yaml.YAMLError, RecursionError) as exc:
        raise ConfigError(f"{source}: not valid YAML: {exc}") from exc
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: must be a mapping with the keys {', '.join(Config.model_fields)}")
    try:
        config = Config.model_validate(data)
    except ValidationError as exc:
        faults = "\n".join(f"  {_sentence(error)}" for error in exc.errors(include_url=False))
        raise ConfigError(f"{source} is not valid:\n{faults}") from exc
    return _with_state_dir(config, source)


class _Loader(SafeLoader):
    """YAML that refuses a key given twice in one mapping, where the second would silently win, and names the place of
    a value that is none: PyYAML itself raises whatever it stumbles over.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as exc:
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(problem=f"not a valid {kind}", problem_mark=node.start_mark) from exc

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else id(key_node)
            if key in seen and key != "<<":
                raise yaml.MarkedYAMLError(problem=f"the key '{key}' is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _with_state_dir(config: Config, source: str) -> Config:
    state_dir = config.server.state_dir
    if state_dir == Path():
        state_dir = default_state_dir()
    try:
        state_dir = state_dir.expanduser().absolute()
    except RuntimeError as exc:
        raise ConfigError(f"{source}: server.state_dir: '{state_dir}' is not allowed: there is no such user") from exc
    longest = len(os.fsencode(str(state_dir) + LONGEST_SOCKET))
    if longest > SOCKET_PATH_LIMIT:
        room = SOCKET_PATH_LIMIT - len(LONGEST_SOCKET)
        raise ConfigError(
            f"{source}: server.state_dir: '{state_dir}' is too long for UNIX sockets; at most {room} bytes are allowed"
        )
    server = config.server.model_copy(update={"state_dir": state_dir})
    return config.model_copy(update={"server": server})


def _sentence(error: Any) -> str:
    """One validation error as ``path: value: what is allowed``."""
    location = _path(error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        allowed = _allowed_keys(error["loc"][:-1])
        return f"{location}: unknown key" + (f"; allowed: {', '.join(allowed)}" if allowed else "")
    if error["type"] == "missing":
        return f"{location}: missing"
    if error["type"] == "value_error" and isinstance(error["input"], dict):
        return f"{location}: {message}" if location else message
    return f"{location}: {error['input']!r} is not allowed: {message}"


def _path(loc: tuple[str | int, ...]) -> str:
    text = ""
    for i, part in enumerate(loc):
        if isinstance(part, int):
            text += f"[{part}]"
        elif part != "[key]" and not _is_type(loc, i):
            text += f".{part}" if text else part
    return text


def _is_type(loc: tuple[str | int, ...], i: int) -> bool:
    """Whether a part of a location is no key but the type that was tried, of a field that takes one of several."""
    return i > 1 and isinstance(loc[i - 2], int) and loc[i - 1] in ("engine", "weights")


def _allowed_keys(loc: tuple[str | int, ...]) -> list[str]:
    """The keys of the section at ``loc``, found by walking the model classes along the path."""
    section: Any = Config
    for part in loc:
        if isinstance(part, int) or section is None:
            continue
        fields = getattr(section, "model_fields", {})
        if part in fields:
            section = _section_in(fields[part].annotation)
    return list(getattr(section, "model_fields", {}))


def _section_in(annotation: Any) -> Any:
    """The section class inside an annotation such as ``dict[str, Cluster]`` or ``Name | Engine``."""
    if isinstance(annotation, type) and issubclass(annotation, _Section):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := _section_in(argument)) is not None:
            return found
    return None
