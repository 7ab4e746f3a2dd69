"""The login that is kept between commands: in a file that its owner alone may read."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from firstkit.cli.common import fail

AGAIN = "'first login --server URL' makes it anew."


@dataclass(frozen=True)
class Login:
    """A login at a gateway. ``server``: its base URL, with ``/v1``; ``expires_at``: of the access token, in seconds
    since 1970. ``refresh_token``: empty where the provider gives none."""

    server: str
    kind: str
    issuer: str
    client_id: str
    access_token: str
    expires_at: float
    refresh_token: str = ""


def path() -> Path:
    """Where it is kept: ``first/login.json`` below XDG_CONFIG_HOME."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "first" / "login.json"


def load() -> Login | None:
    """The login that is kept, None where there is none; ends the command for a file that others may read."""
    where = path()
    try:
        with where.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_IMODE(mode) & 0o077:
                fail(f"{where} may be read by others.", f"Make it yours alone: chmod 600 {where}")
            data = json.load(file)
        return Login(**{field.name: data[field.name] for field in fields(Login)})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        fail(f"what is in {where} is no login.", AGAIN)


def save(login: Login) -> None:
    """Keep ``login`` in place of what was there: whole or not at all."""
    where = path()
    where.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = where.with_name(f"{where.name}.{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(login), file)
    new.replace(where)


def forget() -> None:
    """Keep no login any more."""
    path().unlink(missing_ok=True)


@contextmanager
def alone() -> Iterator[None]:
    """One command at a time makes a login new: providers take a refresh token that is used twice for stolen."""
    where = path()
    where.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(where.with_name("login.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
