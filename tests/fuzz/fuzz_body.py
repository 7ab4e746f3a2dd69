"""Fuzz target for bodies of requests to models: any bytes are a body or an InvalidRequest, and nothing else comes out.

What is accepted goes to the engine with the values that it came with, each key once.
"""

from __future__ import annotations

import json
import random

import msgspec

from firstkit.errors import ApiError, InvalidRequest
from firstkit.gateway.apis import APIS, Api
from firstkit.gateway.call import REFUSED_FIELDS, Asked, check_body, parse_body
from firstkit.gateway.lengths import length_of
from fuzz.driver import Target, some

ALL_APIS = list(APIS.values())


def run_one(data: bytes) -> None:
    """The first byte chooses the path that it was sent to."""
    if not data:
        return
    api, data = ALL_APIS[data[0] % len(ALL_APIS)], data[1:]
    try:
        model, stream, wants_usage, _ = check(data, api)
    except ApiError as error:
        assert isinstance(error, InvalidRequest), error
        answer = json.dumps(error.body())
        assert json.loads(answer)["error"]["message"]
        return
    assert model
    assert isinstance(stream, bool)
    assert stream or not wants_usage
    assert api.streams or not stream


def check(data: bytes, api: Api) -> Asked:
    fields = parse_body(data)
    before = {key: bytes(value) for key, value in fields.items()}
    result = check_body(fields, api)
    length_of(fields, api)
    left = {key: bytes(value) for key, value in fields.items()}
    assert left == {key: before[key] for key in left}
    assert before.keys() - left.keys() <= {"stream_options", "x_first"}
    encoded = msgspec.json.encode(fields)
    assert {key: bytes(value) for key, value in parse_body(encoded).items()} == left
    json.loads(encoded)  # an engine in Python can read it
    return result


DEEP = 2000
VALUES = [
    *[b'"m"', b'"hello"', b'""', b"true", b"false", b"null", b"[]", b"{}", b"1", b"0", b"-1", b"1e999", b"-0", b"1.5"],
    *[b"NaN", b"9" * 400, b'"\\ud800"', b'"\\u0000"', b'"\xc3\xa9"', b'"\xff"', b'"yes"', b'["a","b"]', b"[1,2]"],
    *[b'{"include_usage":true}', b'{"include_usage":1}', b'{"include_usage":null,"x":[]}'],
    *[b"[" * DEEP, b"[" * DEEP + b"]" * DEEP, b'{"a":' * DEEP + b"1" + b"}" * DEEP],
    b'[{"role":"user","content":"hello"}]',
    b'[{"role":"user","content":[{"type":"text","text":"see http://x"}]}]',
    b'[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AA=="}}]}]',
    b'[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://169.254.169.254/"}}]}]',
    b'[{"content":[{"video_url":"file:///etc/passwd"}]}]',
    b'[{"content":[{"x_url":[{"url":7}]}]}, 7]',
    b'[{"content":"_url"}]',
]
FIELDS = [
    *[b"model", b"messages", b"prompt", b"input", b"stream", b"stream_options", b"n", b"max_tokens", b"x", b""],
    *[b"max_completion_tokens", b"m\\u006fdel", b"\xff", *(field.encode() for field in REFUSED_FIELDS)],
]
GOOD = [
    b'"model":"m"',
    b'"messages":[{"role":"user","content":"hello"}],"prompt":"a","input":"b"',
    b'"stream":true,"stream_options":{"include_usage":true}',
]
SPACES = [b"", b"", b" ", b"\n", b"\t", b"\xef\xbb\xbf", b"\0"]


def random_input(chance: random.Random) -> bytes:
    """Mostly an object with fields that are read, their values right or wrong."""
    pairs = [pair for pair in GOOD if chance.random() < 0.8]
    for _ in range(chance.randrange(4)):
        pairs.insert(chance.randrange(len(pairs) + 1), b'"%b":%b' % (chance.choice(FIELDS), chance.choice(VALUES)))
    space = some(chance, SPACES, 1)
    return chance.randbytes(1) + space + b"{" + (b"," + space).join(pairs) + b"}" + some(chance, SPACES, 1)


TARGET = Target(run_one, random_input)

if __name__ == "__main__":
    TARGET.main(__doc__)
