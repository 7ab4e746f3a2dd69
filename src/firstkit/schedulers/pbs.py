"""PBS Professional and OpenPBS, by their own commands: qsub, qselect, qstat, qdel, pbsnodes.

The name of a job is our id of it, so a job is found again whatever became of the process that submitted it. In the
folder of a job, besides what ``notes`` says: ``pbs_ids`` (what PBS calls it), ``missing`` (PBS has not known it since),
``deleted`` (when qdel was called last). ``asked`` is about qselect and qstat.

Exit statuses are read before anything that was printed: a server that is down prints what one without jobs prints.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Optional

from firstkit.errors import SchedulerRefused, SchedulerSilent
from firstkit.schedulers import pbs_commands as commands
from firstkit.schedulers import pbs_nodes as nodes
from firstkit.schedulers import pbs_text as text
from firstkit.schedulers.calls import Calls, Done, last_words, read_calling
from firstkit.schedulers.local import job_environment
from firstkit.schedulers.notes import ASKED, CANCELLED, Notes
from firstkit.schedulers.pbs_layouts import ID, parse_ids, parse_submitted
from firstkit.schedulers.scheduler import CLAIM, Capacity, Estimate, JobNews, JobSpec, Resources
from firstkit.states import JobState

PBS_IDS, MISSING, DELETED = "pbs_ids", "missing", "deleted"
COMMAND_TIMEOUT_S = 30.0
DELETE_LIMIT_S = 5.0
"""Longest time for the qdel of a poll: it hangs while a node hangs, and the news are of all nodes."""
DELETE_AGAIN_S = 60.0
FORCE_AFTER_S = 300.0
KEEN_S = 600.0
"""So long a job that PBS does not show is asked for in every poll, and from then on every ASK_AGAIN_S."""
ASK_AGAIN_S = 300.0
FOUND_AT_ONCE = 20
ASKED_AT_ONCE = 200
NO_SUCH_NAME = "first-ping"

UNKNOWN, FINISHED, ENDING_NOW, NODE_SILENT = 153, 35, 168, 222
"""Exit statuses: PBS's error number modulo 256, of the last job that had one."""
_KNOWN_OR_NOT = frozenset({0, UNKNOWN, FINISHED})
_DELETED_OR_GONE = frozenset({0, UNKNOWN, FINISHED, ENDING_NOW, NODE_SILENT})
REFUSALS = frozenset({2, 5, 32, 38, 154, 155, 159, 166, 170, 173, 174, 175, 187, 188})
"""Exit statuses of qsub that are a clear no: usage, ``-l`` next to select, a hook, a limit of the queue; unknown
attribute, read-only attribute, not authorised, illegal value, unknown queue, queue not enabled, no access to the queue,
bad user, unknown resource, more than the queue gives."""


class PbsScheduler:
    """One cluster with PBS. ``env`` is the environment of its commands; jobs get none of it."""

    def __init__(
        self, state_dir: str, defaults: commands.Defaults, env: Mapping[str, str], limit_s: float = COMMAND_TIMEOUT_S
    ) -> None:
        self._notes = Notes(state_dir)
        self._defaults = defaults
        self._env = dict(env)
        self._limit_s = limit_s

    def submit(self, spec: JobSpec, argv: list[str], folder: str) -> str:
        """The claim of ``first cluster`` lets an id come here once: PBS need not be asked whether it has it."""
        calls = self._calls()
        self._notes.check_wanted(spec.job_id)
        done = calls.submit(commands.submit_command(spec.job_id, spec.resources, self._defaults, folder, argv), {})
        pbs_id = parse_submitted(done.output) if done.status == 0 else None
        if pbs_id is None:
            pbs_id = self._after_failure(calls, spec.job_id, done)
        self._remember(spec.job_id, [pbs_id])
        if self._notes.is_marked(spec.job_id):  # its cancel came before there was a job to cancel
            self._delete(calls, [pbs_id])
        return pbs_id

    def poll(self) -> dict[str, JobNews]:
        """One qstat for the jobs whose ids we know, a qselect each for a few whose ids we do not."""
        calls = self._calls()
        news: dict[str, JobNews] = {}
        ids: dict[str, str] = {}
        lost: list[str] = []
        ours = self._notes.job_ids()
        for job_id in ours:
            ended = self._notes.noted(job_id)
            if ended is not None:
                news[job_id] = ended
            elif self._is_worth_asking(job_id):
                known = self._remembered(job_id)
                ids.update(dict.fromkeys(known, job_id))
                if not known:
                    lost.append(job_id)
        ids.update(self._found(calls, lost))
        seen = self._seen(calls, ids)
        if not ids and not lost:
            calls.answer(commands.find_command(NO_SUCH_NAME, _user(), with_ended=False))  # whether PBS answers
        self._delete_again(calls, seen)
        for job_id in ours - seen.keys():
            self._notes.remove_if_old(job_id)
        return {**news, **self._as_news(seen)}

    def cancel(self, job_id: str) -> None:
        """End a job by its name. The mark keeps a submission that is still under way from letting it in later, and has
        polls ask again while the job lives, in the end by force."""
        self._notes.mark_cancelled(job_id)
        calls = self._calls()
        pbs_ids = parse_ids(calls.answer(commands.find_command(job_id, _user(), with_ended=False)))
        if pbs_ids:
            self._notes.write(job_id, DELETED)
            self._delete(calls, pbs_ids)

    def capacity(self) -> Capacity:
        usual = commands.with_defaults(Resources(), self._defaults)
        return nodes.capacity_of(self._vnodes(usual), usual.partition, usual.constraint)

    def estimate(self, resources: Resources) -> Estimate:
        """PBS takes a job that fits no host, and lets it wait for ever; so hosts are asked what they have."""
        needs = commands.with_defaults(resources, self._defaults)
        commands.shape_options(needs, self._defaults)
        vnodes = self._vnodes(needs)
        hosts = nodes.hosts_of(vnodes)
        in_service = nodes.hosts_of(vnode for vnode in vnodes if vnode.is_in_service)
        fitting = sum(nodes.can_hold(host, needs) for host in hosts)
        if fitting < needs.nodes:
            raise SchedulerRefused(f"PBS would never run such a job: {fitting} hosts can hold it, {needs.nodes} needed")
        if sum(nodes.can_hold(host, needs) for host in in_service) < needs.nodes:
            return Estimate(None, "hosts that could hold it are out of service")
        if sum(nodes.can_hold_now(host, needs) for host in in_service) >= needs.nodes:
            return Estimate(time.time())
        return Estimate(None, "the hosts that can hold it are in use")

    # -- submit --------------------------------------------------------------------------------------------------

    def _calls(self) -> Calls:
        return Calls(self._env, self._limit_s)

    def _after_failure(self, calls: Calls, job_id: str, done: Done) -> str:
        """What PBS calls the job if there is one in spite of all; else raises."""
        pbs_ids = self._find(calls, job_id)
        if pbs_ids:
            return pbs_ids[-1]
        words = last_words(done.errors)
        if done.status in REFUSALS:
            raise SchedulerRefused(f"PBS has refused the job: {words}")
        raise SchedulerSilent(f"qsub failed (exit status {done.status}): {words}")

    def _find(self, calls: Calls, job_id: str) -> list[str]:
        """All that PBS has of this name. Where it keeps no history, its answer about ended jobs counts for nothing."""
        done = calls.ask(commands.find_command(job_id, _user(), with_ended=True))
        pbs_ids = parse_ids(done.output) if done.status == 0 else []
        return pbs_ids or parse_ids(calls.answer(commands.find_command(job_id, _user(), with_ended=False)))

    # -- poll ----------------------------------------------------------------------------------------------------

    def _is_worth_asking(self, job_id: str) -> bool:
        """Claimed, and not for long unknown to PBS, or else not asked for just now."""
        claimed_s = self._notes.age_s(job_id, CLAIM)
        if claimed_s is None:
            return False
        missing_s = self._notes.age_s(job_id, MISSING)
        asked_s = self._notes.age_s(job_id, ASKED)
        return missing_s is None or missing_s < KEEN_S or asked_s is None or asked_s > ASK_AGAIN_S

    def _found(self, calls: Calls, lost: Sequence[str]) -> dict[str, str]:
        """Jobs by what PBS calls them: of those of which we never learnt it, a few a poll, in turns."""
        ids: dict[str, str] = {}
        longest_ago = sorted(lost, key=lambda job_id: -(self._notes.age_s(job_id, ASKED) or float("inf")))
        for job_id in longest_ago[:FOUND_AT_ONCE]:
            found = self._find(calls, job_id)
            if found:
                self._remember(job_id, found)
                ids.update(dict.fromkeys(found, job_id))
            else:
                self._note_missing(job_id)
        return ids

    def _seen(self, calls: Calls, ids: Mapping[str, str]) -> dict[str, text.Seen]:
        """What PBS shows of these jobs, by our ids; those that it does not show are noted as missing."""
        seen: dict[str, text.Seen] = {}
        asked, ours = sorted(ids), set(ids.values())
        for start in range(0, len(asked), ASKED_AT_ONCE):
            for one in self._asked(calls, asked[start : start + ASKED_AT_ONCE]):
                job_id = one.news.job_id
                if job_id not in ours:
                    continue  # a PBS that was set up anew has given the number to somebody else's job
                known = seen.get(job_id)
                if known is None or text.telling(known.news, one.news) is one.news:
                    seen[job_id] = one
        for job_id in ours:
            if job_id in seen:
                self._notes.remove(job_id, MISSING)
            else:
                self._note_missing(job_id)
        return seen

    def _asked(self, calls: Calls, pbs_ids: Sequence[str]) -> list[text.Seen]:
        done = calls.ask(commands.jobs_command(pbs_ids, with_ended=True))
        seen = self._read(done, pbs_ids)
        if done.status == 0 and not seen:  # no history is kept, and then -x shows nothing and is no failure
            done = calls.ask(commands.jobs_command(pbs_ids, with_ended=False))
            seen = self._read(done, pbs_ids)
        if done.status == 0 and len(seen) < len(pbs_ids):
            raise SchedulerSilent("qstat has left out jobs without saying that it does not know them")
        return seen

    def _read(self, done: Done, pbs_ids: Iterable[str]) -> list[text.Seen]:
        if done.status not in _KNOWN_OR_NOT:
            raise SchedulerSilent(f"qstat failed (exit status {done.status}): {last_words(done.errors)}")
        wanted = {_number(pbs_id) for pbs_id in pbs_ids}
        return [one for one in text.parse_jobs(done.output) if _number(one.news.scheduler_id) in wanted]

    def _as_news(self, seen: Mapping[str, text.Seen]) -> dict[str, JobNews]:
        """Final news are noted, so that nobody need ask again."""
        for one in seen.values():
            if one.news.state.is_final:
                self._notes.note(one.news)
        return {job_id: one.news for job_id, one in seen.items()}

    # -- qdel ----------------------------------------------------------------------------------------------------

    def _delete(
        self, calls: Calls, pbs_ids: Iterable[str], force: bool = False, limit_s: Optional[float] = None
    ) -> None:
        """What is gone, is ending, or is on a node that does not answer needs no more from us now: polls go on."""
        done = calls.ask(commands.cancel_command(pbs_ids, force), limit_s=limit_s)
        if done.status not in _DELETED_OR_GONE:
            raise SchedulerSilent(f"qdel failed (exit status {done.status}): {last_words(done.errors)}")

    def _delete_again(self, calls: Calls, seen: Mapping[str, text.Seen]) -> None:
        """Jobs that were cancelled while they were being submitted or whose end did not come, and those that PBS would
        start again. That it comes to nothing makes the news no worse.

        One by one: qdel hangs at a job of a node that hangs, and those behind it would never have their turn.
        """
        give_up_at = time.monotonic() + DELETE_LIMIT_S
        for job_id, one in seen.items():
            if one.is_again:
                self._notes.mark_cancelled(job_id)
            marked_s, deleted_s = self._notes.age_s(job_id, CANCELLED), self._notes.age_s(job_id, DELETED)
            if marked_s is None or one.news.state.is_final or (deleted_s is not None and deleted_s < DELETE_AGAIN_S):
                continue
            force = marked_s > FORCE_AFTER_S
            if one.news.state is JobState.ENDING and not (one.is_again or force):
                continue
            left_s = give_up_at - time.monotonic()
            if left_s <= 0:
                return
            self._notes.write(job_id, DELETED)
            with suppress(SchedulerSilent):  # a later poll calls it again
                self._delete(calls, [one.news.scheduler_id], force, left_s)

    # -- folders of jobs -----------------------------------------------------------------------------------------

    def _remember(self, job_id: str, pbs_ids: Iterable[str]) -> None:
        self._notes.write(job_id, PBS_IDS, "\n".join(pbs_ids).encode())

    def _remembered(self, job_id: str) -> list[str]:
        lines = self._notes.read(job_id, PBS_IDS).decode(errors="replace").split("\n")
        return [line for line in lines if ID.match(line)]

    def _note_missing(self, job_id: str) -> None:
        if self._notes.age_s(job_id, MISSING) is None:
            self._notes.write(job_id, MISSING)
        self._notes.write(job_id, ASKED)

    # -- nodes ---------------------------------------------------------------------------------------------------

    def _vnodes(self, needs: Resources) -> list[nodes.Vnode]:
        answer = self._calls().answer(commands.nodes_command())
        vnodes = nodes.parse_vnodes(answer, self._defaults.gpu_resource)
        return nodes.for_jobs(vnodes, needs.partition, needs.constraint)


def pbs_scheduler(state_dir: str, settings: Mapping[str, Any], env: Mapping[str, str]) -> PbsScheduler:
    """The scheduler that the section ``settings`` of the configuration describes; raises SchedulerRefused."""
    limit_s, extra = read_calling(settings, COMMAND_TIMEOUT_S)
    return PbsScheduler(state_dir, commands.read_defaults(settings), job_environment(env, extra), limit_s)


def _number(pbs_id: str) -> str:
    """The part that tells jobs apart: the name of the server behind it may be long or short."""
    return pbs_id.partition(".")[0]


def _user() -> str:
    """Whose jobs ours are."""
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise SchedulerSilent(f"the user {os.geteuid()} has no name on this host, by which jobs are found") from None
