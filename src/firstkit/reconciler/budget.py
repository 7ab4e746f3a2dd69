"""What may be spent: nodes and node-hours of a cluster, node-hours and submissions of a deployment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from operator import add

from firstkit.config import Scale
from firstkit.config.clusters import Spending
from firstkit.schedulers.scheduler import Resources
from firstkit.store.jobs import Spent

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
DAY_H = 24.0
MANY = 1_000_000


@dataclass(frozen=True, slots=True)
class Account:
    """What the jobs of one deployment, or of a whole cluster, have taken and may still take.

    ``nodes``: of jobs that live. ``used_h``: node-hours of the last day; ``bound_h``: those that living jobs may use up
    to their walltime. ``submissions``: in the last hour.
    """

    nodes: int = 0
    used_h: float = 0.0
    bound_h: float = 0.0
    submissions: int = 0

    def plus(self, other: Account) -> Account:
        return Account(
            self.nodes + other.nodes,
            self.used_h + other.used_h,
            self.bound_h + other.bound_h,
            self.submissions + other.submissions,
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """What has been spent on a cluster, against what may be. Without limits nothing is refused."""

    limits: Spending = field(default_factory=Spending)
    cluster: Account = field(default_factory=Account)
    deployments: Mapping[str, Account] = field(default_factory=dict)

    def refusal(self, deployment: str, scale: Scale, job: Resources) -> str:
        """Why no such job may be submitted for a deployment now; "" where one may."""
        return next((words for left, words in self._limits(deployment, scale, job) if left < 1), "")

    def left(self, deployment: str, scale: Scale, job: Resources) -> int:
        """How many such jobs may still be submitted."""
        return max(0, min(left for left, _ in self._limits(deployment, scale, job)))

    def _limits(self, deployment: str, scale: Scale, job: Resources) -> Iterator[tuple[int, str]]:
        """Of each limit that there is: how many such jobs it leaves, and what it says."""
        own, hours = self.deployments.get(deployment, Account()), hours_of(job)
        most = scale.submissions_per_hour
        yield most - own.submissions, f"at most {most} jobs may be submitted for it in an hour"
        if (nodes := self.limits.nodes) is not None:
            left = (nodes - self.cluster.nodes) // max(1, job.nodes)
            yield left, f"at most {nodes} nodes may be used on this cluster"
        for account, most_h, whose in (
            (self.cluster, self.limits.node_hours_per_day, "on this cluster"),
            (own, scale.node_hours_per_day, "for it"),
        ):
            if most_h is not None:
                left = int((most_h - account.used_h - account.bound_h) / hours) if hours else MANY
                yield left, f"at most {most_h:g} node-hours may be used {whose} in a day"

    def with_job(self, deployment: str, job: Resources) -> Budget:
        """The budget after such a job was submitted."""
        spent = Account(job.nodes, 0.0, hours_of(job), 1)
        own = self.deployments.get(deployment, Account()).plus(spent)
        return replace(self, cluster=self.cluster.plus(spent), deployments={**self.deployments, deployment: own})


def budget(limits: Spending, spent: Iterable[Spent], now: datetime) -> Budget:
    """The budget of a cluster; ``spent``: its jobs that live or ended within the last day."""
    sums: dict[str | None, Sum] = {}
    for one in spent:
        before = sums.get(one.deployment, _NOTHING)
        sums[one.deployment] = tuple(map(add, before, _spending(one, now)))
    whole = Account(*map(sum, zip(*sums.values(), strict=True))) if sums else Account()
    return Budget(limits, whole, {name: Account(*found) for name, found in sums.items() if name is not None})


def hours_of(job: Resources) -> float:
    """Node-hours of a day that a job may use; one without a walltime may use a whole day."""
    return job.nodes * _day_hours(job.walltime_s)


Sum = tuple[int, float, float, int]
"""The fields of an ``Account``: thousands are added up in a pass."""
_NOTHING: Sum = (0, 0.0, 0.0, 0)


def _spending(one: Spent, now: datetime) -> Sum:
    submissions = int(one.created_at > now - HOUR)
    lives = one.ended_at is None
    if one.started_at is None:
        bound_h = one.nodes * _day_hours(one.walltime_s)
        return (one.nodes, 0.0, bound_h, submissions) if lives else (0, 0.0, 0.0, submissions)
    used_h = one.nodes * max(0.0, ((one.ended_at or now) - max(one.started_at, now - DAY)).total_seconds()) / 3600
    if not lives:
        return (0, used_h, 0.0, submissions)
    if one.ends_at is not None:
        left_s: float | None = max(0.0, (one.ends_at - now).total_seconds())
    elif one.walltime_s is not None:
        left_s = max(0.0, one.walltime_s - (now - one.started_at).total_seconds())
    else:
        left_s = None
    return (one.nodes, used_h, one.nodes * _day_hours(left_s), submissions)


def _day_hours(seconds: float | None) -> float:
    return DAY_H if seconds is None else min(DAY_H, seconds / 3600)
