"""The metrics of the gateway, in Prometheus' terms. docs/reference/metrics.md lists each."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

# Without this each series has another for the time of its birth: a third more, and nobody reads them.
disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY = CollectorRegistry()
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)
_LAGS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1)

REQUESTS = Counter(
    "first_requests", "Requests to models, by how they ended.", ["model", "endpoint", "outcome"], registry=REGISTRY
)
TOKENS = Counter("first_tokens", "Tokens accounted, prompt and completion.", ["model", "kind"], registry=REGISTRY)
TTFT = Histogram(
    "first_time_to_first_token_seconds",
    "From the request's arrival at the gateway to its first token, waiting included.",
    ["model"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
GAP = Histogram(
    "first_inter_token_seconds",
    "Mean time between the tokens of a streamed answer, one observation a request.",
    ["model"],
    buckets=_GAPS,
    registry=REGISTRY,
)
QUEUE = Histogram(
    "first_queue_seconds", "Time that a request waited for a replica.", ["model"], buckets=_SECONDS, registry=REGISTRY
)
WAITING = Gauge("first_requests_waiting", "Requests that wait for a replica now.", ["model"], registry=REGISTRY)
IN_FLIGHT = Gauge("first_requests_in_flight", "Requests at a replica now.", ["model"], registry=REGISTRY)
REPLICAS = Gauge("first_replicas", "Replicas that pilots report.", ["model", "cluster", "state"], registry=REGISTRY)
FORECAST_ERROR = Gauge(
    "first_forecast_error_seconds", "Mean absolute error of recent load-time forecasts.", ["model"], registry=REGISTRY
)
LOOP_LAG = Histogram(
    "first_loop_lag_seconds", "How late the gateway's event loop runs a timer.", buckets=_LAGS, registry=REGISTRY
)
RELAY_BYTES = Counter(
    "first_relay_bytes", "Bytes of bodies relayed, to replicas and to clients.", ["direction"], registry=REGISTRY
)
BYTES_UP = RELAY_BYTES.labels("up")
BYTES_DOWN = RELAY_BYTES.labels("down")
SPOOL_FAILURES = Counter("first_spool_failures", "Usage lines that the disk refused at first.", registry=REGISTRY)
DISPUTED = Counter(
    "first_usage_disputed", "Token counts of engines that the relayed bytes contradict.", ["model"], registry=REGISTRY
)


def exposition() -> bytes:
    """All metrics in Prometheus' text format."""
    return generate_latest(REGISTRY)
