"""The forms of our own tokens: an API key ``first-<prefix>-<secret>``, and the session of a browser."""

from __future__ import annotations

import re

from firstkit.ids import new_secret

KEY = re.compile(r"first-([a-z2-7]{12})-[a-z2-7]{52}")
_SESSION = re.compile(r"first-session-[a-z2-7]{52}")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # what may follow "Bearer"
OURS = "first-"
"""With this all tokens of ours begin; no identity provider is asked about one."""
LONGEST = 16_384
"""Characters of a token. Those of identity providers carry claims; longer ones are refused unseen."""


def is_token(text: str) -> bool:
    """Whether anybody may have given this out as a token."""
    return len(text) <= LONGEST and _TOKEN.fullmatch(text) is not None


def parse_key(text: str) -> str | None:
    """The prefix of a well-formed key, None for anything else."""
    match = KEY.fullmatch(text)
    return match[1] if match else None


def is_session(text: str) -> bool:
    """Whether this has the form of a session."""
    return _SESSION.fullmatch(text) is not None


def new_session() -> str:
    """A session that nobody can guess."""
    return f"first-session-{new_secret()}"
