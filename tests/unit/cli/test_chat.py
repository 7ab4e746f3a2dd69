from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from firstkit.cli.api import ApiFailed, Ended, Piece, Text, Waiting, pieces, read_comment
from firstkit.cli.chat import default_model, progress_words
from firstkit.cli.commands import build
from unit.cli.servers import Answers, answer, on_port, stream

CHAT = "/v1/chat/completions"
KEY = "first-secret"


def chunk(text: str | None, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def error(code: str, message: str = "So it is.") -> bytes:
    return json.dumps({"error": {"message": message, "type": "x", "param": None, "code": code}}).encode()


MODELS = {
    "data": [{"id": name, "first": {"capabilities": able}} for name, able in (("e", ["embeddings"]), ("m", ["chat"]))]
}
WHOLE = (chunk("Good"), chunk(" day"), chunk(None, "stop"), b"data: [DONE]\n\n")


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    with on_port({"/v1/models": answer("200 OK", json.dumps(MODELS).encode()), CHAT: stream(*WHOLE)}) as server:
        path = tmp_path / "first.yaml"
        path.write_text(yaml.safe_dump({"server": {"listen": f"127.0.0.1:{server.port}", "state_dir": "/tmp/x"}}))
        monkeypatch.setenv("FIRST_CONFIG", str(path))
        monkeypatch.setenv("FIRST_API_KEY", KEY)
        yield server


def chat(*arguments: str, expect: int = 0, typed: str | None = None) -> Result:
    result = CliRunner().invoke(build(), ["chat", *arguments], input=typed)
    assert result.exit_code == expect, result.output
    assert KEY not in result.output
    return result


def asked(server: Answers) -> dict[str, object]:
    body: dict[str, object] = json.loads(server.requests[-1].partition(b"\r\n\r\n")[2])
    return body


def test_one_question(gateway: Answers) -> None:
    assert chat("Hello").stdout == "Good day\n"
    assert asked(gateway) == {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
    assert f"Authorization: Bearer {KEY}".encode() in gateway.requests[-1]


def test_a_question_from_standard_input_and_a_model_of_ones_choice(gateway: Answers) -> None:
    assert chat("--model", "n", typed="Hello\nthere\n").stdout == "Good day\n"
    assert asked(gateway)["messages"] == [{"role": "user", "content": "Hello\nthere\n"}]
    assert len(gateway.requests) == 1


def test_an_empty_question_is_not_asked(gateway: Answers) -> None:
    assert "empty" in chat(typed=" \n", expect=1).stderr
    assert gateway.requests == []


def test_waiting_is_told_on_standard_error(gateway: Answers) -> None:
    comments = (f": position=1 status=starting eta_s={eta} reason=loading\n\n".encode() for eta in (12, 10))
    gateway.by_path[CHAT] = stream(*comments, b": working\n\n", *WHOLE)
    result = chat("Hello")
    assert result.stdout == "Good day\n"
    assert result.stderr == "m is starting, ETA 12 s\n"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (stream(chunk("Go"), ends=False), "was cut"),
        (stream(chunk("Go")), "was cut"),
        (stream(chunk("Go"), b"data: " + error("replica_lost") + b"\n\n"), "So it is."),
        (answer("401 Unauthorized", error("invalid_api_key")), "FIRST_API_KEY"),
        (answer("400 Bad Request", error("unsupported_endpoint")), "can chat"),
        (answer("503 Service Unavailable", error("model_not_ready")), "later"),
        (answer("502 Bad Gateway", b"<html>"), "502"),
        (b"", "no answer"),
    ],
)
def test_every_bad_end_is_an_error_with_a_next_step(gateway: Answers, reply: bytes, words: str) -> None:
    gateway.by_path[CHAT] = reply
    result = chat("Hello", expect=1)
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 2


def test_nobody_there(gateway: Answers, tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text("server: {listen: '127.0.0.1:1'}")
    assert "Connection refused" in chat("Hello", expect=1).stderr


def test_without_a_key(gateway: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "two words", "caf\xe9"):
        monkeypatch.setenv("FIRST_API_KEY", value)
        assert "first keys create" in chat("Hello", expect=1).stderr
    assert gateway.requests == []


def test_an_answer_that_reached_its_limit_says_so(gateway: Answers) -> None:
    gateway.by_path[CHAT] = stream(chunk("Go"), chunk(None, "length"), WHOLE[-1])
    assert "limit" in chat("Hello").stderr


def test_where_no_model_can_chat() -> None:
    with pytest.raises(ApiFailed, match="can chat"):
        default_model(MODELS["data"][:1])


@pytest.mark.parametrize(
    ("comment", "waiting"),
    [
        (
            "position=3 status=queued eta_s=unknown reason=2 cores, 0 free",
            Waiting("queued", None, 3, "2 cores, 0 free"),
        ),
        ("position=1 status=live eta_s=0", Waiting("live", 0.0)),
        ("working", None),
        ("position=x status=live eta_s=0", None),
    ],
)
def test_comments(comment: str, waiting: Waiting | None) -> None:
    assert read_comment(comment) == waiting


@pytest.mark.parametrize(
    ("waiting", "words"),
    [
        (Waiting("starting", 12.4), "m is starting, ETA 12 s"),
        (Waiting("queued", None, 1, "no cores"), "m is queued, ETA unknown (no cores)"),
        (Waiting("live", 0.0, 3), "m is busy, you are number 3 in the line"),
    ],
)
def test_what_people_read(waiting: Waiting, words: str) -> None:
    assert progress_words("m", waiting) == words


def test_lines_end_in_any_way_and_odd_events_do_no_harm() -> None:
    lines = [
        b"data:" + chunk("a")[5:].strip() + b"\r\n",
        b"data: [1]\n",
        b"event: x\n",
        b"data: [DONE]\n",
        b"data: late\n",
    ]
    found: list[Piece] = list(pieces(lines))
    assert found == [Text("a"), Ended("")]
