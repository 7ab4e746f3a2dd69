"""Answers of chat engines as OpenAI Responses. Events:
https://platform.openai.com/docs/api-reference/responses-streaming."""

from __future__ import annotations

import time

import msgspec

from firstkit.links.messages import Tail
from firstkit.translation.chat import (
    ChatUsage,
    Choice,
    Counts,
    Logprobs,
    Said,
    ToolPiece,
    answer_id,
    chunks_of,
    counts_of,
    quoted,
    read_completion,
)
from firstkit.translation.reading import Object
from firstkit.translation.responses_tools import Called, Names

_DEFAULTS: Object = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": False,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
"""Of a response: what is repeated of its request, or said where that did not."""
_FIXED = ("background", "service_tier", "truncation", "store")
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_ENCODER = msgspec.json.Encoder()
_DELTA = (
    b'event: %b.delta\ndata: {"type":"%b.delta","sequence_number":%d,"item_id":"%b","output_index":%d,%b"delta":%b}\n\n'
)
_IN_CONTENT = b'"content_index":0,'
_WITH_LOGPROBS = b'"content_index":0,"logprobs":%b,'


def described(body: dict[str, msgspec.Raw]) -> Object:
    """What a response repeats of its request."""
    return {key: usual if key in _FIXED else _repeated(body, key, usual) for key, usual in _DEFAULTS.items()}


def _repeated(body: dict[str, msgspec.Raw], key: str, usual: object) -> object:
    if key not in body or bytes(memoryview(body[key])[:4]) == b"null":
        return usual
    return body[key].copy()  # else the whole body lives on with it


class ResponseAnswer:
    """A Translator. Items come one after the other: reasoning, a message, calls of tools, as the engine says them."""

    def __init__(self, model: str, request: Object, names: Names | None = None) -> None:
        """``request``: what it repeats, see ``described``. ``names``: what the client calls its tools."""
        self.id = answer_id("resp")
        self._model = model
        self._request = request
        self._names = names or {}
        self._created_at = int(time.time())
        self._number = 0
        self._has_begun = False
        self._output: list[Object] = []
        self._item: _Item | None = None
        self._finish = ""
        self._usage: ChatUsage | None = None

    # -- a stream ----------------------------------------------------------------------------------------------

    def events(self, data: bytes) -> bytes:
        told: list[bytes] = []
        for chunk in chunks_of(data):
            self._usage = chunk.usage or self._usage
            if (choice := chunk.choice) is not None:
                self._tell(choice, told)
        return b"".join(told)

    def last(self, tail: Tail) -> bytes:
        told: list[bytes] = []
        if not self._has_begun:
            self._begin(told)
        if self._item is None and not self._output:
            self._open(_Message(0), told)
        self._close(told, "incomplete" if self._finish in _INCOMPLETE else "completed")
        response = self._response(self._output, counts_of(tail, self._usage))
        told.append(self._event(f"response.{response['status']}", {"response": response}))
        return b"".join(told)

    def _tell(self, choice: Choice, told: list[bytes]) -> None:
        if not self._has_begun:
            self._begin(told)
        if (delta := choice.delta) is not None:
            if delta.thoughts:
                self._text(_Reasoning, delta.thoughts, None, told)
            if delta.content:
                self._text(_Message, delta.content, choice.logprobs, told)
            if delta.refusal:
                self._text(_Refusal, delta.refusal, None, told)
            for piece in delta.tool_calls or ():
                self._call(piece, told)
        self._finish = choice.finish_reason or self._finish

    def _begin(self, told: list[bytes]) -> None:
        self._has_begun = True
        for name in ("response.created", "response.in_progress"):
            told.append(self._event(name, {"response": self._response([], None)}))

    def _text(self, kind: type[_Text], text: str, logprobs: Logprobs | None, told: list[bytes]) -> None:
        item = self._item
        if type(item) is not kind:
            item = kind(self._place(told))
            self._open(item, told)
        item.texts.append(text)
        told.append(self._delta(item, text, item.where if logprobs is None else item.with_logprobs(logprobs)))

    def _call(self, piece: ToolPiece, told: list[bytes]) -> None:
        item = self._item
        if not isinstance(item, _Call) or not piece.goes_on(item.index, item.call_id):
            name = piece.name  # before anything is told of it
            item = self._new_call(self._place(told), piece, name)
            self._open(item, told)
        if arguments := piece.arguments:
            item.texts.append(arguments)
            if item.tells_pieces:
                told.append(self._delta(item, arguments, b""))

    def _new_call(self, place: int, piece: ToolPiece, name: str) -> _Call:
        called = self._names.get(name) or Called(name)
        kind = _CustomCall if called.is_custom else _Call
        return kind(place, piece.index or 0, piece.id or answer_id("call"), called)

    def _place(self, told: list[bytes]) -> int:
        """Where the next item will stand, now that the one before it is over."""
        self._close(told)
        return len(self._output)

    def _open(self, item: _Item, told: list[bytes]) -> None:
        self._item = item
        told.append(
            self._event("response.output_item.added", {"output_index": item.place, "item": item.shown("in_progress")})
        )
        if item.part_kind:
            told.append(self._event("response.content_part.added", {**item.at, "part": item.part("")}))

    def _close(self, told: list[bytes], status: str = "completed") -> None:
        item, self._item = self._item, None
        if item is None:
            return
        if not item.tells_pieces and item.text:
            told.append(self._delta(item, item.text, b""))
        told.append(self._event(f"response.{item.delta_name}.done", {**item.at, **item.done()}))
        if item.part_kind:
            told.append(self._event("response.content_part.done", {**item.at, "part": item.part(item.text)}))
        whole = item.shown(status)
        told.append(self._event("response.output_item.done", {"output_index": item.place, "item": whole}))
        self._output.append(whole)

    def _delta(self, item: _Item, text: str, where: bytes) -> bytes:
        self._number += 1
        name = item.delta_bytes
        return _DELTA % (name, name, self._number - 1, item.id_bytes, item.place, where, quoted(text))

    def _event(self, name: str, more: Object) -> bytes:
        self._number += 1
        data = _ENCODER.encode({"type": name, "sequence_number": self._number - 1, **more})
        return b"event: %b\ndata: %b\n\n" % (name.encode(), data)

    # -- a plain answer ----------------------------------------------------------------------------------------

    def whole(self, body: bytes, tail: Tail) -> bytes:
        completion = read_completion(body)
        choice, said = completion.whole
        items = self._items_of(said, choice.logprobs)
        self._finish = choice.finish_reason or ""
        output = [item.shown("completed") for item in items[:-1]]
        output.append(items[-1].shown("incomplete" if self._finish in _INCOMPLETE else "completed"))
        return _ENCODER.encode(self._response(output, counts_of(tail, completion.usage)))

    def _items_of(self, said: Said, logprobs: Logprobs | None) -> list[_Item]:
        items: list[_Item] = []
        for kind, text in ((_Reasoning, said.thoughts), (_Message, said.content), (_Refusal, said.refusal)):
            if text:
                item: _Text = kind(len(items))
                item.texts.append(text)
                if logprobs is not None:
                    item.with_logprobs(logprobs)
                items.append(item)
        for index, call in enumerate(said.tool_calls or ()):
            call.index = index
            made = self._new_call(len(items), call, call.name)
            made.texts.append(call.arguments)
            items.append(made)
        return items or [_Message(0)]

    def _response(self, output: list[Object], counts: Counts | None) -> Object:
        reason = _INCOMPLETE.get(self._finish)
        status = "in_progress" if counts is None else "incomplete" if reason else "completed"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created_at,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": reason} if reason and counts is not None else None,
            "model": self._model,
            "output": output,
            **self._request,
            "usage": None if counts is None else _usage(counts),
        }


class _Item:
    """One item of the output: what it is called, and how it is shown when it begins and when it is whole."""

    prefix = ""
    delta_name = ""
    part_kind = ""
    """The type of its one part of content; empty: it has none."""
    tells_pieces = True
    where = b""

    def __init__(self, place: int) -> None:
        self.id = answer_id(self.prefix)
        self.id_bytes = self.id.encode()
        self.place = place
        self.texts: list[str] = []
        self.delta_bytes = f"response.{self.delta_name}".encode()

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def at(self) -> Object:
        where: Object = {"item_id": self.id, "output_index": self.place}
        return {**where, "content_index": 0} if self.part_kind else where

    def part(self, text: str) -> Object:
        return {"type": self.part_kind, "text": text}

    def done(self) -> Object:
        return {"text": self.text}

    def shown(self, status: str) -> Object:
        raise NotImplementedError


class _Text(_Item):
    where = _IN_CONTENT

    def with_logprobs(self, logprobs: Logprobs) -> bytes:  # noqa: ARG002 - only messages have them
        return self.where


class _Reasoning(_Text):
    prefix, delta_name, part_kind = "rs", "reasoning_text", "reasoning_text"

    def shown(self, status: str) -> Object:
        content = [self.part(self.text)] if status != "in_progress" else []
        return {"id": self.id, "type": "reasoning", "summary": [], "content": content, "status": status}


class _Message(_Text):
    prefix, delta_name, part_kind = "msg", "output_text", "output_text"
    where = _WITH_LOGPROBS % b"[]"

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self._logprobs: list[bytes] = []

    def with_logprobs(self, logprobs: Logprobs) -> bytes:
        tokens = logprobs.tokens
        if tokens:
            self._logprobs.append(tokens)
        return _WITH_LOGPROBS % (b"[%b]" % tokens)

    def _all_logprobs(self) -> msgspec.Raw:
        return msgspec.Raw(b"[%b]" % b",".join(self._logprobs))

    def part(self, text: str) -> Object:
        logprobs = self._all_logprobs() if text else []
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def done(self) -> Object:
        return {"text": self.text, "logprobs": self._all_logprobs()}

    def shown(self, status: str) -> Object:
        content = [self.part(self.text)] if status != "in_progress" else []
        return {"id": self.id, "type": "message", "role": "assistant", "content": content, "status": status}


class _Refusal(_Message):
    delta_name, part_kind = "refusal", "refusal"
    where = _IN_CONTENT

    def part(self, text: str) -> Object:
        return {"type": "refusal", "refusal": text}

    def done(self) -> Object:
        return {"refusal": self.text}


class _Call(_Item):
    prefix, delta_name = "fc", "function_call_arguments"

    def __init__(self, place: int, index: int, call_id: str, called: Called) -> None:
        super().__init__(place)
        self.index = index
        self.call_id = call_id
        self.name = called.name
        self.of: Object = {} if called.namespace is None else {"namespace": called.namespace}

    def done(self) -> Object:
        return {"name": self.name, "arguments": self.text}

    def shown(self, status: str) -> Object:
        call = {"id": self.id, "type": "function_call", "call_id": self.call_id, "name": self.name, **self.of}
        return {**call, "arguments": "" if status == "in_progress" else self.text, "status": status}


class _CustomCall(_Call):
    """To the engine it is a function of one argument, so its text is known when that is whole."""

    prefix, delta_name = "ctc", "custom_tool_call_input"
    tells_pieces = False

    @property
    def text(self) -> str:
        said = "".join(self.texts)
        try:
            value = msgspec.json.decode(said)
        except (msgspec.DecodeError, RecursionError):
            return said
        text = value.get("input") if isinstance(value, dict) else None
        return text if isinstance(text, str) else said

    def done(self) -> Object:
        return {"input": self.text}

    def shown(self, status: str) -> Object:
        call = {"id": self.id, "type": "custom_tool_call", "call_id": self.call_id, "name": self.name, **self.of}
        return {**call, "input": "" if status == "in_progress" else self.text}


def _usage(counts: Counts) -> Object:
    return {
        "input_tokens": counts.prompt,
        "input_tokens_details": {"cached_tokens": counts.cached, "cache_write_tokens": 0},
        "output_tokens": counts.completion,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning},
        "total_tokens": counts.prompt + counts.completion,
    }
