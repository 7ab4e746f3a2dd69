"""What is read of a body, refused, and sent on."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.auth.authenticator import Identity
from firstkit.errors import ApiError, InvalidRequest
from firstkit.gateway.apis import APIS, CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES_API, RESPONSES_API, Api
from firstkit.gateway.call import Call, Patience, check_body, parse_body, patience
from firstkit.gateway.paths import place_of
from firstkit.gateway.request import Account, RequestHead
from firstkit.links.messages import Outcome, Tail, Usage
from firstkit.routing.table import Route

IDENTITY = Identity("u", "user", "p", "prefix", frozenset({"inference"}))
USUAL = Patience(2, 300)
MESSAGES = b'[{"role": "user", "content": "hi"}]'


class Owner:
    """Counts how often a body was released."""

    def __init__(self) -> None:
        self.releases = 0

    def release_body(self) -> None:
        self.releases += 1

    def over(self, usage: Usage | None = None) -> None:
        raise AssertionError("no call ends here")


def call_of(raw: bytes, **changes: Any) -> Call:
    body = parse_body(raw)
    model, stream, wants_usage, _ = check_body(body, CHAT)
    account = Account(IDENTITY, model, CHAT.endpoint, len(raw))
    return Call(CHAT, model, body, stream, wants_usage, Patience(2, 60), account, 300.0, 3600.0, Owner())


def route(served_name: str = "m") -> Route:
    return Route("rep-1", "m", "here", None, served_name, 4)  # type: ignore[arg-type]


def test_what_we_do_not_edit_stays_byte_identical() -> None:
    raw = b'{"model": "m", "messages": %s, "temperature": 1e-1,  "odd":{"a" : 1.0e0, "b":"\\u00e9"}}' % MESSAGES
    _, sent, _ = call_of(raw).attempt(route())
    assert b'"odd":{"a" : 1.0e0, "b":"\\u00e9"}' in sent
    assert b'"temperature":1e-1' in sent
    assert MESSAGES in sent


def test_of_two_equal_keys_the_engine_sees_the_one_that_we_read() -> None:
    raw = b'{"model": "other", "messages": [], "messages": %s, "model": "m"}' % MESSAGES
    call = call_of(raw)
    _, sent, _ = call.attempt(route())
    assert call.model == "m"
    assert sent.count(b'"model"') == 1
    assert sent.count(b'"messages"') == 1


def test_usage_is_asked_for_and_hidden() -> None:
    opening, sent, _ = call_of(b'{"model":"m","stream":true,"messages":%s}' % MESSAGES).attempt(route())
    assert json.loads(sent)["stream_options"] == {"include_usage": True}
    assert opening.hide_usage


def test_usage_that_the_client_wants_is_not_hidden() -> None:
    raw = b'{"model":"m","stream":true,"stream_options":{"include_usage":true,"x":1},"messages":%s}' % MESSAGES
    opening, sent, _ = call_of(raw).attempt(route())
    assert json.loads(sent)["stream_options"] == {"include_usage": True, "x": 1}
    assert not opening.hide_usage


def test_other_stream_options_are_kept() -> None:
    raw = b'{"model":"m","stream":true,"stream_options":{"x":1},"messages":%s}' % MESSAGES
    _, sent, _ = call_of(raw).attempt(route())
    assert json.loads(sent)["stream_options"] == {"include_usage": True, "x": 1}


def test_the_model_gets_the_name_that_the_replica_serves() -> None:
    _, sent, _ = call_of(b'{"model":"m","messages":%s}' % MESSAGES).attempt(route("gpt-x"))
    assert json.loads(sent)["model"] == "gpt-x"


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b'{"messages": [{}]}', "model"),
        (b'{"model": 3, "messages": [{}]}', "model"),
        (b'{"model": "m"}', "messages"),
        (b'{"model": "m", "messages": []}', "messages"),
        (b'{"model": "m", "messages": "hello"}', "messages"),
        (b'{"model": "m", "messages": [1]}', "messages"),
        (b'{"model": "m", "messages": [{}], "stream": "yes"}', "stream"),
        (b'{"model": "m", "messages": [{}], "stream_options": {"include_usage": true}}', "stream_options"),
        (b'{"model": "m", "messages": [{}], "stream": true, "stream_options": 1}', "stream_options"),
        (b'{"model": "m", "messages": [{}], "chat_template": "x"}', "chat_template"),
        (b'{"model": "m", "messages": [{}], "logits_processors": []}', "logits_processors"),
        (b'{"model":"m","messages":[{"content":[{"type":"image_url","image_url":{"url":"http://x/"}}]}]}', "messages"),
        (b'{"model":"m","messages":[{"content":[{"image_url":"file:///etc/passwd"}]}]}', "messages"),
    ],
)
def test_wrong_values_name_the_parameter(raw: bytes, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_body(parse_body(raw), CHAT)
    assert caught.value.param == param


def test_media_in_data_urls_pass() -> None:
    raw = (
        b'{"model":"m","messages":[{"content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AA"}}]}]}'
    )
    check_body(parse_body(raw), CHAT)


def test_other_apis_need_their_own_field() -> None:
    for api in (COMPLETIONS, EMBEDDINGS):
        with pytest.raises(InvalidRequest) as caught:
            check_body(parse_body(b'{"model": "m"}'), api)
        assert caught.value.param == api.required
    with pytest.raises(InvalidRequest):
        check_body(parse_body(b'{"model": "m", "input": "x", "stream": true}'), EMBEDDINGS)


def test_syntax_errors_name_the_byte() -> None:
    with pytest.raises(InvalidRequest, match=r"byte 14"):
        parse_body(b'{"model": "m",}')


@pytest.mark.parametrize("raw", [b"", b"[]", b"1", b'"x"', b"\xff", b"[" * 100_000, b'{"a":' * 100_000])
def test_what_is_no_object_is_a_400(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_body(raw)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        check_body(parse_body(raw), CHAT)
    except ApiError as error:
        assert error.status == 400


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=5,
        ),
        max_size=4,
    )
)
def test_unknown_fields_reach_the_engine(extra: dict[str, Any]) -> None:
    body = extra | {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": False}
    for name in ("max_tokens", "max_completion_tokens", "n", "stream_options", "x_first", "url", "_url"):
        body.pop(name, None)
    _, sent, _ = call_of(msgspec.json.encode(body)).attempt(route())
    assert json.loads(sent) == json.loads(msgspec.json.encode(body))


def head(**headers: str) -> RequestHead:
    return RequestHead("POST", "/v1/x", [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()])


def test_patience_from_headers() -> None:
    assert patience(head(), USUAL) == USUAL
    asked = patience(head(x_first_hold="0", x_first_max_wait="12.5", x_first_on_cold="fail"), USUAL)
    assert asked == Patience(0, 12.5, True)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"x_first_hold": "60"}, Patience(60, 300, False)),
        ({"x_first_max_wait": "3600"}, Patience(2, 3600, False)),
        ({"x_first_on_cold": "fail"}, Patience(2, 300, True)),
        ({"x_first_on_cold": "wait"}, Patience(2, 300, False)),
    ],
)
def test_what_is_not_said_is_as_usual(said: dict[str, str], expected: Patience) -> None:
    assert patience(head(**said), USUAL) == expected


@pytest.mark.parametrize(
    ("name", "value"), [("hold", "-1"), ("hold", "61"), ("max-wait", "x"), ("on-cold", "maybe"), ("max-wait", "nan")]
)
def test_patience_that_makes_no_sense(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        patience(head(**{f"x-first-{name}": value}), USUAL)
    assert caught.value.param == f"x-first-{name}"


def test_times_and_names_go_with_the_request() -> None:
    call = call_of(b'{"model":"m","messages":%s}' % MESSAGES)
    opening, sent, _ = call.attempt(route())
    assert (opening.idle_timeout_s, opening.timeout_s) == (300.0, 3600.0)
    assert (opening.method, opening.path, opening.body_bytes) == ("POST", CHAT.path, len(sent))
    assert opening.headers == {"x-request-id": call.account.request_id}, "and nothing else that a client sent"


def test_a_body_that_nobody_will_be_sent_again_is_let_go() -> None:
    call = call_of(b'{"model":"m","messages":%s}' % MESSAGES)
    call.release_body()
    assert call.body == {}
    assert isinstance(call.owner, Owner)
    assert call.owner.releases == 1


@pytest.mark.parametrize(
    ("path", "cluster"),
    [
        ("/v1/chat/completions", None),
        ("/v1/clusters/here/chat/completions", "here"),
        ("/v1/clusters/here/embeddings", "here"),
        ("/v1/clusters//completions", ""),
    ],
)
def test_a_path_may_name_a_cluster(path: str, cluster: str | None) -> None:
    place = place_of(path)
    assert place.api_path in APIS
    assert place.cluster == cluster


@pytest.mark.parametrize(
    "path",
    [
        "/v1/clusters",
        "/v1/clusters/",
        "/v1/clusters/here",
        "/v1/clusters/here/v1/chat/completions",
        "/v1/clusters/a/b/chat/completions",
        "/v1/clusters/here/clusters/here/chat/completions",
        "/v1/Clusters/here/chat/completions",
    ],
)
def test_other_paths_are_no_such(path: str) -> None:
    assert place_of(path).api_path not in APIS


# -- where an answer comes from ----------------------------------------------------------------------------------------

ORIGIN = {"cluster": "here", "replica": "rep-1", "engine": "vLLM 0.32", "revision": "abc", "model": "m"}
DONE = Tail(Outcome.COMPLETE, Usage(3, 2))
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'
PLAIN = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}]}'


def known(*capabilities: str) -> Route:
    found = route()
    found.capabilities = frozenset(capabilities)
    found.tell_origin("vLLM 0.32", "abc")
    return found


def asked(api: Api, **fields: Any) -> Call:
    said = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "input": "hi"}
    body = parse_body(
        json.dumps({"model": "m", "max_tokens": 9, api.required: said[api.required or ""], **fields}).encode()
    )
    model, stream, wants_usage, wants_origin = check_body(body, api)
    account = Account(IDENTITY, model, api.endpoint, 10)
    call = Call(api, model, body, stream, wants_usage, Patience(2, 60), account, 300.0, 3600.0, Owner())
    call.wants_origin = wants_origin
    return call


def last_object(data: bytes) -> dict[str, Any]:
    """The data of the last event that is one."""
    events = [event.partition(b"data: ")[2] for event in data.split(b"\n\n") if b"data: {" in event]
    found: dict[str, Any] = json.loads(events[-1])
    return found


@pytest.mark.parametrize("api", [CHAT, COMPLETIONS, RESPONSES_API, MESSAGES_API], ids=lambda api: api.endpoint)
@pytest.mark.parametrize("is_native", [True, False])
def test_a_stream_says_it_in_its_last_event(api: Api, is_native: bool) -> None:
    if not is_native and not api.by_chat:
        return
    call = asked(api, stream=True, x_first=True)
    opening, sent, answering = call.attempt(known(api.capability if is_native else "chat"))
    assert b"x_first" not in sent
    assert answering is not None
    completed = b'event: response.completed\ndata: {"type":"response.completed","response":{"id":"r"}}\n\n'
    said = completed if is_native and api is RESPONSES_API else CHUNK
    told = answering.events(said[:20]) + answering.events(said[20:])
    assert b"x_first" not in told
    end = answering.last(DONE)
    assert end.count(b'"x_first"') == 1
    assert end.endswith(b"data: [DONE]\n\n") == (api in (CHAT, COMPLETIONS))
    last = last_object(end)
    assert last["x_first"] == ORIGIN
    kinds = {
        "chat/completions": None,
        "completions": None,
        "responses": "response.completed",
        "messages": "message_stop",
    }
    assert last.get("type") == kinds[api.endpoint]
    assert opening.stream


@pytest.mark.parametrize(
    "api", [CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES_API, MESSAGES_API], ids=lambda api: api.endpoint
)
@pytest.mark.parametrize("is_native", [True, False])
def test_a_plain_answer_says_it(api: Api, is_native: bool) -> None:
    if not is_native and not api.by_chat:
        return
    _, sent, answering = asked(api, x_first=True).attempt(known(api.capability if is_native else "chat"))
    assert b"x_first" not in sent
    assert answering is not None
    assert json.loads(answering.whole(PLAIN, DONE))["x_first"] == ORIGIN


@pytest.mark.parametrize("value", [False, None])
def test_who_does_not_ask_gets_the_answer_straight(value: Any) -> None:
    _, sent, answering = asked(CHAT, x_first=value).attempt(known("chat"))
    assert b"x_first" not in sent
    assert answering is None


@pytest.mark.parametrize("value", ["yes", 1, {}])
def test_the_flag_is_true_or_false(value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        asked(CHAT, x_first=value)
    assert caught.value.param == "x_first"


def test_a_translated_stream_ends_once() -> None:
    """And its events may come in pieces: a link cuts what is long."""
    for api, end in ((MESSAGES_API, b"event: message_stop"), (RESPONSES_API, b"event: response.completed")):
        for fields in ({}, {"x_first": True}):
            call = asked(api, stream=True, **fields)
            _, _, answering = call.attempt(known("chat"))
            assert answering is not None
            told = b"".join(answering.events(CHUNK[at : at + 7]) for at in range(0, len(CHUNK), 7))
            assert (told + answering.last(DONE)).count(end) == 1


@pytest.mark.parametrize("options", [None, {"include_usage": True}, {"include_obfuscation": False}])
def test_in_translation_usage_is_always_asked_for(options: Any) -> None:
    """What the client says of it is said of its own protocol."""
    for api in (RESPONSES_API, MESSAGES_API):
        opening, sent, _ = asked(api, stream=True, stream_options=options).attempt(known("chat"))
        said = json.loads(sent)["stream_options"]
        assert said["include_usage"] is True
        assert api is MESSAGES_API or len(said) == 1, "of that the other protocol knows nothing"
        assert not opening.hide_usage, "the translation needs it"
