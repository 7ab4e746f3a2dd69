"""Sections ``clusters``: the systems on which models run, and how they are reached."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, Discriminator, Field, Tag, model_validator

from firstkit.config.auth import Access
from firstkit.config.engines import Engine
from firstkit.config.kinds import Folder, Line, Name, Seconds, Section
from firstkit.schedulers.pbs_commands import A_CHUNK, CHUNK

OWN_DIRECTIVES = frozenset(
    {"array", "batch", "begin", "chdir", "comment", "dependency", "error", "export", "export-file", "hold", "immediate"}
    | {"input", "job-name", "kill-on-invalid-dep", "no-requeue", "open-mode", "output", "parsable", "quiet", "requeue"}
    | {"test-only", "uid", "gid", "wait", "wrap", "account", "constraint", "cpus-per-task", "exclusive", "mem", "nodes"}
    | {"gpus-per-node", "ntasks", "ntasks-per-node", "partition", "qos", "time"}
)
"""Options of sbatch that FIRST gives itself, or that would take a job out of its hands."""


def _kind_of(usual: str) -> Discriminator:
    """Which of several sections is meant: by its ``kind``, which may be left out for the ``usual`` one."""
    return Discriminator(
        lambda value: value.get("kind", usual) if isinstance(value, dict) else getattr(value, "kind", usual)
    )


def _directive(value: str) -> str:
    match = re.fullmatch(r"--([a-z][a-z-]*)(?:=[\x21-\x7e][\x20-\x7e]*)?", value)
    if not match:
        raise ValueError("must be a long option of the scheduler, --name or --name=value")
    if match[1] in OWN_DIRECTIVES:
        raise ValueError(f"--{match[1]} is set by FIRST itself")
    return value


def _proxy(value: str) -> str:
    if not re.fullmatch(r"http://[A-Za-z0-9.\[\]:-]+:[0-9]{1,5}", value):
        raise ValueError("must be http://HOST:PORT")
    return value


def _chunk(value: str) -> str:
    if not CHUNK.match(value):
        raise ValueError(A_CHUNK)
    return value


Directive = Annotated[str, AfterValidator(_directive)]


class LocalScheduler(Section):
    """Jobs as process groups on this machine. Sizes default to what the machine has."""

    kind: Literal["local"] = "local"
    cpus: int | None = Field(default=None, ge=1)
    memory_gib: float | None = Field(default=None, gt=0)
    gpus: int = Field(default=0, ge=0)


class SlurmScheduler(Section):
    """Jobs of Slurm, by its own commands. What is given here holds for all jobs that do not say otherwise."""

    kind: Literal["slurm"]
    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    directives: tuple[Directive, ...] = ()
    gpu_type: Name | None = None
    command_timeout: Seconds = Field(default=20.0, ge=1, le=300)
    poll_interval: Seconds = Field(default=10.0, ge=1, le=600)


class PbsScheduler(Section):
    """Jobs of PBS Professional or OpenPBS, by its own commands. What is given here holds for all jobs that do not say
    otherwise; ``partition`` of a deployment is the queue."""

    kind: Literal["pbs"]
    queue: Line | None = None
    account: Line | None = None
    project: Line | None = None
    filesystems: tuple[Name, ...] = ()
    constraint: Annotated[str, AfterValidator(_chunk)] | None = None
    gpu_resource: Name = "ngpus"
    assigns_gpus: bool = False
    devices: tuple[Name, ...] = ()
    command_timeout: Seconds = Field(default=30.0, ge=1, le=300)
    poll_interval: Seconds = Field(default=10.0, ge=1, le=600)


class LocalCarrier(Section):
    """Scheduler commands run as subprocesses of the controller."""

    kind: Literal["local"] = "local"


class SshCarrier(Section):
    """Scheduler commands run on a login node, as the forced command of a key that can do nothing else."""

    kind: Literal["ssh"]
    host: Line
    port: int = Field(default=22, ge=1, le=65535)
    user: Name
    key_file: Folder
    known_hosts: Folder
    connect_timeout: Seconds = Field(default=10.0, ge=1, le=120)


class Link(Section):
    """How gateway and pilots reach each other: ``socket``, a UNIX socket on this machine; ``tunnel``, pilots dial the
    gateway's pilot port with TLS; ``direct``, the gateway dials pilots with mutual TLS."""

    kind: Literal["socket", "tunnel", "direct"] = "socket"
    proxy: Annotated[str, AfterValidator(_proxy)] | None = None
    resume: Seconds = Field(default=10.0, le=60)

    @model_validator(mode="after")
    def _fits_kind(self) -> Link:
        if self.proxy is not None and self.kind != "tunnel":
            raise ValueError("proxy: only links of kind 'tunnel' go through a proxy")
        return self


class Maintenance(Section):
    """A time during which the cluster is left: work has moved off it when it begins."""

    start: AwareDatetime
    end: AwareDatetime
    message: str = ""

    @model_validator(mode="after")
    def _ends_after_start(self) -> Maintenance:
        if self.end <= self.start:
            raise ValueError("end: must be later than start")
        return self


class Graces(Section):
    """How long the absence of a job proves nothing: of one whose submission was not answered, and of one that was
    there and whose pilot is silent."""

    submit: Seconds = Field(default=10.0, ge=0, le=3600)
    vanish: Seconds = Field(default=60.0, ge=0, le=86400)


class Spending(Section):
    """What FIRST may take of a cluster at most; absent: as much as the scheduler gives."""

    nodes: int | None = Field(default=None, ge=1)
    node_hours_per_day: float | None = Field(default=None, gt=0)


class Cluster(Section):
    """One system with one batch scheduler, or ``kind: external`` for services that others run."""

    kind: Literal["batch", "external"] = "batch"
    scheduler: Annotated[
        Annotated[LocalScheduler, Tag("local")]
        | Annotated[SlurmScheduler, Tag("slurm")]
        | Annotated[PbsScheduler, Tag("pbs")],
        _kind_of("local"),
    ] = LocalScheduler()
    carrier: Annotated[Annotated[LocalCarrier, Tag("local")] | Annotated[SshCarrier, Tag("ssh")], _kind_of("local")] = (
        LocalCarrier()
    )
    link: Link = Link()
    env: dict[str, str] = {}
    state_dir: Folder | None = None
    models_root: Folder | None = None
    scratch: Line | None = None
    interface: Name | None = None
    engines: dict[Name, Engine] = {}
    access: Access | None = None
    handicap: Seconds = 0.0
    maintenance: tuple[Maintenance, ...] = ()
    limits: Spending = Spending()
    graces: Graces = Graces()

    @model_validator(mode="after")
    def _state_dir_is_known(self) -> Cluster:
        if self.carrier.kind == "ssh" and self.state_dir is None:
            raise ValueError("state_dir: needed with a carrier of kind 'ssh': the folder on that system, absolute")
        return self

    def scheduler_settings(self) -> dict[str, Any]:
        """The section as ``first cluster`` gets it. Directives are added up, so they come with the resources of a job,
        and not here once more."""
        return {**self.scheduler.model_dump(mode="json", exclude={"directives"}), "env": dict(self.env)}
