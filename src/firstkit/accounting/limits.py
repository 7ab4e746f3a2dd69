"""What one key may do: requests per minute and requests at a time. Pure: times come in, monotonic seconds."""

from __future__ import annotations

from dataclasses import dataclass

from firstkit.errors import RateLimited

WINDOW_S = 60.0
BUSY_RETRY_S = 1.0


@dataclass(slots=True)
class Standing:
    """How a key stands with its requests per minute; ``reset_s``: until all of them are free again."""

    limit: int
    remaining: int
    reset_s: float


class _Key:
    """One key: its theoretical arrival time, and how many of its requests are under way."""

    __slots__ = ("due", "running")

    def __init__(self) -> None:
        self.due = 0.0
        self.running = 0


class KeyLimits:
    """The generic cell rate algorithm (GCRA) by key: a minute's requests at once, then as many as time frees.

    None for a limit means that there is none. Keys are remembered as long as the process lives: they are those that
    the store knows, not what anybody sends.
    """

    def __init__(self, per_minute: int | None = None, at_a_time: int | None = None) -> None:
        self._per_minute = per_minute
        self._at_a_time = at_a_time
        self._step_s = WINDOW_S / per_minute if per_minute else 0.0
        self._keys: dict[str, _Key] = {}

    def enter(self, key: str, now: float) -> Standing | None:
        """Count a request in; raises RateLimited, and then it is not. Every request that came in has to ``leave``."""
        known = self._keys.get(key)
        if known is None:
            known = self._keys[key] = _Key()
        if self._at_a_time is not None and known.running >= self._at_a_time:
            message = f"This key has {known.running} requests under way; {self._at_a_time} are allowed at a time."
            raise RateLimited(message, retry_after_s=BUSY_RETRY_S, headers=rate_headers(self._standing(known, now)))
        if self._per_minute is not None:
            self._count(known, now)
        known.running += 1
        return self._standing(known, now)

    def leave(self, key: str) -> None:
        """A request that came in has ended."""
        self._keys[key].running -= 1

    def _count(self, known: _Key, now: float) -> None:
        due = max(known.due, now) + self._step_s
        too_early_s = due - now - WINDOW_S
        if too_early_s > 1e-9:
            message = f"This key may send {self._per_minute} requests a minute."
            raise RateLimited(message, retry_after_s=too_early_s, headers=rate_headers(self._standing(known, now)))
        known.due = due

    def _standing(self, known: _Key, now: float) -> Standing | None:
        if self._per_minute is None:
            return None
        reset_s = max(0.0, known.due - now)
        return Standing(self._per_minute, int((WINDOW_S - reset_s) / self._step_s + 1e-9), reset_s)


def rate_lines(standing: Standing | None) -> bytes:
    """A key's standing as header lines, as OpenAI says it: https://platform.openai.com/docs/guides/rate-limits."""
    if standing is None:
        return b""
    return _LINES % (standing.limit, standing.remaining, standing.reset_s)


_LINES = (
    b"x-ratelimit-limit-requests: %d\r\nx-ratelimit-remaining-requests: %d\r\nx-ratelimit-reset-requests: %.3fs\r\n"
)


def rate_headers(standing: Standing | None) -> tuple[tuple[bytes, bytes], ...]:
    """The same, taken apart."""
    lines = rate_lines(standing).split(b"\r\n")[:-1]
    return tuple((name, value) for name, _, value in (line.partition(b": ") for line in lines))
