"""When a replica makes room for its successor: early enough before its job ends that the successor is warm by then."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from math import inf

from firstkit.links.messages import PilotReport, end_margin_s
from firstkit.states import JobState
from firstkit.store.jobs import JobRow

REQUEST_S = 30.0
"""What requests under way are given to end, before that; it is also what a successor may be late."""
NEARLY = 2.0
"""A replica whose end is within so many lead times is the one to go, where there is one too many."""


@dataclass(frozen=True, slots=True)
class Life:
    """How long a running job has in all, and how much of that is left; seconds."""

    whole_s: float
    left_s: float

    @property
    def margin_s(self) -> float:
        """How long before the end the pilot leaves; short jobs give a part of what they have."""
        return end_margin_s(self.whole_s)

    @property
    def drain_s(self) -> float:
        """How long before the end a replica had better take no more requests, if there is another that does."""
        return self.margin_s + min(REQUEST_S, self.whole_s / 8)

    def lead_s(self, warm_s: float) -> float:
        """How long before the end a successor that needs ``warm_s`` is started: never in the first half."""
        return min(warm_s + self.drain_s, self.whole_s / 2)

    def is_leaving(self, warm_s: float) -> bool:
        """Whether the replicas of the job do not count any more as those that are wanted."""
        return self.left_s <= self.whole_s / 2 and self.left_s <= self.lead_s(warm_s)

    def is_nearly_leaving(self, warm_s: float) -> bool:
        return self.left_s <= min(NEARLY * self.lead_s(warm_s), 3 * self.whole_s / 4)

    @property
    def is_over(self) -> bool:
        """Whether it is time to drain, even where nobody else serves: its pilot is about to leave."""
        return self.left_s <= self.margin_s


ENDLESS = Life(inf, inf)


def end_of(job: JobRow, report: PilotReport | None) -> float | None:
    """When a job ends, in seconds since 1970: by the scheduler's last word, else by its pilot's; None: nobody knows."""
    if job.ends_at is not None:
        return job.ends_at.timestamp()
    return None if report is None else report.ends_at


def life_of(job: JobRow, report: PilotReport | None, leaves_at: datetime | None, now: datetime) -> Life:
    """The life of a job, which ends with itself or when its cluster is left, whichever is sooner."""
    if job.state is not JobState.RUNNING:
        return ENDLESS
    end = end_of(job, report)
    if leaves_at is not None:
        end = min(leaves_at.timestamp(), inf if end is None else end)
    if end is None:
        return ENDLESS
    began_at = (job.started_at or job.created_at).timestamp()
    return Life(max(0.0, end - began_at), end - now.timestamp())
