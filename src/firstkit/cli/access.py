"""Which gateway a command is about, and the key for it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from firstkit.cli.common import Server, fail, has_config, open_server

KEY_VARIABLE = "FIRST_API_KEY"
MAKE_ONE = "'first keys create NAME' makes one."
URL_EXAMPLE = "Write it as https://first.example.org/v1."
_PATH = re.compile(r"(/[\w.~-]+)*?/v1(/clusters/[\w.-]+)?")


def known_key(server: Server | None, variable: str = KEY_VARIABLE) -> str:
    """The demonstration's key, where that is the server, else what the variable holds; ends the command without one."""
    from firstkit.cli.demonstration_key import read_key

    key = read_key(server.state_dir) if server is not None and server.is_demonstration else None
    key = key or os.environ.get(variable, "").strip()
    if not key:
        fail(
            f"no key: {variable} is not set, and this is not the demonstration.",
            f"'first keys create NAME' makes one; then: export {variable}=...",
        )
    return checked_key(key, variable)


def reached(config: Path | None) -> tuple[str, str]:
    """The base URL of a gateway and a key for it: of the configuration, else where somebody is logged in; ends the
    command where there is neither."""
    if not has_config(config):
        from firstkit.cli.remote import logged_in

        remote = logged_in()
        if remote is not None:
            return remote.base_url, remote.token
    server = open_server(config)
    return server.base_url, known_key(server)


def key_in(path: Path) -> str:
    """The key that a file holds; ends the command where there is none."""
    try:
        text = path.expanduser().read_text(encoding="utf-8").strip()
    except OSError as exc:
        fail(f"{path} cannot be read: {exc.strerror}.", "Name a file that holds a key and nothing else.")
    except UnicodeDecodeError:
        text = ""
    return checked_key(text, str(path))


def checked_key(key: str, where: str) -> str:
    """``key`` when it can be one: it will stand in a header, and in files of other programs."""
    if not key.isascii() or not key.isprintable() or not key or set(key) & set(" \"'\\"):
        fail(f"what {where} holds is not a key.", MAKE_ONE)
    return key


@contextmanager
def made_key(config: Path | None, name: str) -> Iterator[str]:
    """A new key, which is revoked again when what it is made for fails."""
    from firstkit.cli.keys import end, make

    made = make(config, name)
    is_kept = False
    try:
        yield made["key"]
        is_kept = True
    finally:
        if not is_kept:
            end(config, made["prefix"])
    print(f"The key '{made['name']}' ({made['prefix']}) is new; 'first keys revoke' ends it.", file=sys.stderr)


def checked_url(text: str) -> str:
    """The URL of a gateway, ending in ``/v1`` or in the name of a cluster; ends the command for any other."""
    parsed = urlsplit(text)
    if parsed.scheme not in ("http", "https") or not parsed.hostname or not text.isascii() or re.search(r"\s", text):
        fail(f"'{text}' is not the URL of a gateway.", URL_EXAMPLE, status=2)
    if parsed.username is not None or parsed.query or parsed.fragment:
        fail("the URL of a gateway has no user, query or fragment.", URL_EXAMPLE, status=2)
    path = parsed.path.rstrip("/")
    if not _PATH.fullmatch(path):
        path += "/v1"
    if not _PATH.fullmatch(path):
        fail(f"'{parsed.path}' is no path of a gateway.", URL_EXAMPLE, status=2)
    return f"{parsed.scheme}://{parsed.netloc}{path}"
