"""What a command is doing right now: a line that changes on a terminal, a line for each step elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, TextIO


class Progress:
    """``with Progress() as progress: progress.tell(...)``; nothing of it stays on a terminal."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._stage = ""
        self._status: Any = None

    def __enter__(self) -> Progress:
        if self._out.isatty():
            from rich.console import Console

            self._status = Console(file=self._out).status("")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def tell(self, stage: str, detail: str = "") -> None:
        """Show the stage, and on a terminal the detail, which may change all the time."""
        if self._status is not None:
            from rich.text import Text

            self._status.update(Text(f"{stage} ({detail})" if detail else f"{stage} ..."))
        elif stage != self._stage:
            print(f"{stage} ...", file=self._out, flush=True)
        self._stage = stage
