"""Sections ``projects``, ``budgets``, ``limits`` and ``accounting``: what use is charged to, and how much of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from firstkit.config.kinds import Count, Domain, Line, ModelName, Seconds, Section


class Project(Section):
    """What use is charged to. Members: the users, and all of the groups and domains, beside those who were added by
    ``first projects add``. ``share``: its weight when replicas are full."""

    description: str = ""
    users: tuple[Line, ...] = ()
    groups: tuple[Line, ...] = ()
    domains: tuple[Domain, ...] = ()
    managers: tuple[Line, ...] = ()
    share: float = Field(default=1.0, gt=0, le=1_000_000)


class Budget(Section):
    """What may be used in a period of UTC: by a project, a user, of a model, as far as they are named; with ``each``,
    by each user or project of those."""

    project: Line | None = None
    user: Line | None = None
    model: ModelName | None = None
    each: Literal["user", "project"] | None = None
    tokens: Count | None = None
    node_hours: float | None = Field(default=None, ge=0)
    period: Literal["day", "week", "month", "year", "total"] = "month"
    stop: Literal["hard", "soft"] = "hard"
    warn_at: float = Field(default=0.8, gt=0, le=1)

    @model_validator(mode="after")
    def _has_one_unit(self) -> Budget:
        if (self.tokens is None) == (self.node_hours is None):
            raise ValueError("one of tokens and node_hours is needed, and not both")
        if self.node_hours is not None and (self.user or self.each == "user"):
            raise ValueError("node_hours: these are of projects, not of users")
        if (self.each == "user" and self.user) or (self.each == "project" and self.project):
            raise ValueError(f"each: the {self.each} is named")
        return self


class Limits(Section):
    """How much at a time and a minute; absent: as much as anybody likes. Tokens are those of prompts and answers."""

    requests_per_minute_per_key: int | None = Field(default=None, ge=1, le=10_000_000)
    requests_per_minute_per_user: int | None = Field(default=None, ge=1, le=10_000_000)
    requests_per_minute_per_project: int | None = Field(default=None, ge=1, le=10_000_000)
    tokens_per_minute_per_key: Count | None = Field(default=None, ge=1)
    tokens_per_minute_per_user: Count | None = Field(default=None, ge=1)
    tokens_per_minute_per_project: Count | None = Field(default=None, ge=1)
    concurrency_per_key: int | None = Field(default=None, ge=1, le=10_000_000)
    concurrency_per_user: int | None = Field(default=None, ge=1, le=10_000_000)
    concurrency_per_project: int | None = Field(default=None, ge=1, le=10_000_000)


class ModelLimits(Section):
    """The same for requests to one model."""

    requests_per_minute: int | None = Field(default=None, ge=1, le=10_000_000)
    requests_per_minute_per_user: int | None = Field(default=None, ge=1, le=10_000_000)
    requests_per_minute_per_project: int | None = Field(default=None, ge=1, le=10_000_000)
    tokens_per_minute: Count | None = Field(default=None, ge=1)
    tokens_per_minute_per_user: Count | None = Field(default=None, ge=1)
    tokens_per_minute_per_project: Count | None = Field(default=None, ge=1)
    concurrency: int | None = Field(default=None, ge=1, le=10_000_000)
    concurrency_per_user: int | None = Field(default=None, ge=1, le=10_000_000)
    concurrency_per_project: int | None = Field(default=None, ge=1, le=10_000_000)


class Accounting(Section):
    """How node-hours are attributed, and how long past use counts against those who wait.

    ``idle_project``: what time is attributed to in which nobody used a replica.
    """

    idle_project: Line = "idle"
    half_life: Seconds = Field(default=7 * 86400.0, gt=0)
