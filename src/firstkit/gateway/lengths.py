"""How long the answer to a request may be: what its body says of that, and what is said in its place."""

from __future__ import annotations

import msgspec

from firstkit.engines.reported import MOST_COMPLETION_TOKENS
from firstkit.errors import InvalidRequest
from firstkit.gateway.apis import CHAT, COMPLETIONS, MESSAGES_API, RESPONSES_API, Api
from firstkit.gateway.call import Body, read

_ALL = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_OF_API = {
    CHAT.path: ("max_tokens", "max_completion_tokens"),
    COMPLETIONS.path: ("max_tokens",),
    RESPONSES_API.path: ("max_output_tokens",),
    MESSAGES_API.path: ("max_tokens",),
}
"""The fields that say it in each protocol, that first which every engine knows. Engines pass over those of others."""
_OF_ENGINES = ("n_predict", "max_new_tokens")
"""Those of single engines, which they may believe more."""
_CHOICES = ("n", "best_of")
_COUNTS = frozenset((*_ALL, *_CHOICES))


def length_of(body: Body, api: Api) -> tuple[int | None, int]:
    """How many tokens each choice of an answer may have, None where a body does not say, and how many choices there
    are. Numbers beyond what any model says are cut. Raises InvalidRequest."""
    if _COUNTS.isdisjoint(body):
        return None, 1
    most, choices, fields = 0, 1, _OF_API.get(api.path, _ALL)
    for field in [each for each in _COUNTS if each in body]:
        count = read(body, field, int, None)
        if count is None:
            continue
        if count < 1:
            raise InvalidRequest(f"'{field}' must be at least 1.", param=field)
        if field in _CHOICES:
            choices = max(choices, min(count, MOST_COMPLETION_TOKENS))
        elif count > most and field in fields:
            most = min(count, MOST_COMPLETION_TOKENS)
    return most or None, choices


def limit_answer(body: Body, api: Api, most: int) -> None:
    """See to it that each choice of an answer is of ``most`` tokens at most, whatever else a checked body says."""
    for field in _OF_ENGINES:
        body.pop(field, None)
    named = [field for field in _OF_API.get(api.path, _ALL) if read(body, field, int, 0)]
    if not named and api.path in _OF_API:
        named = [_OF_API[api.path][0]]
    for field in named:
        if read(body, field, int, most + 1) > most:
            body[field] = msgspec.Raw(b"%d" % most)
