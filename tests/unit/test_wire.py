"""What crosses a process arrives as it was sent, and what does not fit names its path."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import math
from typing import Any, NamedTuple

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
reports = st.builds(ReplicaReport, load_s=st.none() | numbers, cache_use=st.none() | numbers)
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


class Colour(enum.IntEnum):
    RED = 1


class Pair(NamedTuple):
    left: int
    right: int


class Text(str):
    __slots__ = ()


@dataclasses.dataclass(frozen=True)
class Nothing:
    pass


@dataclasses.dataclass(frozen=True)
class One:
    value: Any


@dataclasses.dataclass(frozen=True)
class Checked:
    value: int

    def __post_init__(self) -> None:
        if self.value < 0:
            raise WireError("value: not negative")


@dataclasses.dataclass
class Narrow:
    __slots__ = ("value",)
    value: int


odd_values = st.recursive(
    st.sampled_from([Colour.RED, Outcome.LOST, Pair(1, 2), Text("x"), Nothing(), One("\u2028\ud800"), Usage(1, 2)])
    | st.floats()
    | st.integers()
    | st.text(max_size=5)
    | st.none()
    | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.builds(One, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.none() | st.booleans(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(messages | odd_values)
def test_the_bytes_are_those_of_the_json_module(value: Any) -> None:
    assert encode(value) == json.dumps(to_dict(value), separators=(",", ":")).encode()


@pytest.mark.parametrize("value", [object(), [b"x"], {"a": {1, 2}}, One(object()), {(1, 2): 3}])
def test_what_json_cannot_say_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError):
        encode(value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32-be"])
@pytest.mark.parametrize("form", ['{"status":200}', ' {"status": 200}\n', '{"content_type":"\u00e4","status":200}'])
def test_json_in_any_of_its_forms_is_read(form: str, encoding: str) -> None:
    assert decode(Head, form.encode(encoding)).status == 200


@pytest.mark.parametrize("data", [b'{"status":200}x', b'{"status":200}{}', b'{"status":200,}', b'{"status":20\xff}'])
def test_json_and_more_is_no_json(data: bytes) -> None:
    with pytest.raises(WireError, match="Head: not JSON"):
        decode(Head, data)


def test_defaults_are_made_anew_and_checks_are_kept() -> None:
    first, second = from_dict(Call, {"verb": "a"}), from_dict(Call, {"verb": "b"})
    assert first.args is not second.args
    assert from_dict(Checked, {"value": 1}) == Checked(1)
    with pytest.raises(WireError, match="not negative"):
        from_dict(Checked, {"value": -1})
    assert from_dict(Narrow, {"value": 1}) == Narrow(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.verb = "c"  # type: ignore[misc]
    assert math.isnan(decode(Tail, b'{"outcome":"lost","duration_s":NaN}').duration_s)
