"""Messages requests as chat requests: what agents really send, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from firstkit.errors import InvalidRequest
from firstkit.translation.messages import to_chat
from unit.translation.support import plain, raw

CACHED = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
BASH = {"name": "Bash", "description": "Runs a command", "input_schema": {"type": "object", "properties": {}}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
HI = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> dict[str, Any]:
    """The chat request for a Messages request."""
    return plain(to_chat(raw(model="m", max_tokens=9, **{"messages": HI, **fields})))


def said(*blocks: Any, role: str = "user", **fields: Any) -> list[Any]:
    """The messages that an engine gets for one message of such blocks."""
    return list(chat(messages=[{"role": role, "content": list(blocks)}], **fields)["messages"])


def refusal(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        to_chat(raw(model="m", max_tokens=9, **{"messages": HI, **fields}))
    return caught.value


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def result(content: Any, tool_use_id: str = "t1", **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": tool_use_id, "content": content, **more}


# -- a whole request of an agent ---------------------------------------------------------------------------------------


def test_a_turn_of_claude_code() -> None:
    """As it is sent in the middle of a task: cached blocks of system, thoughts with signatures, results of tools."""
    sent = chat(
        system=[
            text("x-anthropic-billing-header: cc_version=2.1; cch=abc"),
            text("You are an agent.", **CACHED),
            text("Be brief.", **CACHED),
        ],
        messages=[
            {"role": "user", "content": [text("<system-reminder>"), text("Fix it.", **CACHED)]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Look first.", "signature": "EqQB"},
                    {"type": "redacted_thinking", "data": "AAAA"},
                    text("I look."),
                    {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "ls"}},
                    {"type": "tool_use", "id": "t2", "name": "Bash", "input": {}, **CACHED},
                ],
            },
            {
                "role": "user",
                "content": [result("a.py"), result([text("no")], "t2", is_error=True, **CACHED), text("And?")],
            },
        ],
        tools=[BASH | CACHED | {"type": "custom", "eager_input_streaming": True}],
        tool_choice={"type": "auto", "disable_parallel_tool_use": True},
        metadata={"user_id": "u" * 100},
        thinking={"type": "enabled", "budget_tokens": 1024},
        context_management={"edits": []},
        output_config={"effort": "high"},
        service_tier="auto",
        stream=True,
        temperature=1,
    )
    assert sent == {
        "model": "m",
        "max_tokens": 9,
        "stream": True,
        "temperature": 1,
        "reasoning_effort": "high",
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "Bash",
                    "description": "Runs a command",
                    "parameters": {"type": "object", "properties": {}},
                },
            }
        ],
        "messages": [
            {"role": "system", "content": "You are an agent.\nBe brief."},
            {"role": "user", "content": "<system-reminder>\nFix it."},
            {
                "role": "assistant",
                "content": "I look.",
                "reasoning_content": "Look first.",
                "tool_calls": [
                    {"id": "t1", "type": "function", "function": {"name": "Bash", "arguments": '{"command":"ls"}'}},
                    {"id": "t2", "type": "function", "function": {"name": "Bash", "arguments": "{}"}},
                ],
            },
            {"role": "tool", "tool_call_id": "t1", "content": "a.py"},
            {"role": "tool", "tool_call_id": "t2", "content": "Error: no"},
            {"role": "user", "content": "And?"},
        ],
    }


# -- the conversation --------------------------------------------------------------------------------------------------


def test_a_line_that_differs_each_time_is_left_out() -> None:
    line = "x-anthropic-billing-header: cch=abc"
    assert chat(system=f"{line}\nBe brief.")["messages"][0] == {"role": "system", "content": "Be brief."}
    assert chat(system=line)["messages"] == HI
    assert chat(messages=[{"role": "system", "content": [text(line)]}, *HI])["messages"] == HI


def test_what_systems_say_later_is_said_first() -> None:
    messages = [*HI, {"role": "system", "content": "Be brief."}]
    assert chat(system="You help.", messages=messages)["messages"][0]["content"] == "You help.\nBe brief."


def test_pictures_of_tools_come_from_a_user_after_all_results() -> None:
    blocks = (result([text("seen"), IMAGE]), result("2", "t2"), text("so?"))
    first, second, shown = said(*blocks)
    assert [first["content"], second["content"]] == ["seen", "2"]
    assert shown == {"role": "user", "content": [IMAGE_PART, {"type": "text", "text": "so?"}]}


@pytest.mark.parametrize("content", [None, "", []])
def test_a_result_without_words(content: Any) -> None:
    assert said(result(content)) == [{"role": "tool", "tool_call_id": "t1", "content": ""}]


def test_tools_that_were_found_are_named() -> None:
    [message] = said(result([{"type": "tool_reference", "tool_name": "Grep"}]))
    assert message["content"] == "The tool Grep can be called."


@pytest.mark.parametrize(
    ("block", "part"),
    [
        (IMAGE, IMAGE_PART),
        (
            {"type": "document", "title": "t", "source": {"type": "text", "media_type": "text/plain", "data": "d"}},
            {"type": "text", "text": "t\nd"},
        ),
        (
            {"type": "document", "context": "c", "source": {"type": "content", "content": [text("d")]}},
            {"type": "text", "text": "c\nd"},
        ),
        (
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AA=="}},
            {"type": "file", "file": {"filename": "document.pdf", "file_data": "data:application/pdf;base64,AA=="}},
        ),
        (
            {"type": "search_result", "title": "t", "source": "s", "content": [text("a"), text("b")]},
            {"type": "text", "text": "t\ns\na\nb"},
        ),
    ],
)
def test_what_people_show(block: Any, part: Any) -> None:
    [message] = said(IMAGE, block)
    assert message["content"] == [IMAGE_PART, part]


def test_an_answer_without_words() -> None:
    assert said(role="assistant") == [{"role": "assistant", "content": ""}]
    call = {"type": "tool_use", "id": "t", "name": "Bash", "input": {}}
    [message] = said({"type": "thinking", "thinking": "", "signature": ""}, call, role="assistant")
    assert message["content"] is None
    assert "reasoning_content" not in message


@pytest.mark.parametrize(
    ("block", "role", "param"),
    [
        ({"type": "server_tool_use", "id": "s", "name": "web_search"}, "assistant", "messages[0].content[0].type"),
        ({"type": "web_search_tool_result"}, "user", "messages[0].content[0].type"),
        ({"type": "container_upload", "file_id": "f"}, "user", "messages[0].content[0].type"),
        (IMAGE | {"source": {"type": "file", "file_id": "f"}}, "user", "messages[0].content[0].source.type"),
        ({"type": "image"}, "user", "messages[0].content[0].source"),
        (text(None), "user", "messages[0].content[0].text"),  # type: ignore[arg-type]
        (result([{"type": "video"}]), "user", "messages[0].content[0].content[0].type"),
        (result("x", None), "user", "messages[0].content[0].tool_use_id"),  # type: ignore[arg-type]
        ({"type": "tool_use", "id": "t", "name": "n", "input": "x"}, "assistant", "messages[0].content[0].input"),
        ("x", "user", "messages[0].content[0]"),
        (text("x"), "tool", "messages[0].role"),
        (text("x"), None, "messages[0].role"),
    ],
)
def test_blocks_that_are_refused_are_named(block: Any, role: Any, param: str) -> None:
    error = refusal(messages=[{"role": role, "content": [block]}])
    assert error.param == param
    assert f"'{param}'" in error.message


# -- tools and the other fields ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "Bash"}, {"type": "function", "function": {"name": "Bash"}}),
    ],
)
def test_choices_of_tools(choice: Any, said: Any) -> None:
    sent = chat(tools=[BASH | {"strict": True}], tool_choice=choice)
    assert sent["tool_choice"] == said
    assert sent["tools"][0]["function"]["strict"] is True
    assert "parallel_tool_calls" not in sent


def test_without_tools_nothing_is_said_of_them() -> None:
    assert chat(tools=[], tool_choice={"type": "auto", "disable_parallel_tool_use": True}).keys() == chat().keys()
    assert refusal(tool_choice={"type": "any"}).param == "tool_choice"


def test_tools_that_services_run_are_refused() -> None:
    assert refusal(tools=[{"type": "web_search_20250305", "name": "web_search"}]).param == "tools[0].type"
    assert refusal(tools=[{"name": "f"}]).param == "tools[0].input_schema"


def test_forms_of_answers() -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    schema = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    assert chat(output_config={"format": form})["response_format"]["json_schema"] == schema
    assert chat(output_format=form)["response_format"]["json_schema"] == schema
    assert refusal(output_config={"format": {"type": "xml"}}).param == "output_config.format.type"


def test_thinking_and_stops() -> None:
    assert chat(thinking={"type": "disabled"})["reasoning_effort"] == "none"
    assert chat(thinking={"type": "adaptive"}).keys() == chat().keys()
    assert chat(stop_sequences=["END"])["stop"] == ["END"]
    assert refusal(output_config={"effort": "extreme"}).param == "output_config.effort"
    assert refusal(thinking="on").param == "thinking"


def test_options_of_engines_go_on_as_they_are() -> None:
    sent = chat(top_k=5, min_p=0.1, chat_template_kwargs={"enable_thinking": False})
    assert (sent["top_k"], sent["min_p"], sent["chat_template_kwargs"]) == (5, 0.1, {"enable_thinking": False})
