"""A checked request to a model: what is read of a body, what is refused, what the engine will see.

The body stays a mapping of raw JSON values: what we do not edit reaches the engine byte-identical, and each key once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from firstkit.errors import InvalidRequest
from firstkit.gateway.request import Account, RequestHead
from firstkit.links.messages import Open
from firstkit.routing.table import Route

Body = dict[str, msgspec.Raw]
T = TypeVar("T")
TRUE = msgspec.Raw(b"true")
REFUSED_FIELDS = (
    "chat_template",
    "prompt_embeds",
    "logits_processors",
    "kv_transfer_params",
    "mm_processor_kwargs",
)
"""Fields by which a client would run code in, or read memory of, an engine (facts of vLLM's advisories)."""
MAX_WAIT_LIMIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Api:
    """One inference path: its capability and the field that must be there."""

    path: str
    capability: str
    required: str
    streams: bool = True

    @property
    def endpoint(self) -> str:
        return self.path.removeprefix("/v1/")


CHAT = Api("/v1/chat/completions", "chat", "messages")
COMPLETIONS = Api("/v1/completions", "completions", "prompt")
EMBEDDINGS = Api("/v1/embeddings", "embeddings", "input", streams=False)
APIS = {api.path: api for api in (CHAT, COMPLETIONS, EMBEDDINGS)}


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request may wait: until its status must be sent, and in all; whether it fails at once when cold."""

    hold_s: float
    max_wait_s: float
    fails_when_cold: bool = False


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

    def for_route(self, route: Route) -> tuple[Open, bytes]:
        """The request as the replica of ``route`` gets it."""
        body = dict(self.body)
        body["model"] = msgspec.Raw(msgspec.json.encode(route.served_name))
        if self.stream and not self.wants_usage:
            options = parse_object(body["stream_options"], "stream_options") if "stream_options" in body else {}
            body["stream_options"] = msgspec.Raw(msgspec.json.encode({**options, "include_usage": TRUE}))
        encoded = msgspec.json.encode(body)
        opening = Open(
            replica_id=route.replica_id,
            method="POST",
            path=self.api.path,
            body_bytes=len(encoded),
            headers={"x-request-id": self.account.request_id},
            stream=self.stream,
            hide_usage=self.stream and not self.wants_usage,
            idle_timeout_s=self.idle_timeout_s,
        )
        return opening, encoded


def parse_body(data: bytes) -> Body:
    """The top level of a JSON object; raises InvalidRequest naming the byte where the syntax breaks."""
    return parse_object(data, None)


def parse_object(data: bytes | msgspec.Raw, param: str | None) -> Body:
    """A JSON object as a mapping of raw values."""
    try:
        return msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        what = f"'{param}'" if param else "The request body"
        raise InvalidRequest(f"{what} must be a JSON object.", param=param) from None
    except msgspec.DecodeError as exc:
        raise InvalidRequest(f"The request body is not valid JSON: {exc}.", param=param, code="invalid_json") from None
    except RecursionError:
        raise InvalidRequest("The request body is nested too deeply.", param=param, code="invalid_json") from None


def read(body: Body, field: str, kind: type[T], default: T) -> T:
    """The value of a field that we read ourselves; absent and null mean ``default``."""
    if field not in body:
        return default
    try:
        value = msgspec.json.decode(body[field], type=kind | None)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest(f"'{field}' must be {_KINDS[kind]}.", param=field) from None
    return default if value is None else value


_KINDS: dict[type, str] = {str: "a string", bool: "true or false", int: "a whole number", dict: "an object"}


def check_body(body: Body, api: Api) -> tuple[str, bool, bool]:
    """Model, stream and wants_usage of a body; raises InvalidRequest naming the parameter that is wrong."""
    model = read(body, "model", str, "")
    if not model:
        raise InvalidRequest("'model' is required.", param="model")
    for field in REFUSED_FIELDS:
        if field in body:
            raise InvalidRequest(f"'{field}' is not accepted by this service.", param=field, code="unsupported_field")
    if api.required not in body or bytes(body[api.required]) in (b"null", b"[]"):
        raise InvalidRequest(f"'{api.required}' is required and may not be empty.", param=api.required)
    for field in ("max_tokens", "max_completion_tokens", "n"):
        if read(body, field, int, 1) < 1:
            raise InvalidRequest(f"'{field}' must be at least 1.", param=field)
    if api is CHAT:
        _check_messages(body["messages"])
    return model, *_check_stream(body, api)


def _check_stream(body: Body, api: Api) -> tuple[bool, bool]:
    stream = read(body, "stream", bool, False)
    if stream and not api.streams:
        raise InvalidRequest(f"'{api.path}' does not stream.", param="stream")
    options = parse_object(body["stream_options"], "stream_options") if _present(body, "stream_options") else {}
    if options and not stream:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    if not options:
        body.pop("stream_options", None)
    return stream, read(options, "include_usage", bool, False)


def _present(body: Body, field: str) -> bool:
    return field in body and bytes(body[field]) != b"null"


def _check_messages(raw: msgspec.Raw) -> None:
    """Messages must be a list of objects; media by address is refused: an engine that fetches is an attack."""
    try:
        messages = msgspec.json.decode(raw, type=list[dict[str, msgspec.Raw]])
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest("'messages' must be a list of objects.", param="messages") from None
    for i, message in enumerate(messages):
        content = message.get("content")
        if content is None or b"_url" not in bytes(content):
            continue
        for part in _parts(content):
            _check_part(part, f"messages[{i}].content")


def _parts(content: msgspec.Raw) -> list[dict[str, Any]]:
    try:
        return msgspec.json.decode(content, type=list[dict[str, Any]])
    except (msgspec.DecodeError, RecursionError):
        return []


def _check_part(part: dict[str, Any], where: str) -> None:
    for key, value in part.items():
        if not key.endswith("_url"):
            continue
        url = value.get("url") if isinstance(value, dict) else value
        if not isinstance(url, str) or not url.startswith("data:"):
            raise InvalidRequest(f"'{where}.{key}' must be a data: URL; addresses are not fetched.", param="messages")


def patience(head: RequestHead, hold_s: float, max_wait_s: float) -> Patience:
    """The waiting that a request asks for by its headers, within what the operator allows."""
    on_cold = head.get(b"x-first-on-cold")
    if on_cold not in (None, "wait", "fail"):
        raise InvalidRequest("The header 'x-first-on-cold' must be 'wait' or 'fail'.", param="x-first-on-cold")
    return Patience(
        hold_s=_seconds(head, b"x-first-hold", hold_s, 60.0),
        max_wait_s=_seconds(head, b"x-first-max-wait", max_wait_s, MAX_WAIT_LIMIT_S),
        fails_when_cold=on_cold == "fail",
    )


def _seconds(head: RequestHead, name: bytes, default: float, limit: float) -> float:
    text = head.get(name)
    if text is None:
        return default
    shown = name.decode()
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= limit:
        raise InvalidRequest(f"The header '{shown}' must be seconds from 0 to {limit:g}.", param=shown)
    return value
