"""What the controller has heard from the gateway: what linked pilots say, and the demand for models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from firstkit.clock import monotonic
from firstkit.links.messages import PilotReport
from firstkit.reconciler.autoscale import History, forget, remember
from firstkit.wire import from_dict


class World:
    """Kept in memory only: the gateway says all of it again whenever the two meet.

    While the gateway is away nothing is known of links and demand: then demand counts as it was last seen, and nobody's
    pilot counts as silent.
    """

    def __init__(self, models: Iterable[str], longest_idle_s: float, clock: Callable[[], float] = monotonic) -> None:
        self.clock = clock
        self.is_gateway_up = False
        self.reports: dict[str, PilotReport] = {}
        self._histories: dict[str, History] = dict.fromkeys(models, ())
        self._requests: dict[str, int] = dict.fromkeys(models, 0)
        self._assumed: Counter[str] = Counter()
        self._longest_idle_s = longest_idle_s
        self._silent_since: dict[str, float] = {}
        self._gateway_since = clock()

    def gateway_came(self) -> None:
        self.is_gateway_up = True
        self._gateway_since = self.clock()

    def gateway_went(self) -> None:
        self.is_gateway_up = False
        self.reports.clear()
        self._silent_since.clear()

    def hear_pilots(self, message: Mapping[str, Any]) -> bool:
        """Take over reports (null: the link is gone); whether there is something in them to act on."""
        is_news = bool(message.get("all"))
        if message.get("all"):
            self.reports.clear()
        for job_id, data in message["pilots"].items():
            before = self.reports.pop(job_id, None)
            report = None if data is None else from_dict(PilotReport, data, "pilots")
            if report is None:
                self._silent_since[job_id] = self.clock()
            else:
                self.reports[job_id] = report
                self._silent_since.pop(job_id, None)
            is_news = is_news or _without_traffic(before) != _without_traffic(report)
        return is_news

    def hear_demand(self, models: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over the demand for models: ``waiting``, ``in_flight``, ``idle_s`` since the last request, or null."""
        for model, demand in models.items():
            if model not in self._histories:
                continue
            self._requests[model] = int(demand["waiting"]) + int(demand["in_flight"])
            if demand.get("idle_s") is not None:
                at = self.clock() - float(demand["idle_s"])
                self._histories[model] = remember(self._histories[model], at, 1)

    def assume_more(self, model: str, requests: int) -> None:
        """Count so many requests as seen now, beside those that were assumed before."""
        self._assumed[model] += requests
        self._histories[model] = remember(self._histories[model], self.clock(), self._assumed[model])

    def history(self, model: str) -> History:
        """The demand for a model up to this moment."""
        at = self.clock()
        history = remember(self._histories[model], at, self._requests[model])
        self._histories[model] = forget(history, at - self._longest_idle_s)
        return self._histories[model]

    def silent_s(self, job_id: str) -> float:
        """For how long the gateway has known of no link to the pilot of a job; 0 while it is up or nobody can say."""
        if job_id in self.reports or not self.is_gateway_up:
            return 0.0
        return self.clock() - self._silent_since.get(job_id, self._gateway_since)


def _without_traffic(report: PilotReport | None) -> PilotReport | None:
    """What there is in a report to act on: all but the number of requests under way."""
    if report is None:
        return None
    return replace(report, replicas=tuple(replace(replica, in_flight=0) for replica in report.replicas))
