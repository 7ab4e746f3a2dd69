"""No engine is given an address, wherever in a request it hides; texts may speak of them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.errors import InvalidRequest
from firstkit.gateway import media
from firstkit.gateway.apis import (
    CHAT,
    COUNT_TOKENS,
    EMBEDDINGS,
    MESSAGES_API,
    RERANK,
    RESPONSES_API,
    SCORE,
    TRANSCRIPTIONS,
    Api,
    task,
)
from firstkit.gateway.call import check_body, parse_body

DATA = "data:image/png;base64,AAAA"
ADDRESSES = ("http://10.0.0.1/", "https://x/a.png", "file:///etc/passwd", "//x/y", "ftp://x", " data:x", "DATA:x", "")
TASK = task("tasks/look")


def check(api: Api, **fields: Any) -> None:
    """Whether a glance may help or not, and at a short body or a long one: it is all the same."""
    text = json.dumps({"model": "m", **fields}).encode()
    glances = (text, text + b" " * 4096, json.dumps(json.loads(text), indent=4).encode())
    try:
        check_body(parse_body(text), api)
    except InvalidRequest:
        for glance in glances:
            with pytest.raises(InvalidRequest):
                check_body(parse_body(text), api, glance)
        raise
    for glance in glances:
        check_body(parse_body(text), api, glance)


def image(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def said(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": list(parts)}]


def source(url: str) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "url", "url": url}}


def hidden(url: str) -> list[tuple[Api, dict[str, Any]]]:
    """Every place that engines look at, with ``url`` in it."""
    result = {"type": "tool_result", "tool_use_id": "t", "content": [source(url)]}
    output = [{"type": "input_image", "image_url": url}]
    call_output = {"type": "function_call_output", "call_id": "c", "output": output}
    screenshot = {"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": url}}
    return [
        (CHAT, {"messages": said(image(url))}),
        (CHAT, {"messages": said({"type": "text", "text": "x"}, {"image_url": url})}),
        (CHAT, {"messages": said({"type": "audio_url", "audio_url": {"url": url}})}),
        (CHAT, {"messages": said({"type": "video_url", "video_url": [{"url": url}]})}),
        (CHAT, {"messages": said({"type": "image_url", "image_url": [DATA, url]})}),
        (CHAT, {"messages": [{"role": "user", "content": image(url)}]}),
        (CHAT, {"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": [[[image(url)]]]}]}),
        (CHAT, {"messages": [{"role": "user", "content": "x", "image_url": url}]}),
        (CHAT, {"messages": [{"role": "tool", "content": [image(url)]}]}),
        (CHAT, {"messages": said({"type": "text"}), "more": {"image_url": url}}),
        (CHAT, {"messages": said({"type": "text"}), "image_url": url}),
        (RESPONSES_API, {"input": said({"type": "input_image", "image_url": url})}),
        (RESPONSES_API, {"input": said({"type": "input_file", "file_url": url})}),
        (RESPONSES_API, {"input": [{"type": "input_image", "image_url": url}]}),
        (RESPONSES_API, {"input": [call_output]}),
        (RESPONSES_API, {"input": [screenshot]}),
        (RESPONSES_API, {"input": "x", "previous_input_messages": said(image(url))}),
        (MESSAGES_API, {"messages": said(source(url))}),
        (MESSAGES_API, {"messages": said({"type": "document", "source": {"type": "url", "url": url}})}),
        (MESSAGES_API, {"messages": said(result)}),
        (MESSAGES_API, {"messages": said("x"), "system": [source(url)]}),
        (COUNT_TOKENS, {"messages": said(source(url))}),
        (EMBEDDINGS, {"input": "x", "messages": said(image(url))}),
        (EMBEDDINGS, {"input": [{"text": "x", "image_url": url}]}),
        (RERANK, {"query": {"content": [image(url)]}, "documents": ["x"]}),
        (RERANK, {"query": "x", "documents": [{"content": [image(url)]}]}),
        (SCORE, {"text_1": "x", "text_2": {"content": [image(url)]}}),
        (SCORE, {"data_1": "x", "data_2": [image(url)]}),
        (TASK, {"image_url": url}),
        (TASK, {"url": url}),
        (TASK, {"inputs": [{"content": [image(url)]}]}),
    ]


@pytest.mark.parametrize("at", range(len(hidden(""))))
@pytest.mark.parametrize("url", ADDRESSES)
def test_an_address_is_refused_wherever_it_hides(at: int, url: str) -> None:
    api, fields = hidden(url)[at]
    with pytest.raises(InvalidRequest) as caught:
        check(api, **fields)
    assert "must be a data: URL" in caught.value.message
    assert caught.value.param in fields


@pytest.mark.parametrize("at", range(len(hidden(""))))
def test_data_pass(at: int) -> None:
    api, fields = hidden(DATA)[at]
    check(api, **fields)


@pytest.mark.parametrize("api", [CHAT, EMBEDDINGS, TASK])
@pytest.mark.parametrize(
    "key",
    [
        b'"\\u0075rl"',
        b'"u\\u0072l"',
        b'"ur\\u006c"',
        b'"\\u0075\\u0072\\u006C"',
        b'"image\\u005furl"',
        b'"image_\\u0075rl"',
    ],
)
def test_or_how_it_is_spelt(api: Api, key: bytes) -> None:
    part = b'{"type":"image",%b:"http://x/"}' % key
    field = b'"input":"x","messages"' if api is EMBEDDINGS else b'"messages"'
    with pytest.raises(InvalidRequest, match="data: URL"):
        check_body(parse_body(b'{"model":"m",%b:[{"content":[%b]}]}' % (field, part)), api)


@pytest.mark.parametrize(
    "body",
    [
        b'[{"content":[{"image_url":"http://x","image_url":"%b"}]}]',
        b'[{"content":[{"image_url":{"url":"http://x","url":"%b"}}]}]',
        b'[{"content":[{"image_url":"http://x"}],"content":"%b"}]',
        b'[{"content":"%b","content":[{"image_url":"data:x"}]}]',
    ],
)
def test_of_two_equal_keys_neither_counts(body: bytes) -> None:
    """Engines differ in which one they read."""
    with pytest.raises(InvalidRequest):
        check_body(parse_body(b'{"model":"m","messages":%b}' % (body % DATA.encode())), CHAT)


@pytest.mark.parametrize(
    ("api", "fields"),
    [
        (EMBEDDINGS, {"input": [{"text": "x", "image": "%s"}]}),
        (EMBEDDINGS, {"input": {"image": "%s"}}),
        (TASK, {"image": "%s"}),
        (TASK, {"audio": ["%s"]}),
        (TASK, {"parts": [{"video": "%s"}]}),
    ],
)
def test_where_it_is_no_conversation_other_keys_may_name_media(api: Api, fields: dict[str, Any]) -> None:
    for good in (DATA, "/9j/4AAQSkZJRgABAQ==", "UklGR"):
        check(api, **json.loads(json.dumps(fields) % good))
    for bad in ("http://x/", "file:///x", "/etc/x.png", "x.png"):
        with pytest.raises(InvalidRequest):
            check(api, **json.loads(json.dumps(fields) % bad))


@pytest.mark.parametrize(
    "part", [{"type": "image_embeds", "image_embeds": "AA"}, {"type": "audio_embeds"}, {"image_embeds": {"a": "AA"}}]
)
def test_tensors_are_refused(part: dict[str, Any]) -> None:
    for api, fields in ((CHAT, {"messages": said(part)}), (TASK, {"inputs": [part]})):
        with pytest.raises(InvalidRequest, match="tensors"):
            check(api, **fields)


SCHEMA = {"type": "object", "properties": {"url": {"type": "string", "default": "http://x"}, "image_url": {}}}


@pytest.mark.parametrize(
    ("api", "fields"),
    [
        (CHAT, {"messages": [{"role": "user", "content": 'what is "url": "http://x"?'}]}),
        (CHAT, {"messages": said({"type": "text", "text": '{"image_url": {"url": "http://x"}}'})}),
        (CHAT, {"messages": said({"type": "text", "text": "http://x"}), "metadata": {"url": "http://x"}}),
        (CHAT, {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"url": "http://x"}]}]}),
        (CHAT, {"messages": [{"role": "assistant", "content": "x", "annotations": [{"url": "http://x"}]}]}),
        (CHAT, {"messages": said("x"), "tools": [{"type": "function", "function": {"examples": [{"url": "http"}]}}]}),
        (CHAT, {"messages": said("x"), "guided_json": SCHEMA, "structured_outputs": {"json": SCHEMA}}),
        (CHAT, {"messages": said("x"), "response_format": {"type": "json_schema", "json_schema": SCHEMA}}),
        (CHAT, {"messages": said("x"), "something_new": SCHEMA}),
        (CHAT, {"messages": said({"type": "image_url", "image_url": None}, {"url": 7})}),
        (RESPONSES_API, {"input": 'a text with "image_url": "http://x"'}),
        (RESPONSES_API, {"input": "x", "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}]}),
        (MESSAGES_API, {"messages": said({"type": "tool_use", "id": "t", "input": {"url": "http://x"}})}),
        (EMBEDDINGS, {"input": ["http://x", '"url": "http://x"', "image"]}),
        (RERANK, {"query": "http://x", "documents": ['{"url": "http://x"}', "image"]}),
    ],
)
def test_words_about_addresses_pass(api: Api, fields: dict[str, Any]) -> None:
    check(api, **fields)


def test_a_form_may_not_name_one_either() -> None:
    fields = {"model": msgspec.Raw(b'"m"'), "url": msgspec.Raw(b'"http://x"')}
    with pytest.raises(InvalidRequest, match="'url' must be a data: URL"):
        check_body(fields, TRANSCRIPTIONS)


@pytest.mark.parametrize("api", [CHAT, MESSAGES_API, RESPONSES_API])
@pytest.mark.parametrize("asked", [b'"x"', b"7", b"{}", b"[7]", b'["x"]', b"[{}, []]", b"[ ]", b"[[{}]]", b"[null]"])
def test_messages_are_objects(api: Api, asked: bytes) -> None:
    raw = b'{"model":"m","%b":%b}' % ((api.required or "").encode(), asked)
    if api is RESPONSES_API and asked == b'"x"':
        check_body(parse_body(raw), api)
        return
    with pytest.raises(InvalidRequest) as caught:
        check_body(parse_body(raw), api)
    assert caught.value.param == api.required


@pytest.mark.parametrize("depth", [400, 5_000, 100_000])
def test_nesting_is_a_400_or_passes(depth: int) -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        nested = opening * depth + b'{"url":"http://x"}' + closing * depth
        with pytest.raises(InvalidRequest):
            check_body(parse_body(b'{"model":"m","messages":[{"content":%b}]}' % nested), CHAT)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from([DATA, "http://x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["url", "image_url", "content", "text", "type", "source"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def addresses_in(value: Any, key: str = "") -> bool:
    """The rule, said otherwise: a text under ``url`` or ``*_url``, through lists, that is no data: URL."""
    if isinstance(value, list):
        return any(addresses_in(part, key) for part in value)
    if isinstance(value, dict):
        return any(addresses_in(part, name) for name, part in value.items())
    return isinstance(value, str) and (key == "url" or key.endswith("_url")) and not value.startswith("data:")


@given(JSON, st.booleans())
def test_any_content_passes_exactly_if_it_names_no_address(content: Any, is_ascii: bool) -> None:
    body = json.dumps({"model": "m", "messages": [{"content": content}]}, ensure_ascii=is_ascii).encode()
    try:
        check_body(parse_body(body), CHAT)
    except InvalidRequest:
        assert addresses_in(content)
    else:
        assert not addresses_in(content)


@pytest.mark.parametrize("is_ascii", [True, False])
def test_a_long_text_is_not_read_for_its_words(monkeypatch: pytest.MonkeyPatch, is_ascii: bool) -> None:
    """Of 200 kB that mention URLs, in letters of any kind, nothing is parsed: it would take milliseconds."""

    def never(said: bytes, field: str) -> Any:
        raise AssertionError(f"{len(said)} bytes of {field} were parsed")

    monkeypatch.setattr(media, "_read", never)
    text = 'the url of "image_url": "http://x" is \u00fc\u4e2d\n, an "_embeds" ' * 4000
    for content in (text, [{"type": "text", "text": text}]):
        body = {"model": "m", "messages": [{"role": "user", "content": content}]}
        check_body(parse_body(json.dumps(body, ensure_ascii=is_ascii).encode()), CHAT)
    body = {"model": "m", "input": [text, "image"]}
    with pytest.raises(AssertionError):  # of what is no conversation the words alone may be keys; so it shows
        check_body(parse_body(json.dumps({**body, "input": [{"image": text}]}).encode()), EMBEDDINGS)


# -- at a glance ---------------------------------------------------------------------------------------------------

KEYS = st.sampled_from(["url", "x_url", "image_embeds", 'a"_url', "text", "urls", "a", "ü", "\n"]) | st.text(max_size=4)
TEXTS = st.sampled_from(["url", 'the "url": here', "a\\", '"', ":", "_embeds", "x" * 300]) | st.text(max_size=8)
NESTED = st.recursive(
    TEXTS | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=20,
)


def keys_in(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(keys_in, value))
    if isinstance(value, dict):
        return set(value).union(*map(keys_in, value.values()))
    return set()


@given(NESTED, st.sampled_from([None, 0, 3, 80]), st.booleans(), st.sampled_from([0, 4096]))
def test_a_glance_misses_no_key(value: Any, indent: int | None, is_ascii: bool, padding: int) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass") + b" " * padding
    if any(key.endswith(("url", "_embeds")) for key in keys_in(value)):
        assert not media.names_none(text)


@pytest.mark.parametrize("key", ["\\u0075rl", "u\\u0072l", "image_ur\\u006c", "image\\u005Furl", "x\\u005fembeds"])
@pytest.mark.parametrize("padding", [0, 4096])
def test_a_glance_is_not_deceived_by_escapes(key: str, padding: int) -> None:
    assert not media.names_none(f'{{"a": "b", "{key}" : "x"}}{" " * padding}'.encode())
    assert not media.names_none(f'{{"a": "b", "type": "{key}"}}{" " * padding}'.encode())


@pytest.mark.parametrize("words", ["word " * 10_000, "grüße\n" * 1000, 'a "url" is not fetched' + "." * 3000])
def test_a_glance_is_enough_for_texts(words: str) -> None:
    """However long they are, and whatever they speak of."""
    body = {"model": "m", "messages": [{"role": "user", "content": words}] * 10, "max_tokens": 7}
    assert media.names_none(json.dumps(body).encode())


def test_a_glance_at_many_quotes_is_a_look_at_all() -> None:
    assert media.names_none(json.dumps([{"a": "b"}] * 1000).encode())
    assert not media.names_none(json.dumps([{"a": "b"}] * 1000 + [{"url": "x"}]).encode())


# -- long data ---------------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(["data:", "data:x", '"data:', "\\", '"', "url", "AAAA", 'data:"', 'a "data: b'])
WITH_DATA = st.recursive(
    st.lists(PIECES, max_size=4).map("".join),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PIECES, inner, max_size=3),
    max_leaves=12,
)


def shortened(value: Any) -> Any:
    """What may differ of ``value``: texts after the beginning of a data: URL."""
    if isinstance(value, list):
        return [shortened(each) for each in value]
    if isinstance(value, dict):
        return [(shortened(key), shortened(each)) for key, each in value.items()]
    return value.partition("data:")[0] if "data:" in value else value


@given(WITH_DATA, st.sampled_from([None, 2]))
def test_data_urls_are_cut_where_that_changes_nothing_else(value: Any, indent: int | None) -> None:
    cut = media._without_data(json.dumps(value, indent=indent).encode())
    pairs = json.loads(cut, object_pairs_hook=lambda pairs: {"": pairs})

    def plain(found: Any) -> Any:
        if isinstance(found, list):
            return [plain(each) for each in found]
        if isinstance(found, dict):
            return [(plain(key), plain(each)) for key, each in found[""]]
        return shortened(found)

    assert plain(pairs) == shortened(value)


def test_of_a_picture_only_its_beginning_is_read() -> None:
    picture = said(image("data:image/png;base64," + "A" * 2_000_000))
    assert len(media._without_data(json.dumps(picture).encode())) < 200
    check(CHAT, messages=picture)
    with pytest.raises(InvalidRequest):
        check(CHAT, messages=[*picture, *said(image("https://x/a.png"))])
