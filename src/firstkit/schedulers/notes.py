"""What a backend writes into the folders of jobs, because a batch system forgets and a process may die.

In the folder of a job: ``cancelled`` (it shall not run), ``asked`` (when its batch system was last asked where it may
be), ``ended.json`` (its final news, so that nobody need be asked again). ``claim`` is written by ``first cluster``.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Optional

from firstkit.errors import SchedulerRefused
from firstkit.schedulers.records import write_file
from firstkit.schedulers.scheduler import CLAIM, JOB_ID, JobNews
from firstkit.states import JobState
from firstkit.wire import WireError, decode, encode

CANCELLED, ASKED, ENDED = "cancelled", "asked", "ended.json"
KEEP_ENDED_S = 86400.0
KEEP_UNKNOWN_S = 30 * 86400.0
NEVER_SUBMITTED = "cancelled before it was submitted"


class Notes:
    """The folders of the jobs below ``state_dir``, which is made where it is missing."""

    def __init__(self, state_dir: str) -> None:
        self._jobs = os.path.join(state_dir, "jobs")
        os.makedirs(self._jobs, mode=0o700, exist_ok=True)

    def job_ids(self) -> set[str]:
        """Our ids of all jobs that have a folder."""
        return {entry.name for entry in os.scandir(self._jobs) if JOB_ID.match(entry.name)}

    def folder(self, job_id: str) -> str:
        return os.path.join(self._jobs, job_id)

    def write(self, job_id: str, name: str, data: bytes = b"") -> None:
        """One file, as a whole; its time is now."""
        write_file(os.path.join(self.folder(job_id), name), data)

    def read(self, job_id: str, name: str) -> bytes:
        """What is in a file; nothing where there is none."""
        try:
            with open(os.path.join(self.folder(job_id), name), "rb") as file:
                return file.read()
        except OSError:
            return b""

    def remove(self, job_id: str, name: str) -> None:
        """Remove a file; none is as good."""
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self.folder(job_id), name))

    def age_s(self, job_id: str, name: str) -> Optional[float]:
        """Seconds since a file was written; None where there is none."""
        try:
            return time.time() - os.stat(os.path.join(self.folder(job_id), name)).st_mtime
        except OSError:
            return None

    # -- cancelled -----------------------------------------------------------------------------------------------

    def mark_cancelled(self, job_id: str) -> None:
        """Keep a submission that is still under way, or has yet to come, from letting the job in later."""
        os.makedirs(self.folder(job_id), mode=0o700, exist_ok=True)
        if not self.is_marked(job_id):
            self.write(job_id, CANCELLED)
        if self.age_s(job_id, CLAIM) is None:
            self._note_never_submitted(job_id)  # whoever claims it from now on finds the mark

    def is_marked(self, job_id: str) -> bool:
        return self.age_s(job_id, CANCELLED) is not None

    def check_wanted(self, job_id: str) -> None:
        """Raise SchedulerRefused for a job that was cancelled before it came."""
        if self.is_marked(job_id):
            self._note_never_submitted(job_id)
            raise SchedulerRefused(f"{job_id} was {NEVER_SUBMITTED}")

    def _note_never_submitted(self, job_id: str) -> None:
        self.note(JobNews(job_id, "", JobState.CANCELLED, NEVER_SUBMITTED))

    # -- ended ---------------------------------------------------------------------------------------------------

    def note(self, news: JobNews) -> None:
        """Keep final news, while the folder is there."""
        if os.path.isdir(self.folder(news.job_id)):
            self.write(news.job_id, ENDED, encode(news))

    def noted(self, job_id: str) -> Optional[JobNews]:
        """The final news of a job that may be forgotten elsewhere. A note that cannot be read is none: we ask again."""
        try:
            return decode(JobNews, self.read(job_id, ENDED))
        except WireError:
            return None

    def remove_if_old(self, job_id: str) -> None:
        """Remove the folder a day after the end that is noted, or a month after anything was made in it."""
        ended_s = self.age_s(job_id, ENDED)
        age_s, limit_s = (ended_s, KEEP_ENDED_S) if ended_s is not None else (self.age_s(job_id, "."), KEEP_UNKNOWN_S)
        if age_s is not None and age_s > limit_s:
            import shutil

            shutil.rmtree(self.folder(job_id), ignore_errors=True)
