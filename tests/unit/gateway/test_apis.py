"""The inference paths, and what each of them takes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from firstkit.config import parse_config
from firstkit.engines.engine import CAPABILITIES
from firstkit.errors import InvalidRequest
from firstkit.gateway.apis import (
    APIS,
    CHAT,
    COUNT_TOKENS,
    MESSAGES_API,
    RERANK,
    RESPONSES_API,
    SCORE,
    TRANSCRIPTIONS,
    Api,
    task,
)
from firstkit.gateway.call import REFUSED_FIELDS, check_body, parse_body
from firstkit.gateway.openai import _DECLARED
from firstkit.gateway.reach import Reach

SAID = [{"role": "user", "content": "hi"}]
REQUIRED: dict[str | None, Any] = {"messages": SAID, "prompt": "x", "input": "x", "query": "x", None: None}


def body(api: Api, **fields: Any) -> dict[str, Any]:
    needed = {} if api.required is None else {api.required: REQUIRED[api.required]}
    return {"model": "m", **needed, **fields}


def check(api: Api, **fields: Any) -> Any:
    return check_body(parse_body(json.dumps(body(api, **fields)).encode()), api)


def test_each_path_stands_for_one_capability() -> None:
    assert sorted(api.capability for api in APIS.values()) == sorted(CAPABILITIES)
    assert all(path == api.path and path == f"/v1/{api.endpoint}" for path, api in APIS.items())


def test_each_is_declared_for_the_schema() -> None:
    assert set(_DECLARED) == set(APIS.values())


def test_what_serves_what() -> None:
    for api in (MESSAGES_API, RESPONSES_API, COUNT_TOKENS):
        assert api.served_by({api.capability})
        assert api.served_by({"chat"}), "by translation, or an estimate"
        assert not api.served_by({"embeddings"})
    assert not RERANK.served_by({"chat", "score"})
    assert not CHAT.served_by({"messages", "responses"})


def test_tasks_are_those_that_a_deployment_declares() -> None:
    config = parse_config("""
clusters: {here: {}, outside: {kind: external}}
models:
  a:
    deployments:
      - {cluster: here, engine: {kind: command, argv: [x], capabilities: [tasks/look, chat]}}
      - {cluster: outside, engine: {kind: external, url: "http://x", capabilities: [tasks/other]}}
""")
    apis = Reach(config).apis
    assert set(apis) - set(APIS) == {"/v1/tasks/look", "/v1/tasks/other"}
    look = apis["/v1/tasks/look"]
    assert look == task("tasks/look")
    assert (look.endpoint, look.streams, look.takes_forms, look.required) == ("tasks/look", False, True, None)


@pytest.mark.parametrize("api", [*APIS.values(), task("tasks/x")], ids=lambda api: api.endpoint)
def test_what_would_run_code_in_an_engine_is_refused_by_all(api: Api) -> None:
    for name in REFUSED_FIELDS:
        for value in ("x", None, False, []):
            with pytest.raises(InvalidRequest) as caught:
                check(api, **{name: value})
            assert (caught.value.code, caught.value.param) == ("unsupported_field", name)


@pytest.mark.parametrize(
    ("api", "name", "asks", "asks_nothing"),
    [
        (RESPONSES_API, "background", [True, 1, "x"], [False, None]),
        (RESPONSES_API, "conversation", ["c", {"id": "c"}], [None]),
        (RESPONSES_API, "prompt", [{"id": "p"}], [None, {}]),
        (MESSAGES_API, "mcp_servers", [[{"url": "http://x"}]], [None, []]),
        (MESSAGES_API, "container", ["c"], [None]),
        (COUNT_TOKENS, "mcp_servers", [[{"url": "http://x"}]], [None, []]),
    ],
)
def test_what_only_the_service_of_others_has(api: Api, name: str, asks: list[Any], asks_nothing: list[Any]) -> None:
    for value in asks:
        with pytest.raises(InvalidRequest) as caught:
            check(api, **{name: value})
        assert (caught.value.code, caught.value.param) == ("unsupported_field", name)
    for value in asks_nothing:
        check(api, **{name: value})


OURS = {"name": "f", "input_schema": {}, "parameters": {}}


@pytest.mark.parametrize(
    ("api", "good", "bad"),
    [
        (RESPONSES_API, ["function", "custom", None],
         ["web_search", "web_search_preview", "file_search", "code_interpreter", "mcp", "computer_use_preview",
          "image_generation", "local_shell", "", "Function"]),
        (MESSAGES_API, ["custom", None],
         ["web_search_20250305", "code_execution_20250825", "web_fetch_20250910", "computer_20250124", "function"]),
        (COUNT_TOKENS, ["custom"], ["web_search_20250305"]),
    ],
)  # fmt: skip
def test_tools_are_those_that_the_client_runs(api: Api, good: list[Any], bad: list[str]) -> None:
    check(api, tools=[{**OURS, "type": kind} if kind else OURS for kind in good])
    for kind in [kind for kind in bad if kind]:
        with pytest.raises(InvalidRequest) as caught:
            check(api, tools=[{**OURS, "type": good[0]}, {**OURS, "type": kind}])
        assert (caught.value.code, caught.value.param) == ("unsupported_tool", "tools")
        assert f"'tools[1].type' is '{kind}'" in caught.value.message
        assert f"allowed: {', '.join(api.tools or ())}." in caught.value.message


def test_a_tool_does_not_hide_in_a_group_of_them() -> None:
    def group(*tools: Any) -> dict[str, Any]:
        return {"type": "namespace", "name": "n", "tools": list(tools)}

    function = {**OURS, "type": "function"}
    check(RESPONSES_API, tools=[group(function, {**OURS, "type": "custom"}), function])
    for tools in ([group(function, {"type": "web_search"})], [function, group(group(function))], [group(7)]):
        with pytest.raises(InvalidRequest) as caught:
            check(RESPONSES_API, tools=tools)
        assert caught.value.param == "tools"


@pytest.mark.parametrize("api", [RESPONSES_API, MESSAGES_API])
def test_no_tools_and_what_are_none(api: Api) -> None:
    for value in (None, []):
        check(api, tools=value)
    for value in ("x", {}, [1], [[]], [{"type": 7}], [None]):
        with pytest.raises(InvalidRequest) as caught:
            check(api, tools=value)
        assert caught.value.param == "tools"
    check(CHAT, tools=[{"type": "whatever the engine takes"}])


@pytest.mark.parametrize("api", [api for api in APIS.values() if not api.streams], ids=lambda api: api.endpoint)
def test_what_does_not_stream(api: Api) -> None:
    check(api, stream=False)
    with pytest.raises(InvalidRequest) as caught:
        check(api, stream=True)
    assert caught.value.param == "stream"


@pytest.mark.parametrize("api", [RERANK, SCORE, TRANSCRIPTIONS, task("tasks/x")], ids=lambda api: api.endpoint)
def test_a_task_needs_a_model_and_what_it_says_it_needs(api: Api) -> None:
    assert check(api, anything={"a": [1]}).model == "m"
    with pytest.raises(InvalidRequest) as caught:
        check_body(parse_body(b"{}"), api)
    assert caught.value.param == "model"
    if api.required is not None:
        with pytest.raises(InvalidRequest) as caught:
            check_body(parse_body(b'{"model":"m"}'), api)
        assert caught.value.param == api.required
