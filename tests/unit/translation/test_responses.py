"""Responses requests as chat requests: what agents really send, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from firstkit.errors import InvalidRequest
from firstkit.translation.responses import names_of, to_chat
from firstkit.translation.responses_tools import Called
from unit.translation.support import plain, raw

SHELL = {
    "type": "function",
    "name": "shell",
    "description": "Runs a command",
    "strict": False,
    "parameters": {"type": "object", "properties": {"command": {"type": "array", "items": {"type": "string"}}}},
}
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "start: LINE+"}
PATCH = {"type": "custom", "name": "apply_patch", "description": "Edits files", "format": GRAMMAR}
FILES = {
    "type": "namespace",
    "name": "mcp__files",
    "description": "Files",
    "tools": [{"type": "function", "name": "read", "parameters": {"type": "object", "properties": {}}}],
}
PIXEL = "data:image/png;base64,AA=="


def chat(**fields: Any) -> dict[str, Any]:
    """The chat request for a Responses request."""
    return plain(to_chat(raw(model="m", **{"input": "hi", **fields})))


def refusal(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        to_chat(raw(model="m", **{"input": "hi", **fields}))
    return caught.value


def said(kind: str, *texts: str, role: str = "user") -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text} for text in texts]}


def result(call_id: str, output: Any, kind: str = "function_call_output") -> dict[str, Any]:
    return {"type": kind, "call_id": call_id, "output": output}


def function_call(call_id: str, name: str = "shell", arguments: str = "{}", **more: Any) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, **more}


def reasoning(text: str, **more: Any) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "id": "rs_1", "summary": [], "content": content, **more}


# -- a whole request of an agent ---------------------------------------------------------------------------------------


def test_a_turn_of_codex() -> None:
    """As it is sent in the middle of a task: developer messages, reasoning, both kinds of tools, results of both."""
    sent = chat(
        instructions="You are an agent.",
        input=[
            said("input_text", "<permissions>", role="developer"),
            said("input_text", "<environment>"),
            said("input_text", "Fix it."),
            reasoning("Look first.", encrypted_content=None),
            said("output_text", "I look.", role="assistant") | {"phase": "commentary"},
            function_call("c1", arguments='{"command":["ls"]}'),
            result("c1", "a.py"),
            reasoning("Now edit."),
            {"type": "custom_tool_call", "call_id": "c2", "name": "apply_patch", "input": "*** Begin", "status": "ok"},
            result("c2", [{"type": "input_text", "text": "Done"}], "custom_tool_call_output"),
        ],
        tools=[SHELL, PATCH, FILES],
        tool_choice="auto",
        parallel_tool_calls=True,
        reasoning={"effort": "medium", "summary": "auto"},
        store=False,
        stream=True,
        include=["reasoning.encrypted_content"],
        service_tier="priority",
        prompt_cache_key="k",
        text={"verbosity": "low"},
        client_metadata={"x": "y"},
    )
    tools = sent.pop("tools")
    assert [tool["function"]["name"] for tool in tools] == ["shell", "apply_patch", "mcp__files__read"]
    assert sent == {
        "model": "m",
        "stream": True,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "reasoning_effort": "medium",
        "verbosity": "low",
        "messages": [
            {"role": "system", "content": "You are an agent.\n<permissions>"},
            {"role": "user", "content": "<environment>"},
            {"role": "user", "content": "Fix it."},
            {
                "role": "assistant",
                "content": "I look.",
                "reasoning_content": "Look first.",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "shell", "arguments": '{"command":["ls"]}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "a.py"},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "Now edit.",
                "tool_calls": [
                    {
                        "id": "c2",
                        "type": "function",
                        "function": {"name": "apply_patch", "arguments": '{"input":"*** Begin"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c2", "content": "Done"},
        ],
    }


# -- the conversation --------------------------------------------------------------------------------------------------


def test_parallel_calls_are_of_one_message() -> None:
    asked = [function_call("a"), reasoning("more"), function_call("b"), said("output_text", "x", role="assistant")]
    [message, *results] = chat(input=[*asked, result("a", "1"), result("b", "2")])["messages"]
    assert [call["id"] for call in message["tool_calls"]] == ["a", "b"]
    assert (message["content"], message["reasoning_content"]) == ("x", "more")
    assert [each["tool_call_id"] for each in results] == ["a", "b"]


def test_thoughts_belong_to_their_own_turn() -> None:
    """What comes before a message of somebody else is not thought for a later answer."""
    messages = chat(input=[reasoning("lost"), said("input_text", "hi"), said("output_text", "ho", role="assistant")])
    assert messages["messages"] == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def test_thoughts_of_others_are_taken_by_their_summary() -> None:
    item = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "encrypted_content": "gAAA"}
    only_secret = {"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}
    messages = chat(input=[only_secret, item, said("output_text", "x", role="assistant")])["messages"]
    assert messages == [{"role": "assistant", "content": "x", "reasoning_content": "s"}]


def test_pictures_of_tools_come_from_a_user_after_all_results() -> None:
    picture = {"type": "input_image", "image_url": PIXEL, "detail": "low"}
    output = [{"type": "input_text", "text": "seen"}, picture]
    items = [function_call("a"), function_call("b"), result("a", output), result("b", "2"), said("input_text", "so?")]
    _, first, second, shown, asked = chat(input=items)["messages"]
    assert [first["content"], second["content"], asked["content"]] == ["seen", "2", "so?"]
    image = {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}
    assert shown == {"role": "user", "content": [image]}
    assert chat(input=items[:4])["messages"][-1] == shown


def test_only_text_is_a_text_and_media_are_parts() -> None:
    content = [
        {"type": "input_text", "text": "look"},
        {"type": "input_image", "image_url": PIXEL},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
    ]
    [message] = chat(input=[{"role": "user", "content": content}])["messages"]
    assert [part["type"] for part in message["content"]] == ["text", "image_url", "file", "input_audio"]
    [message] = chat(input=[said("input_text", "a", "b")])["messages"]
    assert message["content"] == "a\nb"


def test_what_systems_say_later_is_said_first() -> None:
    items = [said("input_text", "hi"), {"role": "system", "content": "be brief"}]
    messages = chat(instructions="", input=items)["messages"]
    assert messages == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]


def test_an_answer_without_words() -> None:
    assert chat(input=[{"role": "assistant", "content": []}])["messages"] == [{"role": "assistant", "content": ""}]


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "item_reference", "id": "msg_1"}, "input[0].type"),
        ({"type": "compaction", "encrypted_content": "x"}, "input[0].type"),
        ({"type": "web_search_call", "id": "ws_1"}, "input[0].type"),
        ({"type": "local_shell_call", "call_id": "c"}, "input[0].type"),
        ({"type": ["message"]}, "input[0].type"),
        ({"role": "critic", "content": "x"}, "input[0].role"),
        ({"content": "x"}, "input[0].role"),
        ({"role": "user", "content": None}, "input[0].content"),
        ({"role": "user", "content": [{"type": "input_video"}]}, "input[0].content[0].type"),
        ({"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}, "input[0].content[0].file_id"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "input[0].content[0].text"),
        ({"role": "assistant", "content": [{"type": "input_image"}]}, "input[0].content[0].type"),
        (function_call("c", name=None), "input[0].name"),  # type: ignore[arg-type]
        ({"type": "function_call_output", "output": "x"}, "input[0].call_id"),
        (result("c", None), "input[0].output"),
    ],
)
def test_items_that_are_refused_are_named(item: Any, param: str) -> None:
    error = refusal(input=[item])
    assert error.param == param
    assert f"'{param}'" in error.message


# -- tools -------------------------------------------------------------------------------------------------------------


def test_tools_become_functions() -> None:
    shell, patch, read = chat(tools=[SHELL, PATCH, FILES])["tools"]
    assert shell == {"type": "function", "function": {key: SHELL[key] for key in SHELL if key != "type"}}
    assert patch["function"]["description"] == ("Edits files\nThe input must match this grammar (lark):\nstart: LINE+")
    assert patch["function"]["parameters"]["required"] == ["input"]
    assert read["function"]["name"] == "mcp__files__read"
    [bare] = chat(tools=[{"type": "function", "name": "f", "parameters": None, "strict": None}])["tools"]
    assert bare["function"] == {"name": "f", "parameters": {"type": "object", "properties": {}}}


def test_what_clients_call_their_tools_is_known() -> None:
    assert names_of(raw(tools=[SHELL, PATCH, FILES])) == {
        "shell": Called("shell"),
        "apply_patch": Called("apply_patch", is_custom=True),
        "mcp__files__read": Called("read", "mcp__files"),
    }
    assert names_of(raw(tools=None)) == names_of(raw()) == {}


def test_calls_in_a_namespace_are_known_to_engines_by_one_name() -> None:
    [message] = chat(input=[function_call("c", "read", namespace="mcp__files")], tools=[FILES])["messages"]
    assert message["tool_calls"][0]["function"]["name"] == "mcp__files__read"


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("required", "required"),
        ({"type": "function", "name": "shell"}, {"type": "function", "function": {"name": "shell"}}),
        ({"type": "custom", "name": "apply_patch"}, {"type": "function", "function": {"name": "apply_patch"}}),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "apply_patch"}]},
            "required",
        ),
    ],
)
def test_choices_of_tools(choice: Any, said: Any) -> None:
    sent = chat(tools=[SHELL, PATCH], tool_choice=choice)
    assert sent["tool_choice"] == said
    names = [tool["function"]["name"] for tool in sent["tools"]]
    assert names == (["apply_patch"] if "allowed_tools" in str(choice) else ["shell", "apply_patch"])


@pytest.mark.parametrize("tools", [{}, {"tools": []}, {"tools": None}])
def test_without_tools_nothing_is_said_of_them(tools: dict[str, Any]) -> None:
    """Engines refuse it, and agents say it always."""
    sent = chat(tool_choice="auto", parallel_tool_calls=True, **tools)
    assert sent.keys() == {"model", "messages"}
    assert refusal(tool_choice="required", **tools).param == "tool_choice"


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ("shell", None, "tools"),
        ([{"type": "web_search"}], None, "tools[0].type"),
        ([{"type": "mcp", "server_url": "http://x"}], None, "tools[0].type"),
        ([{"type": "function"}], None, "tools[0].name"),
        ([SHELL, SHELL], None, "tools[1].name"),
        ([FILES | {"tools": [{"type": "mcp"}]}], None, "tools[0].tools[0].type"),
        ([SHELL], "sometimes", "tool_choice"),
        ([SHELL], {"type": "web_search_preview"}, "tool_choice.type"),
        ([SHELL], {"type": "allowed_tools", "tools": [{"name": "other"}]}, "tool_choice.tools"),
        ([SHELL], {"type": "allowed_tools", "mode": "all", "tools": [{"name": "shell"}]}, "tool_choice.mode"),
    ],
)
def test_tools_that_are_refused_are_named(tools: Any, choice: Any, param: str) -> None:
    assert refusal(tools=tools, tool_choice=choice).param == param


# -- the other fields --------------------------------------------------------------------------------------------------


def test_forms_of_answers() -> None:
    schema = {"type": "object", "properties": {}}
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True, "description": None}
    assert chat(text={"format": form})["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": schema, "strict": True},
    }
    assert chat(text={"format": {"type": "json_object"}})["response_format"] == {"type": "json_object"}
    assert "response_format" not in chat(text={"format": {"type": "text"}})
    assert refusal(text={"format": {"type": "json_schema", "name": "n"}}).param == "text.format.schema"


def test_lengths_and_logprobs() -> None:
    assert chat(max_output_tokens=7)["max_tokens"] == 7
    sent = chat(include=["message.output_text.logprobs"])
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 0)
    assert chat(top_logprobs=2)["top_logprobs"] == 2
    assert chat(top_logprobs=0, include=["reasoning.encrypted_content"]).keys() == {"model", "messages"}


def test_options_of_engines_go_on_as_they_are() -> None:
    sent = chat(temperature=0.5, seed=3, repetition_penalty=1.1, unknown={"a": [1]})
    assert [sent[key] for key in ("temperature", "seed", "repetition_penalty", "unknown")] == [0.5, 3, 1.1, {"a": [1]}]


def test_an_answer_has_one_choice() -> None:
    assert refusal(n=2).param == "n"
    assert "n" not in chat(n=1)


@pytest.mark.parametrize("fields", [{"reasoning": "high"}, {"text": []}, {"include": "x"}, {"instructions": ["x"]}])
def test_values_of_another_type_are_named(fields: dict[str, Any]) -> None:
    assert refusal(**fields).param == next(iter(fields))
