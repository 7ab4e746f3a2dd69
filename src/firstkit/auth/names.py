"""Names of users, projects and keys: what people may write, and what every database takes."""

from __future__ import annotations

import re

from firstkit.auth.tokens import KEY
from firstkit.errors import InvalidRequest

_UNFIT = r"\x00-\x1f\x7f\ud800-\udfff"  # control characters, and halves of characters, which no database takes
_NAME = re.compile(rf"[^\s{_UNFIT}](?:[^{_UNFIT}]{{0,198}}[^\s{_UNFIT}])?")


def is_name(text: str) -> bool:
    """Whether something can be called so: 1 to 200 printable characters, no space at the ends."""
    return _NAME.fullmatch(text) is not None


def check_names(**names: str) -> None:
    """Raise InvalidRequest, which says what of the arguments it is, for one that is no name or holds a key."""
    for what, value in names.items():
        if not is_name(value) or KEY.search(value):
            raise InvalidRequest(f"The {what} must be 1 to 200 printable characters, and not a key.", param=what)


def check_text(**texts: str) -> None:
    """Raise InvalidRequest, which says what of the arguments it is, for one of more than 2000 characters, or with some
    that no database takes."""
    for what, value in texts.items():
        if len(value) > 2000 or re.search(r"[\0\ud800-\udfff]", value):
            raise InvalidRequest(f"The {what} must be at most 2000 characters.", param=what)


def fitted(text: str) -> str:
    """``text`` without what a name may not have, cut to 200 characters; empty where nothing is left or it holds a
    key."""
    kept = re.sub(f"[{_UNFIT}]", "", text).strip()[:200].strip()
    return "" if KEY.search(kept) else kept
