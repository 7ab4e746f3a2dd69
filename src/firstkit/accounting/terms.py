"""What a budget says: whose use of what it counts, how much there is, and the sentences in which people are told."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple

from firstkit.accounting.periods import ALWAYS, Period, Span
from firstkit.errors import BudgetSpent

Unit = Literal["tokens", "node_hours"]
Each = Literal["user", "project"]


class Scope(NamedTuple):
    """What is counted together: use of a project, a user, of a model, as far as they are named (by id; a model by its
    canonical name); with ``each``, that of each user or project of those apart."""

    unit: Unit
    period: Period
    project_id: str | None = None
    user_id: str | None = None
    model: str | None = None
    each: Each | None = None

    def covers(self, project_id: str, user_id: str, model: str) -> bool:
        """Whether a request counts here that is charged so."""
        return self.project_id in (None, project_id) and self.user_id in (None, user_id) and self.model in (None, model)

    def subject(self, project_id: str, user_id: str) -> str:
        """The id of the user or project for which it is counted apart; empty where all is one."""
        if self.each is None:
            return ""
        return user_id if self.each == "user" else project_id


class Terms(NamedTuple):
    """A budget. ``amount``: tokens, or node-hours; ``warn_at``: the part of it from which on people are warned.
    ``project`` and ``user``: the names behind the ids of its scope. ``id``: None where it is of the configuration."""

    scope: Scope
    amount: float
    is_hard: bool
    warn_at: float
    project: str | None = None
    user: str | None = None
    id: str | None = None

    @property
    def what(self) -> str:
        """``1000 tokens a month``, ``12.5 node-hours in all``."""
        unit = "tokens" if self.scope.unit == "tokens" else "node-hours"
        often = "in all" if self.scope.period is Period.TOTAL else f"a {self.scope.period.value}"
        return f"{number(self.amount)} {unit} {often}"

    def whose(self, user: str = "", project: str = "") -> str:
        """Whose it is: ``user 'ada' in project 'fusion'``. The names are those of a request, for a budget of each."""
        each = self.scope.each
        parts = []
        if self.user or (each == "user" and user):
            parts.append(f"user '{self.user or user}'")
        elif each == "user":
            parts.append("each user")
        if self.project or (each == "project" and project):
            parts.append(f"project '{self.project or project}'")
        elif each == "project":
            parts.append("each project")
        whose = " in ".join(parts) or "everybody"
        return f"{whose} for model '{self.scope.model}'" if self.scope.model else whose

    def as_row(self) -> dict[str, Any]:
        """Plain values for JSON and tables, under the names of the configuration."""
        scope, is_tokens = self.scope, self.scope.unit == "tokens"
        return {
            "id": self.id,
            "project": self.project,
            "user": self.user,
            "model": scope.model,
            "each": scope.each,
            "tokens": int(self.amount) if is_tokens else None,
            "node_hours": None if is_tokens else self.amount,
            "period": scope.period.value,
            "stop": "hard" if self.is_hard else "soft",
            "warn_at": self.warn_at,
        }


def terms_of(row: Mapping[str, Any]) -> Terms:
    """The budget of a row, without the ids of its scope: for sentences about it."""
    is_tokens = row["tokens"] is not None
    scope = Scope("tokens" if is_tokens else "node_hours", Period(row["period"]), model=row["model"], each=row["each"])
    amount = row["tokens"] if is_tokens else row["node_hours"]
    return Terms(scope, amount, row["stop"] == "hard", row["warn_at"], row["project"], row["user"], row["id"])


def number(amount: float) -> str:
    """A whole number as such, others with at most two decimals."""
    return f"{amount:.0f}" if amount == int(amount) else f"{amount:.2f}"


def moment(at: datetime) -> str | None:
    """A border of a period as ISO 8601; None for that of what never ends."""
    return None if at in ALWAYS else at.isoformat()


def anew(span: Span) -> str:
    """When a budget begins anew, as the end of a sentence."""
    if span.end == ALWAYS.end:
        return "it does not begin anew"
    return f"it begins anew on {span.end:%Y-%m-%d} at 00:00 UTC"


def spent(terms: Terms, whose: str, span: Span, left: float, needed: int | None) -> BudgetSpent:
    """The refusal of a request that needs ``needed`` tokens (None: anything at all) of a budget."""
    budget = f"the budget of {terms.what} of {whose}"
    if needed is None:
        message = f"{budget[0].upper()}{budget[1:]} is used up; {anew(span)}."
    else:
        asked = "1 token" if needed == 1 else f"{needed} tokens"
        message = f"This request may take {asked}, and of {budget} {number(max(0, left))} are left; {anew(span)}."
    details = {"should_retry": False, "left": max(0, left), "needed": needed, "begins_anew_at": moment(span.end)}
    return BudgetSpent(message, details=details)


def warning(terms: Terms, whose: str, span: Span, taken: float) -> str:
    """What those are told whose budget is nearly used up, or more than that; ``taken``: used or reserved."""
    budget = f"the budget of {terms.what} of {whose}"
    if taken >= terms.amount:
        text = f"The{budget[3:]} is used up, {number(taken)} are used or reserved; {anew(span)}."
    else:
        text = f"Of {budget} {number(taken)} are used or reserved; {anew(span)}."
    return "".join(c if " " <= c <= "~" else "?" for c in text)
