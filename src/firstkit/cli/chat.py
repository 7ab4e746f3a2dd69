"""``first chat``: one question, or a conversation, answered as the model speaks."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firstkit.cli.access import reached
from firstkit.cli.common import ConfigOption, fail
from firstkit.cli.showing import eta

if TYPE_CHECKING:
    from firstkit.cli.api import Api, Waiting

PROMPT = "> "
Messages = list[dict[str, str]]


def chat(
    message: Annotated[
        str | None, typer.Argument(metavar="MESSAGE", help="What to ask. Without it: a conversation, or the input.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Default: the first one that can chat.")] = None,
    config: ConfigOption = None,
) -> None:
    """Ask a model; the answer comes as it is made."""
    from firstkit.cli.api import Api, ApiFailed

    gc.enable()
    api = Api(*reached(config))
    question = _piped() if message is None and not sys.stdin.isatty() else message
    if question is not None and not question.strip():
        fail("there is nothing to ask: the message is empty.", "Write for example: first chat 'Name three fruits.'")
    try:
        name = model or default_model(api.models())
        if question is None:
            _converse(api, name)
        else:
            _answer(api, name, [{"role": "user", "content": question}])
    except ApiFailed as exc:
        fail(exc.message, exc.next_step)


def default_model(models: list[dict[str, Any]]) -> str:
    """The first model that can chat; raises ApiFailed where there is none."""
    from firstkit.cli.api import ApiFailed

    able = [row["id"] for row in models if "chat" in row["first"]["capabilities"]]
    if not able:
        raise ApiFailed("no model here can chat.", "'first models' lists the models.")
    return str(able[0])


def progress_words(model: str, waiting: Waiting) -> str:
    """A comment of the gateway as people say it: ``smollm2 is starting, ETA 12 s``."""
    if waiting.status == "live":
        return f"{model} is busy, you are number {waiting.position} in the line"
    words = f"{model} is {waiting.status}, {eta(waiting.eta_s)}"
    return f"{words} ({waiting.reason})" if waiting.reason and waiting.status != "starting" else words


class Notice:
    """A line on standard error that goes when the answer comes; where that is no terminal, each new status stays."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._shown = ""

    def show(self, status: str, words: str) -> None:
        if self._is_terminal:
            print(f"\r\x1b[K{words}", end="", file=sys.stderr, flush=True)
        elif status != self._shown:
            print(words, file=sys.stderr, flush=True)
        self._shown = status

    def clear(self) -> None:
        if self._shown and self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        self._shown = ""


def _piped() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        fail("the input is not UTF-8 text.", "Convert it first, for example by iconv.")


def _answer(api: Api, model: str, messages: Messages) -> str:
    """Print the answer as it comes, and return it. Raises ApiFailed."""
    from firstkit.cli.api import Ended, Text, Waiting

    notice, said = Notice(), ""
    try:
        for piece in api.chat(model, messages):
            if isinstance(piece, Waiting):
                notice.show(piece.status, progress_words(model, piece))
            elif isinstance(piece, Text):
                notice.clear()
                said += piece.text
                sys.stdout.write(piece.text)
                sys.stdout.flush()
            elif isinstance(piece, Ended) and piece.reason == "length":
                print("\n(The answer ends here because it reached the limit on its length.)", file=sys.stderr)
    finally:
        notice.clear()
        if said and not said.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()
    return said


def _converse(api: Api, model: str) -> None:
    """Question and answer until Ctrl-D, or Ctrl-C at the prompt; the model sees all that was said."""
    import readline  # noqa: F401 - gives input() editing and history, which is kept nowhere else

    from firstkit.cli.api import ApiFailed

    print(f"You talk to {model}. Ctrl-C stops an answer, Ctrl-D ends the conversation.\n")
    messages: Messages = []
    while True:
        try:
            question = input(PROMPT)
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not question.strip():
            continue
        asked = [*messages, {"role": "user", "content": question}]
        try:
            messages = [*asked, {"role": "assistant", "content": _answer(api, model, asked)}]
        except KeyboardInterrupt:
            print("(stopped)", file=sys.stderr)
        except ApiFailed as exc:
            print(f"Error: {exc.message}\n{exc.next_step}", file=sys.stderr)
        print()
