"""A checked request to a model: what is read of a body, what is refused, what the engine will see.

The body stays a mapping of raw JSON values: what we do not edit reaches the engine byte-identical, and each key once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from firstkit.errors import InvalidRequest
from firstkit.gateway.answering import Answering, HeldEnd, Signed, SignedChunks, Straight, Timed, WholeEvents
from firstkit.gateway.apis import CHAT, COMPLETIONS, MESSAGES_API, RESPONSES_API, Api
from firstkit.gateway.forms import Form
from firstkit.gateway.media import check_fields, check_messages, names_none
from firstkit.gateway.request import Account, RequestHead
from firstkit.links.messages import Open, Usage
from firstkit.routing.admission import NOBODY, Claim
from firstkit.routing.table import Route
from firstkit.routing.wish import ANYWHERE, Wish
from firstkit.translation import messages, responses
from firstkit.translation.messages_answer import MessageAnswer
from firstkit.translation.responses_answer import ResponseAnswer, described

Body = dict[str, msgspec.Raw]
_new = tuple.__new__
"""Makes a NamedTuple in half the time."""
T = TypeVar("T")
D = TypeVar("D")
TRUE = msgspec.Raw(b"true")
REFUSED_FIELDS = frozenset(
    ("chat_template", "prompt_embeds", "logits_processors", "kv_transfer_params", "mm_processor_kwargs")
)
"""Fields by which a client would run code in, or read memory of, an engine (facts of vLLM's advisories)."""
MAX_WAIT_LIMIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request may wait: until its status must be sent, and in all; whether it fails at once when cold."""

    hold_s: float
    max_wait_s: float
    fails_when_cold: bool = False


class Owner(Protocol):
    """Who made a call."""

    def release_body(self) -> None:
        """The body is not needed any more; comes at most once before ``over``."""

    def over(self, usage: Usage | None = None) -> None:
        """The call has ended, in whatever way: its usage is written and so is its answer, if anybody was there.
        ``usage``: that which was accounted; None: nothing was."""


@dataclass(slots=True)
class Call:
    """One request to a model, checked and permitted."""

    api: Api
    model: str
    body: Body
    stream: bool
    wants_usage: bool
    patience: Patience
    account: Account
    idle_timeout_s: float
    timeout_s: float
    owner: Owner
    wish: Wish = ANYWHERE
    claim: Claim = NOBODY
    most_tokens: int | None = None
    """Those of a choice of the answer that it asks for."""
    choices: int = 1
    wants_origin: bool = False
    """Whether the answer itself shall say where it comes from."""
    keeps: bool = False
    """Whether its answer is kept for its owner, before the end of it is told."""
    previous: str | None = None
    """The id of the kept answer that it goes on from."""
    is_older: bool = False
    """Whether it came by the paths of the older service, whose plain answers say how fast they came."""
    form: Form | None = None
    """The request, where it came as a form; ``body`` is what was read of it then."""

    @property
    def _kept(self) -> dict[str, bool | str | None]:
        """What its answer says of being kept, of which engines know nothing."""
        return {"store": self.keeps, "previous_response_id": self.previous}

    def release_body(self) -> None:
        """Nobody will be sent this request again."""
        self.body = {"input": self.body["input"].copy()} if self.keeps else {}
        self.form = None
        self.owner.release_body()

    def attempt(self, route: Route) -> tuple[Open, bytes, Answering | None]:
        """The request as the replica of ``route`` gets it, and what its answer goes through; None: it goes straight.

        Raises InvalidRequest for what cannot be said in the protocol that this replica speaks.
        """
        api, body, answering = self._as_spoken_by(route)
        body["model"] = route.served_json
        is_chunked = self.stream and api.dialect is CHAT.dialect
        is_asked = self.wants_usage and api is self.api
        if is_chunked and not is_asked:
            options = parse_object(body["stream_options"], "stream_options") if "stream_options" in body else {}
            body["stream_options"] = msgspec.Raw(msgspec.json.encode({**options, "include_usage": TRUE}))
        headers = {"x-request-id": self.account.request_id}
        if self.form is None:
            encoded = msgspec.json.encode(body)
        else:
            encoded = self.form.naming(route.served_name)
            headers["content-type"] = self.form.content_type
        opening = Open(
            replica_id=route.replica_id,
            method="POST",
            path=api.path,
            body_bytes=len(encoded),
            headers=headers,
            stream=self.stream,
            hide_usage=is_chunked and not self.wants_usage and api is self.api,
            idle_timeout_s=self.idle_timeout_s,
            timeout_s=self.timeout_s,
        )
        return opening, encoded, self._told_by(answering, route)

    def _as_spoken_by(self, route: Route) -> tuple[Api, Body, Answering | None]:
        """The path and the body in the protocol of a replica, and what its answer goes through."""
        api = self.api
        if not api.by_chat or api.capability in route.capabilities:
            return api, dict(self.body), HeldEnd(self._kept) if api is RESPONSES_API else None
        if api is MESSAGES_API:
            return CHAT, messages.to_chat(self.body), MessageAnswer(self.model)
        answer = ResponseAnswer(self.model, {**described(self.body), **self._kept}, responses.names_of(self.body))
        return CHAT, responses.to_chat(self.body), answer

    def _told_by(self, answering: Answering | None, route: Route) -> Answering | None:
        """``answering`` with all that is added to what an engine says; None where that is nothing."""
        if not self.stream:
            if self.wants_origin:
                answering = Signed(answering or Straight(), route.origin)
            return Timed(answering) if self.is_older else answering
        end = self.api.dialect.done
        if self.wants_origin and self.api.dialect is CHAT.dialect:
            kind = "text_completion" if self.api is COMPLETIONS else "chat.completion.chunk"
            answering = SignedChunks(route.origin, kind, end)
        elif self.wants_origin:
            answering = Signed(answering or Straight(None, end), route.origin)
        return None if answering is None else WholeEvents(answering)


def parse_body(data: bytes) -> Body:
    """The top level of a JSON object; raises InvalidRequest naming the byte where the syntax breaks."""
    if not data.isascii():
        _check_text(data)
    return parse_object(data, None)


def _check_text(data: bytes) -> None:
    """Also of what only the engine will read: to some it would be a fault of theirs, and so of their replica."""
    try:
        data.decode()
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"The request body is not UTF-8: byte {exc.start}.", code="invalid_json") from None


def parse_object(data: bytes | msgspec.Raw, param: str | None) -> Body:
    """A JSON object as a mapping of raw values."""
    try:
        return _OBJECT.decode(data)
    except msgspec.ValidationError:
        what = f"'{param}'" if param else "The request body"
        raise InvalidRequest(f"{what} must be a JSON object.", param=param) from None
    except msgspec.DecodeError as exc:
        raise InvalidRequest(f"The request body is not valid JSON: {exc}.", param=param, code="invalid_json") from None
    except RecursionError:
        raise InvalidRequest("The request body is nested too deeply.", param=param, code="invalid_json") from None


def read(body: Body, field: str, kind: type[T], default: D) -> T | D:
    """The value of a field that we read ourselves; absent and null mean ``default``."""
    if field not in body:
        return default
    try:
        value = _DECODERS[kind].decode(body[field])
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest(f"'{field}' must be {_KINDS[kind]}.", param=field) from None
    return default if value is None else value


_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind | None) for kind in (str, bool, int, dict)
}
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_KINDS: dict[type, str] = {str: "a string", bool: "true or false", int: "a whole number", dict: "an object"}


class Asked(NamedTuple):
    """What is read of a body. ``wants_origin``: see Call."""

    model: str
    stream: bool
    wants_usage: bool
    wants_origin: bool


def check_body(body: Body, api: Api, text: bytes | None = None) -> Asked:
    """What a body asks for; raises InvalidRequest naming the parameter that is wrong. What is meant for us alone is
    taken out of it. ``text``: what it was parsed from, where that is known."""
    model = read(body, "model", str, "")
    if not model:
        raise InvalidRequest("'model' is required.", param="model")
    if not (REFUSED_FIELDS.isdisjoint(body) and api.refused.isdisjoint(body)):
        _refuse_fields(body, api)
    if api.tools is not None and "tools" in body:
        _check_tools(body["tools"], api.tools)
    if api.required is not None and _word(body.get(api.required)) in (b"null", b"[]"):
        raise InvalidRequest(f"'{api.required}' is required and may not be empty.", param=api.required)
    _check_media(body, api, text)
    wants_origin = False
    if "x_first" in body:
        wants_origin = read(body, "x_first", bool, False)
        del body["x_first"]
    stream, wants_usage = _check_stream(body, api)
    return _new(Asked, (model, stream, wants_usage, wants_origin))


def _refuse_fields(body: Body, api: Api) -> None:
    for field in body.keys() & (REFUSED_FIELDS | api.refused):
        if field in REFUSED_FIELDS or not _asks_nothing(body[field]):
            raise InvalidRequest(f"'{field}' is not accepted by this service.", param=field, code="unsupported_field")


def _check_media(body: Body, api: Api, text: bytes | None) -> None:
    """All fields one by one, but for the many conversations of which a glance tells that they name no media."""
    said = api.required if api.is_said else None
    if said is None:
        check_fields(body, None, is_said=False)
    elif text is None or bytes(memoryview(body[said])[:2]) != b"[{" or not names_none(text):
        check_messages(body[said], said, takes_text=api is RESPONSES_API)
        check_fields(body, said, is_said=True)


_NOTHING = msgspec.Raw(b"null")


class _Tool(msgspec.Struct):
    """One tool, or several under one name."""

    type: str | None = None
    tools: msgspec.Raw = _NOTHING


def _check_tools(tools: msgspec.Raw, allowed: tuple[str, ...], where: str = "tools") -> None:
    """Only tools that the client runs: by the others the service, or its engine, would call out."""
    try:
        asked = _TOOLS.decode(tools) or []
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest(f"'{where}' must be a list of objects.", param="tools") from None
    for i, tool in enumerate(asked):
        if (tool.type or allowed[0]) not in allowed:
            raise InvalidRequest(
                f"'{where}[{i}].type' is '{str(tool.type)[:100]}', which this service does not have; "
                f"allowed: {', '.join(allowed)}.",
                param="tools",
                code="unsupported_tool",
            )
        if tool.tools is not _NOTHING:
            if where != "tools":
                raise InvalidRequest(f"'{where}[{i}]' has tools within tools within tools.", param="tools")
            _check_tools(tool.tools, allowed, f"tools[{i}].tools")


_TOOLS = msgspec.json.Decoder(list[_Tool] | None)


def _check_stream(body: Body, api: Api) -> tuple[bool, bool]:
    stream = read(body, "stream", bool, False)
    if stream and not api.streams:
        raise InvalidRequest(f"'{api.path}' does not stream.", param="stream")
    if "stream_options" not in body:
        return stream, False
    asked = body["stream_options"]
    options = parse_object(asked, "stream_options") if _word(asked) != b"null" else {}
    if options and not stream:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    if not options:
        del body["stream_options"]
    return stream, read(options, "include_usage", bool, False)


def _asks_nothing(value: msgspec.Raw) -> bool:
    view = memoryview(value)
    return view.nbytes <= 5 and bytes(view) in (b"null", b"false", b"[]", b"{}")


def _word(value: msgspec.Raw | None) -> bytes:
    """A value of up to four bytes; of a longer one nothing, since it may be as long as a body. None counts as null."""
    if value is None:
        return b"null"
    view = memoryview(value)
    return bytes(view) if view.nbytes <= 4 else b""


def patience(head: RequestHead, usual: Patience) -> Patience:
    """The waiting that a request asks for by its headers, within what the operator allows; else the ``usual``."""
    on_cold = head.get(b"x-first-on-cold")
    hold_s = _seconds(head, b"x-first-hold", 60.0)
    max_wait_s = _seconds(head, b"x-first-max-wait", MAX_WAIT_LIMIT_S)
    if on_cold is None and hold_s is None and max_wait_s is None:
        return usual
    if on_cold not in (None, "wait", "fail"):
        raise InvalidRequest("The header 'x-first-on-cold' must be 'wait' or 'fail'.", param="x-first-on-cold")
    return Patience(
        hold_s=usual.hold_s if hold_s is None else hold_s,
        max_wait_s=usual.max_wait_s if max_wait_s is None else max_wait_s,
        fails_when_cold=on_cold == "fail",
    )


def _seconds(head: RequestHead, name: bytes, limit: float) -> float | None:
    text = head.get(name)
    if text is None:
        return None
    shown = name.decode()
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= limit:
        raise InvalidRequest(f"The header '{shown}' must be seconds from 0 to {limit:g}.", param=shown)
    return value
