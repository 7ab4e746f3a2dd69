"""Commands of a batch system, run one after the other within one limit of time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

from firstkit.errors import SchedulerRefused, SchedulerSilent

_TO_BE_READ = {"LC_ALL": "C", "TZ": "UTC"}
"""What makes answers exact: no language, and times in UTC, since batch systems print them without a zone."""


class Done(NamedTuple):
    """A command that has ended by itself."""

    status: int
    output: str
    errors: str


class Calls:
    """The commands of one verb. ``env`` is all that they see; all together they have ``limit_s``.

    ``asking``: further variables for commands whose answer is read, and not for jobs.
    """

    def __init__(self, env: Mapping[str, str], limit_s: float, asking: Optional[Mapping[str, str]] = None) -> None:
        self._env = dict(env)
        self._asking = {**_TO_BE_READ, **(asking or {})}
        self._limit_s = limit_s
        self._give_up_at = time.monotonic() + limit_s

    def ask(self, argv: Sequence[str], text: str = "", limit_s: Optional[float] = None) -> Done:
        """Run a command whose answer is read, with ``text`` as its input."""
        return self._run(argv, {**self._env, **self._asking}, text, limit_s)

    def submit(self, argv: Sequence[str], more: Mapping[str, str]) -> Done:
        """Run a command whose environment, with ``more``, becomes that of the job."""
        return self._run(argv, {**self._env, **more}, "", None)

    def answer(self, argv: Sequence[str]) -> str:
        """The output of a command that must succeed; raises SchedulerSilent with its words where it does not."""
        done = self.ask(argv)
        if done.status != 0:
            raise SchedulerSilent(f"{argv[0]} failed (exit status {done.status}): {last_words(done.errors)}")
        return done.output

    def _run(self, argv: Sequence[str], env: Mapping[str, str], text: str, limit_s: Optional[float]) -> Done:
        left_s = self._give_up_at - time.monotonic()
        limit_s = left_s if limit_s is None else min(left_s, limit_s)
        try:
            process = subprocess.Popen(
                list(argv), env=dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                start_new_session=True, umask=0o077,
            )  # fmt: skip
        except OSError as exc:
            raise SchedulerSilent(f"{argv[0]} could not be run: {exc.strerror}") from exc
        with process:
            try:
                output, errors = process.communicate(text.encode(), timeout=max(0.0, limit_s))
            except subprocess.TimeoutExpired:
                raise SchedulerSilent(f"{argv[0]} did not answer within {self._limit_s:g} s") from None
            finally:
                _kill(process)
        return Done(process.returncode, output.decode(errors="replace"), errors.decode(errors="replace"))


def read_calling(settings: Mapping[str, Any], usual_limit_s: float) -> tuple[float, dict[str, str]]:
    """Out of a scheduler section: the seconds that the commands of a verb have, and their own environment.

    Raises SchedulerRefused naming the key that is wrong.
    """
    limit_s, extra = settings.get("command_timeout", usual_limit_s), settings.get("env", {})
    if not isinstance(limit_s, (int, float)) or isinstance(limit_s, bool) or limit_s <= 0:
        raise SchedulerRefused(f"scheduler.command_timeout: {limit_s!r} is not allowed: a number of seconds is needed")
    if not isinstance(extra, dict) or not all(isinstance(value, str) for value in extra.values()):
        raise SchedulerRefused("scheduler.env: names with text are needed")
    return limit_s, extra


def last_words(text: str, limit: int = 300) -> str:
    """What a command said last, for people."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return lines[-1][:limit] if lines else "it gave no reason"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the command, where it has not ended, and what it started. Its number is ours until it is waited for."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
