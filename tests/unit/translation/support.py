"""Shared by the tests of translation: requests, streams of chat engines, and what the SDKs make of answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import msgspec
import openai
from anthropic.types import Message, RawMessageStreamEvent
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from firstkit.links.messages import Outcome, Tail, Usage
from firstkit.translation import responses
from firstkit.translation.chat import Translator
from firstkit.translation.messages_answer import MessageAnswer
from firstkit.translation.reading import Body
from firstkit.translation.responses_answer import ResponseAnswer, described

FIXTURES = Path(__file__).parent / "fixtures"
MODEL = "the-model"
TAIL = Tail(Outcome.COMPLETE, Usage(30, 12))
RESPONSES_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
MESSAGES_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
SOME_ID = re.compile(r'"((?:resp|msg|rs|fc|ctc|call)_)[0-9a-f]{24}"')
TIMES = re.compile(r'"(created_at|completed_at)":\d+')


# -- requests ----------------------------------------------------------------------------------------------------------


def raw(**fields: Any) -> Body:
    """A request as the gateway has it."""
    return {key: msgspec.Raw(json.dumps(value).encode()) for key, value in fields.items()}


def plain(body: Body) -> dict[str, Any]:
    """What an engine reads of a request."""
    return {key: json.loads(bytes(value)) for key, value in body.items()}


# -- answers -----------------------------------------------------------------------------------------------------------


def chunk(finish: str | None = None, index: int = 0, logprobs: Any = None, **delta: Any) -> bytes:
    """One chunk of a chat engine."""
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    return event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]})


def event(data: Any) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def call(index: int, arguments: str = "", name: str | None = None, call_id: str | None = None) -> dict[str, Any]:
    """A piece of a tool call."""
    function = {"arguments": arguments} | ({} if name is None else {"name": name})
    return {"index": index, "function": function} | ({} if call_id is None else {"id": call_id, "type": "function"})


def completion(finish: str = "stop", logprobs: Any = None, **message: Any) -> bytes:
    """A plain answer of a chat engine."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish, "logprobs": logprobs}
    return json.dumps({"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice]}).encode()


def response_answer(**request: Any) -> ResponseAnswer:
    """A translator to Responses, of an answer to such a request."""
    body = raw(model=MODEL, **{"input": "hi", **request})
    return ResponseAnswer(MODEL, described(body), responses.names_of(body))


def message_answer() -> MessageAnswer:
    return MessageAnswer(MODEL)


def stream(answer: Translator, pieces: Iterable[bytes], tail: Tail = TAIL) -> bytes:
    """All that is told of a stream that ends well."""
    told = b"".join([answer.events(piece) for piece in pieces])
    return told + answer.last(tail)


def named(told: bytes) -> list[tuple[str, bytes]]:
    """Name and data of each event. Fails on what is no event with both."""
    assert told.endswith(b"\n\n")
    found = [re.fullmatch(rb"event: ([a-z_.]+)\ndata: (\{.*\})", each) for each in told[:-2].split(b"\n\n")]
    assert all(found), told
    return [(each[1].decode(), each[2]) for each in found if each]


def response_events(told: bytes) -> list[Any]:
    """The events of Responses, each of which has all that its type needs, numbered one after the other."""
    events = []
    for number, (name, data) in enumerate(named(told)):
        found = RESPONSES_EVENT.validate_json(data, strict=True)
        assert found.type == name
        assert found.sequence_number == number
        events.append(found)
    return events


def message_events(told: bytes) -> list[Any]:
    """The events of Messages, each of which has all that its type needs."""
    events = []
    for name, data in named(told):
        found = MESSAGES_EVENT.validate_json(data, strict=True)
        assert found.type == name
        events.append(found)
    return events


def response(said: bytes) -> Response:
    return Response.model_validate_json(said, strict=True)


def message(said: bytes) -> Message:
    return Message.model_validate_json(said, strict=True)


# -- what the SDKs make of them ----------------------------------------------------------------------------------------


def openai_final(told: bytes, **request: Any) -> Response:
    """The response that the official client has after such a stream."""
    client = openai.OpenAI(api_key="-", base_url="http://first/v1", http_client=_client(told), max_retries=0)
    with client, client.responses.stream(model=MODEL, input="hi", **request) as events:
        for _ in events:
            pass
        return events.get_final_response()


def anthropic_final(told: bytes) -> Message:
    """The message that the official client has after such a stream."""
    client = anthropic.Anthropic(api_key="-", base_url="http://first", http_client=_client(told), max_retries=0)
    asked: Any = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    with client, client.messages.stream(**asked) as events:
        return events.get_final_message()


def _client(told: bytes) -> httpx2.Client:
    kind = {"content-type": "text/event-stream; charset=utf-8"}
    return httpx2.Client(transport=httpx2.MockTransport(lambda _: httpx2.Response(200, headers=kind, content=told)))


# -- recordings --------------------------------------------------------------------------------------------------------


def recorded(name: str) -> list[bytes]:
    """The events of a recorded stream of a chat engine, as a pilot sends them on."""
    *events, rest = (FIXTURES / name).read_bytes().split(b"\n\n")
    assert rest == b""
    return [each + b"\n\n" for each in events if each != b"data: [DONE]"]


def normalised(told: bytes) -> bytes:
    """``told`` without what is another each time: ids are numbered in the order in which they come."""
    seen: dict[str, str] = {}

    def number(found: re.Match[str]) -> str:
        return f'"{seen.setdefault(found[0], f"{found[1]}{len(seen)}")}"'

    return TIMES.sub(r'"\1":0', SOME_ID.sub(number, told.decode())).encode()
