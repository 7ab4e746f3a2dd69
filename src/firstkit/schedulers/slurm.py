"""Slurm, by its own commands: sbatch, squeue, scancel, sinfo, and sacct for what slurmctld has forgotten.

The name of a job is our id of it, so a job is found again whatever became of the process that submitted it. In the
folder of a job is ``job.sh`` (the same for all), and what ``notes`` says; ``asked`` is about sacct.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Optional

from firstkit.errors import SchedulerRefused, SchedulerSilent
from firstkit.schedulers import slurm_commands as commands
from firstkit.schedulers import slurm_text as text
from firstkit.schedulers.calls import Calls, Done, last_words, read_calling
from firstkit.schedulers.local import job_environment
from firstkit.schedulers.notes import ASKED, Notes
from firstkit.schedulers.records import write_file
from firstkit.schedulers.scheduler import CLAIM, Capacity, Estimate, JobNews, JobSpec, Resources
from firstkit.states import JobState

COMMAND_TIMEOUT_S = 20.0
ACCOUNTING_LIMIT_S = 5.0
ASK_AFTER_S = 60.0
ASK_AGAIN_S = 300.0
ASKED_AT_ONCE = 100
EXIT_CODES_AT_ONCE = 10
_NOT_OF_JOBS = ("TMPDIR",)
"""Of the login node; Slurm has its own for compute nodes."""
_ASKING = {"SLURM_TIME_FORMAT": "%s"}
"""Times as seconds since 1970, where Slurm is new enough."""


class SlurmScheduler:
    """One cluster with Slurm. ``env`` is the environment of its commands and, through sbatch, of jobs."""

    def __init__(
        self, state_dir: str, defaults: commands.Defaults, env: Mapping[str, str], limit_s: float = COMMAND_TIMEOUT_S
    ) -> None:
        self._notes = Notes(state_dir)
        self._defaults = defaults
        self._env = {name: value for name, value in env.items() if name not in _NOT_OF_JOBS}
        self._limit_s = limit_s

    def submit(self, spec: JobSpec, argv: list[str], folder: str) -> str:
        """The claim of ``first cluster`` lets an id come here once: Slurm need not be asked whether it has it."""
        calls = self._calls()
        self._notes.check_wanted(spec.job_id)
        command = commands.submit_command(spec.job_id, spec.resources, self._defaults, folder, argv)
        write_file(os.path.join(folder, commands.SCRIPT), commands.JOB_SCRIPT.encode())
        done = calls.submit(command, _job_variables(spec))
        number = text.parse_submitted(done.output) if done.status == 0 else None
        if number is None:
            number = self._after_failure(calls, spec, done)
        if self._notes.is_marked(spec.job_id):  # its cancel came before there was a job to cancel
            calls.ask(commands.cancel_command(spec.job_id))
        return number

    def poll(self) -> dict[str, JobNews]:
        """One squeue. What it does not show is looked up in our notes, and rarely in the accounting."""
        calls = self._calls()
        answer = calls.answer(commands.jobs_command())
        # The same user may have jobs of another FIRST, whose folders are elsewhere.
        ours = self._notes.job_ids()
        seen = {job_id: news for job_id, news in text.parse_jobs(answer).items() if job_id in ours}
        self._cancel_again(calls, seen, text.parse_held_again(answer))
        news = self._with_exit_codes(calls, seen)
        unknown = []
        for job_id in ours - news.keys():
            ended = self._notes.noted(job_id)
            if ended is not None:
                news[ended.job_id] = ended
            elif self._is_worth_asking(job_id):
                unknown.append(job_id)
            self._notes.remove_if_old(job_id)
        news.update(self._accounted(calls, unknown[:ASKED_AT_ONCE]))
        return news

    def cancel(self, job_id: str) -> None:
        """End a job by its name. The mark keeps a submission that is still under way from letting it in later, and has
        each poll ask again while the job lives: scancel also fails for a job that ends in this moment."""
        self._notes.mark_cancelled(job_id)
        calls = self._calls()
        if calls.ask(commands.cancel_command(job_id)).status != 0:
            calls.answer(commands.PING)

    def capacity(self) -> Capacity:
        partition = self._defaults.partition
        return text.capacity_of(self._nodes(self._calls(), partition), partition)

    def estimate(self, resources: Resources) -> Estimate:
        calls = self._calls()
        done = self._test(calls, resources)
        if done.status == 0:
            return Estimate(text.parse_start(done.errors + done.output))
        calls.answer(commands.PING)
        words = last_words(done.errors)
        partition = resources.partition or self._defaults.partition
        if all(node.is_in_service for node in self._nodes(calls, partition)):
            raise SchedulerRefused(f"Slurm would not run such a job: {words}")
        # Slurm counts what is drained or down as not there, and then says the same words.
        return Estimate(None, f"while nodes are out of service: {words}")

    # -- submit --------------------------------------------------------------------------------------------------

    def _calls(self) -> Calls:
        return Calls(self._env, self._limit_s, _ASKING)

    def _find(self, calls: Calls, job_id: str) -> Optional[JobNews]:
        return text.parse_jobs(calls.answer(commands.jobs_command(job_id))).get(job_id)

    def _after_failure(self, calls: Calls, spec: JobSpec, done: Done) -> str:
        """The number of the job if there is one in spite of all; else raises.

        An exit status of 1 says as little as the words next to it. It was a no if Slurm answers, has no such job, and
        says no to the same question again. Everything else may pass, or may even have made a job.
        """
        calls.answer(commands.PING)
        job = self._find(calls, spec.job_id)
        if job is not None:
            return job.scheduler_id
        words = last_words(done.errors)
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
            if job_id in held or (is_alive and self._notes.is_marked(job_id)):
                calls.ask(commands.cancel_command(job_id))

    def _with_exit_codes(self, calls: Calls, seen: Mapping[str, JobNews]) -> dict[str, JobNews]:
        """Final news are noted; of a failed job the exit code is asked for, once."""
        news, left = dict(seen), EXIT_CODES_AT_ONCE
        for job_id, job in seen.items():
            if not job.state.is_final:
                continue
            noted = self._notes.noted(job_id)
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
            self._notes.note(job)
        return news

    def _accounted(self, calls: Calls, unknown: list[str]) -> dict[str, JobNews]:
        """What the accounting knows of jobs that slurmctld does not show. Without accounting they stay unknown."""
        if not unknown:
            return {}
        for job_id in unknown:
            self._notes.write(job_id, ASKED)
        try:
            done = calls.ask(commands.accounting_command(unknown), limit_s=ACCOUNTING_LIMIT_S)
        except SchedulerSilent:
            return {}  # slurmctld has answered; that the accounting does not makes its answer no worse
        found = text.parse_accounting(done.output) if done.status == 0 else {}
        for news in found.values():
            self._notes.note(news)
        return found

    def _is_worth_asking(self, job_id: str) -> bool:
        """Submitted a while ago, and not asked for just now."""
        claimed_s, asked_s = self._notes.age_s(job_id, CLAIM), self._notes.age_s(job_id, ASKED)
        return claimed_s is not None and claimed_s > ASK_AFTER_S and (asked_s is None or asked_s > ASK_AGAIN_S)

    # -- nodes ---------------------------------------------------------------------------------------------------

    def _nodes(self, calls: Calls, partition: Optional[str]) -> list[text.Node]:
        """The nodes of the partition where our jobs go: the one that is named, else Slurm's default one."""
        nodes = text.parse_nodes(calls.answer(commands.nodes_command(partition)), self._defaults.gpu_type)
        if partition is None and any(node.is_default for node in nodes):
            return [node for node in nodes if node.is_default]
        return nodes


def slurm_scheduler(state_dir: str, settings: Mapping[str, Any], env: Mapping[str, str]) -> SlurmScheduler:
    """The scheduler that the section ``settings`` of the configuration describes; raises SchedulerRefused."""
    limit_s, extra = read_calling(settings, COMMAND_TIMEOUT_S)
    return SlurmScheduler(state_dir, commands.read_defaults(settings), job_environment(env, extra), limit_s)


def _job_variables(spec: JobSpec) -> dict[str, str]:
    """What the job learns by its environment; its id it knows by its name."""
    walltime_s = spec.resources.walltime_s
    return {} if walltime_s is None else {"FIRST_JOB_WALLTIME": str(-(-walltime_s // 60) * 60)}
