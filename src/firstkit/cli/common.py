"""What every command shares: the configuration that it is about, and how it says what went wrong."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from firstkit.errors import ConfigError
from firstkit.paths import default_state_dir

if TYPE_CHECKING:
    from firstkit.config import Config

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="The configuration; default: FIRST_CONFIG, else the one of 'first up'."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEMONSTRATION_FILE = "first.yaml"
LISTEN = "127.0.0.1:8000"
LONGEST_STATE_DIR = 90
"""Bytes; the configuration says why."""
CHECK_IT = "'first config check' looks at the whole file."


@dataclass(frozen=True)
class Server:
    """Where a deployment listens and keeps its state: all that most commands need to know."""

    config_path: Path
    state_dir: Path
    listen: str = LISTEN
    database: str | None = None

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.state_dir / 'first.db'}"

    @property
    def base_url(self) -> str:
        """The URL that clients on this machine use."""
        host, _, port = self.listen.rpartition(":")
        host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104 - read, not bound
        return f"http://{host}:{port}/v1"

    @property
    def is_demonstration(self) -> bool:
        return self.config_path == default_config_path()


def fail(message: str, next_step: str, status: int = 1) -> NoReturn:
    """End the command: what is wrong, and what to do about it, on standard error."""
    print(f"Error: {message}", next_step, sep="\n", file=sys.stderr)
    raise typer.Exit(status)


def default_config_path() -> Path:
    """The file that ``first up`` writes."""
    return default_state_dir().expanduser().absolute() / DEMONSTRATION_FILE


def has_config(path: Path | None) -> bool:
    """Whether there is a configuration by --config, FIRST_CONFIG or ``first up``."""
    return path is not None or bool(os.environ.get("FIRST_CONFIG")) or default_config_path().exists()


def find_config(path: Path | None) -> Path:
    """The configuration file by --config, FIRST_CONFIG or ``first up``; ends the command when there is none."""
    if path is not None:
        return path.expanduser().absolute()
    if named := os.environ.get("FIRST_CONFIG"):
        return Path(named).expanduser().absolute()
    path = default_config_path()
    if not path.exists():
        fail(
            f"no configuration: neither --config nor FIRST_CONFIG names one, and there is no {path}.",
            "'first up' starts the demonstration and writes one. 'first login' logs in at a gateway elsewhere.",
        )
    return path


def open_config(path: Path | None) -> Config:
    """The whole configuration, checked; ends the command, naming every fault, when it is not valid."""
    found = find_config(path)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # it would look for some in every package that is installed
    from firstkit.config import load_config

    try:
        return load_config(found)
    except ConfigError as exc:
        if not found.is_file():
            fail(f"{exc.message}.", "Name a file that is there, by --config or FIRST_CONFIG.")
        fail(exc.message, "Correct the file and look again: 'first config check'.")


def open_server(path: Path | None) -> Server:
    """The ``server`` section alone. Checking the whole file would take longer than most commands take in all."""
    found = find_config(path)
    return _read_server(found) or _checked_server(found)


def _read_server(path: Path) -> Server | None:
    """The section where it holds nothing unusual; None: it needs a closer look."""
    import yaml

    try:
        data: Any = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - safe
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    section = data.get("server") if isinstance(data, dict) else None
    if section is None and isinstance(data, dict):
        section = {}
    if not isinstance(section, dict):
        return None
    known = {name: section[name] for name in ("state_dir", "listen", "database") if name in section}
    if not all(isinstance(value, str) and value == value.strip() != "" for value in known.values()):
        return None
    state_dir = Path(known.pop("state_dir", default_state_dir())).expanduser().absolute()
    if len(os.fsencode(str(state_dir))) > LONGEST_STATE_DIR or not re.fullmatch(r".+:\d+", known.get("listen", LISTEN)):
        return None
    return Server(path, state_dir, **known)


def _checked_server(path: Path) -> Server:
    config = open_config(path)
    return Server(path, config.server.state_dir, config.server.listen, config.server.database)


def command_name() -> str:
    """How this command was called, so that what we print can be copied."""
    called = Path(sys.argv[0])
    if called.name != "first":
        called = Path(sys.executable).parent / "first"
    if shutil.which("first") == str(called.absolute()):
        return "first"
    try:
        return str(called.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(called)
