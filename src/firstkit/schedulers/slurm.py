"""Slurm, by its own commands: sbatch, squeue, scancel, sinfo, and sacct for what slurmctld has forgotten.

The name of a job is our id of it, so a job is found again whatever became of the process that submitted it. In the
folder of a job: ``job.sh`` (the same for all), ``cancelled`` (it shall not run), ``asked`` (when sacct was asked last),
``ended.json`` (its final news, so that nobody need be asked again).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Optional

from firstkit.errors import SchedulerRefused, SchedulerSilent
from firstkit.schedulers import slurm_commands as commands
from firstkit.schedulers import slurm_text as text
from firstkit.schedulers.local import job_environment
from firstkit.schedulers.records import write_file
from firstkit.schedulers.scheduler import CLAIM, JOB_ID, Capacity, Estimate, JobNews, JobSpec, Resources
from firstkit.schedulers.slurm_calls import Calls, Done
from firstkit.states import JobState
from firstkit.wire import WireError, decode, encode

CANCELLED, ASKED, ENDED = "cancelled", "asked", "ended.json"
COMMAND_TIMEOUT_S = 20.0
ACCOUNTING_LIMIT_S = 5.0
ASK_AFTER_S = 60.0
ASK_AGAIN_S = 300.0
ASKED_AT_ONCE = 100
KEEP_ENDED_S = 86400.0
KEEP_UNKNOWN_S = 30 * 86400.0
EXIT_CODES_AT_ONCE = 10
NEVER_SUBMITTED = "cancelled before it was submitted"
_NOT_OF_JOBS = ("TMPDIR",)
"""Of the login node; Slurm has its own for compute nodes."""


class SlurmScheduler:
    """One cluster with Slurm. ``env`` is the environment of its commands and, through sbatch, of jobs."""

    def __init__(
        self, state_dir: str, defaults: commands.Defaults, env: Mapping[str, str], limit_s: float = COMMAND_TIMEOUT_S
    ) -> None:
        self._jobs = os.path.join(state_dir, "jobs")
        self._defaults = defaults
        self._env = {name: value for name, value in env.items() if name not in _NOT_OF_JOBS}
        self._limit_s = limit_s
        os.makedirs(self._jobs, mode=0o700, exist_ok=True)

    def submit(self, spec: JobSpec, argv: list[str], folder: str) -> str:
        """The claim of ``first cluster`` lets an id come here once: Slurm need not be asked whether it has it."""
        calls = self._calls()
        self._check_wanted(spec.job_id)
        command = commands.submit_command(spec.job_id, spec.resources, self._defaults, folder, argv)
        write_file(os.path.join(folder, commands.SCRIPT), commands.JOB_SCRIPT.encode())
        done = calls.submit(command, _job_variables(spec))
        number = text.parse_submitted(done.output) if done.status == 0 else None
        if number is None:
            number = self._after_failure(calls, spec, done)
        if self._is_marked(spec.job_id):  # its cancel came before there was a job to cancel
            calls.ask(commands.cancel_command(spec.job_id))
        return number

    def poll(self) -> dict[str, JobNews]:
        """One squeue. What it does not show is looked up in our notes, and rarely in the accounting."""
        calls = self._calls()
        answer = calls.answer(commands.jobs_command())
        # The same user may have jobs of another FIRST, whose folders are elsewhere.
        ours = {os.path.basename(folder) for folder in self._folders()}
        seen = {job_id: news for job_id, news in text.parse_jobs(answer).items() if job_id in ours}
        self._cancel_again(calls, seen, text.parse_held_again(answer))
        news = self._with_exit_codes(calls, seen)
        unknown = []
        for folder in [os.path.join(self._jobs, job_id) for job_id in ours - news.keys()]:
            ended = self._noted(folder)
            if ended is not None:
                news[ended.job_id] = ended
            elif self._is_worth_asking(folder):
                unknown.append(os.path.basename(folder))
            self._remove_if_old(folder)
        news.update(self._accounted(calls, unknown[:ASKED_AT_ONCE]))
        return news

    def cancel(self, job_id: str) -> None:
        """End a job by its name. The mark keeps a submission that is still under way from letting it in later, and has
        each poll ask again while the job lives: scancel also fails for a job that ends in this moment."""
        folder = os.path.join(self._jobs, job_id)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        write_file(os.path.join(folder, CANCELLED), b"")
        if not os.path.exists(os.path.join(folder, CLAIM)):
            self._note_never_submitted(job_id)  # whoever claims it from now on finds the mark
        calls = self._calls()
        if calls.ask(commands.cancel_command(job_id)).status != 0:
            calls.answer(commands.PING)

    def capacity(self) -> Capacity:
        nodes = self._nodes(self._calls(), self._defaults.partition)
        return text.capacity_of(nodes)

    def estimate(self, resources: Resources) -> Estimate:
        calls = self._calls()
        done = self._test(calls, resources)
        if done.status == 0:
            return Estimate(text.parse_start(done.errors + done.output))
        calls.answer(commands.PING)
        words = text.last_words(done.errors)
        partition = resources.partition or self._defaults.partition
        if all(node.is_in_service for node in self._nodes(calls, partition)):
            raise SchedulerRefused(f"Slurm would not run such a job: {words}")
        # Slurm counts what is drained or down as not there, and then says the same words.
        return Estimate(None, f"while nodes are out of service: {words}")

    # -- submit --------------------------------------------------------------------------------------------------

    def _calls(self) -> Calls:
        return Calls(self._env, self._limit_s)

    def _find(self, calls: Calls, job_id: str) -> Optional[JobNews]:
        return text.parse_jobs(calls.answer(commands.jobs_command(job_id))).get(job_id)

    def _check_wanted(self, job_id: str) -> None:
        if self._is_marked(job_id):
            self._note_never_submitted(job_id)
            raise SchedulerRefused(f"{job_id} was {NEVER_SUBMITTED}")

    def _note_never_submitted(self, job_id: str) -> None:
        self._note(JobNews(job_id, "", JobState.CANCELLED, NEVER_SUBMITTED))

    def _after_failure(self, calls: Calls, spec: JobSpec, done: Done) -> str:
        """The number of the job if there is one in spite of all; else raises.

        An exit status of 1 says as little as the words next to it. It was a no if Slurm answers, has no such job, and
        says no to the same question again. Everything else may pass, or may even have made a job.
        """
        calls.answer(commands.PING)
        job = self._find(calls, spec.job_id)
        if job is not None:
            return job.scheduler_id
        words = text.last_words(done.errors)
        if done.status != 0 and self._test(calls, spec.resources).status != 0:
            raise SchedulerRefused(f"Slurm has refused the job: {words}")
        raise SchedulerSilent(f"sbatch failed (exit status {done.status}): {words}")

    def _test(self, calls: Calls, needs: Resources) -> Done:
        return calls.ask(commands.estimate_command(needs, self._defaults), commands.JOB_SCRIPT)

    # -- poll ----------------------------------------------------------------------------------------------------

    def _cancel_again(self, calls: Calls, seen: Mapping[str, JobNews], held: frozenset[str]) -> None:
        """Jobs that were cancelled while they were being submitted, and those that shall not be started again."""
        for job_id, news in seen.items():
            is_alive = not news.state.is_final and news.state is not JobState.ENDING
            if job_id in held or (is_alive and self._is_marked(job_id)):
                calls.ask(commands.cancel_command(job_id))

    def _with_exit_codes(self, calls: Calls, seen: Mapping[str, JobNews]) -> dict[str, JobNews]:
        """Final news are noted; of a failed job the exit code is asked for, once."""
        news, left = dict(seen), EXIT_CODES_AT_ONCE
        for job_id, job in seen.items():
            if not job.state.is_final:
                continue
            noted = self._noted(os.path.join(self._jobs, job_id))
            if noted is not None and noted.scheduler_id == job.scheduler_id:
                news[job_id] = noted
                continue
            if job.state is JobState.FAILED:
                if left == 0:
                    continue
                left -= 1
                code = text.parse_exit_code(calls.ask(commands.job_command(job.scheduler_id)).output)
                job = replace(job, exit_code=code)
            news[job_id] = job
            self._note(job)
        return news

    def _accounted(self, calls: Calls, unknown: list[str]) -> dict[str, JobNews]:
        """What the accounting knows of jobs that slurmctld does not show. Without accounting they stay unknown."""
        if not unknown:
            return {}
        for job_id in unknown:
            write_file(os.path.join(self._jobs, job_id, ASKED), b"")
        try:
            done = calls.ask(commands.accounting_command(unknown), limit_s=ACCOUNTING_LIMIT_S)
        except SchedulerSilent:
            return {}  # slurmctld has answered; that the accounting does not makes its answer no worse
        found = text.parse_accounting(done.output) if done.status == 0 else {}
        for news in found.values():
            self._note(news)
        return found

    # -- folders of jobs -----------------------------------------------------------------------------------------

    def _folders(self) -> Iterator[str]:
        return (entry.path for entry in os.scandir(self._jobs) if JOB_ID.match(entry.name))

    def _is_marked(self, job_id: str) -> bool:
        return os.path.exists(os.path.join(self._jobs, job_id, CANCELLED))

    def _note(self, news: JobNews) -> None:
        folder = os.path.join(self._jobs, news.job_id)
        if os.path.isdir(folder):
            write_file(os.path.join(folder, ENDED), encode(news))

    def _noted(self, folder: str) -> Optional[JobNews]:
        """The final news of a job that Slurm may have forgotten. A note that cannot be read is none: we ask again."""
        try:
            with open(os.path.join(folder, ENDED), "rb") as file:
                return decode(JobNews, file.read())
        except (OSError, WireError):
            return None

    def _is_worth_asking(self, folder: str) -> bool:
        """Submitted a while ago, and not asked for just now."""
        claimed_s, asked_s = _age_s(folder, CLAIM), _age_s(folder, ASKED)
        return claimed_s is not None and claimed_s > ASK_AFTER_S and (asked_s is None or asked_s > ASK_AGAIN_S)

    def _remove_if_old(self, folder: str) -> None:
        ended_s = _age_s(folder, ENDED)
        age_s, limit_s = (ended_s, KEEP_ENDED_S) if ended_s is not None else (_age_s(folder, "."), KEEP_UNKNOWN_S)
        if age_s is not None and age_s > limit_s:
            import shutil

            shutil.rmtree(folder, ignore_errors=True)

    def _nodes(self, calls: Calls, partition: Optional[str]) -> list[text.Node]:
        """The nodes of the partition where our jobs go: the one that is named, else Slurm's default one."""
        nodes = text.parse_nodes(calls.answer(commands.nodes_command(partition)), self._defaults.gpu_type)
        if partition is None and any(node.is_default for node in nodes):
            return [node for node in nodes if node.is_default]
        return nodes


def slurm_scheduler(state_dir: str, settings: Mapping[str, Any], env: Mapping[str, str]) -> SlurmScheduler:
    """The scheduler that the section ``settings`` of the configuration describes; raises SchedulerRefused."""
    limit_s = settings.get("command_timeout", COMMAND_TIMEOUT_S)
    extra = settings.get("env", {})
    if not isinstance(limit_s, (int, float)) or isinstance(limit_s, bool) or limit_s <= 0:
        raise SchedulerRefused(f"scheduler.command_timeout: {limit_s!r} is not allowed: a number of seconds is needed")
    if not isinstance(extra, dict) or not all(isinstance(value, str) for value in extra.values()):
        raise SchedulerRefused("scheduler.env: names with text are needed")
    return SlurmScheduler(state_dir, commands.read_defaults(settings), job_environment(env, extra), limit_s)


def _job_variables(spec: JobSpec) -> dict[str, str]:
    """What the job learns by its environment; its id it knows by its name."""
    walltime_s = spec.resources.walltime_s
    return {} if walltime_s is None else {"FIRST_JOB_WALLTIME": str(-(-walltime_s // 60) * 60)}


def _age_s(folder: str, name: str) -> Optional[float]:
    """Seconds since a file was written; None where there is none."""
    try:
        return time.time() - os.stat(os.path.join(folder, name)).st_mtime
    except OSError:
        return None
