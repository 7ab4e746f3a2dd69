"""Keeps child processes alive: starts each again when it dies, ends all when told to, and dies with none left behind.

One thread, no handlers: signals are blocked and taken one by one, so that nothing can come in between.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from firstkit.schedulers.processes import die_with_parent, manner

logger = logging.getLogger("firstkit.serve")
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
STEADY_S = 20.0
"""A child that lived for so long has shown that it can: its next death counts as the first."""
GRACE_S = 40.0
"""Longest wait for children that were told to end; the gateway gives open requests 30 s."""
BAD_CONFIGURATION = 2
_STOP = frozenset({signal.SIGTERM, signal.SIGINT})
_TAKEN = _STOP | {signal.SIGCHLD}


def deaths_in_a_row(before: int, lived_s: float) -> int:
    """How many deaths count after one more, of a child that lived ``lived_s``."""
    return 1 if lived_s >= STEADY_S else before + 1


def pause_s(deaths: int) -> float:
    """How long to wait before a child that died ``deaths`` times in a row starts again."""
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(deaths - 1, 16)))


class Child:
    """A command that shall always run. ``due_at``: when it starts, on the monotonic clock; None while it runs."""

    def __init__(self, name: str, argv: Sequence[str]) -> None:
        self.name = name
        self.argv = list(argv)
        self.due_at: float | None = 0.0
        self.process: subprocess.Popen[bytes] | None = None
        self._deaths = 0
        self._started_at = 0.0

    def start(self) -> None:
        parent = os.getpid()

        def become_child() -> None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _TAKEN)
            die_with_parent(parent, signal.SIGTERM)

        self.process = subprocess.Popen(
            self.argv,
            stdin=subprocess.DEVNULL,
            preexec_fn=become_child,  # noqa: PLW1509 - this process has one thread
        )
        self.due_at = None
        self._started_at = time.monotonic()

    def reap(self) -> int | None:
        """The exit status if it has ended since it was started; it is then due again after a pause."""
        if self.process is None or (status := self.process.poll()) is None:
            return None
        self.process = None
        now = time.monotonic()
        self._deaths = deaths_in_a_row(self._deaths, now - self._started_at)
        self.due_at = now + pause_s(self._deaths)
        return status


class Supervisor:
    """Runs ``children`` until a signal asks for the end, or one of them says that the configuration is bad."""

    def __init__(self, children: Sequence[Child], grace_s: float = GRACE_S) -> None:
        self._children = children
        self._grace_s = grace_s

    def run(self) -> int:
        """0 when a signal asked for the end, BAD_CONFIGURATION when a child did. No child is left then."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)
        try:
            status = self._supervise()
            self._end()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return status

    def _supervise(self) -> int:
        while True:
            for child in self._children:
                status = child.reap()
                if status == BAD_CONFIGURATION:
                    return status
                if status is not None:
                    self._tell(child, status)
                if child.due_at is not None and child.due_at <= time.monotonic():
                    child.start()
            if self._wait(self._next_start_s()) in _STOP:
                return 0

    def _tell(self, child: Child, status: int) -> None:
        pause = (child.due_at or 0.0) - time.monotonic()
        logger.warning(
            "the %s ended (%s) and starts again in %.1f s", child.name, manner(status), pause,
            extra={"action": "restart", "child": child.name},
        )  # fmt: skip

    def _next_start_s(self) -> float | None:
        due = [child.due_at for child in self._children if child.due_at is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _end(self) -> None:
        """Ask all to end; kill what is left after the grace, or at a second signal."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + self._grace_s
        while any(child.process is not None for child in self._children):
            left_s = deadline - time.monotonic()
            if left_s <= 0 or self._wait(left_s) in _STOP:
                self._signal(signal.SIGKILL)
                deadline = time.monotonic() + self._grace_s
            for child in self._children:
                child.reap()

    def _signal(self, number: int) -> None:
        for child in self._children:
            if child.process is not None:
                child.process.send_signal(number)

    @staticmethod
    def _wait(limit_s: float | None) -> int | None:
        """The next signal; None when none came in time."""
        if limit_s is None:
            return signal.sigwaitinfo(_TAKEN).si_signo
        info = signal.sigtimedwait(_TAKEN, limit_s)
        return None if info is None else info.si_signo


def parts(config_path: str) -> list[Child]:
    """Gateway and controller of a configuration."""
    return [
        Child(name, [sys.executable, "-m", module, "--config", config_path])
        for name, module in (("gateway", "firstkit.gateway"), ("controller", "firstkit.reconciler"))
    ]
