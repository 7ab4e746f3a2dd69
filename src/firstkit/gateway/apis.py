"""The inference paths: what each of them needs of an engine, and in which protocol it is spoken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from firstkit.gateway.dialects import CHUNKS, MESSAGES, RESPONSES, Dialect
from firstkit.translation import messages, responses

TASK = "tasks/"
"""So begins the capability of a task that only its operator knows."""


@dataclass(frozen=True, slots=True)
class Api:
    """One inference path.

    ``capability``: of a deployment that answers it as it is. ``required``: the field that must be there. ``by_chat``:
    an engine that has chat can answer it in translation. ``takes_forms``: a file may come with it, as a form.
    """

    path: str
    capability: str
    required: str | None = None
    streams: bool = True
    dialect: Dialect = CHUNKS
    by_chat: bool = False
    by_estimate: bool = False
    """Where no engine that is live answers it, we do ourselves, as well as can be."""
    takes_forms: bool = False
    is_said: bool = False
    """Whether the required field holds messages, in which there may be media."""
    refused: frozenset[str] = frozenset()
    """Fields that ask for what only the service of others has; null asks for nothing."""
    tools: tuple[str, ...] | None = None
    """The types of tools that it takes, the usual one first; None: whatever the engine takes."""

    @property
    def endpoint(self) -> str:
        return self.path.removeprefix("/v1/")

    def served_by(self, capabilities: Iterable[str]) -> bool:
        """Whether a deployment with these capabilities can answer it."""
        stands_in = self.by_chat or self.by_estimate
        return self.capability in capabilities or (stands_in and CHAT.capability in capabilities)


CHAT = Api("/v1/chat/completions", "chat", "messages", is_said=True)
COMPLETIONS = Api("/v1/completions", "completions", "prompt")
EMBEDDINGS = Api("/v1/embeddings", "embeddings", "input", streams=False)
RESPONSES_API = Api(
    "/v1/responses",
    "responses",
    "input",
    dialect=RESPONSES,
    by_chat=True,
    is_said=True,
    refused=responses.REFUSED,
    tools=responses.TOOLS,
)
MESSAGES_API = Api(
    "/v1/messages",
    "messages",
    "messages",
    dialect=MESSAGES,
    by_chat=True,
    is_said=True,
    refused=messages.REFUSED,
    tools=messages.TOOLS,
)
COUNT_TOKENS = Api(
    "/v1/messages/count_tokens",
    "count_tokens",
    "messages",
    streams=False,
    dialect=MESSAGES,
    by_estimate=True,
    is_said=True,
    refused=messages.REFUSED,
    tools=messages.TOOLS,
)
RERANK = Api("/v1/rerank", "rerank", "query", streams=False)
SCORE = Api("/v1/score", "score", streams=False)
TRANSCRIPTIONS = Api("/v1/audio/transcriptions", "transcriptions", streams=False, takes_forms=True)
TRANSLATIONS = Api("/v1/audio/translations", "translations", streams=False, takes_forms=True)
APIS = {
    api.path: api
    for api in (
        CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES_API, MESSAGES_API, COUNT_TOKENS, RERANK, SCORE, TRANSCRIPTIONS,
        TRANSLATIONS,
    )
}  # fmt: skip


def task(capability: str) -> Api:
    """The path of a task, ``tasks/NAME``."""
    return Api(f"/v1/{capability}", capability, streams=False, takes_forms=True)
