"""The metrics of the gateway, in Prometheus' terms. docs/reference/metrics.md lists each."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterator
from operator import attrgetter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

# Without this each series has another for the time of its birth: a third more, and nobody reads them.
disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY = CollectorRegistry()
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)
_RATIOS = (0.1, 0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10, 30, 100, 1000)
_LAGS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1)

WAITING = Gauge("first_requests_waiting", "Requests that wait for a replica now.", ["model"], registry=REGISTRY)
IN_FLIGHT = Gauge("first_requests_in_flight", "Requests at a replica now.", ["model"], registry=REGISTRY)
REPLICAS = Gauge("first_replicas", "Replicas that pilots report.", ["model", "cluster", "state"], registry=REGISTRY)
FORECAST_ERROR = Gauge(
    "first_forecast_error_seconds", "Mean absolute error of recent load-time forecasts.", ["model"], registry=REGISTRY
)
WAIT_ERROR = Gauge(
    "first_queue_wait_error_seconds",
    "Mean absolute error of recent forecasts of queue waits.",
    ["cluster"],
    registry=REGISTRY,
)
WAIT_COVERAGE = Gauge(
    "first_queue_wait_coverage_ratio",
    "Share of recent queue waits within what nine of ten were forecast not to exceed.",
    ["cluster"],
    registry=REGISTRY,
)
AVAILABILITY = Gauge(
    "first_scheduler_availability_ratio",
    "Share of the minutes of the last day in which a scheduler answered, of those in which it was asked.",
    ["cluster"],
    registry=REGISTRY,
)
LOOP_LAG = Histogram(
    "first_loop_lag_seconds", "How late the gateway's event loop runs a timer.", buckets=_LAGS, registry=REGISTRY
)
TASKS = Gauge("first_tasks", "Tasks of the gateway's event loop now.", registry=REGISTRY)
SPOOL_FAILURES = Counter("first_spool_failures", "Usage lines that the disk refused at first.", registry=REGISTRY)
DISPUTED = Counter(
    "first_usage_disputed", "Token counts of engines that the relayed bytes contradict.", ["model"], registry=REGISTRY
)


class Tally:
    """A histogram in plain numbers. ``buckets``: upper limits, rising; what is above the last goes into one more."""

    __slots__ = ("_counts", "_limits", "_sum")

    def __init__(self, limits: tuple[float, ...]) -> None:
        self._limits = limits
        self._counts = [0] * (len(limits) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._limits, value)] += 1
        self._sum += value

    @property
    def is_empty(self) -> bool:
        return not any(self._counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulated, as Prometheus has them."""
        names = [*(str(float(limit)) for limit in self._limits), "+Inf"]
        return list(zip(names, itertools.accumulate(self._counts), strict=True))

    @property
    def sum(self) -> float:
        return self._sum


class ModelSeries:
    """What every request to one model counts.

    Plain numbers, turned into metrics when somebody asks: the library's own counters, each behind a lock, would be a
    tenth of what a small request costs.
    """

    __slots__ = ("completion_tokens", "endings", "estimate", "gap", "prompt_tokens", "queue", "ttft")

    def __init__(self) -> None:
        self.endings: dict[tuple[str, str], int] = {}
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.queue = Tally(_SECONDS)
        self.ttft = Tally(_SECONDS)
        self.gap = Tally(_GAPS)
        self.estimate = Tally(_RATIOS)

    def count(self, endpoint: str, outcome: str) -> None:
        """One request more that ended so."""
        key = (endpoint, outcome)
        self.endings[key] = self.endings.get(key, 0) + 1


class Requests(Collector):
    """The series of all models, and the bytes that went through."""

    def __init__(self) -> None:
        self._models: dict[str, ModelSeries] = {}
        self.bytes_up = 0
        self.bytes_down = 0

    def of_model(self, model: str) -> ModelSeries:
        """The series of a model of the configuration."""
        series = self._models.get(model)
        if series is None:
            series = self._models[model] = ModelSeries()
        return series

    def collect(self) -> Iterator[Metric]:
        yield self._endings()
        yield self._tokens()
        yield self._tallies(
            "first_time_to_first_token_seconds",
            "From the request's arrival at the gateway to its first token, waiting included.",
            attrgetter("ttft"),
        )
        yield self._tallies(
            "first_inter_token_seconds",
            "Mean time between the tokens of a streamed answer, one observation a request.",
            attrgetter("gap"),
        )
        yield self._tallies("first_queue_seconds", "Time that a request waited for a replica.", attrgetter("queue"))
        yield self._tallies(
            "first_estimate_error_ratio",
            "Tokens that a request was expected to need, over those that it used. Those of which an engine told.",
            attrgetter("estimate"),
        )
        relayed = CounterMetricFamily(
            "first_relay_bytes", "Bytes of bodies relayed, to replicas and to clients.", labels=["direction"]
        )
        relayed.add_metric(["up"], self.bytes_up)
        relayed.add_metric(["down"], self.bytes_down)
        yield relayed

    def _endings(self) -> Metric:
        family = CounterMetricFamily(
            "first_requests", "Requests to models, by how they ended.", labels=["model", "endpoint", "outcome"]
        )
        for model, series in self._models.items():
            for (endpoint, outcome), count in series.endings.items():
                family.add_metric([model, endpoint, outcome], count)
        return family

    def _tokens(self) -> Metric:
        family = CounterMetricFamily(
            "first_tokens", "Tokens accounted, prompt and completion.", labels=["model", "kind"]
        )
        for model, series in self._models.items():
            family.add_metric([model, "prompt"], series.prompt_tokens)
            family.add_metric([model, "completion"], series.completion_tokens)
        return family

    def _tallies(self, name: str, text: str, of: Callable[[ModelSeries], Tally]) -> Metric:
        family = HistogramMetricFamily(name, text, labels=["model"])
        for model, series in self._models.items():
            if not of(series).is_empty:
                family.add_metric([model], of(series).buckets(), of(series).sum)
        return family


REQUESTS = Requests()
REGISTRY.register(REQUESTS)


def exposition() -> bytes:
    """All metrics in Prometheus' text format."""
    return generate_latest(REGISTRY)
