"""What engines say of their load, in their own words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.engines import llamacpp, sglang, vllm
from firstkit.engines.load import MOST_REQUESTS, Load, read_load

VLLM = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="meta/m"} 3.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="meta/m"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="meta/m",reason="capacity"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="meta/m",reason="deferred"} 7.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="meta/m"} 0.03125
vllm:prompt_tokens_total{engine="0",model_name="meta/m"} 111.0
"""
OF_TWO = (
    VLLM
    + b'vllm:num_requests_running{engine="1",model_name="meta/m"} 4.0\n'
    + b'vllm:kv_cache_usage_perc{engine="1",model_name="meta/m"} 0.98765\n'
)
LLAMA = b"""\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 37
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 1
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 4
"""
SGLANG = b"""\
sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 5.0
sglang:num_queue_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 0.0
sglang:token_usage{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 0.41
sglang:full_token_usage{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 0.9
"""


@pytest.mark.parametrize(
    ("text", "names", "load"),
    [
        (VLLM, vllm.METRICS, Load(3, 2, 0.031)),
        (OF_TWO, vllm.METRICS, Load(7, 2, 0.988)),
        (LLAMA, llamacpp.METRICS, Load(1, 4, None)),
        (SGLANG, sglang.METRICS, Load(5, 0, 0.41)),
        (LLAMA.replace(b"\n", b"\r\n"), llamacpp.METRICS, Load(1, 4, None)),
        (VLLM, llamacpp.METRICS, Load()),
        (VLLM, {}, Load()),
        (b"", vllm.METRICS, Load()),
    ],
)
def test_engines_that_there_are(text: bytes, names: dict[str, str], load: Load) -> None:
    assert read_load(text, names) == load


@pytest.mark.parametrize(
    ("line", "running"),
    [
        (b"r 3", 3),
        (b"r\t3 1700000000000", 3),
        (b'r{a="}"} 3', 3),
        (b'r{a="x y"} 3', 3),
        (b"r 3e0", 3),
        (b"r 3.9", 3),
        (b"r 1e300", MOST_REQUESTS),
        (b"r NaN", None),
        (b"r +Inf", None),
        (b"r -3", None),
        (b"r x", None),
        (b"r", None),
        (b" r 3", None),
        (b"rr 3", None),
        (b"r_more 3", None),
        (b"# r 3", None),
        (b'r{a="b" 3', None),
    ],
)
def test_one_line(line: bytes, running: int | None) -> None:
    assert read_load(b"x 9\n" + line + b"\ny 9", {"running": "r"}).running == running


@pytest.mark.parametrize(("said", "cache_use"), [(b"0", 0.0), (b"1", 1.0), (b"37.5", 1.0), (b"-1", None)])
def test_a_share_is_one(said: bytes, cache_use: float | None) -> None:
    assert read_load(b"c " + said, {"cache_use": "c"}).cache_use == cache_use


lines = st.binary(max_size=30) | st.sampled_from([b"r 3", b"w 1", b'c{a="b"} 0.5'])


@given(st.lists(lines, max_size=6).map(b"\n".join))
def test_nothing_is_raised(text: bytes) -> None:
    load = read_load(text, {"running": "r", "waiting": "w", "cache_use": "c"})
    assert 0 <= load.requests <= 2 * MOST_REQUESTS
    assert load.cache_use is None or 0 <= load.cache_use <= 1
