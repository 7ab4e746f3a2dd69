"""The commands of Slurm as lists of arguments. Pure: values of a request become single arguments, never shell text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

from firstkit.errors import SchedulerRefused
from firstkit.schedulers.scheduler import LOG, Resources

SCRIPT = "job.sh"
JOB_SCRIPT = """\
#!/bin/sh
# Becomes the pilot of a job of FIRST. It is the same for every job: what differs comes as arguments.
if [ -n "${SLURM_RESTART_COUNT:-}" ]; then
    echo "Slurm has started this job once more; it was submitted to run once, so it ends here" >&2
    exit 75
fi
FIRST_JOB_ID=$SLURM_JOB_NAME
export FIRST_JOB_ID
exec "$@"
"""
MIB = 1024**2
_DIRECTIVE = re.compile(r"--[a-z][a-z-]*(=[^\0\n]+)?\Z")

JOBS_FORMAT = "%j|%i|%T|%N|%S|%e|%Q|%P|%r"
"""Only the reason, which comes last, may hold blanks or the separator."""
ACCOUNTING_FIELDS = "JobName,JobIDRaw,State,ExitCode,Start,End,NodeList"
NODE_COLUMNS = (
    ("NodeList", 100),
    ("Partition", 100),
    ("StateLong", 60),
    ("CPUsState", 60),
    ("Memory", 30),
    ("AllocMem", 30),
    ("Gres", 400),
    ("GresUsed", 400),
)
"""Names and widths: columns of a fixed width can be told apart whatever is in them."""


@dataclass(frozen=True)
class Defaults:
    """What holds for all jobs of a cluster that do not say otherwise."""

    partition: Optional[str] = None
    account: Optional[str] = None
    qos: Optional[str] = None
    constraint: Optional[str] = None
    directives: tuple[str, ...] = ()
    gpu_type: Optional[str] = None


def read_defaults(settings: Mapping[str, Any]) -> Defaults:
    """Out of the scheduler section of the configuration; raises SchedulerRefused naming the key that is wrong."""
    texts: dict[str, Optional[str]] = {}
    for name in ("partition", "account", "qos", "constraint", "gpu_type"):
        value = settings.get(name)
        if value is not None and (not isinstance(value, str) or not value or "\0" in value):
            raise SchedulerRefused(f"scheduler.{name}: {value!r} is not allowed: text is needed")
        texts[name] = value
    directives = settings.get("directives") or ()
    if not isinstance(directives, (list, tuple)):
        raise SchedulerRefused("scheduler.directives: a list is needed")
    return Defaults(directives=tuple(directives), **texts)


def with_defaults(needs: Resources, defaults: Defaults) -> Resources:
    """``needs`` where they say something, ``defaults`` elsewhere; the directives of both."""
    return replace(
        needs,
        partition=needs.partition or defaults.partition,
        account=needs.account or defaults.account,
        qos=needs.qos or defaults.qos,
        constraint=needs.constraint or defaults.constraint,
        directives=(*defaults.directives, *needs.directives),
    )


def shape_options(needs: Resources, defaults: Defaults) -> list[str]:
    """The options of sbatch that say what a job needs. Raises SchedulerRefused for what is no option."""
    needs = with_defaults(needs, defaults)
    options = [f"--nodes={needs.nodes}", "--ntasks-per-node=1", f"--cpus-per-task={max(1, needs.cpus_per_node)}"]
    if needs.gpus_per_node:
        kind = f"{defaults.gpu_type}:" if defaults.gpu_type else ""
        options.append(f"--gpus-per-node={kind}{needs.gpus_per_node}")
    if needs.memory_bytes or needs.exclusive:  # 0: all memory of the node, which an exclusive job has anyway
        options.append(f"--mem={-(-needs.memory_bytes // MIB)}M")
    if needs.exclusive:
        options.append("--exclusive")
    if needs.walltime_s is not None:
        options.append(f"--time={max(1, -(-needs.walltime_s // 60))}")
    for name in ("partition", "account", "qos", "constraint"):
        value = getattr(needs, name)
        if value:
            options.append(f"--{name}={value}")
    for directive in needs.directives:
        if not isinstance(directive, str) or not _DIRECTIVE.match(directive):
            raise SchedulerRefused(f"directives: {directive!r} is not allowed: --name or --name=value is needed")
        options.append(directive)
    return options


def submit_command(job_id: str, needs: Resources, defaults: Defaults, folder: str, argv: Sequence[str]) -> list[str]:
    """sbatch for one job that runs ``argv`` in ``folder``, whose SCRIPT is JOB_SCRIPT.

    No ``--signal``: Slurm delivers it up to 30 s early or late, and the pilot knows its end and leaves before it.
    Names of files are relative to ``--chdir``, because sbatch reads ``%`` in them. Limits of the login node
    (``--propagate``) are none of the job's.
    """
    return [
        "sbatch", "--parsable", "--no-requeue", f"--job-name={job_id}", f"--comment={job_id}", f"--chdir={folder}",
        f"--output={LOG}", f"--error={LOG}", "--open-mode=append", "--export=ALL", "--propagate=NONE",
        *shape_options(needs, defaults), f"{folder}/{SCRIPT}", *argv,
    ]  # fmt: skip


def estimate_command(needs: Resources, defaults: Defaults) -> list[str]:
    """sbatch that only says when such a job would start. It reads a script, which is not run, from its input."""
    return ["sbatch", "--test-only", "--no-requeue", *shape_options(needs, defaults)]


def jobs_command(job_id: Optional[str] = None) -> list[str]:
    """squeue for all our jobs, or those of one name, in any state."""
    which = [] if job_id is None else [f"--name={job_id}"]
    return ["squeue", "--me", "--noheader", "--states=all", f"--format={JOBS_FORMAT}", *which]


def cancel_command(job_id: str) -> list[str]:
    """scancel by name: good for a job of which we never learnt the number; no error where there is none."""
    return ["scancel", f"--name={job_id}"]


def job_command(scheduler_id: str) -> list[str]:
    """scontrol for one job: its exit code stands nowhere else without accounting."""
    return ["scontrol", "show", "job", "--oneliner", scheduler_id]


def nodes_command(partition: Optional[str]) -> list[str]:
    """sinfo for all nodes of the partition, one line for each node in each partition."""
    columns = ",".join(f"{name}:{width}" for name, width in NODE_COLUMNS)
    which = [f"--partition={partition}"] if partition else []
    return ["sinfo", "--Node", "--noheader", f"--Format={columns}", *which]


def accounting_command(job_ids: Iterable[str]) -> list[str]:
    """sacct for jobs that slurmctld has forgotten."""
    return [
        "sacct", "--allocations", "--noheader", "--parsable2", "--starttime=now-30days",
        f"--name={','.join(sorted(job_ids))}", f"--format={ACCOUNTING_FIELDS}",
    ]  # fmt: skip


PING = ["scontrol", "ping"]
"""Its exit status is 0 only when a slurmctld answers."""
