"""Whose node-hours are whose: those of each job, hour by hour of UTC, over the projects whose requests it served.

Counted in whole millionths of a node-hour, by running totals that are rounded down. So nothing is lost or made up by
rounding: the parts of an hour add up to that hour, the hours of a job to the job, the months to the year.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate, pairwise
from typing import NamedTuple

HOUR = timedelta(hours=1)
MILLION = 1_000_000
_MICROSECOND = timedelta(microseconds=1)
_MICROSECONDS_OF_ONE_NODE = 3600
"""In a millionth of a node-hour."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job that holds ``nodes`` whole nodes from ``started_at`` until ``ended_at``, which is now while it runs."""

    id: str
    nodes: int
    started_at: datetime
    ended_at: datetime

    def spent(self, at: datetime) -> int:
        """Millionths of a node-hour from its start until ``at``."""
        return self.nodes * ((at - self.started_at) // _MICROSECOND) // _MICROSECONDS_OF_ONE_NODE


class Use(NamedTuple):
    """What the requests of one project used of one model, of those that arrived in one hour at one job.

    ``weight``: the tokens of all of them; ``tokens`` and ``requests``: those of the interval that is asked about.
    """

    project_id: str
    model: str
    weight: int
    tokens: int
    requests: int


Uses = Mapping[tuple[str, datetime], Sequence[Use]]
"""By job and hour."""


class Part(NamedTuple):
    """What a project gets of an hour of a job. ``millionths``: of a node-hour; ``model`` is empty where the time was
    idle."""

    job_id: str
    hour: datetime
    project_id: str
    model: str
    millionths: int
    tokens: int
    requests: int


def hour_of(moment: datetime) -> datetime:
    """When the hour of UTC began that ``moment`` is in."""
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def attribute(jobs: Iterable[Job], uses: Uses, since: datetime, until: datetime, idle_project: str) -> Iterator[Part]:
    """The parts of the time of ``jobs`` in [since, until), and of what was used, by hour and by project.

    In each hour a job's time is split as the tokens are of requests that arrived in that hour; what has no tokens goes
    to ``idle_project``, an id. Uses in hours in which their job held no nodes keep their tokens and cost nothing.
    """
    timeless = set(uses)
    for job in jobs:
        for hour, millionths in _hours(job, since, until):
            timeless.discard((job.id, hour))
            yield from _split(job.id, hour, millionths, uses.get((job.id, hour), ()), idle_project)
    for job_id, hour in timeless:
        for use in uses[job_id, hour]:
            yield Part(job_id, hour, use.project_id, use.model, 0, use.tokens, use.requests)


def split(total: int, weights: Sequence[int]) -> list[int]:
    """``total`` in whole parts that are to each other as ``weights`` and add up to it; one weight must not be 0."""
    sums = list(accumulate(weights, initial=0))
    shares = [total * each // sums[-1] for each in sums]
    return [after - before for before, after in pairwise(shares)]


def _hours(job: Job, since: datetime, until: datetime) -> Iterator[tuple[datetime, int]]:
    """The hours in which a job held nodes, and the millionths of node-hours in each."""
    at, end = max(job.started_at, since), min(job.ended_at, until)
    while at < end:
        hour = hour_of(at)
        after = min(hour + HOUR, end)
        yield hour, job.spent(after) - job.spent(at)
        at = after


def _split(job_id: str, hour: datetime, millionths: int, uses: Sequence[Use], idle_project: str) -> Iterator[Part]:
    in_order = sorted(uses)
    weights = [use.weight for use in in_order]
    if any(weights):
        shares = split(millionths, weights)
    else:
        shares = [0] * len(weights)
        yield Part(job_id, hour, idle_project, "", millionths, 0, 0)
    for use, share in zip(in_order, shares, strict=True):
        yield Part(job_id, hour, use.project_id, use.model, share, use.tokens, use.requests)
