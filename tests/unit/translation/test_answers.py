"""What is told of answers of chat engines: one thing of each at a time, in both protocols."""

from __future__ import annotations

import json
from typing import Any

import pytest

from firstkit.errors import EngineFailed
from firstkit.links.messages import Outcome, Tail, Usage
from firstkit.translation.chat import Translator
from firstkit.translation.messages_answer import SIGNATURE, STOP
from unit.translation.support import (
    TAIL,
    call,
    chunk,
    completion,
    event,
    message,
    message_answer,
    message_events,
    response,
    response_answer,
    response_events,
    stream,
)

FILES = {
    "type": "namespace",
    "name": "mcp__files",
    "description": "Files",
    "tools": [{"type": "function", "name": "read"}, {"type": "custom", "name": "patch"}],
}
PATCH = {"type": "custom", "name": "patch"}
LOGPROBS = {"content": [{"token": "é", "logprob": -1, "bytes": None, "id": 7, "top_logprobs": []}]}
BOTH = [response_answer, message_answer]
STOPPED = chunk("stop")


def as_response(*pieces: bytes, **request: Any) -> list[Any]:
    """The events of Responses."""
    return response_events(stream(response_answer(**request), pieces))


def as_message(*pieces: bytes) -> list[Any]:
    """The events of Messages."""
    return message_events(stream(message_answer(), pieces))


def kinds(events: list[Any]) -> list[str]:
    return [event.type.removeprefix("response.").removeprefix("content_block_") for event in events]


def output_of(events: list[Any]) -> list[Any]:
    """The items of the last event."""
    return list(events[-1].response.output)


# -- the order of things -----------------------------------------------------------------------------------------------


def test_the_order_of_responses() -> None:
    events = as_response(chunk(role="assistant", content=""), chunk(reasoning="r"), chunk(content="x"), STOPPED)
    begin, end = ["output_item.added", "content_part.added"], ["content_part.done", "output_item.done"]
    assert kinds(events) == [
        "created",
        "in_progress",
        *begin,
        "reasoning_text.delta",
        "reasoning_text.done",
        *end,
        *begin,
        "output_text.delta",
        "output_text.done",
        *end,
        "completed",
    ]
    assert [event.output_index for event in events[2:-1]] == [0] * 6 + [1] * 6
    assert len({event.response.id for event in (events[0], events[1], events[-1])}) == 1


def test_the_order_of_messages() -> None:
    events = as_message(chunk(role="assistant", content=""), chunk(reasoning_content="r"), chunk(content="x"), STOPPED)
    assert kinds(events) == [
        "message_start",
        *("start", "delta", "delta", "stop"),
        *("start", "delta", "stop"),
        "message_delta",
        "message_stop",
    ]
    assert [event.index for event in events[1:-2]] == [0] * 4 + [1] * 3
    assert events[3].delta.signature == SIGNATURE
    assert stream(message_answer(), [STOPPED]).endswith(STOP)


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_an_empty_answer_has_an_empty_text(reason: str) -> None:
    """Clients take the first item, or block, for granted."""
    for pieces in ([chunk(content=""), chunk(reason)], [chunk(reason)]):
        [item] = output_of(as_response(*pieces))
        assert [(part.type, part.text) for part in item.content] == [("output_text", "")]
        events = as_message(*pieces)
        assert kinds(events)[1:3] == ["start", "stop"]
    said = completion(reason, content=None)
    assert response(response_answer().whole(said, TAIL)).output_text == ""
    assert [block.type for block in message(message_answer().whole(said, TAIL)).content] == ["text"]


def test_texts_between_calls_keep_their_place() -> None:
    pieces = [chunk(content="a"), chunk(tool_calls=[call(0, "{}", "f", "c")]), chunk(content="b"), chunk("tool_calls")]
    assert [item.type for item in output_of(as_response(*pieces))] == ["message", "function_call", "message"]
    blocks = [each.content_block.type for each in as_message(*pieces) if each.type == "content_block_start"]
    assert blocks == ["text", "tool_use", "text"]


# -- calls of tools ----------------------------------------------------------------------------------------------------


def calls_of(*pieces: bytes) -> list[tuple[str, str, str]]:
    """Id, name and arguments of the calls that are told, which are the same in both protocols."""
    items = output_of(as_response(*pieces))
    told = [(item.call_id, item.name, item.arguments) for item in items if item.type == "function_call"]
    blocks: list[list[str]] = []
    for each in as_message(*pieces):
        if each.type == "content_block_start" and each.content_block.type == "tool_use":
            blocks.append([each.content_block.id, each.content_block.name, ""])
        elif each.type == "content_block_delta" and each.delta.type == "input_json_delta":
            blocks[-1][2] += each.delta.partial_json
    assert [tuple(block[1:]) for block in blocks] == [each[1:] for each in told]
    return told


def test_calls_in_pieces() -> None:
    pieces = [
        chunk(tool_calls=[call(0, "", "f", "a")]),
        chunk(tool_calls=[call(0, '{"x":')]),
        chunk(tool_calls=[call(0, "1}"), call(1, "{}", "g", "b")]),
        chunk("tool_calls"),
    ]
    assert calls_of(*pieces) == [("a", "f", '{"x":1}'), ("b", "g", "{}")]


def test_calls_that_all_have_one_index() -> None:
    pieces = [chunk(tool_calls=[call(0, "{}", "f", "a")]), chunk(tool_calls=[call(0, "{}", "f", "b")])]
    assert calls_of(*pieces, STOPPED) == [("a", "f", "{}"), ("b", "f", "{}")]


def test_pieces_that_repeat_what_is_known() -> None:
    first, again = call(0, "{", "f", "a"), call(0, "}", "f", "a")
    other_id = call(0, " ", None, "made-up")
    pieces = [chunk(tool_calls=[each]) for each in (first, other_id, again)]
    assert calls_of(*pieces, STOPPED) == [("a", "f", "{ }")]


def test_a_call_without_an_id_gets_one() -> None:
    [(call_id, name, _)] = calls_of(chunk(tool_calls=[call(0, "{}", "f")]), STOPPED)
    assert name == "f"
    assert call_id.startswith("call_")
    said = completion("tool_calls", tool_calls=[{"function": {"name": "f", "arguments": ""}}])
    [block] = message(message_answer().whole(said, TAIL)).content
    assert block.type == "tool_use"
    assert block.id.startswith("call_")
    assert block.input == {}


@pytest.mark.parametrize("answer", BOTH)
@pytest.mark.parametrize(
    "pieces",
    [
        [chunk(tool_calls=[call(0, "{}")])],
        [chunk(tool_calls=[call(0, "{}", "", "a")])],
        [chunk(tool_calls=[call(0, "{", "f", "a"), call(1, "{", "g", "b"), call(0, "}")])],
        [chunk("abort", content="half")],
        [b"data: {\n\n"],
        [event({"choices": [{"delta": {"content": 1}}]})],
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_the_engines_fault(answer: Any, pieces: list[bytes]) -> None:
    """Among it: a piece of a call that is over, since others can go on with the last only."""
    translator: Translator = answer()
    with pytest.raises(EngineFailed):
        translator.events(b"".join(pieces))


@pytest.mark.parametrize("answer", BOTH)
@pytest.mark.parametrize(
    "said", [b"{}", b'{"choices":[]}', b'{"choices":[{"index":0}]}', b"[]", completion("error", content="x")]
)
def test_plain_answers_that_make_no_sense(answer: Any, said: bytes) -> None:
    with pytest.raises(EngineFailed):
        answer().whole(said, TAIL)


def test_custom_tools_get_their_text() -> None:
    pieces = [chunk(tool_calls=[call(0, '{"inp', "patch", "a")]), chunk(tool_calls=[call(0, 'ut":"x\\ny"}')]), STOPPED]
    events = as_response(*pieces, tools=[PATCH])
    assert kinds(events)[3:5] == ["custom_tool_call_input.delta", "custom_tool_call_input.done"]
    assert events[3].delta == events[4].input == "x\ny"
    [item] = output_of(events)
    assert (item.type, item.call_id, item.name, item.input) == ("custom_tool_call", "a", "patch", "x\ny")


@pytest.mark.parametrize("arguments", ["free text", '{"other":1}', "[1]", '{"input":1}', ""])
def test_custom_tools_that_were_called_wrongly_get_what_was_said(arguments: str) -> None:
    said = completion("tool_calls", tool_calls=[call(0, arguments, "patch", "a")])
    [item] = response(response_answer(tools=[PATCH]).whole(said, TAIL)).output
    assert item.type == "custom_tool_call"
    assert item.input == arguments


def test_tools_get_back_their_namespaces() -> None:
    pieces = [
        chunk(tool_calls=[call(0, "{}", "mcp__files__read", "a")]),
        chunk(tool_calls=[call(1, '{"input":"x"}', "mcp__files__patch", "b"), call(2, "{}", "unknown", "c")]),
        STOPPED,
    ]
    items = output_of(as_response(*pieces, tools=[FILES]))
    told = [(item.type, item.name, item.namespace) for item in items]
    assert told == [
        ("function_call", "read", "mcp__files"),
        ("custom_tool_call", "patch", "mcp__files"),
        ("function_call", "unknown", None),
    ]


@pytest.mark.parametrize(
    ("arguments", "given"),
    [('{"a":1.0}', {"a": 1.0}), ("", {}), ("[1]", {"arguments": [1]}), ("oops", {"arguments": "oops"}),
     ('{"a":NaN}', {"arguments": '{"a":NaN}'}), ('{"a":1e999}', {"arguments": '{"a":1e999}'}), ("[" * 9999, None)],
)  # fmt: skip
def test_arguments_of_plain_messages_are_an_object(arguments: str, given: Any) -> None:
    said = completion("tool_calls", tool_calls=[call(0, arguments, "f", "a")])
    [block] = message(message_answer().whole(said, TAIL)).content
    assert block.type == "tool_use"
    assert block.input == ({"arguments": arguments} if given is None else given)


# -- how answers end ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finish", "stopped_at", "has_calls", "reason", "status"),
    [
        ("stop", None, False, "end_turn", "completed"),
        ("stop", "END", False, "stop_sequence", "completed"),
        ("stop", 151645, False, "end_turn", "completed"),
        ("length", None, False, "max_tokens", "incomplete"),
        ("length", None, True, "max_tokens", "incomplete"),
        ("content_filter", None, False, "refusal", "incomplete"),
        ("tool_calls", None, True, "tool_use", "completed"),
        ("stop", None, True, "tool_use", "completed"),
        ("tool_calls", None, False, "end_turn", "completed"),
        ("eos", None, False, "end_turn", "completed"),
    ],
)
def test_why_an_answer_ended(finish: str, stopped_at: Any, has_calls: bool, reason: str, status: str) -> None:
    said = {"content": "x"} | ({"tool_calls": [call(0, "{}", "f", "a")]} if has_calls else {})
    for field in ("stop_reason", "matched_stop"):
        last = event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish, field: stopped_at}]})
        delta = as_message(chunk(**said), last)[-2].delta
        whole = json.loads(completion(finish, **said))
        whole["choices"][0][field] = stopped_at
        plain = message(message_answer().whole(json.dumps(whole).encode(), TAIL))
        for told in (delta, plain):
            assert told.stop_reason == reason
            assert told.stop_sequence == (stopped_at if reason == "stop_sequence" else None)
    ended = as_response(chunk(**said), chunk(finish))[-1].response
    plain_response = response(response_answer().whole(completion(finish, **said), TAIL))
    for found in (ended, plain_response):
        assert found.status == status
        assert (found.incomplete_details is not None) == (status == "incomplete") == (found.completed_at is None)
        assert [item.status for item in found.output] == ["completed"] * (len(found.output) - 1) + [status]


def test_refusals() -> None:
    events = as_response(chunk(refusal="I "), chunk(refusal="won't"), STOPPED)
    assert kinds(events)[4:7] == ["refusal.delta", "refusal.delta", "refusal.done"]
    [item] = output_of(events)
    assert [(part.type, part.refusal) for part in item.content] == [("refusal", "I won't")]
    said = completion(content=None, refusal="no")
    [item] = response(response_answer().whole(said, TAIL)).output
    assert item.type == "message"
    assert item.content[0].type == "refusal"
    [block] = message(message_answer().whole(said, TAIL)).content
    assert block.type == "text"
    assert block.text == "no"


def test_numbers_are_those_of_the_ledger() -> None:
    """Whatever the engine says: of it only what its numbers consist of is told, and no more than there is."""
    details = {"prompt_tokens_details": {"cached_tokens": 20}, "completion_tokens_details": {"reasoning_tokens": 99}}
    usage = event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1, **details}})
    told = as_response(chunk(content="x"), STOPPED, usage)[-1].response.usage
    assert (told.input_tokens, told.output_tokens, told.total_tokens) == (30, 12, 42)
    assert (told.input_tokens_details.cached_tokens, told.output_tokens_details.reasoning_tokens) == (20, 12)
    spent = as_message(chunk(content="x"), STOPPED, usage)[-2].usage
    assert (spent.input_tokens, spent.cache_read_input_tokens, spent.output_tokens) == (10, 20, 12)
    nothing = Tail(Outcome.COMPLETE)
    assert response_events(stream(response_answer(), [STOPPED], nothing))[-1].response.usage.total_tokens == 0


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_logprobs() -> None:
    events = as_response(chunk(content="é", logprobs=LOGPROBS), chunk(content="!"), STOPPED)
    deltas = [each for each in events if each.type == "response.output_text.delta"]
    assert [[each.token for each in delta.logprobs] for delta in deltas] == [["é"], []]
    [item] = output_of(events)
    plain = response(response_answer().whole(completion(content="é!", logprobs=LOGPROBS), TAIL)).output[0]
    assert plain.type == "message"
    for part in (item.content[0], plain.content[0]):
        [told] = part.logprobs
        assert (told.token, told.logprob, told.bytes, told.top_logprobs) == ("é", -1.0, [195, 169], [])


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (",\n", ":")])
def test_logprobs_are_handed_on_as_they_are_where_that_can_be(separators: tuple[str, str]) -> None:
    """They may be spread over lines of an event: what is told has one."""
    one = {"token": '"bytes":[', "logprob": -0.5, "bytes": [34]}
    said = {"content": [{**one, "top_logprobs": [one, one]}, {**one, "top_logprobs": []}]}
    data = json.dumps({"choices": [{"index": 0, "delta": {"content": "x"}, "logprobs": said}]}, separators=separators)
    piece = "".join(f"data: {line}\n" for line in data.split("\n")).encode() + b"\n"
    [item] = output_of(as_response(piece, chunk(content="y", logprobs=said), STOPPED))
    assert [each.to_dict() for each in item.content[0].logprobs] == 2 * said["content"]


@pytest.mark.parametrize("content", [[{"token": "x"}], [1], "x", {"token": "x"}])
def test_logprobs_that_are_none(content: Any) -> None:
    with pytest.raises(EngineFailed):
        response_answer().events(chunk(content="x", logprobs={"content": content}))


def test_only_the_first_choice_counts() -> None:
    pieces = [chunk(content="a"), chunk(index=1, content="b"), chunk("length", index=1), STOPPED]
    assert as_response(*pieces)[-1].response.output_text == "a"
    assert as_message(*pieces)[-2].delta.stop_reason == "end_turn"


def test_what_says_nothing() -> None:
    pieces = [b": comment\n\n", chunk(), event({"choices": None}), chunk(content="a") + chunk(content="b") + STOPPED]
    assert as_response(*pieces)[-1].response.output_text == "ab"


def test_a_response_repeats_its_request() -> None:
    asked = {
        "instructions": "Be brief.",
        "temperature": 0.25,
        "tools": [PATCH],
        "tool_choice": None,
        "parallel_tool_calls": False,
        "metadata": {"a": "b"},
        "reasoning": {"effort": "low"},
        "text": None,
        "service_tier": "priority",
        "truncation": "auto",
        "background": None,
    }
    told = as_response(STOPPED, **asked)[0].response
    assert (told.instructions, told.temperature, told.metadata) == ("Be brief.", 0.25, {"a": "b"})
    assert (told.tool_choice, told.parallel_tool_calls, told.tools[0].name) == ("auto", False, "patch")
    assert (told.reasoning.effort, told.text.format.type) == ("low", "text")
    assert (told.service_tier, told.truncation, told.background, told.store) == ("default", "disabled", False, False)


def test_numbers_of_tokens_cannot_be_negative() -> None:
    tail = Tail(Outcome.COMPLETE, Usage(3, 1))
    said = json.loads(completion(content="x")) | {"usage": {"prompt_tokens_details": {"cached_tokens": 9}}}
    usage = message(message_answer().whole(json.dumps(said).encode(), tail)).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens) == (0, 3)
