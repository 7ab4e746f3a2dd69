"""What is no conversation, end to end: in JSON and in forms, over a pilot's link and at a service of others; and where
answers come from."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2 as httpx
import openai
import pytest

from firstkit.testing.background import Background
from firstkit.testing.fake_engine import BEHAVIOURS, parse
from lab import Lab, fake_engine, wait_for

TASKS = ["rerank", "score", "transcriptions", "translations", "tasks/echo", "tasks/broken", "tasks/empty"]
AUDIO = os.urandom(600_000)
"""More than a frame of a link."""
SAID: Any = [{"role": "user", "content": "two words"}]
JSON: dict[str, dict[str, Any]] = {
    "rerank": {"query": "two words", "documents": ["one", "and two"]},
    "score": {"text_1": "two words", "text_2": ["one", "and two"]},
    "audio/transcriptions": {"file": "x"},
    "audio/translations": {"file": "x"},
    "tasks/echo": {"anything": {"at": [1.0, "all"]}},
}


def engine_outside(background: Background) -> str:
    engine = BEHAVIOURS["TaskEngine"](parse(["--port", "0", "--model", "theirs"]))
    return background.serve(engine.handle)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    resources = {"cpus_per_node": 1, "memory_gib": 0.1}
    here = {**fake_engine("TaskEngine", model="m"), "capabilities": ["chat", *TASKS]}
    with Background() as background:
        outside = {"kind": "external", "url": engine_outside(background), "model": "theirs", "capabilities": TASKS[:-2]}
        weights = {"path": "weights", "revision": "r2d2"}
        models = {
            "m": {
                "aliases": ["alias"],
                "deployments": [
                    {
                        "cluster": "here",
                        "engine": here,
                        "resources": resources,
                        "weights": weights,
                        "scale": {"hot": 1},
                    },
                    {"cluster": "outside", "engine": outside},
                ],
            },
            "talks": {
                "deployments": [{"cluster": "outside", "engine": {**outside, "capabilities": ["chat", "score"]}}]
            },
        }
        lab = Lab.make(models)
        try:
            lab.start()
            wait_for("a replica", lambda: [row for row in lab.replicas() if row["state"] == "READY"])
            yield lab
        finally:
            lab.close()


@pytest.fixture(scope="module")
def http(lab: Lab) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=lab.base_url, headers={"authorization": f"Bearer {lab.key}"}, timeout=30) as client:
        yield client


def row_of(lab: Lab, answer: httpx.Response) -> Any:
    """The line of the ledger of a request, as soon as it is there."""
    name = answer.headers["x-request-id"]
    return wait_for("the ledger", lambda: next((row for row in lab.usage() if row["request_id"] == name), None))


@pytest.mark.parametrize("cluster", ["here", "outside"])
@pytest.mark.parametrize("endpoint", JSON)
def test_json(lab: Lab, http: httpx.Client, cluster: str, endpoint: str) -> None:
    """What the engine gets is what was sent, and what it says is what is heard; by the path, and by the header."""
    asked = {"model": "alias", **JSON[endpoint]}
    by_path = http.post(f"/clusters/{cluster}/{endpoint}", json=asked)
    by_header = http.post(f"/{endpoint}", json=asked, headers={"x-first-cluster": cluster})
    for answer in (by_path, by_header):
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-first-cluster"] == cluster
        served = "m" if cluster == "here" else "theirs"
        said = answer.json()
        if "got" in said:
            assert said["got"] == {**asked, "model": served}
            assert said["content_type"] == "application/json"
        else:
            assert said["model"] == served
            assert said["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
        row = row_of(lab, answer)
        assert (row["endpoint"], row["outcome"], row["model"]) == (endpoint, "complete", "m")
        is_reported = endpoint in ("rerank", "score")
        assert row["estimated"] is not is_reported
        assert not is_reported or (row["prompt_tokens"], row["completion_tokens"]) == (5, 0)


@pytest.mark.parametrize("cluster", ["here", "outside"])
@pytest.mark.parametrize("endpoint", ["audio/transcriptions", "audio/translations", "tasks/echo"])
def test_forms(lab: Lab, http: httpx.Client, cluster: str, endpoint: str) -> None:
    served = "m" if cluster == "here" else "theirs"
    request = http.build_request(
        "POST",
        f"/clusters/{cluster}/{endpoint}",
        data={"model": "alias", "prompt": "späße", "temperature": "0"},
        files={"file": ("a.wav", AUDIO, "audio/wav")},
    )
    sent = request.read()
    answer = http.send(request)
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert said["content_type"] == request.headers["content-type"], "and so the engine can read it"
    expected = sent.replace(b'name="model"\r\n\r\nalias', b'name="model"\r\n\r\n' + served.encode())
    assert said["sha256"] == hashlib.sha256(expected).hexdigest(), "all else is as it came"
    digest = hashlib.sha256(AUDIO).hexdigest()
    assert said["got"] == {"model": served, "prompt": "späße", "temperature": "0", "file": digest}
    row = row_of(lab, answer)
    assert (row["endpoint"], row["outcome"], row["estimated"]) == (endpoint, "complete", True)
    assert row["prompt_tokens"] == 0, "of an upload the size says nothing"


def test_what_is_no_json_comes_as_it_is(lab: Lab, http: httpx.Client) -> None:
    for x_first in ({}, {"x_first": "true"}):
        answer = http.post(
            "/audio/transcriptions",
            data={"model": "m", "response_format": "srt", **x_first},
            files={"file": ("a.wav", b"RIFF", "audio/wav")},
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.text == "1\n00:00:00,000 --> 00:00:01,000\nHello {there}\n"
        assert answer.headers["x-first-replica"]


def test_the_sdk_takes_it(lab: Lab) -> None:
    with openai.OpenAI(base_url=lab.base_url, api_key=lab.key, max_retries=0) as client:
        heard = client.audio.transcriptions.create(model="m", file=("a.wav", b"RIFF"), language="en")
        assert heard.text == "hello there"
        text = client.audio.transcriptions.create(model="m", file=("a.wav", b"RIFF"), response_format="srt")
        assert "Hello {there}" in text


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_what_a_model_does_not_declare(http: httpx.Client) -> None:
    for path in ("/rerank", "/tasks/echo", "/audio/transcriptions", "/embeddings", "/clusters/outside/tasks/echo"):
        answer = http.post(path, json={"model": "talks", "query": "x", "input": "x"})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_endpoint", "model")
        assert re.search(r"it serves: .*/v1/chat/completions.*, /v1/score\.", error["message"])
        assert "/v1/tasks" not in error["message"].partition("it serves")[2]
    answer = http.post("/clusters/outside/tasks/empty", json={"model": "m"})
    assert answer.json()["error"]["code"] == "unsupported_endpoint", "it is declared here and not there"


def test_a_task_that_nobody_declares(http: httpx.Client) -> None:
    for path in ("/tasks/nothing", "/tasks/", "/tasks/echo/more", "/clusters/here/tasks/nothing"):
        answer = http.post(path, json={"model": "m"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert http.get("/tasks/echo").status_code == 405


def test_who_may_not(lab: Lab, http: httpx.Client) -> None:
    nobody = http.post("/tasks/echo", json={"model": "m"}, headers={"authorization": "Bearer first-x"})
    assert (nobody.status_code, nobody.json()["error"]["code"]) == (401, "invalid_api_key")
    key = lab.make_key("only-metrics", ("metrics",))
    other = http.post("/tasks/echo", json={"model": "m"}, headers={"authorization": f"Bearer {key}"})
    assert (other.status_code, other.json()["error"]["code"]) == (403, "insufficient_scope")
    browser = http.post(
        "/tasks/echo", data={"model": "m"}, files={"file": b"x"}, headers={"authorization": "Basic dTpw"}
    )
    assert browser.status_code in (401, 415)
    basic = base64.b64encode(f"u:{lab.key}".encode()).decode()
    browser = http.post(
        "/tasks/echo", data={"model": "m"}, files={"file": b"x"}, headers={"authorization": f"Basic {basic}"}
    )
    assert (browser.status_code, browser.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert http.post("/rerank", data={"model": "m"}, files={"file": b"x"}).status_code == 415, "it takes no forms"


def test_one_that_fails_and_one_that_is_empty(lab: Lab, http: httpx.Client) -> None:
    broken = http.post("/tasks/broken", json={"model": "m"})
    assert (broken.status_code, broken.json()["error"]["code"]) == (502, "engine_failed")
    assert row_of(lab, broken)["outcome"] == "failed"
    empty = http.post("/tasks/empty", json={"model": "m"})
    assert (empty.status_code, empty.content) == (200, b"")
    assert row_of(lab, empty)["outcome"] == "complete"


# -- where an answer comes from ----------------------------------------------------------------------------------------


def test_an_answer_can_be_cited(lab: Lab, http: httpx.Client) -> None:
    """Its head, its body, the ledger and the request by its id agree."""
    [replica] = [row["id"] for row in lab.replicas()]
    asked = {"model": "m", "messages": SAID, "x_first": True}
    answer = http.post("/chat/completions", json=asked)
    origin = answer.json()["x_first"]
    assert origin == {
        "cluster": "here",
        "replica": replica,
        "engine": origin["engine"],
        "revision": "r2d2",
        "model": "m",
    }
    heads = {name: answer.headers.get(f"x-first-{name}") for name in ("cluster", "replica", "engine", "revision")}
    assert heads == {name: origin[name] for name in heads}
    name = answer.headers["x-request-id"]
    at_once = http.get(f"/requests/{name}").json()
    row = row_of(lab, answer)
    loaded = http.get(f"/requests/{name}").json()
    assert at_once == loaded
    assert (loaded["id"], loaded["status"], loaded["endpoint"], loaded["model"]) == (
        name, "complete", "chat/completions", "m",
    )  # fmt: skip
    for key, column in (
        ("cluster", "cluster"),
        ("replica", "replica_id"),
        ("engine", "engine"),
        ("revision", "revision"),
    ):
        assert loaded[key] == row[column] == origin[key]
    assert (loaded["prompt_tokens"], loaded["completion_tokens"]) == (2, 8)
    other = lab.make_key("an-operator", ("admin",))
    assert http.get(f"/requests/{name}", headers={"authorization": f"Bearer {other}"}).status_code == 200


def test_the_sdks_take_it(lab: Lab) -> None:
    more: Any = {"x_first": True}
    with openai.OpenAI(base_url=lab.base_url, api_key=lab.key, max_retries=0) as client:
        plain = client.chat.completions.create(model="m", messages=SAID, extra_body=more)
        assert plain.to_dict()["x_first"]["cluster"] == "here"  # type: ignore[index]
        for options in (None, {"include_usage": True}):
            kinds: Any = {} if options is None else {"stream_options": options}
            with client.chat.completions.create(
                model="m", messages=SAID, stream=True, extra_body=more, **kinds
            ) as stream:
                chunks = list(stream)
            assert chunks[-1].to_dict()["x_first"]["revision"] == "r2d2"  # type: ignore[index]
            assert (chunks[-1].choices, chunks[-1].model) == ([], "m")
            assert (chunks[-1].usage is not None) == (options is not None)
            assert sum(1 for chunk in chunks if not chunk.choices) == 1
        with client.responses.create(model="m", input="two words", stream=True, extra_body=more) as events:
            last = list(events)[-1]
        assert last.type == "response.completed"
        assert last.to_dict()["x_first"]["cluster"] == "here"  # type: ignore[index]
        whole = client.responses.create(model="m", input="two words", extra_body=more)
        assert whole.to_dict()["x_first"]["cluster"] == "here"  # type: ignore[index]
    with anthropic.Anthropic(base_url=f"http://127.0.0.1:{lab.port}", api_key=lab.key, max_retries=0) as claude:
        message = claude.messages.create(model="m", max_tokens=9, messages=SAID, extra_body=more)
        assert message.to_dict()["x_first"]["cluster"] == "here"  # type: ignore[index]
        with claude.messages.create(model="m", max_tokens=9, messages=SAID, stream=True, extra_body=more) as told:
            said = list(told)
        assert [event.type for event in said].count("message_stop") == 1
        assert said[-1].to_dict()["x_first"]["cluster"] == "here"  # type: ignore[index]
    assert json.loads(plain.to_json())["x_first"]["model"] == "m"
