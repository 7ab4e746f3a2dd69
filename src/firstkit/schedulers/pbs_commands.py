"""The commands of PBS as lists of arguments. Pure: values of a request become single arguments, never shell text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

from firstkit.errors import SchedulerRefused
from firstkit.schedulers.pbs_layouts import SEPARATOR
from firstkit.schedulers.scheduler import LOG, Resources

MIB = 1024**2
GPUS_NEED_A_WAY = (
    "PBS counts GPUs and shows a job all of them: jobs that share a host would meet on one. Say one of: "
    "exclusive: true under resources; assigns_gpus: true in the scheduler section, where PBS sets CUDA_VISIBLE_DEVICES "
    "itself (cgroups hook); devices: [...] in the scheduler section, of which each job then takes those that are free"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_RESOURCE = r"[A-Za-z][A-Za-z0-9_-]*=[A-Za-z0-9_.+-]+"
CHUNK = re.compile(rf"{_RESOURCE}(:{_RESOURCE})*\Z")
A_CHUNK = "resources of a chunk are needed, such as gputype=a100 or system=polaris:tier0=x3"
_PATH = re.compile(r"/[A-Za-z0-9_./+=@%~-]*\Z")
_TEXTS = ("queue", "account", "project", "constraint")


@dataclass(frozen=True)
class Defaults:
    """What holds for all jobs of a cluster that do not say otherwise, and how it handles GPUs."""

    queue: Optional[str] = None
    account: Optional[str] = None
    project: Optional[str] = None
    constraint: Optional[str] = None
    filesystems: tuple[str, ...] = ()
    gpu_resource: str = "ngpus"
    assigns_gpus: bool = False
    devices: tuple[str, ...] = ()


def read_defaults(settings: Mapping[str, Any]) -> Defaults:
    """Out of the scheduler section of the configuration; raises SchedulerRefused naming the key that is wrong."""
    texts: dict[str, Optional[str]] = {}
    for name in _TEXTS:
        value = settings.get(name)
        if value is not None and (not isinstance(value, str) or not value or "\0" in value):
            raise SchedulerRefused(f"scheduler.{name}: {value!r} is not allowed: text is needed")
        texts[name] = value
    gpu_resource, assigns_gpus = settings.get("gpu_resource") or "ngpus", settings.get("assigns_gpus", False)
    if not isinstance(gpu_resource, str) or not _NAME.match(gpu_resource):
        raise SchedulerRefused("scheduler.gpu_resource: the name of a resource is needed")
    if not isinstance(assigns_gpus, bool):
        raise SchedulerRefused("scheduler.assigns_gpus: true or false is needed")
    return Defaults(
        filesystems=_names(settings, "filesystems"),
        gpu_resource=gpu_resource,
        assigns_gpus=assigns_gpus,
        devices=_names(settings, "devices"),
        **texts,
    )


def with_defaults(needs: Resources, defaults: Defaults) -> Resources:
    """``needs`` where they say something, ``defaults`` elsewhere. The partition of a job is its queue."""
    return replace(
        needs,
        partition=needs.partition or defaults.queue,
        account=needs.account or defaults.account,
        constraint=needs.constraint or defaults.constraint,
    )


def fault_of(needs: Resources, defaults: Defaults) -> Optional[tuple[str, str]]:
    """What of a job's needs cannot be had from PBS: the name of the field and a sentence; None: nothing."""
    if needs.qos is not None:
        return "qos", "PBS has no QOS; the queue is 'partition'"
    if needs.directives:
        return (
            "directives",
            "PBS takes none; queue, account, project, filesystems and constraint have keys of their own",
        )
    if needs.constraint is not None and not CHUNK.match(needs.constraint):
        return "constraint", A_CHUNK
    if needs.gpus_per_node:
        if not (needs.exclusive or defaults.assigns_gpus or defaults.devices):
            return "gpus_per_node", GPUS_NEED_A_WAY
        if defaults.devices and needs.gpus_per_node > len(defaults.devices):
            return "gpus_per_node", f"{needs.gpus_per_node} are more than the {len(defaults.devices)} of 'devices'"
    return None


def shape_options(needs: Resources, defaults: Defaults) -> list[str]:
    """The options of qsub that say what a job needs. Raises SchedulerRefused for what PBS cannot give."""
    needs = with_defaults(needs, defaults)
    fault = fault_of(needs, defaults)
    if fault is not None:
        raise SchedulerRefused(": ".join(fault))
    chunk = [f"select={needs.nodes}", f"ncpus={max(1, needs.cpus_per_node)}"]
    if needs.gpus_per_node:
        chunk.append(f"{defaults.gpu_resource}={needs.gpus_per_node}")
    if needs.memory_bytes:
        chunk.append(f"mem={-(-needs.memory_bytes // MIB)}mb")
    if needs.constraint:
        chunk.append(needs.constraint)
    place = "scatter:exclhost" if needs.exclusive else "scatter" if needs.nodes > 1 else "free"
    options = ["-l", ":".join(chunk), "-l", f"place={place}"]
    if needs.walltime_s is not None:
        options += ["-l", f"walltime={clock(needs.walltime_s)}"]
    if defaults.filesystems:
        options += ["-l", f"filesystems={':'.join(defaults.filesystems)}"]
    for option, value in (("-q", needs.partition), ("-A", needs.account), ("-P", defaults.project)):
        if value:
            options += [option, value]
    return options


def clock(seconds: int) -> str:
    """``HH:MM:SS``, at least a second."""
    minutes, rest = divmod(max(1, seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"


def job_variables(job_id: str, needs: Resources, defaults: Defaults) -> dict[str, str]:
    """What a job learns by its environment, since PBS tells it little. No value has anything that ``-v`` would read."""
    told: dict[str, str] = {"FIRST_JOB_ID": job_id, "FIRST_JOB_CPUS": str(max(1, needs.cpus_per_node))}
    if needs.walltime_s is not None:
        told["FIRST_JOB_WALLTIME"] = str(max(1, needs.walltime_s))
    if needs.memory_bytes:
        told["FIRST_JOB_MEMORY"] = str(needs.memory_bytes)
    if needs.exclusive:
        told["FIRST_JOB_EXCLUSIVE"] = "1"
    if needs.gpus_per_node:
        told["FIRST_JOB_GPUS"] = str(needs.gpus_per_node)
        if defaults.devices:
            told["FIRST_JOB_DEVICES"] = "+".join(defaults.devices)
    return told


def submit_command(job_id: str, needs: Resources, defaults: Defaults, folder: str, argv: Sequence[str]) -> list[str]:
    """qsub for one job that runs ``argv``, whose output goes to LOG in ``folder``.

    ``-f``: without it, qsub hands the job to a process in the background, which submits it even after qsub was killed.
    ``-r n``: never started a second time. ``-k doe``: the output is where it shall be while the job runs. ``--``: no
    shell stands between PBS and the program, which would take the signals in its place.
    """
    if not _PATH.match(folder):
        raise SchedulerRefused(f"state_dir: {folder!r} is not allowed: qsub -o takes no blanks, quotes, colons, commas")
    variables = ",".join(f"{name}={value}" for name, value in job_variables(job_id, needs, defaults).items())
    return [
        "qsub", "-f", "-N", job_id, "-r", "n", "-j", "oe", "-k", "doe", "-o", f"{folder}/{LOG}", "-W", "umask=0077",
        *shape_options(needs, defaults), "-v", variables, "--", *argv,
    ]  # fmt: skip


def find_command(name: str, user: str, with_ended: bool) -> list[str]:
    """qselect by the name of a job, which is our id: good for a job whose own id we never learnt. ``-x`` shows those
    that have ended, too, and is refused where PBS keeps no history."""
    return ["qselect", *(["-x"] if with_ended else []), "-N", name, "-u", user]


def jobs_command(pbs_ids: Iterable[str], with_ended: bool) -> list[str]:
    """qstat for these jobs and no others: one odd byte in anybody's job would spoil the answer about all."""
    return ["qstat", *(["-x"] if with_ended else []), "-f", "-F", "dsv", "-D", SEPARATOR, *pbs_ids]


def cancel_command(pbs_ids: Iterable[str], force: bool = False) -> list[str]:
    """qdel; ``force``: also where the node does not answer, without a chance for the job to leave by itself."""
    return ["qdel", *(["-W", "force"] if force else []), *pbs_ids]


def nodes_command() -> list[str]:
    """pbsnodes for all vnodes."""
    return ["pbsnodes", "-av", "-F", "json"]


def _names(settings: Mapping[str, Any], name: str) -> tuple[str, ...]:
    values = settings.get(name) or ()
    if not isinstance(values, (list, tuple)) or not all(isinstance(one, str) and _NAME.match(one) for one in values):
        raise SchedulerRefused(f"scheduler.{name}: a list of names is needed")
    return tuple(values)
