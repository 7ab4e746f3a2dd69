"""A checked request to a model: what is read of a body, what is refused, what the engine will see.

The body stays a mapping of raw JSON values: what we do not edit reaches the engine byte-identical, and each key once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import msgspec

from firstkit.errors import InvalidRequest
from firstkit.gateway.request import Account, RequestHead
from firstkit.links.messages import Open
from firstkit.routing.table import Route
from firstkit.routing.wish import ANYWHERE, Wish

Body = dict[str, msgspec.Raw]
T = TypeVar("T")
TRUE = msgspec.Raw(b"true")
REFUSED_FIELDS = frozenset(
    ("chat_template", "prompt_embeds", "logits_processors", "kv_transfer_params", "mm_processor_kwargs")
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
PINNED = "/v1/clusters/"
"""Before the name of a cluster, and the rest of a path of APIS: the same, on that cluster."""


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

    def over(self) -> None:
        """The call has ended, in whatever way: its usage is written and so is its answer, if anybody was there."""


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

    def release_body(self) -> None:
        """Nobody will be sent this request again."""
        self.body = {}
        self.owner.release_body()

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
            timeout_s=self.timeout_s,
        )
        return opening, encoded


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


def read(body: Body, field: str, kind: type[T], default: T) -> T:
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
_OBJECTS = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_CONTAINERS = b"[{"
_KINDS: dict[type, str] = {str: "a string", bool: "true or false", int: "a whole number", dict: "an object"}


def check_body(body: Body, api: Api) -> tuple[str, bool, bool]:
    """Model, stream and wants_usage of a body; raises InvalidRequest naming the parameter that is wrong."""
    model = read(body, "model", str, "")
    if not model:
        raise InvalidRequest("'model' is required.", param="model")
    for field in REFUSED_FIELDS & body.keys():
        raise InvalidRequest(f"'{field}' is not accepted by this service.", param=field, code="unsupported_field")
    if _word(body.get(api.required)) in (b"null", b"[]"):
        raise InvalidRequest(f"'{api.required}' is required and may not be empty.", param=api.required)
    for field in ("max_tokens", "max_completion_tokens", "n"):
        if field in body and read(body, field, int, 1) < 1:
            raise InvalidRequest(f"'{field}' must be at least 1.", param=field)
    if api is CHAT:
        _check_messages(body["messages"])
    return model, *_check_stream(body, api)


def _check_stream(body: Body, api: Api) -> tuple[bool, bool]:
    stream = read(body, "stream", bool, False)
    if stream and not api.streams:
        raise InvalidRequest(f"'{api.path}' does not stream.", param="stream")
    options = (
        parse_object(body["stream_options"], "stream_options") if _word(body.get("stream_options")) != b"null" else {}
    )
    if options and not stream:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    if not options:
        body.pop("stream_options", None)
    return stream, read(options, "include_usage", bool, False)


def _word(value: msgspec.Raw | None) -> bytes:
    """A value of up to four bytes; of a longer one nothing, since it may be as long as a body. None counts as null."""
    if value is None:
        return b"null"
    view = memoryview(value)
    return bytes(view) if view.nbytes <= 4 else b""


def _check_messages(raw: msgspec.Raw) -> None:
    """Messages must be a list of objects; media by address is refused: an engine that fetches is an attack."""
    try:
        messages = _OBJECTS.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest("'messages' must be a list of objects.", param="messages") from None
    for i, message in enumerate(messages):
        content = message.get("content")
        if content is not None and memoryview(content)[0] in _CONTAINERS:
            for part in _parts(bytes(content)):
                _check_part(part, f"messages[{i}].content")


def _parts(content: bytes) -> list[Any]:
    """The parts of a message, if any of them could be named ``..._url``, in plain letters or escaped ones."""
    if b"_url" not in content and b"\\u" not in content:
        return []
    try:
        parts = json.loads(content, object_pairs_hook=_without_twins)
    except (ValueError, RecursionError):
        raise InvalidRequest("'content' must be a text or a list of objects.", param="messages") from None
    return parts if isinstance(parts, list) else [parts]


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a part. Of two equal keys engines differ in which counts, and we pass parts on as they are."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InvalidRequest("A part of a message has a key twice.", param="messages")
    return found


def _check_part(part: Any, where: str) -> None:
    if not isinstance(part, dict):
        raise InvalidRequest("'content' must be a text or a list of objects.", param="messages")
    for key, value in part.items():
        if not key.endswith("_url"):
            continue
        url = value.get("url") if isinstance(value, dict) else value
        if not isinstance(url, str) or not url.startswith("data:"):
            raise InvalidRequest(f"'{where}.{key}' must be a data: URL; addresses are not fetched.", param="messages")


def unpinned(path: str) -> tuple[str, str | None]:
    """A path without the cluster that it pins, and that cluster."""
    if not path.startswith(PINNED):
        return path, None
    cluster, _, rest = path[len(PINNED) :].partition("/")
    return f"/v1/{rest}", cluster


def pin(head: RequestHead) -> str | None:
    """The cluster that a request asks for, by its path or by a header."""
    by_path, by_header = unpinned(head.path)[1], head.get(b"x-first-cluster")
    if by_path is not None and by_header is not None and by_path != by_header:
        raise InvalidRequest(
            "The header 'x-first-cluster' names another cluster than the path.", param="x-first-cluster"
        )
    return by_header if by_path is None else by_path


def most_tokens(body: Body) -> int | None:
    """How many tokens a checked body asks for at most; None where it does not say."""
    asked = [read(body, field, int, 0) for field in ("max_tokens", "max_completion_tokens") if field in body]
    return max(asked, default=0) or None


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
