"""What the controller forecasts for each model, as the gateway tells it: status, ETA, a sentence, an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from firstkit import metrics
from firstkit.clock import monotonic
from firstkit.errors import ModelNotReady
from firstkit.routing.table import RoutingTable
from firstkit.routing.wish import Within
from firstkit.states import ModelStatus

SDK_PATIENCE_S = 60.0
"""OpenAI's SDKs honour a Retry-After of at most a minute; beyond it their own retries only add load."""
UNKNOWN_RETRY_S = 30.0


@dataclass(frozen=True, slots=True)
class Outlook:
    """Forecast for one model on one cluster or in all.

    ``eta_s`` counts from the moment it was heard; of a model that is offline, from when somebody asks for it.
    """

    status: ModelStatus = ModelStatus.OFFLINE
    eta_s: float | None = None
    reason: str = ""
    heard_at: float = field(default_factory=monotonic)

    @property
    def eta_left_s(self) -> float | None:
        """Seconds still to wait, never below zero; None when nobody can say."""
        if self.eta_s is None or self.status is ModelStatus.OFFLINE:
            return self.eta_s
        return max(0.0, self.eta_s - (monotonic() - self.heard_at))

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Outlook:
        return cls(ModelStatus(data["status"]), data.get("eta_s"), str(data.get("reason", "")))


class Forecasts:
    """The controller's last word on every model. What links say wins: a model with a ready replica on a cluster that
    takes requests is live."""

    def __init__(self, table: RoutingTable) -> None:
        self.table = table
        self.deployed: Mapping[str, frozenset[str]] = {}
        """By model: the clusters with a deployment of it."""
        self._models: dict[str, Outlook] = {}
        self._clusters: dict[str, dict[str, Outlook]] = {}
        self._explained: dict[str, dict[str, dict[str, Any]]] = {}
        self._facts: dict[str, dict[str, Any]] = {}

    def hear(
        self, models: Mapping[str, Mapping[str, Any]], clusters: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """Take over a forecast message of the controller."""
        for model, data in models.items():
            parts = data.get("clusters", {})
            self._models[model] = Outlook.of(data)
            self._clusters[model] = {name: Outlook.of(part) for name, part in parts.items()}
            self._explained[model] = {name: dict(part) for name, part in parts.items()}
        for name, facts in (clusters or {}).items():
            self._facts[name] = dict(facts)
            _measure(name, facts)

    def explain(self, model: str) -> dict[str, dict[str, Any]]:
        """By cluster: what the controller said of the model there, as it said it."""
        return self._explained.get(model, {})

    def left_s(self, model: str, said_s: float | None) -> float | None:
        """What is left by now of so many seconds, which the controller said with its last word on a model."""
        if said_s is None or model not in self._models:
            return None
        return max(0.0, said_s - (monotonic() - self._models[model].heard_at))

    def cluster_facts(self, name: str) -> dict[str, Any]:
        """What the controller said of a cluster, as it said it; empty until it has."""
        return self._facts.get(name, {})

    def outlook(self, model: str, within: Within = None) -> Outlook:
        """Of a model for requests that may go to the clusters ``within``; None: to all."""
        if self.table.pools[model].live(within):
            return Outlook(ModelStatus.LIVE, 0.0)
        known = self._models.get(model, Outlook()) if within is None else self._best(model, within)
        if known.status is ModelStatus.LIVE:  # not by what links say: the replica went a moment ago, or takes nothing
            return Outlook(ModelStatus.OFFLINE, None, self._why_closed(model, within) or "its replica is gone")
        return known

    def sentence(self, model: str, position: int, within: Within = None) -> str:
        """What a waiting client is told: position in line, status, ETA, reason."""
        outlook = self.outlook(model, within)
        eta = outlook.eta_left_s
        words = f"position={position} status={outlook.status.value} eta_s={'unknown' if eta is None else round(eta)}"
        reason = self._why_closed(model, within) or outlook.reason
        return f"{words} reason={_one_line(reason)}" if reason else words

    def not_ready(self, model: str, within: Within = None) -> ModelNotReady:
        """The 503 of a model that is cold or full, with the ETA and whether SDKs should try again by themselves."""
        outlook = self.outlook(model, within)
        eta = outlook.eta_left_s
        should_retry = eta is not None and eta <= SDK_PATIENCE_S
        return ModelNotReady(
            self._message(model, within, outlook),
            retry_after_s=UNKNOWN_RETRY_S if eta is None else max(1.0, eta),
            details={"status": outlook.status.value, "eta_s": eta, "should_retry": should_retry},
        )

    def _message(self, model: str, within: Within, outlook: Outlook) -> str:
        where = "" if within is None else f" on {', '.join(sorted(within))}"
        if outlook.status is ModelStatus.LIVE:
            if any(route.has_time for route in self.table.pools[model].live(within)):
                return f"All replicas of the model '{model}'{where} are busy."
            return f"All replicas of the model '{model}'{where} end before this request could; others follow them."
        if why := self._why_closed(model, within):
            return f"The model '{model}' takes no requests{where}: {_one_line(why)}."
        reason = f": {_one_line(outlook.reason)}" if outlook.reason else ""
        return f"The model '{model}' is not running{where} yet ({outlook.status.value}{reason})."

    def _best(self, model: str, within: frozenset[str]) -> Outlook:
        """Of the outlooks of some clusters that which comes first."""
        outlooks = [outlook for name, outlook in self._clusters.get(model, {}).items() if name in within]
        return min(outlooks, key=_rank, default=Outlook())

    def _why_closed(self, model: str, within: Within) -> str:
        """Why none of the clusters that a request may go to takes any; "" where one does, or nothing is known."""
        names = self.deployed.get(model, frozenset()) if within is None else within
        return self.table.calendar.why_all_closed(sorted(names), self.table.clock())


def _measure(cluster: str, facts: Mapping[str, Any]) -> None:
    """Publish how well forecasts of a cluster came true, and whether its scheduler answers."""
    figures = {
        metrics.WAIT_ERROR: facts.get("wait_error_s"),
        metrics.WAIT_COVERAGE: facts.get("wait_coverage"),
        metrics.AVAILABILITY: facts.get("availability", {}).get("day"),
    }
    for gauge, figure in figures.items():
        if figure is not None:
            gauge.labels(cluster).set(figure)


def _rank(outlook: Outlook) -> tuple[bool, float, int]:
    """The earliest first, then the one that is further on its way."""
    eta = outlook.eta_left_s
    order = [ModelStatus.LIVE, ModelStatus.STARTING, ModelStatus.QUEUED, ModelStatus.OFFLINE]
    is_on_its_way = outlook.status is not ModelStatus.OFFLINE
    return not is_on_its_way, inf if eta is None else eta, order.index(outlook.status)


def _one_line(text: str) -> str:
    """``text`` without line breaks: an SSE comment or header is one line."""
    return " ".join(text.split())[:300]
