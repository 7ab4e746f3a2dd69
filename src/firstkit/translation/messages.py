"""Anthropic Messages as a chat request. Protocol: https://docs.anthropic.com/en/api/messages."""

from __future__ import annotations

from typing import Any

from firstkit.translation.reading import Body, Object, Part, as_json, chat_body, joined, led, parts_of, plain, read

PASSED = frozenset(("model", "max_tokens", "stream", "temperature", "top_p", "top_k"))
"""Fields that mean the same there."""
TRANSLATED = frozenset(
    ("messages", "system", "stop_sequences", "tools", "tool_choice", "thinking", "output_config", "output_format")
)
DROPPED = frozenset(
    (
        "metadata", "service_tier", "inference_geo", "context_management", "cache_control", "speed", "diagnostics",
        "user_profile_id", "workspace_id", "billing_policy", "compaction", "fallbacks", "fallback_credit_token",
        "betas",
    )
)  # fmt: skip
"""Fields that ask how a service shall run, not what a model shall say."""
REFUSED = frozenset(("mcp_servers", "container", "thread"))
"""Fields by which the service itself would call others, or that name what only it keeps."""
TOOLS = ("custom",)
_OURS = TRANSLATED | DROPPED | REFUSED
_BILLING = "x-anthropic-billing-header"
"""So begins a line that one client adds, another in each request: it would keep prompts from being remembered."""
_SAID = ("text", "image", "document", "search_result")
_USER_BLOCKS = (*_SAID, "tool_result")
_RESULT_BLOCKS = (*_SAID, "tool_reference")
_ASSISTANT_BLOCKS = ("text", "thinking", "redacted_thinking", "tool_use")
_ROLES = ("user", "assistant", "system")
_CHOICES = {"auto": "auto", "any": "required", "none": "none", "tool": ""}
_EFFORTS = ("low", "medium", "high", "xhigh", "max")


def to_chat(body: Body) -> Body:
    """The chat request for a Messages request that was checked. Fields that are in none of the tables above go on as
    they are: options of engines. Raises InvalidRequest for what a chat engine cannot be told."""
    asked = read(body, TRANSLATED)
    said: Object = {"messages": led([*_system(asked.get("system", "")), *_conversation(asked.get("messages"))])}
    if asked.get("stop_sequences"):
        said["stop"] = asked["stop_sequences"]
    if "tools" in asked:
        said["tools"] = [_tool(part) for part in parts_of(asked["tools"], "tools")]
    if "tool_choice" in asked:
        said |= _choice(Part(asked["tool_choice"], "tool_choice"))
    if "thinking" in asked and Part(asked["thinking"], "thinking").get("type") == "disabled":
        said["reasoning_effort"] = "none"
    if "output_format" in asked:
        said |= _form(Part(asked["output_format"], "output_format"))
    if "output_config" in asked:
        said |= _output(Part(asked["output_config"], "output_config"))
    return chat_body(body, _OURS, said)


def _system(system: Any) -> list[Object]:
    texts = [system] if isinstance(system, str) else [part.text("text") for part in parts_of(system, "system")]
    return [{"role": "system", "content": joined(map(_without_billing, texts))}]


def _without_billing(text: str) -> str:
    return text.partition("\n")[2] if text.startswith(_BILLING) else text


def _conversation(messages: Any) -> list[Object]:
    said: list[Object] = []
    for part in parts_of(messages, "messages"):
        role, content = part.word("role", _ROLES), part.get("content")
        if role is None:
            raise part.wrong(f"must be one of {', '.join(_ROLES)}", "role")
        if role == "system":
            said += _system(content if isinstance(content, str) else [each.value for each in part.parts("content")])
        elif isinstance(content, str):
            said.append({"role": role, "content": content})
        elif role == "assistant":
            said.append(_assistant(part.parts("content")))
        else:
            said += _user(part.parts("content"))
    return said


# -- what people say ---------------------------------------------------------------------------------------------------


def _user(blocks: list[Part]) -> list[Object]:
    """Results of tools are messages of their own there, and come before what the user says."""
    results: list[Object] = []
    content: list[Object] = []
    for block in blocks:
        if block.kind(_USER_BLOCKS) == "tool_result":
            text, media = _result(block)
            results.append({"role": "tool", "tool_call_id": block.text("tool_use_id"), "content": text})
            content += media
        else:
            content.append(_said(block, _SAID))
    if content:
        results.append({"role": "user", "content": plain(content)})
    return results


def _result(block: Part) -> tuple[str, list[Object]]:
    """The text of a tool's result, and its media, which chat completions take only from users."""
    content, media = block.get("content"), []
    if isinstance(content, str):
        text = content
    elif content is None:
        text = ""
    else:
        said = [_said(part, _RESULT_BLOCKS) for part in block.parts("content")]
        text = joined(part["text"] for part in said if part["type"] == "text")
        media = [part for part in said if part["type"] != "text"]
    return f"Error: {text}" if block.get("is_error") is True else text, media


def _said(block: Part, allowed: tuple[str, ...]) -> Object:
    """A block that people say, or tools give, as a part of a chat message."""
    match block.kind(allowed):
        case "image":
            source = block.within("source")
            source.kind(("base64",))
            return {"type": "image_url", "image_url": {"url": _data_url(source)}}
        case "document":
            return _document(block)
        case "search_result":
            texts = [part.text("text") for part in block.parts("content")]
            return _text(block.told("title"), block.told("source"), *texts)
        case "tool_reference":
            return _text(f"The tool {block.text('tool_name')} can be called.")
    return _text(block.text("text"))


def _document(block: Part) -> Object:
    source, title = block.within("source"), block.told("title")
    match source.kind(("text", "content", "base64")):
        case "base64":
            return {"type": "file", "file": {"filename": title or "document.pdf", "file_data": _data_url(source)}}
        case "text":
            texts = [source.text("data")]
        case _:
            content = source.get("content")
            texts = [content] if isinstance(content, str) else [part.text("text") for part in source.parts("content")]
    return _text(title, block.told("context"), *texts)


def _text(*texts: str | None) -> Object:
    return {"type": "text", "text": joined(text for text in texts if text)}


def _data_url(source: Part) -> str:
    return f"data:{source.text('media_type')};base64,{source.text('data')}"


# -- what models say ---------------------------------------------------------------------------------------------------


def _assistant(blocks: list[Part]) -> Object:
    texts, thoughts, calls = [], [], []
    for block in blocks:
        match block.kind(_ASSISTANT_BLOCKS):
            case "text":
                texts.append(block.text("text"))
            case "thinking":
                thoughts.append(block.text("thinking"))
            case "tool_use":
                calls.append(_call(block))
    message: Object = {"role": "assistant", "content": joined(texts) or (None if calls else "")}
    if any(thoughts):
        message["reasoning_content"] = joined(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _call(block: Part) -> Object:
    function = {"name": block.text("name"), "arguments": as_json(block.within("input").value)}
    return {"id": block.text("id"), "type": "function", "function": function}


# -- tools and forms ---------------------------------------------------------------------------------------------------


def _tool(part: Part) -> Object:
    if part.get("type") is not None:
        part.kind(TOOLS)
    function: Object = {"name": part.text("name"), "parameters": part.within("input_schema").value}
    for key in ("description", "strict"):
        if part.get(key) is not None:
            function[key] = part.get(key)
    return {"type": "function", "function": function}


def _choice(part: Part) -> Object:
    kind = part.kind(tuple(_CHOICES))
    chosen: Object = {"tool_choice": _CHOICES[kind]}
    if kind == "tool":
        chosen["tool_choice"] = {"type": "function", "function": {"name": part.text("name")}}
    if part.get("disable_parallel_tool_use"):
        chosen["parallel_tool_calls"] = False
    return chosen


def _output(part: Part) -> Object:
    chosen = _form(part.within("format")) if part.get("format") is not None else {}
    if (effort := part.word("effort", _EFFORTS)) is not None:
        chosen["reasoning_effort"] = effort
    return chosen


def _form(part: Part) -> Object:
    part.kind(("json_schema",))
    schema = {"name": "answer", "schema": part.within("schema").value, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
