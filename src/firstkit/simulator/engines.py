"""A model engine: it shares its speed among the requests that it has, and reads prompts faster than it writes."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf

from firstkit.routing.admission import Claim
from firstkit.routing.table import Route
from firstkit.routing.wish import ANYWHERE, Wish
from firstkit.simulator.events import Events
from firstkit.simulator.scenario import EngineSection

CLOSE_S = 1e-4
"""What would be done so soon is done: the clock has no finer steps."""


class Request:
    """One request. ``first_at``: when its first token is expected, once it is at an engine."""

    __slots__ = (
        "answer", "came_at", "claim", "first_at", "got_at", "is_over", "model", "prompt", "route", "wish",
    )  # fmt: skip

    def __init__(self, model: str, claim: Claim, prompt: int, answer: int, came_at: float) -> None:
        self.model = model
        self.claim = claim
        self.prompt = prompt
        self.answer = answer
        self.came_at = came_at
        self.wish: Wish = ANYWHERE
        self.route: Route | None = None
        self.got_at = 0.0
        self.first_at = inf
        self.is_over = False


class SimEngine:
    """Serves requests of one replica. All of them advance alike: what one has done is counted in tokens of an answer,
    where the prompt counts by how much faster it is read. ``on_done(engine, request)`` is called for each that ends."""

    __slots__ = ("_active", "_at", "_done", "_due_at", "_events", "_first_s", "_on_done", "_ratio", "_slope", "_speed",
                 "_turn", "requests", "route")  # fmt: skip

    def __init__(
        self, events: Events, kind: EngineSection, room: int, on_done: Callable[[SimEngine, Request], None]
    ) -> None:
        """``room``: as many requests as it takes at a time."""
        self.requests: dict[Request, None] = {}
        self.route: Route | None = None
        self._events = events
        self._on_done = on_done
        self._speed = kind.tokens_per_s
        full = kind.full_tokens_per_s or kind.tokens_per_s
        self._slope = (kind.tokens_per_s / full - 1) / max(1, room - 1)
        self._ratio = kind.tokens_per_s / kind.prompt_tokens_per_s
        self._first_s = kind.first_token
        self._active: list[tuple[float, int, Request]] = []
        self._done = 0.0
        """Tokens that a request has had that was here from the start."""
        self._at = events.now
        self._due_at = inf
        self._turn = 0

    @property
    def tokens_per_s(self) -> float:
        """Of each request, with those that there are."""
        return self._speed / (1 + self._slope * max(0, len(self.requests) - 1))

    def begin(self, request: Request) -> None:
        """Take one more on."""
        self._advance()
        self.requests[request] = None
        self._turn += 1
        reading = request.prompt * self._ratio
        work = reading + request.answer + self._first_s * self._speed
        heappush(self._active, (self._done + work, self._turn, request))
        request.got_at = self._events.now
        request.first_at = request.got_at + self._first_s + reading / self.tokens_per_s
        self._watch()

    def drop(self) -> list[Request]:
        """End all, as when a process dies; those that it had."""
        left = list(self.requests)
        self.requests.clear()
        self._active.clear()
        self._due_at = inf
        return left

    def _advance(self) -> None:
        now = self._events.now
        self._done += (now - self._at) * self.tokens_per_s
        self._at = now

    def _watch(self) -> None:
        """Look again when the next one should be done; sooner than that nothing has to be looked at."""
        if not self._active:
            return
        due_at = self._at + max(0.0, self._active[0][0] - self._done) / self.tokens_per_s
        if due_at < self._due_at:
            self._due_at = due_at
            self._events.at(due_at, self._look, due_at)

    def _look(self, due_at: float) -> None:
        if due_at != self._due_at:
            return
        self._due_at = inf
        self._advance()
        active, done = self._active, self._done + self._speed * CLOSE_S
        finished = []
        while active and active[0][0] <= done:
            request = heappop(active)[-1]
            del self.requests[request]
            finished.append(request)
        self._watch()
        for request in finished:
            self._on_done(self, request)
