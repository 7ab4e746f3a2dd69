"""What the controller forecasts for each model, as the gateway tells it: status, ETA, a sentence, an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from firstkit.clock import monotonic
from firstkit.errors import ModelNotReady
from firstkit.routing.table import RoutingTable
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
    """The controller's last word on every model. What links say wins: a model with a ready replica is live."""

    def __init__(self, table: RoutingTable) -> None:
        self.table = table
        self._models: dict[str, Outlook] = {}
        self._clusters: dict[str, dict[str, Outlook]] = {}

    def hear(self, models: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over a forecast message of the controller."""
        for model, data in models.items():
            self._models[model] = Outlook.of(data)
            self._clusters[model] = {name: Outlook.of(part) for name, part in data.get("clusters", {}).items()}

    def outlook(self, model: str) -> Outlook:
        if self.table.pools[model].ready:
            return Outlook(ModelStatus.LIVE, 0.0)
        known = self._models.get(model, Outlook())
        if known.status is ModelStatus.LIVE:  # not by what links say: the replica went a moment ago
            return Outlook(ModelStatus.OFFLINE, None, "its replica is gone")
        return known

    def clusters(self, model: str) -> dict[str, Outlook]:
        ready = {route.cluster for route in self.table.pools[model].ready}
        outlooks = dict(self._clusters.get(model, {}))
        return outlooks | {name: Outlook(ModelStatus.LIVE, 0.0) for name in ready}

    def sentence(self, model: str, position: int) -> str:
        """What a waiting client is told: position in line, status, ETA, reason."""
        outlook = self.outlook(model)
        eta = outlook.eta_left_s
        words = f"position={position} status={outlook.status.value} eta_s={'unknown' if eta is None else round(eta)}"
        return f"{words} reason={_one_line(outlook.reason)}" if outlook.reason else words

    def not_ready(self, model: str) -> ModelNotReady:
        """The 503 of a model that is cold or full, with the ETA and whether SDKs should try again by themselves."""
        outlook = self.outlook(model)
        eta = outlook.eta_left_s
        reason = f": {_one_line(outlook.reason)}" if outlook.reason else ""
        if outlook.status is ModelStatus.LIVE:
            message = f"All replicas of the model '{model}' are busy."
        else:
            message = f"The model '{model}' is not running yet ({outlook.status.value}{reason})."
        should_retry = eta is not None and eta <= SDK_PATIENCE_S
        return ModelNotReady(
            message,
            retry_after_s=UNKNOWN_RETRY_S if eta is None else max(1.0, eta),
            details={"status": outlook.status.value, "eta_s": eta, "should_retry": should_retry},
        )


def _one_line(text: str) -> str:
    """``text`` without line breaks: an SSE comment or header is one line."""
    return " ".join(text.split())[:300]
