"""Bodies that are hard to read: refused with a reason or passed on, never a fault, and never at the cost of others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faults.outside import EchoEngine, Outside, assert_sound, gateway
from faults.wire import Answer, Wire
from lab import Lab

CHAT = "/v1/chat/completions"
PATHS = (CHAT, "/v1/completions", "/v1/embeddings")
MIB = 1024**2
DEEP = 100_000
CPU_S = 0.1
"""So much processor time of the gateway one request may take, and as much again for each ``BYTES_FOR_CPU``."""
BYTES_FOR_CPU = 8 * MIB


@pytest.fixture(scope="module")
def lab(engines: Outside, engine: EchoEngine) -> Iterator[Lab]:
    with gateway(engines) as lab:
        yield lab
        assert_sound(lab)


def send(lab: Lab, body: bytes, path: str = CHAT) -> Answer:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {lab.key}\r\ncontent-type: application/json\r\n"
    with Wire(lab.port) as wire:
        wire.send(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        return wire.answer()


def cpu_s(lab: Lab) -> float:
    """Processor time of the gateway so far, in seconds."""
    assert lab.gateway
    times = psutil.Process(lab.gateway.pid).cpu_times()
    return times.user + times.system


def send_cheaply(lab: Lab, body: bytes, path: str = CHAT) -> Answer:
    """Also sees to it that the gateway has not worked on it for longer than any request may take."""
    before = cpu_s(lab)
    answer = send(lab, body, path)
    spent = cpu_s(lab) - before
    assert spent < CPU_S * (1 + len(body) / BYTES_FOR_CPU), f"{spent:g} s of processor time"
    return answer


def chat(field: bytes = b"", content: bytes = b'"hello"', messages: bytes | None = None) -> bytes:
    """A request whose parts are JSON as it is given."""
    told = b'[{"role": "user", "content": %b}]' % content if messages is None else messages
    return b'{"model": "echo", "messages": %b%b}' % (told, b", " + field if field else b"")


def nested(opening: bytes, closing: bytes, depth: int = DEEP) -> bytes:
    return opening * depth + b"1" + closing * depth


LISTS = nested(b"[", b"]")
OBJECTS = nested(b'{"a":', b"}")

# What the gateway must refuse: body, and the parameter or code that the refusal names.
REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "invalid_json"),
    "spaces": (b"  \r\n ", "invalid_json"),
    "no JSON": (b"model=echo&messages=x", "invalid_json"),
    "half of it": (chat()[:-9], "invalid_json"),
    "more behind it": (chat() + b"{}", "invalid_json"),
    "a word behind it": (chat() + b"x", "invalid_json"),
    "a NUL behind it": (chat() + b"\0", "invalid_json"),
    "a byte order mark": (b"\xef\xbb\xbf" + chat(), "invalid_json"),
    "UTF-16": (chat().decode().encode("utf-16"), "invalid_json"),
    "UTF-32": (chat().decode().encode("utf-32"), "invalid_json"),
    "a list": (b"[" + chat() + b"]", "invalid_request"),
    "a text": (b'"model"', "invalid_request"),
    "a number": (b"1", "invalid_request"),
    "null": (b"null", "invalid_request"),
    "true": (b"true", "invalid_request"),
    "an empty object": (b"{}", "model"),
    "lists, deep": (LISTS, "invalid_request"),
    "lists without end": (b"[" * DEEP, "invalid_request"),
    "objects, deep": (OBJECTS, "invalid_json"),
    "objects without end": (b'{"a":' * DEEP, "invalid_json"),
    "an unknown field, deep": (chat(b'"x": ' + LISTS), "invalid_json"),
    "an unknown field, deep objects": (chat(b'"x": ' + OBJECTS), "invalid_json"),
    "messages, deep": (chat(messages=LISTS), "invalid_json"),
    "content, deep": (chat(content=LISTS), "invalid_json"),
    "a part of content, deep": (chat(content=b'[{"type": "text", "image_url": %b}]' % OBJECTS), "invalid_json"),
    "stream_options, deep": (chat(b'"stream": true, "stream_options": ' + OBJECTS), "invalid_json"),
    "a field of stream_options, deep": (chat(b'"stream": true, "stream_options": {"a": %b}' % LISTS), "invalid_json"),
    "stream, deep": (chat(b'"stream": ' + LISTS), "invalid_json"),
    "model, deep": (b'{"messages": [{}], "model": %b}' % LISTS, "invalid_json"),
    "max_tokens, deep": (chat(b'"max_tokens": ' + LISTS), "invalid_json"),
    "a key without a value": (b'{"model"}', "invalid_json"),
    "a comma too many": (b'{"model": "echo",}', "invalid_json"),
    "single quotes": (b"{'model': 'echo'}", "invalid_json"),
    "a comment": (b'{"model": "echo" /* x */}', "invalid_json"),
    "NaN": (chat(b'"temperature": NaN'), "invalid_json"),
    "Infinity": (chat(b'"temperature": Infinity'), "invalid_json"),
    "-Infinity": (chat(b'"temperature": -Infinity'), "invalid_json"),
    "a plus": (chat(b'"seed": +1'), "invalid_json"),
    "hexadecimal": (chat(b'"seed": 0x10'), "invalid_json"),
    "a zero first": (chat(b'"seed": 010'), "invalid_json"),
    "a dot last": (chat(b'"seed": 1.'), "invalid_json"),
    "a NUL in a text": (chat(content=b'"a\0b"'), "invalid_json"),
    "a line end in a text": (chat(content=b'"a\nb"'), "invalid_json"),
    "a wrong escape": (chat(content=b'"\\x41"'), "invalid_json"),
    "half an escape": (chat(content=b'"\\u12"'), "invalid_json"),
    "no UTF-8 in a name": (chat(b'"\xff": 1'), "invalid_json"),
    "model: a number": (b'{"model": 1, "messages": [{}]}', "model"),
    "model: a list": (b'{"model": ["echo"], "messages": [{}]}', "model"),
    "model: null": (b'{"model": null, "messages": [{}]}', "model"),
    "model: empty": (b'{"model": "", "messages": [{}]}', "model"),
    "messages: none": (b'{"model": "echo"}', "messages"),
    "messages: null": (chat(messages=b"null"), "messages"),
    "messages: empty": (chat(messages=b"[]"), "messages"),
    "messages: a text": (chat(messages=b'"hello"'), "messages"),
    "messages: an object": (chat(messages=b"{}"), "messages"),
    "messages: texts": (chat(messages=b'["hello"]'), "messages"),
    "messages: nulls": (chat(messages=b"[null]"), "messages"),
    "stream: a text": (chat(b'"stream": "yes"'), "stream"),
    "stream: a number": (chat(b'"stream": 1'), "stream"),
    "stream: a list": (chat(b'"stream": [true]'), "stream"),
    "stream_options: a list": (chat(b'"stream": true, "stream_options": []'), "stream_options"),
    "stream_options: a text": (chat(b'"stream": true, "stream_options": "x"'), "stream_options"),
    "stream_options without a stream": (chat(b'"stream_options": {"include_usage": true}'), "stream_options"),
    "include_usage: a text": (chat(b'"stream": true, "stream_options": {"include_usage": "yes"}'), "include_usage"),
    "max_tokens: negative": (chat(b'"max_tokens": -1'), "max_tokens"),
    "max_tokens: nothing": (chat(b'"max_tokens": 0'), "max_tokens"),
    "max_tokens: a text": (chat(b'"max_tokens": "1"'), "max_tokens"),
    "max_tokens: a fraction": (chat(b'"max_tokens": 1.5'), "max_tokens"),
    "max_tokens: a boolean": (chat(b'"max_tokens": true'), "max_tokens"),
    "max_tokens: 10,000 digits": (chat(b'"max_tokens": ' + b"9" * 10_000), "max_tokens"),
    "max_completion_tokens: negative": (chat(b'"max_completion_tokens": -1'), "max_completion_tokens"),
    "max_completion_tokens: far beyond": (chat(b'"max_completion_tokens": 1e999999'), "max_completion_tokens"),
    "n: nothing": (chat(b'"n": 0'), "n"),
    "n: a text": (chat(b'"n": "2"'), "n"),
    "a field that runs code": (chat(b'"chat_template": "{{ 1 }}"'), "chat_template"),
    "such a field with an escape": (chat(b'"chat\\u005ftemplate": "{{ 1 }}"'), "chat_template"),
    "such a field, null": (chat(b'"logits_processors": null'), "logits_processors"),
    "an image by address": (chat(content=b'[{"type": "image_url", "image_url": {"url": "http://x/"}}]'), "messages"),
    "an image by address, escaped": (
        chat(content=b'[{"type": "image_url", "image\\u005furl": {"url": "http://x/"}}]'),
        "messages",
    ),
    "an image by address, in no list": (
        chat(content=b'{"type": "image_url", "image_url": {"url": "http://x/"}}'),
        "messages",
    ),
    "an image by address, twice": (
        chat(content=b'[{"type": "image_url", "image_url": {"url": "http://x/"}, "image_url": {"url": "data:,"}}]'),
        "messages",
    ),
    "an image by address, behind a good one": (
        chat(content=b'[{"image_url": {"url": "data:,"}}, {"video_url": "file:///etc/passwd"}]'),
        "messages",
    ),
}

# What the gateway must pass on as it is, or may refuse: the engine answers all of it.
PASSED: dict[str, bytes] = {
    "lone surrogates": chat(content=b'"\\ud800 \\udfff"'),
    "surrogates the wrong way": chat(content=b'"\\udc00\\ud800"'),
    "half a letter of UTF-8": chat(content=b'"\xe2\x82"'),
    "a byte that is no UTF-8": chat(content=b'"\xff"'),
    "UTF-8 longer than it must be": chat(content=b'"\xc0\xaf"'),
    "a surrogate in UTF-8": chat(content=b'"\xed\xa0\x80"'),
    "no UTF-8 in an unknown field": chat(b'"x": ["\xff"]'),
    "an escaped NUL": chat(content=b'"a\\u0000b"'),
    "NaN as a text": chat(content=b'"NaN"'),
    "a number far too large": chat(b'"temperature": 1e999999'),
    "a number far too small": chat(b'"temperature": -1e-999999'),
    "10,000 digits": chat(b'"seed": ' + b"9" * 10_000),
    "a fraction of 10,000 digits": chat(b'"top_p": 0.' + b"3" * 10_000),
    "an exponent of 10,000 digits": chat(b'"top_p": 1e' + b"3" * 10_000),
    "a billion choices": chat(b'"n": 1000000000'),
    "2^63 choices": chat(b'"n": 9223372036854775808'),
    "a billion tokens": chat(b'"max_tokens": 1000000000'),
    "tokens with an exponent": chat(b'"max_tokens": 1e3'),
    "stream: null": chat(b'"stream": null'),
    "stream_options: null": chat(b'"stream_options": null'),
    "stream_options: empty": chat(b'"stream_options": {}'),
    "content: a number": chat(content=b"1"),
    "content: null": chat(content=b"null"),
    "content: an empty list": chat(content=b"[]"),
    "content: an object": chat(content=b'{"a": 1}'),
    "messages: empty, with a space": chat(messages=b"[ ]"),
    "a message without anything": chat(messages=b"[{}]"),
    "10,000 messages": chat(messages=b"[" + b",".join([b'{"content": "a"}'] * 10_000) + b"]"),
    "10,000 fields": chat(b",".join(b'"x%d": 1' % i for i in range(10_000))),
    "a name of 1 MB": chat(b'"%b": 1' % (b"x" * MIB)),
    "a text of 10 MB": chat(content=b'"%b"' % (b"x" * 10 * MIB)),
    "10 MB of escapes": chat(content=b'"%b"' % (b"\\u0041" * (10 * MIB // 6))),
    "an unknown field of 10 MB": chat(b'"x": "%b"' % (b"y" * 10 * MIB)),
    "10 MB of small numbers": chat(b'"x": [%b1]' % (b"1," * 5 * MIB)),
    "a million empty lists": chat(b'"x": [%b1]' % (b"[]," * 10**6)),
    "10 MB of almost addresses": chat(content=b'[{"text": "%b"}]' % (b"_url" * (10 * MIB // 4))),
    "10 MB of spaces": b" " * 10 * MIB + chat(),
    "100 levels": chat(b'"x": ' + nested(b"[", b"]", 100)),
    "names that mean something elsewhere": chat(b'"__proto__": {"a": 1}, "constructor": 1, "\\u0000": 2, "": 3'),
    "a data: image": chat(content=b'[{"type": "image_url", "image_url": {"url": "data:,"}}]'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(lab: Lab, engine: EchoEngine, name: str) -> None:
    body, what = REFUSED[name]
    before = len(engine.bodies)
    answer = send_cheaply(lab, body)
    assert answer.status == 400, answer
    error = answer.error
    assert error["type"] == "invalid_request_error"
    assert what in (error["code"], error["param"]) or (what == "invalid_json" and error["code"] == "invalid_request")
    assert len(answer.body) < 1000
    assert len(engine.bodies) == before


@pytest.mark.parametrize("name", PASSED)
def test_what_the_engine_may_judge(lab: Lab, engine: EchoEngine, name: str) -> None:
    body = PASSED[name]
    before = len(engine.bodies)
    answer = send_cheaply(lab, body)
    assert answer.status in (200, 400), answer
    if answer.status == 400:
        assert answer.error["type"] == "invalid_request_error"
        assert len(engine.bodies) == before
    else:
        assert len(engine.bodies) == before + 1


@pytest.mark.parametrize("name", [name for name in REFUSED if "deep" in name or "no" in name])
@pytest.mark.parametrize("path", PATHS[1:])
def test_the_other_routes_refuse_it_as_well(lab: Lab, path: str, name: str) -> None:
    body, _ = REFUSED[name]
    assert send_cheaply(lab, body, path).status == 400


@pytest.mark.parametrize("name", [name for name, (body, _) in REFUSED.items() if len(body) < MIB])
def test_pages_with_bodies(lab: Lab, name: str) -> None:
    """Of administrators: the same bytes are no key to be made, and no fault either."""
    body, _ = REFUSED[name]
    for path in ("/admin/keys", "/admin/keys/revoke"):
        answer = send_cheaply(lab, body, path)
        assert answer.status == 400, answer
        assert answer.error["type"] == "invalid_request_error"


# -- each key once -----------------------------------------------------------------------------------------------------


def received(lab: Lab, engine: EchoEngine, body: bytes) -> list[tuple[str, Any]]:
    """Names and values of the body that the engine got for ``body``, in order, twins included."""
    before = len(engine.bodies)
    answer = send(lab, body)
    assert answer.status == 200, answer
    [got] = engine.bodies[before:]
    pairs: list[tuple[str, Any]] = json.loads(got, object_pairs_hook=lambda pairs: pairs)
    return pairs


TWINS: dict[str, tuple[bytes, Callable[[dict[str, Any]], bool]]] = {
    "model": (b'{"model": "nope", "messages": [{}], "model": "echo"}', lambda got: got["model"] == "their-echo"),
    "model, escaped": (
        b'{"model": "nope", "messages": [{}], "mod\\u0065l": "echo"}',
        lambda got: got["model"] == "their-echo",
    ),
    "stream": (chat(b'"stream": true, "stream": false'), lambda got: got["stream"] is False),
    "stream, the other way": (chat(b'"stream": false, "stream": true'), lambda got: got["stream"] is True),
    "max_tokens": (chat(b'"max_tokens": 5, "max_tokens": 7'), lambda got: got["max_tokens"] == 7),
    "an unknown field": (chat(b'"x": 1, "x": 2'), lambda got: got["x"] == 2),
    "stream_options": (
        chat(b'"stream": true, "stream_options": {"a": 1}, "stream_options": {"include_usage": true}'),
        lambda got: dict(got["stream_options"]) == {"include_usage": True},
    ),
}


@pytest.mark.parametrize("name", TWINS)
def test_the_engine_gets_each_key_once_and_it_is_the_one_that_we_read(lab: Lab, engine: EchoEngine, name: str) -> None:
    body, holds = TWINS[name]
    pairs = received(lab, engine, body)
    assert len({key for key, _ in pairs}) == len(pairs)
    assert holds(dict(pairs))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model": "echo", "messages": [{}], "model": "nope"}', "model"),
        (chat(b'"max_tokens": 5, "max_tokens": -1'), "max_tokens"),
        (chat(b'"chat_template": "x", "chat_template": null'), "chat_template"),
    ],
)
def test_a_twin_hides_nothing(lab: Lab, body: bytes, param: str) -> None:
    answer = send(lab, body)
    assert answer.status in (400, 404)
    assert answer.error["param"] in (param, None)


def test_include_usage_twice_is_read_once(lab: Lab, engine: EchoEngine) -> None:
    options = b'"stream": true, "stream_options": {"include_usage": true, "include_usage": false}'
    [(_, got)] = [pair for pair in received(lab, engine, chat(options)) if pair[0] == "stream_options"]
    assert [name for name, _ in got] == ["include_usage"]


def test_what_is_not_edited_stays_as_it_was(lab: Lab, engine: EchoEngine) -> None:
    """Byte by byte: spaces, digits, escapes, the order of names inside."""
    odd = b'{"z":  1.50, "a":[1e2,\t-0.0, "\\u00e4\\/"], "z2" : 12345678901234567890123}'
    before = len(engine.bodies)
    assert send(lab, chat(b'"odd": ' + odd)).status == 200
    assert odd in engine.bodies[before]


# -- anything ----------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from('\0\x1b"\\\u2028\ud800'), max_size=20)
NUMBERS = st.integers() | st.integers(-(10**40), 10**40) | st.floats()
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)
KNOWN = st.sampled_from(
    ["model", "messages", "prompt", "input", "stream", "stream_options", "max_tokens", "n", "user", "tools", "metadata"]
)
MESSAGES = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "name", "image_url"]), VALUES, max_size=4), max_size=3
)
REQUESTS = st.dictionaries(KNOWN | TEXTS, VALUES, max_size=6).flatmap(
    lambda odd: st.fixed_dictionaries(
        {},
        optional={"model": st.just("echo") | VALUES, "messages": MESSAGES | VALUES, "prompt": VALUES, "input": VALUES},
    ).map(lambda known: {**odd, **known})
)


def examples(most: int) -> settings:
    """So many of them, the same in every run, however slow the machine is."""
    unhurried = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=most, deadline=None, derandomize=True, database=None, suppress_health_check=unhurried)


@examples(100)
@given(request=REQUESTS, path=st.sampled_from(PATHS))
def test_any_json(lab: Lab, request: dict[str, Any], path: str) -> None:
    answer = send(lab, json.dumps(request).encode(), path)
    assert answer.status in (200, 400, 404, 413), (answer, request)
    if answer.status != 200:
        assert answer.error["message"]


@examples(100)
@given(data=st.data())
def test_any_bytes(lab: Lab, data: st.DataObject) -> None:
    """A good body with a piece of it cut out and something else put in."""
    whole = bytearray(chat(b'"stream": false, "max_tokens": 5, "x": [1, {"y": null}]'))
    start = data.draw(st.integers(0, len(whole)))
    whole[start : start + data.draw(st.integers(0, 10))] = data.draw(st.binary(max_size=10))
    answer = send(lab, bytes(whole))
    assert answer.status in (200, 400, 404), (answer, bytes(whole))
    if answer.status != 200:
        assert answer.error["message"]


@pytest.mark.long
@pytest.mark.timeout(600)
@examples(2000)
@given(request=REQUESTS, path=st.sampled_from(PATHS))
def test_any_json_for_longer(lab: Lab, request: dict[str, Any], path: str) -> None:
    answer = send(lab, json.dumps(request).encode(), path)
    assert answer.status in (200, 400, 404, 413), (answer, request)
