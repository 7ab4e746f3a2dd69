"""A record is one line of JSON, with its fields, and without secrets."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstkit.logs import JsonLines, scrub

SECRET = "c5xkuyu7ofvdrpftcjxoj337skohxa5u4uwlxccq4mp2ncc4yj3f"
KEY = f"first-r4dajx7ith2u-{SECRET}"


def line(message: object, *args: object, exc_info: Any = None, **extra: Any) -> str:
    record = logging.LogRecord("firstkit.x", logging.WARNING, "x.py", 1, message, args, exc_info)
    vars(record).update(extra)
    return JsonLines().format(record)


def test_a_sentence_for_people_and_fields_for_machines() -> None:
    entry = json.loads(line("%s is down", "a link", action="link_down", job_id="job-1", seconds=1.5))
    assert entry.pop("time").endswith("+00:00")
    assert entry == {
        "level": "warning",
        "logger": "firstkit.x",
        "message": "a link is down",
        "action": "link_down",
        "job_id": "job-1",
        "seconds": 1.5,
    }


@given(st.text(max_size=40), st.text(max_size=40))
def test_one_record_is_one_line(message: str, field: str) -> None:
    text = line(message.replace("%", ""), reason=field + "\r\n\u2028")
    assert text.splitlines() == [text]
    assert json.loads(text)["reason"] == field + "\r\n\u2028"


def test_an_exception_stays_on_the_line_and_is_scrubbed() -> None:
    error = ValueError(f"bad key\n{SECRET}")
    text = line("it broke", exc_info=(ValueError, error, None))
    assert "\n" not in text
    assert "ValueError: bad key" in json.loads(text)["exception"]
    assert SECRET not in text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (KEY, KEY[:19] + "[secret]"),
        (f"x-api-key: {KEY},", f"x-api-key: {KEY[:19]}[secret],"),
        ("Authorization: Bearer abc.def-1", "Authorization: Bearer [secret]"),
        ("authorization: BASIC dXNlcjpwYXNz", "authorization: BASIC [secret]"),
        (f"token={SECRET} next", "token=[secret] next"),
        ("nothing to hide: first-abcdefghijkl", "nothing to hide: first-abcdefghijkl"),
    ],
)
def test_secrets_are_taken_out_and_prefixes_stay(text: str, left: str) -> None:
    assert scrub(text) == left


@pytest.mark.parametrize("around", ['{"token":"%s"}', "/job/%s/", "'%s'", "[%s]", "a %s b", "%s\n%s", "_%s", "key_%s_"])
def test_a_secret_is_found_wherever_it_stands(around: str) -> None:
    assert SECRET not in scrub(around.replace("%s", SECRET))
    assert SECRET not in json.dumps(json.loads(line("%s", around.replace("%s", SECRET))))
    assert SECRET not in line("x", headers={"a": around.replace("%s", KEY)})


def test_what_json_cannot_say_is_said_as_text() -> None:
    assert json.loads(line("x", where=OSError("gone")))["where"] == "gone"


@given(st.text())
def test_scrubbing_twice_is_scrubbing_once(text: str) -> None:
    assert scrub(scrub(text)) == scrub(text)
