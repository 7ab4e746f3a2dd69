"""How much at a time and a minute: of keys, users, projects and models. Pure: times come in, monotonic seconds.

What is limited is written down once; a request costs what is configured, and nothing where nothing is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from itertools import repeat
from math import inf
from operator import attrgetter

from firstkit.accounting.estimate import Estimate
from firstkit.auth.permissions import Identity
from firstkit.config.accounting import Limits as AllLimits
from firstkit.config.accounting import ModelLimits
from firstkit.errors import InvalidRequest, RateLimited

WINDOW_S = 60.0
BUSY_RETRY_S = 1.0
KEPT = 2048
"""So many of a kind are not worth forgetting: most of them will come again."""
_TINY = 1e-6
"""Beside what floats make of a minute's steps."""


class OverLimit(InvalidRequest):
    """The request may need more tokens than are allowed in a whole minute."""

    code = "over_token_limit"


# -- those whom limits count for ---------------------------------------------------------------------------------------


class _Subject:
    """A key, a user, a project or a model: when all of its requests, and all of its tokens, will be free again, by the
    generic cell rate algorithm (GCRA); and how many of its requests are under way."""

    __slots__ = ("requests_due", "running", "tokens_due", "who")

    def __init__(self, who: str) -> None:
        self.who = who
        self.requests_due = 0.0
        self.tokens_due = 0.0
        self.running = 0

    def is_free(self, now: float) -> bool:
        """Whether nothing would be lost if it were forgotten."""
        return not self.running and self.requests_due <= now and self.tokens_due <= now


class _Kind:
    """All keys, users or projects, for all of their requests or for those to one model, and what each of them may do: a
    minute's worth at once, then as much as time frees. What is not limited has steps of no length.

    Who is free is forgotten: where more than KEPT are known, two of them are looked at for each who is new.
    """

    __slots__ = (
        "_names", "_order", "_sentences", "at_a_time", "request_step_s", "requests", "requests_per_s", "subjects",
        "token_step_s", "tokens", "tokens_per_s", "who",
    )  # fmt: skip

    def __init__(self, limits: AllLimits | ModelLimits, of: str, model: str | None) -> None:
        """``of``: ``key``, ``user``, ``project``; empty for a model as a whole."""
        end = f"_per_{of}" if of else ""
        where = "limits." if model is None else f"models.{model}.limits."
        whose = f"This {of}" if of else f"The model '{model}'"
        of_what = f" of the model '{model}'" if of and model else ""
        said = {unit: getattr(limits, f"{name}{end}") for unit, name in _NAMES.items()}
        self._names = {unit: f"{where}{name}{end}" for unit, name in _NAMES.items()}
        self._sentences = {unit: f"{whose} may have {limit} {unit}{of_what}." for unit, limit in said.items()}
        self.who = _WHO[of]
        """Whom a request counts for; nobody where that is empty."""
        self.requests, self.tokens, self.at_a_time = (inf if limit is None else limit for limit in said.values())
        self.request_step_s, self.token_step_s = WINDOW_S / self.requests, WINDOW_S / self.tokens
        self.requests_per_s, self.tokens_per_s = self.requests / WINDOW_S, self.tokens / WINDOW_S
        self.subjects: dict[str, _Subject] = {}
        self._order: deque[_Subject] = deque()

    @property
    def limits_nothing(self) -> bool:
        return self.requests == self.tokens == self.at_a_time == inf

    def meet(self, who: str, now: float) -> _Subject:
        """Somebody new."""
        if len(self._order) > KEPT:
            self._look_at_the_oldest(now)
            self._look_at_the_oldest(now)
        subject = self.subjects[who] = _Subject(who)
        self._order.append(subject)
        return subject

    def _look_at_the_oldest(self, now: float) -> None:
        oldest = self._order.popleft()
        if oldest.is_free(now):
            del self.subjects[oldest.who]
        else:
            self._order.append(oldest)

    def refusal(self, unit: str, wait_s: float) -> RateLimited:
        return RateLimited(self._sentences[unit], retry_after_s=wait_s, details={"limit": self._names[unit]})

    def cut(self, estimate: Estimate) -> float:
        """The tokens that a request is charged that may need more than a whole minute's: those of a minute, where it is
        not the client who said how long the answer may be. Raises OverLimit."""
        if estimate.given or estimate.prompt >= self.tokens:
            raise OverLimit(
                f"{self._sentences[_TOKENS]} This request may need {estimate.tokens} alone: {estimate.prompt} for its "
                f"prompt, {estimate.completion} for its answer.",
                details={"limit": self._names[_TOKENS]},
            )
        return self.tokens


_REQUESTS, _TOKENS, _RUNNING = "requests a minute", "tokens a minute", "requests at a time"
_NAMES = {_REQUESTS: "requests_per_minute", _TOKENS: "tokens_per_minute", _RUNNING: "concurrency"}
_WHO: dict[str, Callable[[Identity], str]] = {
    "key": attrgetter("limited_by"),
    "user": attrgetter("user_id"),
    "project": attrgetter("project_id"),
    "": lambda _: "all",
}
_Held = list[tuple[_Kind, _Subject]]


def _kinds(limits: AllLimits | ModelLimits, model: str | None = None) -> tuple[_Kind, ...]:
    """Those of which something is limited, of a ``model`` or of all."""
    each = ("user", "project", "") if model is not None else ("key", "user", "project")
    kinds = [_Kind(limits, of, model) for of in each]
    return tuple([kind for kind in kinds if not kind.limits_nothing])


# -- what requests ask -------------------------------------------------------------------------------------------------


class Limits:
    """All limits of a configuration."""

    def __init__(self, limits: AllLimits | None = None, models: Mapping[str, ModelLimits] | None = None) -> None:
        """``models``: those of the configuration, by canonical name. Without anything there is no limit."""
        self._kinds = _kinds(limits or AllLimits())
        of_models = {model: _kinds(entry, model) for model, entry in (models or {}).items()}
        self._of_models = {model: kinds for model, kinds in of_models.items() if kinds}
        self._limit_nothing = not self._kinds and not self._of_models

    def enter(self, identity: Identity, now: float) -> Stay | None:
        """Count a request in, for its key, its user and its project; raises RateLimited, and then it is counted
        nowhere. Whoever came in has to ``leave``. None: nothing is limited."""
        if self._limit_nothing:
            return None
        stay = Stay(identity, self._of_models)
        stay.enter(self._kinds, now)
        return stay


class Stay:
    """One request within the limits: what it counts for, until it leaves. Who is refused by one limit is counted by
    none: nothing waits between counting and looking."""

    __slots__ = ("_costs", "_held", "_identity", "_of_models")

    def __init__(self, identity: Identity, of_models: Mapping[str, tuple[_Kind, ...]]) -> None:
        self._identity = identity
        self._of_models = of_models
        self._held: _Held = []
        self._costs: list[float] = []
        """The tokens that were charged, for each of those."""

    def enter(self, kinds: tuple[_Kind, ...], now: float) -> None:
        """As ``Limits.enter``."""
        if self._count(kinds, now):
            raise self._refusal(0, now)

    def charge(self, model: str, estimate: Estimate, now: float) -> None:
        """Count it also for its model, and the tokens that it may need. Raises RateLimited, and then it is counted
        nowhere, nor where it came in; OverLimit where no waiting would help."""
        kinds = self._of_models.get(model, ())
        if not kinds and not self._held:
            return
        came_in = len(self._held)
        is_too_much = self._count(kinds, now)
        try:
            is_too_much |= self._count_tokens(estimate, now)
        except OverLimit:
            self._take_back(came_in)
            raise
        if is_too_much:
            raise self._refusal(came_in, now)

    def leave(self, tokens: int, now: float) -> None:
        """It has ended, and used so many tokens: what was charged is put right. To be called once."""
        costs = self._costs or repeat(tokens)  # who was refused was charged nothing, and nothing is to be put right
        for (kind, subject), cost in zip(self._held, costs, strict=False):
            more, due = tokens - cost, subject.tokens_due
            subject.tokens_due = (now if more > 0 and due < now else due) + more * kind.token_step_s
            subject.running -= 1
        self._held, self._costs = [], []

    def lines(self, now: float) -> bytes:
        """How it stands, as header lines."""
        return _lines(self._held, now)

    def _count(self, kinds: tuple[_Kind, ...], now: float) -> bool:
        """Count it for those of each kind whom it is of; returns whether that is too much for one of them."""
        latest, is_too_much = now + WINDOW_S + _TINY, False
        identity, held = self._identity, self._held
        for kind in kinds:
            if not (who := kind.who(identity)):
                continue
            subject = kind.subjects.get(who) or kind.meet(who, now)
            due = subject.requests_due
            subject.requests_due = due = (due if due > now else now) + kind.request_step_s
            subject.running = running = subject.running + 1
            if due > latest or running > kind.at_a_time:
                is_too_much = True
            held.append((kind, subject))
        return is_too_much

    def _count_tokens(self, estimate: Estimate, now: float) -> bool:
        """The same for the tokens that it may need; raises OverLimit, and then some are counted."""
        tokens, costs = estimate.tokens, self._costs
        latest, is_too_much = (now + WINDOW_S + _TINY if tokens else inf), False
        for kind, subject in self._held:
            cost = tokens if tokens <= kind.tokens else kind.cut(estimate)
            costs.append(cost)
            due = subject.tokens_due
            subject.tokens_due = due = (due if due > now else now) + cost * kind.token_step_s
            if due > latest:
                is_too_much = True
        return is_too_much

    def _refusal(self, came_in: int, now: float) -> RateLimited:
        """Why it is too much, by the limit that asks for the longest wait. It is counted nowhere then, though it is
        under way for the first ``came_in`` still."""
        held, latest, found = self._held, now + WINDOW_S + _TINY, list[RateLimited]()
        for kind, subject in held[came_in:]:
            if subject.running > kind.at_a_time:
                found.append(kind.refusal(_RUNNING, BUSY_RETRY_S))
            if subject.requests_due > latest:
                found.append(kind.refusal(_REQUESTS, subject.requests_due - now - WINDOW_S))
        for kind, subject in held if any(self._costs) else ():
            if subject.tokens_due > latest:
                found.append(kind.refusal(_TOKENS, subject.tokens_due - now - WINDOW_S))
        self._take_back(came_in)
        for kind, subject in held[:came_in]:
            subject.requests_due -= kind.request_step_s
        error = max(found, key=lambda error: error.retry_after_s or 0.0)
        error.headers = _headers(_lines(held, now))
        return error

    def _take_back(self, came_in: int) -> None:
        """Count it no more for those whom it did not come in by, and no tokens."""
        for (kind, subject), cost in zip(self._held, self._costs, strict=False):
            subject.tokens_due -= cost * kind.token_step_s
        for kind, subject in self._held[came_in:]:
            subject.requests_due -= kind.request_step_s
            subject.running -= 1
        self._held, self._costs = self._held[:came_in], []


# -- what is said of it ------------------------------------------------------------------------------------------------


def _headers(lines: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Header lines taken apart."""
    pairs = [line.partition(b": ") for line in lines.split(b"\r\n")[:-1]]
    return tuple([(name, value) for name, _, value in pairs])


def _lines(held: _Held, now: float) -> bytes:
    """The limit of requests that is the nearest, and that of tokens, as OpenAI tells them:
    https://platform.openai.com/docs/guides/rate-limits."""
    end, requests, tokens = now + WINDOW_S, (inf, inf, 0.0), (inf, inf, 0.0)
    for kind, subject in held:
        due = subject.requests_due
        left = (end - (due if due > now else now)) * kind.requests_per_s
        if left < requests[0]:
            requests = left, kind.requests, due
        due = subject.tokens_due
        left = (end - (due if due > now else now)) * kind.tokens_per_s
        if left < tokens[0]:
            tokens = left, kind.tokens, due
    return _told(_OF_REQUESTS, *requests, now) + _told(_OF_TOKENS, *tokens, now)


def _told(lines: bytes, left: float, limit: float, due: float, now: float) -> bytes:
    if limit == inf:
        return b""
    return lines % (limit, int(left + _TINY) if left > 0 else 0, due - now if due > now else 0.0)


_OF_REQUESTS = (
    b"x-ratelimit-limit-requests: %d\r\nx-ratelimit-remaining-requests: %d\r\nx-ratelimit-reset-requests: %.3fs\r\n"
)
_OF_TOKENS = b"x-ratelimit-limit-tokens: %d\r\nx-ratelimit-remaining-tokens: %d\r\nx-ratelimit-reset-tokens: %.3fs\r\n"
