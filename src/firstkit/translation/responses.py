"""OpenAI Responses as a chat request. Protocol: https://platform.openai.com/docs/api-reference/responses."""

from __future__ import annotations

from typing import Any

from firstkit.errors import InvalidRequest
from firstkit.translation.reading import Body, Object, Part, as_json, chat_body, joined, led, parts_of, plain, read
from firstkit.translation.responses_tools import TOOLS, Names, choice_of, functions_of, known_as

__all__ = ("DROPPED", "PASSED", "REFUSED", "TOOLS", "TRANSLATED", "names_of", "to_chat")

PASSED = frozenset(("model", "stream", "temperature", "top_p", "parallel_tool_calls", "user"))
"""Fields that mean the same there."""
TRANSLATED = frozenset(
    (
        "input", "instructions", "tools", "tool_choice", "text", "reasoning", "max_output_tokens", "top_logprobs",
        "include",
    )
)  # fmt: skip
DROPPED = frozenset(
    (
        "metadata", "client_metadata", "store", "truncation", "service_tier", "prompt_cache_key",
        "prompt_cache_retention", "prompt_cache_options", "safety_identifier", "max_tool_calls", "stream_options",
        "previous_response_id", "context_management", "access_programs", "background_options", "image",
    )
)  # fmt: skip
"""Fields that ask how a service shall run, or that the gateway has answered before it translates."""
REFUSED = frozenset(("background", "conversation", "prompt", "moderation"))
"""Fields that ask for what only the service of others does or keeps, unless they ask for nothing."""
_OURS = TRANSLATED | DROPPED | REFUSED
_SAID_BY_PEOPLE = ("input_text", "input_image", "input_file", "input_audio", "text", "output_text")
_SAID_BY_MODELS = ("output_text", "refusal", "input_text", "text")
_SAID_BY_TOOLS = ("input_text", "input_image", "input_file", "output_text", "text")
_ITEMS = (
    "message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output", "reasoning",
)  # fmt: skip
_ROLES = ("user", "assistant", "system", "developer")


def to_chat(body: Body) -> Body:
    """The chat request for a Responses request that was checked. Fields that are in none of the tables above go on as
    they are: options of engines. Raises InvalidRequest for what a chat engine cannot be told."""
    asked = read(body, TRANSLATED)
    said: Object = {"messages": _messages(asked)}
    if "tools" in asked:
        said["tools"], _ = functions_of(asked["tools"])
    if "tool_choice" in asked:
        said |= choice_of(asked["tool_choice"], said.get("tools", []))
    if "text" in asked:
        said |= _form(Part(asked["text"], "text"))
    if "max_output_tokens" in asked:
        said["max_tokens"] = asked["max_output_tokens"]
    if "reasoning" in asked and (effort := Part(asked["reasoning"], "reasoning").told("effort")):
        said["reasoning_effort"] = effort
    if asked.get("top_logprobs") or "message.output_text.logprobs" in _included(asked.get("include", [])):
        said |= {"logprobs": True, "top_logprobs": asked.get("top_logprobs") or 0}
    return chat_body(body, _OURS, said)


def names_of(body: Body) -> Names:
    """What the client calls each of its tools, by the name that a chat engine knows. Raises InvalidRequest."""
    return functions_of(read(body, ("tools",)).get("tools", []))[1]


def _included(asked: Any) -> list[Any]:
    if not isinstance(asked, list):
        raise InvalidRequest("'include' must be a list of strings.", param="include")
    return asked


def _messages(asked: Object) -> list[Object]:
    said: list[Object] = []
    if (instructions := asked.get("instructions")) is not None:
        if not isinstance(instructions, str):
            raise InvalidRequest("'instructions' must be a string.", param="instructions")
        said.append({"role": "system", "content": instructions})
    if isinstance(items := asked.get("input"), str):
        return led([*said, {"role": "user", "content": items}])
    conversation = _Conversation()
    for item in parts_of(items, "input"):
        conversation.add(item)
    return led([*said, *conversation.whole()])


class _Conversation:
    """Chat messages in the making. What a model says between two others is one message of it there."""

    def __init__(self) -> None:
        self._said: list[Object] = []
        self._thoughts: list[str] = []
        """Of the message of the model that comes next, or is under way."""
        self._seen: list[Object] = []
        """What tools gave that is no text: chat completions take it only from users, after all results."""

    def add(self, item: Part) -> None:
        """The next item. Raises InvalidRequest."""
        kind = item.kind(_ITEMS, usual="message")
        if kind in ("function_call_output", "custom_tool_call_output"):
            self._add_result(item)
            return
        self._show()
        if kind == "reasoning":
            self._thoughts += _thoughts(item)
        elif kind in ("function_call", "custom_tool_call"):
            self._of_model().setdefault("tool_calls", []).append(_call(item, kind))
        elif (role := item.word("role", _ROLES)) == "assistant":
            message = self._of_model()
            message["content"] = joined((message["content"] or "", _words(item)))
        else:
            self._add_message("system" if role == "developer" else role, item)  # chat templates know no developers

    def whole(self) -> list[Object]:
        """All messages."""
        self._show()
        for message in self._said:
            if message["content"] is None and "tool_calls" not in message:
                message["content"] = ""
        return self._said

    def _of_model(self) -> Object:
        """The message of the model that is under way, or a new one."""
        if not self._said or self._said[-1]["role"] != "assistant":
            self._said.append({"role": "assistant", "content": None})
        message = self._said[-1]
        if self._thoughts:
            message["reasoning_content"] = joined((message.get("reasoning_content", ""), *self._thoughts))
            self._thoughts = []
        return message

    def _add_message(self, role: str | None, item: Part) -> None:
        if role is None:
            raise item.wrong(f"must be one of {', '.join(_ROLES)}", "role")
        self._thoughts = []
        content = item.get("content")
        if role == "system":
            content = _words(item)
        elif not isinstance(content, str):
            content = plain([_said(part, _SAID_BY_PEOPLE) for part in item.parts("content")])
        self._said.append({"role": role, "content": content})

    def _add_result(self, item: Part) -> None:
        self._thoughts = []
        text, output = item.get("output"), []
        if not isinstance(text, str):
            output = [_said(part, _SAID_BY_TOOLS) for part in item.parts("output")]
            text = joined(part["text"] for part in output if part["type"] == "text")
        self._said.append({"role": "tool", "tool_call_id": item.text("call_id"), "content": text})
        self._seen += [part for part in output if part["type"] != "text"]

    def _show(self) -> None:
        if self._seen:
            self._said.append({"role": "user", "content": self._seen})
            self._seen = []


def _words(item: Part) -> str:
    """What a message says, all in words."""
    content = item.get("content")
    if isinstance(content, str):
        return content
    return joined(
        part.text("refusal" if part.kind(_SAID_BY_MODELS) == "refusal" else "text") for part in item.parts("content")
    )


def _said(part: Part, allowed: tuple[str, ...]) -> Object:
    """A part that people say or tools give, as a part of a chat message."""
    kind = part.kind(allowed)
    if kind in ("input_image", "input_file") and part.get("file_id") is not None:
        raise part.wrong("names a file that this service does not have; send its data", "file_id")
    if kind == "input_image":
        image: Object = {"url": part.text("image_url")}
        if part.get("detail") is not None:
            image["detail"] = part.get("detail")
        return {"type": "image_url", "image_url": image}
    if kind == "input_file":
        return {"type": "file", "file": {"filename": part.told("filename"), "file_data": part.text("file_data")}}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": part.within("input_audio").value}
    return {"type": "text", "text": part.text("text")}


def _thoughts(item: Part) -> list[str]:
    """In words: what others encrypted, only they can read."""
    key = "content" if item.get("content") else "summary"
    return [part.text("text") for part in item.parts(key)] if item.get(key) else []


def _call(item: Part, kind: str) -> Object:
    arguments = item.text("arguments") if kind == "function_call" else as_json({"input": item.text("input")})
    function = {"name": known_as(item), "arguments": arguments}
    return {"id": item.text("call_id"), "type": "function", "function": function}


def _form(part: Part) -> Object:
    chosen: Object = {}
    if part.get("verbosity") is not None:
        chosen["verbosity"] = part.get("verbosity")
    if part.get("format") is not None:
        form = part.within("format")
        match form.kind(("text", "json_object", "json_schema")):
            case "json_object":
                chosen["response_format"] = {"type": "json_object"}
            case "json_schema":
                schema: Object = {"name": form.get("name") or "answer", "schema": form.within("schema").value}
                schema |= {key: form.get(key) for key in ("strict", "description") if form.get(key) is not None}
                chosen["response_format"] = {"type": "json_schema", "json_schema": schema}
    return chosen
