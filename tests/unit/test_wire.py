"""What crosses a process arrives as it was sent, and what does not fit names its path."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstkit.engines.engine import EngineSpec, ReplicaSpec
from firstkit.links.messages import (
    Call,
    Head,
    Hello,
    Open,
    Outcome,
    PilotReport,
    PilotSpec,
    Refusal,
    ReplicaReport,
    Reply,
    Tail,
    Usage,
)
from firstkit.schedulers.scheduler import Capacity, JobNews, JobSpec, Resources
from firstkit.states import JobState, ReplicaState
from firstkit.wire import WireError, decode, encode, from_dict, to_dict

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
objects = st.dictionaries(st.text(max_size=5), json_values, max_size=3)
numbers = st.floats(allow_nan=False, allow_infinity=False)
engines = st.builds(EngineSpec)
replicas = st.builds(ReplicaSpec, args=objects, engine=engines, load_timeout_s=numbers)
reports = st.builds(ReplicaReport, load_s=st.none() | numbers)
MESSAGES = {
    Resources: st.builds(Resources),
    JobSpec: st.builds(JobSpec, pilot=objects),
    JobNews: st.builds(JobNews, started_at=st.none() | numbers, ends_at=st.none() | numbers),
    Capacity: st.builds(Capacity),
    EngineSpec: engines,
    ReplicaSpec: replicas,
    PilotSpec: st.builds(PilotSpec, replicas=st.lists(replicas, max_size=2).map(tuple), orphan_timeout_s=numbers),
    Hello: st.builds(Hello),
    Refusal: st.builds(Refusal),
    Open: st.builds(Open, idle_timeout_s=numbers),
    Head: st.builds(Head),
    Usage: st.builds(Usage),
    Tail: st.builds(Tail, ttft_s=st.none() | numbers, gap_s=st.none() | numbers, duration_s=numbers),
    ReplicaReport: reports,
    PilotReport: st.builds(PilotReport, replicas=st.lists(reports, max_size=2).map(tuple), ends_at=st.none() | numbers),
    Call: st.builds(Call, args=objects),
    Reply: st.builds(Reply, result=json_values),
}
messages = st.sampled_from(sorted(MESSAGES, key=lambda kind: kind.__name__)).flatmap(MESSAGES.__getitem__)


@settings(max_examples=200)
@given(messages)
def test_what_arrives_is_what_was_sent(message: Any) -> None:
    assert decode(type(message), encode(message)) == message


@given(messages, json_values)
def test_keys_of_a_later_version_are_ignored(message: Any, news: Any) -> None:
    assert from_dict(type(message), {**to_dict(message), "key_of_tomorrow": news}) == message


@given(messages)
def test_keys_of_an_earlier_version_take_their_default(message: Any) -> None:
    kind = type(message)
    required = {
        field.name: to_dict(getattr(message, field.name))
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    got = from_dict(kind, required)
    assert to_dict(got) == {**to_dict(kind(**{name: getattr(message, name) for name in required})), **required}


@given(st.sampled_from(sorted(MESSAGES, key=lambda kind: kind.__name__)), json_values | objects)
def test_anything_else_is_a_message_or_a_wire_error(kind: type[Any], data: Any) -> None:
    try:
        assert isinstance(from_dict(kind, data), kind)
    except WireError as error:
        assert str(error)


@given(st.binary(max_size=50))
def test_any_bytes_are_a_message_or_a_wire_error(data: bytes) -> None:
    with contextlib.suppress(WireError):
        decode(Hello, data)


@pytest.mark.parametrize(
    ("kind", "data", "said"),
    [
        (Head, {}, "status: missing"),
        (Head, [], "Head: an object is needed, not list"),
        (Head, {"status": "200"}, "status: int is needed, not str"),
        (Head, {"status": True}, "status: int is needed, not bool"),
        (Head, {"status": 200.0}, "status: int is needed, not float"),
        (Tail, {"outcome": "done"}, "outcome: one of complete, rejected, failed"),
        (Tail, {"outcome": ["complete"]}, "outcome: one of"),
        (Tail, {"outcome": "complete", "duration_s": 10**400}, "duration_s: the number is too large"),
        (Tail, {"outcome": "complete", "duration_s": True}, "duration_s: float is needed, not bool"),
        (Tail, {"outcome": "complete", "usage": {"prompt_tokens": 1}}, "usage.completion_tokens: missing"),
        (PilotReport, {"job_id": "j", "replicas": {}}, "replicas: list is needed, not dict"),
        (PilotReport, {"job_id": "j", "replicas": [{"replica_id": "r"}]}, "replicas[0].state: missing"),
        (Open, {"replica_id": "r", "method": "GET", "path": "/", "body_bytes": 0, "headers": {"a": 1}}, "headers.a:"),
    ],
)
def test_what_does_not_fit_names_its_path(kind: type[Any], data: Any, said: str) -> None:
    with pytest.raises(WireError) as caught:
        from_dict(kind, data)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_says_so(data: bytes) -> None:
    with pytest.raises(WireError, match="Head: not JSON"):
        decode(Head, data)


def test_the_form_on_the_wire() -> None:
    tail = Tail(Outcome.COMPLETE, Usage(1, 2))
    assert json.loads(encode(tail))["outcome"] == "complete"
    assert b" " not in encode(tail)
    assert to_dict(JobNews("j", "1", JobState.RUNNING))["state"] == "RUNNING"
    assert to_dict(PilotReport("j", (ReplicaReport("r", ReplicaState.READY),)))["replicas"][0]["capabilities"] == []
