"""What the controller has heard from the gateway: what linked pilots say, and the demand for models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from firstkit.clock import monotonic
from firstkit.links.messages import PilotReport
from firstkit.reconciler.autoscale import Demand, Need, Policy
from firstkit.wire import from_dict

Clusters = frozenset[str] | None
"""Where a request may go; None: anywhere."""


class World:
    """Kept in memory only: the gateway says all of it again whenever the two meet.

    While the gateway is away nothing is known of links and demand: then demand counts as it was last seen, and nobody's
    pilot counts as silent.
    """

    def __init__(self, models: Mapping[str, Iterable[Policy]], clock: Callable[[], float] = monotonic) -> None:
        """``models``: by name, how its deployments scale."""
        self.clock = clock
        self.is_gateway_up = False
        self.is_demand_known = False
        self.reports: dict[str, PilotReport] = {}
        self._policies = {model: tuple(policies) for model, policies in models.items()}
        self._demands: dict[str, dict[Clusters, Demand]] = {
            model: {None: Demand(clock(), policies)} for model, policies in self._policies.items()
        }
        self._finish_s: dict[str, float] = {}
        self.living: dict[str, frozenset[str]] = {}
        """By cluster: its jobs that live, as of the last pass."""
        self._silent_since: dict[str, float] = {}
        self._last_words: dict[str, PilotReport] = {}
        self._gateway_since = clock()

    def gateway_came(self) -> None:
        self.is_gateway_up = True
        self._gateway_since = self.clock()

    def gateway_went(self) -> None:
        self.is_gateway_up = self.is_demand_known = False
        self.reports.clear()
        self._silent_since.clear()
        self._last_words.clear()

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
                if before is not None and self._lives(job_id):
                    self._last_words[job_id] = before
            else:
                self._last_words.pop(job_id, None)
                self.reports[job_id] = report
                self._silent_since.pop(job_id, None)
            is_news = is_news or _without_traffic(before) != _without_traffic(report)
        return is_news

    def hear_demand(self, models: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Take over the demand for models: of each, one entry for every set of clusters that requests may go to, with
        ``waiting``, ``in_flight``, and ``idle_s`` since the last request, or null; maybe ``finish_s``, the time that a
        replica must have left to be given a request. Sets that are not named ask for nothing any more."""
        self.is_demand_known = True
        at = self.clock()
        for model, entries in models.items():
            if model not in self._demands:
                continue
            said = {_clusters(entry): entry for entry in entries}
            finish_s = [float(entry["finish_s"]) for entry in entries if entry.get("finish_s") is not None]
            self._finish_s[model] = max(finish_s, default=self._finish_s.get(model, 0.0))
            demands = self._demands[model]
            for clusters in said.keys() - demands.keys():
                demands[clusters] = Demand(at, self._policies[model])
            for clusters, demand in demands.items():
                entry = said.get(clusters, {})
                idle_s = entry.get("idle_s")
                counts = int(entry.get("waiting", 0)), int(entry.get("in_flight", 0))
                demand.hear(at, *counts, None if idle_s is None else float(idle_s))

    def needs(self, model: str) -> list[Need]:
        """What a model is asked for at this moment, by the clusters that requests may go to."""
        at = self.clock()
        demands = self._demands[model]
        for clusters in [known for known, demand in demands.items() if known is not None and demand.is_over(at)]:
            del demands[clusters]
        return [demand.need(at, clusters) for clusters, demand in demands.items()]

    def finish_s(self, model: str) -> float:
        """How much time a replica must have left to be given a request; 0: nobody said."""
        return self._finish_s.get(model, 0.0)

    def is_waited_for(self, model: str) -> bool:
        """Whether requests wait for a replica now."""
        return any(demand.waiting for demand in self._demands[model].values())

    def take_last_words(self, job_id: str) -> PilotReport | None:
        """What the pilot of a job said before its link went, once: it may leave in the moment in which its replica has
        failed, and nobody would know why."""
        return self._last_words.pop(job_id, None)

    def _lives(self, job_id: str) -> bool:
        return any(job_id in jobs for jobs in self.living.values())

    def strays(self) -> set[str]:
        """Jobs whose pilots are heard, and that live on no cluster that anybody looked at."""
        return set(self.reports).difference(*self.living.values())

    def silent_s(self, job_id: str) -> float:
        """For how long the gateway has known of no link to the pilot of a job; 0 while it is up or nobody can say."""
        if job_id in self.reports or not self.is_gateway_up:
            return 0.0
        return self.clock() - self._silent_since.get(job_id, self._gateway_since)


def _clusters(entry: Mapping[str, Any]) -> Clusters:
    names = entry.get("clusters")
    return None if names is None else frozenset(names)


def _without_traffic(report: PilotReport | None) -> PilotReport | None:
    """What there is in a report to act on: all but the requests under way and what they make of the engine."""
    if report is None:
        return None
    quiet = [
        replace(replica, in_flight=0, running=None, waiting=None, others=0, cache_use=None)
        for replica in report.replicas
    ]
    return replace(report, replicas=tuple(quiet))
