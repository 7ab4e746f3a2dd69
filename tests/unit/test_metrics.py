"""Metrics kept in plain numbers look like those of the library that everybody reads them with."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from firstkit.metrics import REGISTRY, REQUESTS, Requests, Tally, exposition

LIMITS = (0.1, 0.5, 1, 10)
VALUES = st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 10.0]) | st.floats(0, 100), max_size=30)


def samples(registry: CollectorRegistry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of ``registry``, read back from its text."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def alone() -> tuple[Requests, CollectorRegistry]:
    requests, registry = Requests(), CollectorRegistry()
    registry.register(requests)
    return requests, registry


@given(VALUES)
def test_a_tally_counts_as_a_histogram_does(values: list[float]) -> None:
    tally = Tally(LIMITS)
    registry = CollectorRegistry()
    histogram = Histogram("x", "x", buckets=LIMITS, registry=registry)
    for value in values:
        tally.observe(value)
        histogram.observe(value)
    expected = {labels[0][1]: value for (name, labels), value in samples(registry).items() if name == "x_bucket"}
    assert dict(tally.buckets()) == expected
    assert abs(tally.sum - sum(values)) < 1e-6
    assert tally.is_empty == (not values)


def test_what_a_model_did_is_exposed() -> None:
    requests, registry = alone()
    series = requests.of_model("m")
    assert requests.of_model("m") is series
    series.count("chat/completions", "complete")
    series.count("chat/completions", "complete")
    series.count("embeddings", "failed")
    series.prompt_tokens += 7
    series.completion_tokens += 5
    series.queue.observe(0.3)
    series.ttft.observe(1.5)
    series.gap.observe(0.02)
    series.estimate.observe(1.2)
    requests.bytes_up += 100
    requests.bytes_down += 200
    said: Any = samples(registry)
    model = ("model", "m")
    assert said["first_requests_total", (("endpoint", "chat/completions"), model, ("outcome", "complete"))] == 2
    assert said["first_requests_total", (("endpoint", "embeddings"), model, ("outcome", "failed"))] == 1
    assert said["first_tokens_total", (("kind", "prompt"), model)] == 7
    assert said["first_tokens_total", (("kind", "completion"), model)] == 5
    assert said["first_relay_bytes_total", (("direction", "up"),)] == 100
    assert said["first_relay_bytes_total", (("direction", "down"),)] == 200
    for name, value in (("queue", 0.3), ("time_to_first_token", 1.5), ("inter_token", 0.02)):
        assert said[f"first_{name}_seconds_count", (model,)] == 1
        assert said[f"first_{name}_seconds_sum", (model,)] == value
        assert said[f"first_{name}_seconds_bucket", (("le", "+Inf"), model)] == 1
    assert said["first_estimate_error_ratio_bucket", (("le", "1.1"), model)] == 0
    assert said["first_estimate_error_ratio_bucket", (("le", "1.25"), model)] == 1


def test_what_never_was_observed_is_no_zero() -> None:
    requests, registry = alone()
    requests.of_model("m")
    assert not [name for name, _ in samples(registry) if name.endswith("_count")]


def test_names_of_models_are_escaped() -> None:
    requests, registry = alone()
    requests.of_model('a"b\\c\nd').prompt_tokens += 1
    assert ("first_tokens_total", (("kind", "prompt"), ("model", 'a"b\\c\nd'))) in samples(registry)


def test_all_are_exposed_together() -> None:
    REQUESTS.of_model("exposed").prompt_tokens += 3
    text = exposition().decode()
    assert 'first_tokens_total{kind="prompt",model="exposed"} 3' in text
    assert "# TYPE first_requests_total counter" in text or "# TYPE first_requests counter" in text
    assert "_created" not in text
    assert len(samples(REGISTRY)) > 10
