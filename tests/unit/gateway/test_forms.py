"""Forms: read or refused, and sent on as they came but for the name of the model."""

from __future__ import annotations

import email
import json
from collections.abc import Iterable
from typing import Any

import httpx2 as httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.errors import InvalidRequest, UnsupportedMediaType
from firstkit.gateway.apis import CHAT, TRANSCRIPTIONS, task
from firstkit.gateway.call import Patience, check_body
from firstkit.gateway.callers import read_caller
from firstkit.gateway.forms import MOST_PARTS, MOST_TEXT_BYTES, Form, read_form
from firstkit.gateway.lengths import length_of
from firstkit.gateway.request import RequestHead

BOUNDARY = "b0undary"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
AUDIO = bytes(range(256)) * 8


def part(head: str, content: bytes = b"x") -> bytes:
    return head.encode() + b"\r\n\r\n" + content


def field(name: str, content: bytes = b"x", more: str = "") -> bytes:
    return part(f'Content-Disposition: form-data; name="{name}"{more}', content)


def form(*parts: bytes, boundary: str = BOUNDARY, end: bytes = b"--\r\n") -> bytes:
    line = b"--" + boundary.encode()
    return b"".join(line + b"\r\n" + each + b"\r\n" for each in parts) + line + end


MODEL = field("model", b"whisper")
FILE = part('Content-Disposition: form-data; name="file"; filename="a b.wav"\r\nContent-Type: audio/wav', AUDIO)
GOOD = form(MODEL, FILE, field("language", b"en"))


def values(body: bytes, content_type: str = TYPE) -> dict[str, Any]:
    _, fields = read_form(content_type, body)
    return {name: json.loads(bytes(memoryview(value))) for name, value in fields.items()}


def test_a_form_is_read_as_what_it_would_be_in_json() -> None:
    assert values(GOOD) == {"model": "whisper", "file": None, "language": "en"}
    assert values(form(field("stream", b"false"), field("n", b"2"), field("temperature", b"0"))) == {
        "stream": False,
        "n": 2,
        "temperature": "0",
    }


def test_only_the_name_of_the_model_is_another() -> None:
    for parts in ((MODEL, FILE), (FILE, MODEL), (field("x"), MODEL, field("y")), (MODEL,)):
        made, _ = read_form(TYPE, form(*parts))
        assert made.naming("their/model") == form(*parts).replace(b"whisper", b"their/model")
        assert made.naming("whisper") == form(*parts)


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("said", [b"true", b"false"])
def test_what_is_for_us_alone_does_not_go_on(at: int, said: bytes) -> None:
    parts = [FILE, MODEL]
    parts.insert(at, field("x_first", said))
    made, fields = read_form(TYPE, form(*parts))
    assert check_body(fields, TRANSCRIPTIONS).wants_origin == (said == b"true")
    assert made.naming("whisper") == form(FILE, MODEL)
    assert made.naming("other") == form(FILE, MODEL).replace(b"whisper", b"other")


@given(st.binary(max_size=300), st.sampled_from([TYPE, "multipart/form-data", 'multipart/form-data; boundary="b"']))
def test_any_bytes_are_a_form_or_refused(data: bytes, content_type: str) -> None:
    refused_or_read(content_type, data)


PIECES = st.sampled_from(
    [
        b"--b0undary", b"--b0undary--", b"\r\n", b"\n", b"\r", b"--", b"\0", b'"', b"\\", b";", b":", b" ",
        b'Content-Disposition: form-data; name="model"', b'content-disposition:form-data;name="x"', b"model",
        b'; filename="f"', b"; filename*=UTF-8''f", b"content-type: text/plain", b"content-length: 1", b"x\xff",
    ]
)  # fmt: skip


@given(st.lists(PIECES | st.binary(max_size=3), max_size=25), st.booleans())
def test_nor_do_those_that_look_like_one_break_anything(pieces: list[bytes], is_framed: bool) -> None:
    body = b"".join(pieces)
    refused_or_read(TYPE, form(MODEL, body) if is_framed else body)


def refused_or_read(content_type: str, body: bytes) -> None:
    """What is read of ``body`` is also what the parser of Python's own library reads of it."""
    try:
        made, fields = read_form(content_type, body)
    except InvalidRequest as error:
        assert error.status == 400
        return
    if "x_first" not in fields:
        assert made.naming(made.body[slice(*made.model_at)].decode("utf-8", "surrogateescape")) == body or not fields
    for name, value in fields.items():
        assert name
        json.loads(bytes(memoryview(value)))
    read = email.message_from_bytes(f"content-type: {content_type}\r\n\r\n".encode() + body).get_payload()
    assert isinstance(read, list)
    assert len(read) >= len(fields)


FILES = st.binary(max_size=200)
TEXTS = st.text(max_size=40).filter(lambda text: "\r" not in text and "\n" not in text)


@given(TEXTS.filter(bool), FILES, st.dictionaries(st.sampled_from(["prompt", "language", "temperature"]), TEXTS))
def test_what_clients_send(model: str, audio: bytes, data: dict[str, str]) -> None:
    """httpx is what the SDKs send with."""
    request = httpx.Request(
        "POST", "http://x", data={"model": model, **data}, files={"file": ('späße "q".wav', audio, "audio/wav")}
    )
    body, content_type = request.read(), request.headers["content-type"]
    boundary = content_type.partition("boundary=")[2].encode()
    if b"--" + boundary in audio:
        return
    made, fields = read_form(content_type, body)
    assert {name: json.loads(bytes(memoryview(value))) for name, value in fields.items()} == {
        "model": model,
        "file": None,
        **data,
    }
    before, after = body.split(b'name="model"\r\n\r\n' + model.encode(), 1)
    assert made.naming("other") == before + b'name="model"\r\n\r\nother' + after


@pytest.mark.parametrize(
    "content_type",
    [
        TYPE,
        f'multipart/form-data; boundary="{BOUNDARY}"',
        f"Multipart/Form-Data;BOUNDARY={BOUNDARY} ",
        f"multipart/form-data ;\tboundary={BOUNDARY}",
    ],
)
def test_content_types_that_are_plain(content_type: str) -> None:
    assert values(GOOD, content_type)["model"] == "whisper"


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        f"multipart/form-data; boundary={BOUNDARY}; boundary=other",
        f"multipart/form-data; boundary=other; boundary={BOUNDARY}",
        f"multipart/form-data; charset=utf-16; boundary={BOUNDARY}",
        f"multipart/form-data; boundary={BOUNDARY}; charset=utf-16",
        f"multipart/form-data, multipart/form-data; boundary={BOUNDARY}",
        f"multipart/form-data; boundary*=utf-8''{BOUNDARY}",
        f"multipart/form-data; boundary*0={BOUNDARY}",
        f'multipart/form-data; boundary="{BOUNDARY}',
        f'multipart/form-data; boundary="\\{BOUNDARY}"',
        f'multipart/form-data; boundary="{BOUNDARY} "',
        f"multipart/form-data; boundary='{BOUNDARY}'x y",
        "multipart/form-data; boundary=" + "b" * 71,
        f"multipart/form-data;\xa0boundary={BOUNDARY}",
        f"multipart/form-data; boundary={BOUNDARY}é",
    ],
)
def test_content_types_that_could_be_read_otherwise(content_type: str) -> None:
    with pytest.raises(InvalidRequest, match="boundary="):
        read_form(content_type, GOOD)


NAMED = 'Content-Disposition: form-data; name="model"'
BROKEN = {
    "nothing": b"",
    "no parts": form(),
    "a preamble": b"hello\r\n" + GOOD,
    "an empty line first": b"\r\n" + GOOD,
    "no end": GOOD.replace(b"--b0undary--", b""),
    "an end that is cut": GOOD[:-5],
    "more after its end": GOOD + b"--b0undary\r\n" + MODEL,
    "an epilogue": GOOD + b"hello",
    "another boundary": GOOD.replace(b"b0undary", b"other"),
    "a boundary that goes on": GOOD.replace(b"\r\n--b0undary\r\n", b"\r\n--b0undaryX\r\n", 1),
    "white space behind a boundary": GOOD.replace(b"--b0undary\r\n", b"--b0undary \r\n"),
    "line ends without CR": GOOD.replace(b"\r\n", b"\n"),
    "a boundary within a part, for those who take LF": form(MODEL, field("x", b"\n--b0undary\n" + MODEL)),
    "a boundary within a part": form(MODEL, field("x", b"y--b0undary--")),
    "no head": form(MODEL, b"\r\nx"),
    "no head and no content": form(MODEL, b""),
    "a head without end": form(MODEL, b'Content-Disposition: form-data; name="x"'),
    "a long head": form(MODEL, part(NAMED + "\r\nContent-Type: " + "x" * 5000)),
    "no name": form(part("Content-Disposition: form-data")),
    "an empty name": form(field("")),
    "a bare name": form(part("Content-Disposition: form-data; name=model")),
    "two names": form(part(NAMED + '; name="other"')),
    "a name behind the file's": form(part('Content-Disposition: form-data; name="x"; filename="f"; name="model"')),
    "a name in a file's": form(part('Content-Disposition: form-data; name="x"; filename="f\\"; name=\\"model"')),
    "a name by RFC 5987": form(part("Content-Disposition: form-data; name*=utf-8''model")),
    "two dispositions": form(part(f"{NAMED}\r\n{NAMED}")),
    "another disposition": form(part('Content-Disposition: attachment; name="model"')),
    "an encoding": form(part(NAMED + "\r\nContent-Transfer-Encoding: base64", b"bW9kZWw=")),
    "quoted-printable": form(part(NAMED + "\r\nContent-Transfer-Encoding: quoted-printable")),
    "a charset": form(part(NAMED + "\r\nContent-Type: text/plain; charset=utf-16")),
    "a form in a form": form(
        MODEL,
        part('Content-Disposition: form-data; name="f"; filename="f"\r\nContent-Type: multipart/mixed; boundary=c'),
    ),
    "two types": form(part(NAMED + "\r\nContent-Type: text/plain\r\nContent-Type: text/plain")),
    "a length that is wrong": form(part(NAMED + "\r\nContent-Length: 2")),
    "another header": form(part(NAMED + "\r\nX-Other: y")),
    "a folded header": form(part('Content-Disposition: form-data;\r\n name="model"')),
    "a bare LF in a head": form(part(NAMED + "\nContent-Type: text/plain")),
    "a space before a colon": form(part('Content-Disposition : form-data; name="model"')),
    "an encoding for all": form(MODEL, field("_charset_", b"utf-16")),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_could_be_read_otherwise_is_refused(what: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_form(TYPE, BROKEN[what])
    assert caught.value.param == "body"


@pytest.mark.parametrize("name", ["model", "stream", "x_first"])
def test_what_counts_may_stand_once(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_form(TYPE, form(MODEL, field(name), field("x"), field(name)))
    assert caught.value.param == name


def test_other_fields_may_stand_more_often() -> None:
    body = form(MODEL, field("timestamp_granularities[]", b"word"), field("timestamp_granularities[]", b"segment"))
    made, fields = read_form(TYPE, body)
    assert made.naming("whisper") == body
    assert set(fields) == {"model", "timestamp_granularities[]"}


@pytest.mark.parametrize(
    "head",
    [
        f"{NAMED}\r\nContent-Type: text/plain; charset=UTF-8\r\nContent-Length: 7",
        f"{NAMED}\r\ncontent-transfer-encoding: 8bit",
        f"Content-Type: text/plain\r\n{NAMED}",
        'CONTENT-DISPOSITION:form-data;name="model" ',
    ],
)
def test_headers_that_clients_add(head: str) -> None:
    assert values(form(part(head, b"whisper"))) == {"model": "whisper"}


@pytest.mark.parametrize("more", ['; filename="a"', "; filename*=UTF-8''a", "; filename=\"a\"; filename*=UTF-8''a"])
def test_a_model_is_no_file(more: str) -> None:
    _, fields = read_form(TYPE, form(field("model", b"whisper", more), FILE))
    with pytest.raises(InvalidRequest) as caught:
        check_body(fields, TRANSCRIPTIONS)
    assert caught.value.param == "model"


def test_bounds() -> None:
    values(form(*[field(f"f{i}") for i in range(MOST_PARTS)]))
    for body, param in (
        (form(*[field(f"f{i}") for i in range(MOST_PARTS + 1)]), "body"),
        (form(MODEL, field("prompt", b"x" * (MOST_TEXT_BYTES + 1))), "prompt"),
        (form(MODEL, field("prompt", b"\xff")), "prompt"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            read_form(TYPE, body)
        assert caught.value.param == param


@pytest.mark.parametrize("said", [b"yes", b"True", b"1.0", b"01", b'"false"', b"null", b"true ", b""])
def test_words_that_are_none(said: bytes) -> None:
    for name in ("stream", "n", "x_first"):
        _, fields = read_form(TYPE, form(MODEL, field(name, said)))
        with pytest.raises(InvalidRequest) as caught:
            check_body(fields, TRANSCRIPTIONS) if name != "n" else length_of(fields, TRANSCRIPTIONS)
        assert caught.value.param == name


def test_a_form_does_not_stream() -> None:
    _, fields = read_form(TYPE, form(MODEL, field("stream", b"true")))
    with pytest.raises(InvalidRequest, match="does not stream"):
        check_body(fields, TRANSCRIPTIONS)


def test_a_large_file_is_not_copied_often() -> None:
    """It is found by its delimiter, and joined once, whatever is in it."""
    import tracemalloc

    for content in (b"\r\n" * 2**20, b"-" * 2**21, b"\r\n--b0undar" * 2**17):
        body = form(MODEL, field("file", content, '; filename="f"'))
        tracemalloc.start()
        made, _ = read_form(TYPE, body)
        sent = made.naming("m")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert sent == body.replace(b"whisper", b"m")
        assert peak < 3 * len(body)


# -- who may send one --------------------------------------------------------------------------------------------------

BEARER, BASIC = (b"authorization", b"Bearer k"), (b"authorization", b"Basic dTpr")


def head(*headers: tuple[bytes, bytes], path: str = TRANSCRIPTIONS.path) -> RequestHead:
    return RequestHead("POST", path, [(b"host", b"x"), *headers])


def caller(api: Any, headers: Iterable[tuple[bytes, bytes]], content_type: str = TYPE) -> Any:
    kind = (b"content-type", content_type.encode("latin-1"))
    return read_caller(head(*headers, kind, path=api.path), api, True, Patience(1, 2))


@pytest.mark.parametrize("key", [BEARER, (b"x-api-key", b"k")])
def test_forms_are_taken_where_files_may_come(key: tuple[bytes, bytes]) -> None:
    for api in (TRANSCRIPTIONS, task("tasks/look")):
        found = caller(api, [key])
        assert (found.form, found.refusal) == (TYPE, None)
        assert caller(api, [key], "application/json").form is None
    refusal = caller(CHAT, [key]).refusal
    assert isinstance(refusal, UnsupportedMediaType)


@pytest.mark.parametrize("word", [b"Basic", b"basic", b"BASIC"])
def test_but_not_with_a_key_that_browsers_remember(word: bytes) -> None:
    """A page of any origin may have a browser send a form, without asking, and with such a key."""
    found = caller(TRANSCRIPTIONS, [(b"authorization", word + b" dTpr")])
    assert isinstance(found.refusal, UnsupportedMediaType)
    assert found.form is None
    assert caller(TRANSCRIPTIONS, [BASIC], "application/json").refusal is None


def test_a_form_that_nobody_needs_any_more() -> None:
    made = Form(TYPE, b"x", (0, 0))
    assert made.naming("a") == b"ax"
