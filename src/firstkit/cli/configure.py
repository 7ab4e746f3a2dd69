"""``first configure``: the configuration of somebody's tool for this gateway, printed or written, key included."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from firstkit.cli.common import ConfigOption, JsonOption, fail, open_server
from firstkit.cli.showing import show, show_json

if TYPE_CHECKING:
    from firstkit.cli.tools import Model, Target, Tool
    from firstkit.gateway.apis import Api

LIST = "'first configure --list' says what there is."
Row = dict[str, Any]


def configure(
    tool: Annotated[str | None, typer.Argument(metavar="TOOL", help="The tool; --list says which there are.")] = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Default: the first one that can chat.")] = None,
    url: Annotated[str | None, typer.Option(metavar="URL", help="The gateway; default: the configuration's.")] = None,
    key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="A file that holds the key.")] = None,
    key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="The variable that holds the key; default: FIRST_API_KEY.")
    ] = None,
    new_key: Annotated[bool, typer.Option("--new-key", help="Make a key for this tool.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Write it to the tool's own folder.")] = False,
    to: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it to this file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is not of this command.")] = False,
    as_list: Annotated[bool, typer.Option("--list", help="List the tools, and what each of them gets.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Print or write the configuration of a tool for this gateway.

    The tool is another program or library; the key is part of what is printed.
    """
    from firstkit.cli.api import ApiFailed
    from firstkit.cli.tools import TOOLS

    if as_list:
        _list(as_json)
        return
    if tool is None or tool not in TOOLS:
        fail("which tool?" if tool is None else f"nothing is known of a tool '{tool}'.", LIST, status=2)
    chosen = TOOLS[tool]
    path = _destination(chosen, to, force) if write or to is not None else None
    try:
        with _access(url, (key_file, key_env, new_key), config, tool) as (base_url, key):
            target = _target(chosen, base_url, key, model)
            _deliver(chosen.text(target), path)
    except ApiFailed as exc:
        fail(exc.message, exc.next_step)
    _tell(chosen, target.model, path)


def _list(as_json: bool) -> None:
    from firstkit.cli.tools import TOOLS

    rows: list[Row] = [
        {"tool": name, "gets": tool.gets, "needs": tool.api.path, "file": tool.file, "use": tool.use}
        for name, tool in TOOLS.items()
    ]
    if as_json:
        show_json(rows)
        return
    columns = ("tool", "gets", "needs", "file")
    show(columns, [[row[column] for column in columns] for row in rows])


# -- for which gateway -------------------------------------------------------------------------------------------------


@contextmanager
def _access(
    url: str | None, key_from: tuple[Path | None, str | None, bool], config: Path | None, tool: str
) -> Iterator[tuple[str, str]]:
    """URL and key; a key that was made for this does not outlive a failure."""
    from firstkit.cli import access
    from firstkit.cli.admin import login

    file, variable, is_new = key_from
    if (file is not None) + (variable is not None) + is_new > 1:
        fail("the key comes from one place.", "Give one of --key-file, --key-env and --new-key.", status=2)
    server = None if url is not None else open_server(config)
    base_url = access.checked_url(url or "") if server is None else server.base_url
    if is_new:
        with access.made_key(config, f"{tool}-{login()}") as key:
            yield base_url, key
    elif file is not None:
        yield base_url, access.key_in(file)
    else:
        yield base_url, access.known_key(None if variable else server, variable or access.KEY_VARIABLE)


def _target(tool: Tool, base_url: str, key: str, wanted: str | None) -> Target:
    """Raises ApiFailed; ends the command where no model, or not the one that is wanted, serves what the tool needs."""
    from firstkit.cli.api import Api as Client
    from firstkit.cli.tools import ROOT_OF, Target
    from firstkit.gateway.apis import EMBEDDINGS, MESSAGES_API

    if tool.api is MESSAGES_API and not base_url.endswith(ROOT_OF):
        fail("this tool cannot be held to one cluster.", f"Give a URL that ends in {ROOT_OF}.")
    rows = Client(base_url, key).models()
    able = [row for row in rows if tool.api.served_by(row["first"]["capabilities"])]
    known = rows if wanted is not None else able
    chosen = next((row for row in known if wanted in (None, row["id"], *row["first"]["aliases"])), None)
    if chosen is None or chosen not in able:
        _refuse(tool.api, wanted, chosen, [row["id"] for row in able])
    others = [_model(row, row["id"]) for row in able if row is not chosen]
    embedder = next((row["id"] for row in rows if EMBEDDINGS.served_by(row["first"]["capabilities"])), None)
    return Target(base_url, key, (_model(chosen, wanted or chosen["id"]), *others), embedder)


def _model(row: Row, name: str) -> Model:
    from firstkit.cli.tools import Model

    return Model(name, row["first"]["context_length"])


def _refuse(api: Api, wanted: str | None, found: Row | None, able: list[str]) -> NoReturn:
    choice = f"Choose one of these: {', '.join(able)}." if able else "'first models' lists the models."
    if wanted is None:
        fail(f"no model here serves {api.path}, which this tool needs.", choice)
    if found is None:
        fail(f"there is no model '{wanted}'.", choice)
    fail(f"the model '{wanted}' does not serve {api.path}, which this tool needs.", choice)


# -- to where ----------------------------------------------------------------------------------------------------------


def _usual(tool: Tool) -> Path:
    """Where the tool finds its configuration, or where we put it for it."""
    path = Path(tool.file)
    folder = os.environ.get(tool.home, "") if tool.home else ""
    return (Path(folder) / path.name if folder else path).expanduser().absolute()


def _destination(tool: Tool, to: Path | None, force: bool) -> Path:
    """The file to write, through links; ends the command when it is somebody else's."""
    path = Path(os.path.realpath(_usual(tool) if to is None else to.expanduser()))
    if path.is_dir():
        fail(f"{path} is a folder.", "Name a file.")
    if force or not path.exists():
        return path
    try:
        is_ours = tool.is_ours(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        is_ours = False
    if not is_ours:
        fail(
            f"{path} was not written by 'first configure', and stays as it is.",
            "Name another file by --to, or overwrite this one with --force.",
        )
    return path


def _deliver(text: str, path: Path | None) -> None:
    from firstkit.cli.demonstration import write_private

    if path is None:
        sys.stdout.write(text)
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, text)


def _tell(tool: Tool, model: Model, path: Path | None) -> None:
    """What to do with it, on standard error: standard output is the file."""
    place = _usual(tool)
    file = path or place
    lines = [f"Wrote {file}." if path else f"This is the whole file, with the key: keep it to yourself, as {file}."]
    if "{file}" not in tool.use and file != Path(os.path.realpath(place)) and path:
        lines.append(f"It is found as {place} only.")
    lines.append(f"Then: {tool.use.format(file=shlex.quote(str(file)))}")
    if model.context is not None and model.context < tool.context:
        lines.append(
            f"But {model.name} has a context of {model.context} tokens, and this tool says some {tool.context} before "
            "you say anything: choose another by --model."
        )
    print(*lines, sep="\n", file=sys.stderr)
