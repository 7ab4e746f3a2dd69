"""A circuit breaker for each replica: who failed many requests in a row is left alone, then tried with one."""

from __future__ import annotations

import enum
from dataclasses import dataclass

FAILURES = 5
"""So many in a row, and the circuit opens."""
FIRST_WAIT_S = 5.0
LONGEST_WAIT_S = 60.0


class Circuit(enum.Enum):
    """CLOSED -> OPEN -> TRYING -> CLOSED or OPEN again."""

    CLOSED = "closed"  # requests flow
    OPEN = "open"  # none
    TRYING = "trying"  # one at a time, until one has ended


@dataclass(slots=True)
class Breaker:
    """Pure. Whoever holds it calls ``try_again`` after the seconds that ``failed`` returns, unless ``openings`` has
    risen by then."""

    circuit: Circuit = Circuit.CLOSED
    openings: int = 0
    _failures: int = 0
    _wait_s: float = FIRST_WAIT_S
    _is_tried: bool = False

    @property
    def lets_pass(self) -> bool:
        """Whether a request may go to the replica now."""
        return self.circuit is Circuit.CLOSED or (self.circuit is Circuit.TRYING and not self._is_tried)

    def passed(self) -> None:
        """A request was sent."""
        self._is_tried = True

    def succeeded(self) -> None:
        """A request ended well, or by the client's own fault: the replica answers."""
        if self._failures == 0:
            return
        self.circuit = Circuit.CLOSED
        self._failures = 0
        self._wait_s = FIRST_WAIT_S

    def left(self) -> None:
        """A request ended without saying anything about the replica: its client went away."""
        self._is_tried = False

    def failed(self) -> float | None:
        """A request failed by the replica's fault. Returns the seconds to wait when that opens the circuit."""
        if self.circuit is Circuit.OPEN:
            return None
        self._failures += 1
        if self.circuit is Circuit.CLOSED and self._failures < FAILURES:
            return None
        wait_s, self._wait_s = self._wait_s, min(2 * self._wait_s, LONGEST_WAIT_S)
        self.circuit = Circuit.OPEN
        self.openings += 1
        return wait_s

    def try_again(self) -> None:
        """The wait is over."""
        if self.circuit is Circuit.OPEN:
            self.circuit = Circuit.TRYING
            self._is_tried = False
