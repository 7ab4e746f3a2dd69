"""Writes docs/reference/api.md: what becomes of every parameter of every route.

Nothing of it is said by hand that can be tried: each parameter of a route that a model answers is put into a request,
and what an engine would be sent of it is looked at.

    PYTHONPATH=tests python -m docs.api_page
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from anthropic.types.beta import message_count_tokens_params, message_create_params
from fastapi.routing import APIRoute
from openai.types import EmbeddingCreateParams, completion_create_params
from openai.types.audio import TranslationCreateParams, transcription_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from docs.markdown import ROOT
from firstkit.auth.permissions import Identity
from firstkit.errors import InvalidRequest
from firstkit.gateway import older
from firstkit.gateway.apis import (
    APIS,
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EMBEDDINGS,
    MESSAGES_API,
    RERANK,
    RESPONSES_API,
    SCORE,
    TRANSCRIPTIONS,
    TRANSLATIONS,
    Api,
    task,
)
from firstkit.gateway.app import routes
from firstkit.gateway.call import REFUSED_FIELDS, Asked, Call, Patience, check_body, parse_body
from firstkit.gateway.request import Account
from firstkit.gateway.stored import StoredResponses
from firstkit.routing.table import Route

PAGE = ROOT / "docs" / "reference" / "api.md"
TYPES: dict[Api, Any] = {
    CHAT: chat_create_params.CompletionCreateParamsStreaming,
    COMPLETIONS: completion_create_params.CompletionCreateParamsStreaming,
    EMBEDDINGS: EmbeddingCreateParams,
    RESPONSES_API: response_create_params.ResponseCreateParamsStreaming,
    MESSAGES_API: message_create_params.MessageCreateParamsStreaming,
    COUNT_TOKENS: message_count_tokens_params.MessageCountTokensParams,
    TRANSCRIPTIONS: transcription_create_params.TranscriptionCreateParamsStreaming,
    TRANSLATIONS: TranslationCreateParams,
}
"""Of the protocol's own SDK."""
BY_ENGINES = {
    RERANK: ("model", "query", "documents", "top_n", "return_documents", "truncate_prompt_tokens", "user"),
    SCORE: ("model", "text_1", "text_2", "data_1", "data_2", "queries", "items", "truncate_prompt_tokens", "user"),
}
"""What vLLM and SGLang take, where nobody else's protocol says it."""
SAID = [{"role": "user", "content": "hi"}]
_CHAT_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
_TOOL = {"name": "f", "parameters": {"type": "object"}, "input_schema": {"type": "object"}}
_SCHEMA = {"type": "json_schema", "schema": {"type": "object"}}
SAMPLES: dict[str, Any] = {
    "messages": SAID,
    "prompt": "hi",
    "input": "hi",
    "query": "hi",
    "model": "m",
    "stream": True,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "x_first": True,
    "store": False,
    "previous_response_id": "resp_1",
    "instructions": "be kind",
    "system": "be kind",
    "stop_sequences": ["x"],
    "text": {"verbosity": "low"},
    "reasoning": {"effort": "low"},
    "include": ["message.output_text.logprobs"],
    "thinking": {"type": "disabled"},
    "output_config": {"effort": "low"},
    "output_format": _SCHEMA,
    "parallel_tool_calls": False,
    "user": "somebody",
}
"""Values that make a difference. All others get a number."""
OF_ONE: dict[tuple[Api, str], Any] = {
    (RESPONSES_API, "prompt"): {"id": "p"},
    (CHAT, "tools"): [_CHAT_TOOL],
    (CHAT, "tool_choice"): "auto",
    (RESPONSES_API, "tools"): [{"type": "function", **_TOOL}],
    (RESPONSES_API, "tool_choice"): {"type": "function", "name": "f"},
    (MESSAGES_API, "messages"): [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    (MESSAGES_API, "tools"): [_TOOL],
    (MESSAGES_API, "tool_choice"): {"type": "auto"},
    (COUNT_TOKENS, "tools"): [_TOOL],
}
NEEDS = {"stream_options": ("stream",), "tool_choice": ("tools",), "parallel_tool_calls": ("tools",)}
"""Parameters that are nothing without others."""
HEAD = """# Parameters

What FIRST does with every parameter of every route. This page is written by `make api-page`, which puts each parameter
that the protocol's SDK knows into a request and looks at what an engine would be sent. What the routes are for is in
the [HTTP API](http-api.md).

| word | means |
|---|---|
| passed | It reaches the engine byte for byte. Whether that heeds it is the engine's to say. |
| translated | The engine is told the same in the words of chat completions. |
| read by FIRST | FIRST does what it says; the engine does not see it, or sees what FIRST makes of it. |
| dropped | It asks how a service shall run, and changes nothing here. |
| refused | 400 `unsupported_field`; `invalid_request` for `stream` where nothing streams. |

A refused field may stand there with a value that asks for nothing: `null`, `false`, `[]` or `{}`.

Fields that no table names are passed: the options of engines, such as `top_k`, `min_p`, `chat_template_kwargs` or
`structured_outputs`. Refused on every route, whatever their value: {refused}.

`x_first: true` is read by FIRST on every route: the answer says [where it comes from](../howto/cite-a-result.md).

Media are `data:` URLs, on every route and wherever they stand: a text under a key `url` or `*_url` that is none is
refused, and so are tensors (`*_embeds`). Not looked at are `metadata`, tools, schemas, and what a model told a tool.
"""
OTHERS = """## All other routes

No engine is asked: all parameters are read by FIRST. Unknown ones do nothing in a query and are refused in a JSON body.
The paths of inference routes below `/v1/clusters/{cluster}/`, `/api/federated/v1/` and
`/resource_server/{cluster}/{framework}/v1/` take what those above take, and `GET /api/federated/v1/models` is
`GET /v1/models`. What starts with `/resource_server` is for
[clients of the older service](../howto/alcf-clients.md).
"""


class Row(NamedTuple):
    """A parameter, and what becomes of it at a deployment that has the route, and at one that only has chat."""

    name: str
    passed: str
    translated: str | None


def parameters(api: Api) -> list[str]:
    """Those that the protocol knows."""
    if api in BY_ENGINES:
        return sorted(BY_ENGINES[api])
    kind = TYPES[api]
    found = set(kind.__required_keys__ | kind.__optional_keys__) - {"betas"}  # that is a header
    return sorted(found | {"stream"} if api.takes_forms else found)


class _Owner:
    def release_body(self) -> None: ...

    def over(self, usage: Any = None) -> None: ...


def sent(api: Api, fields: dict[str, Any], capability: str) -> tuple[dict[str, Any], object]:
    """What the engine of a deployment with this capability is sent, and what FIRST itself has read."""
    body = parse_body(json.dumps(fields).encode())
    asked: Asked = check_body(body, api)
    account = Account(Identity("u", "u", "p", "k", frozenset()), "m", api.endpoint, 0)
    call = Call(api, "m", body, asked.stream, asked.wants_usage, Patience(0, 0), account, 1.0, 1.0, cast(Any, _Owner()))
    previous = StoredResponses(cast(Any, None), 60.0).arrange(call) if api is RESPONSES_API else None
    route = Route("r", "m", "c", cast(Any, None), "m", 1, capabilities=frozenset({capability}))
    _, data, _ = call.attempt(route)
    return json.loads(data), (asked.wants_origin, call.keeps, previous)


def sample(api: Api, name: str) -> Any:
    return OF_ONE.get((api, name), SAMPLES.get(name, 7))


def fate(api: Api, name: str, capability: str) -> str:
    """What becomes of a parameter, in a word of the page."""
    needed = {"model": "m", **({api.required: sample(api, api.required)} if api.required else {})}
    needed |= {other: sample(api, other) for other in NEEDS.get(name, ())}
    given = sample(api, name)
    try:
        with_it, read_with = sent(api, {**needed, name: given}, capability)
    except InvalidRequest as error:
        assert error.code == "unsupported_field" or (name == "stream" and not api.streams), (api.path, name, error)
        return "refused"
    needed.pop(name, None)
    if name in ("model", api.required):
        return "passed" if with_it.get(name) == given else "translated"
    without, read_without = sent(api, needed, capability)
    if read_with != read_without:
        return "read by FIRST"
    if with_it == without:
        return "dropped"
    rest = {name, "stream_options"}  # these FIRST adds to streams
    is_alone = all(with_it.get(key) == without.get(key) for key in (with_it.keys() | without.keys()) - rest)
    return "passed" if is_alone and with_it.get(name) == given else "translated"


def rows(api: Api) -> list[Row]:
    return [
        Row(name, fate(api, name, api.capability), fate(api, name, CHAT.capability) if api.by_chat else None)
        for name in parameters(api)
    ]


def section(api: Api) -> Iterator[str]:
    """The text about one route."""
    yield f"## POST {api.path}\n"
    facts = [f"Capability `{api.capability}`"]
    facts.append("streams" if api.streams else "does not stream")
    if api.takes_forms:
        facts.append("takes JSON or a form with a file")
    if api.by_chat:
        facts.append("is answered in translation by deployments that have `chat` and not this")
    if api.by_estimate:
        facts.append("is answered with an estimate where no engine is there that has it")
    yield "; ".join(facts) + "."
    if api.tools is not None:
        yield f"Types of tools: {', '.join(f'`{kind}`' for kind in api.tools)}. Others are 400 `unsupported_tool`."
    found = rows(api)
    if api.by_chat:
        yield "\n| parameter | by an engine that has the route | in translation |\n|---|---|---|"
        yield from (f"| `{row.name}` | {row.passed} | {row.translated} |" for row in found)
    else:
        yield "\n| parameter | |\n|---|---|"
        yield from (f"| `{row.name}` | {row.passed} |" for row in found)
    yield ""


def other_routes() -> Iterator[str]:
    """The text about all routes that no model answers."""
    document = routes().openapi()
    hot = {f"{prefix}{path}" for path in (*APIS, "/v1/tasks/{name}") for prefix in ("", "/v1/clusters/{cluster}")}
    hot |= {path.replace("/v1/clusters/{cluster}/v1/", "/v1/clusters/{cluster}/") for path in hot}
    yield OTHERS
    yield "| route | parameters |\n|---|---|"
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if path not in hot:
                names = [each["name"] for each in operation.get("parameters", ())]
                yield _route(method, path, names + _fields(operation, document["components"]["schemas"]))
    for route in (*older.open_router.routes, *older.router.routes):
        assert isinstance(route, APIRoute)
        names = [each.name for each in (*route.dependant.path_params, *route.dependant.query_params)]
        yield _route(min(route.methods), route.path, names)


def _fields(operation: dict[str, Any], schemas: dict[str, Any]) -> list[str]:
    """Those of its body in JSON."""
    content = operation.get("requestBody", {"content": {}})["content"]
    found = content.get("application/json", {"schema": {}})["schema"]
    return list(schemas[found["$ref"].rpartition("/")[2]]["properties"]) if "$ref" in found else []


def _route(method: str, path: str, names: list[str]) -> str:
    return f"| `{method.upper()} {path}` | {', '.join(f'`{name}`' for name in names)} |"


def render() -> str:
    """The whole page."""
    refused = ", ".join(f"`{name}`" for name in sorted(REFUSED_FIELDS))
    parts = [HEAD.replace("{refused}", refused), *(line for api in APIS.values() for line in section(api))]
    parts += [
        f"## POST {task('tasks/NAME').path}\n",
        "A path that only its operator knows, by the capability `tasks/NAME` of a deployment; takes JSON or a form",
        "with a file. `model` and `x_first` are read by FIRST, `stream: true` is refused, all else is passed.",
        "",
        *other_routes(),
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
