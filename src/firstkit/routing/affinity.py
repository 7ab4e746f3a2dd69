"""Requests that begin alike go where that beginning was read before: the engine has it in its cache.

Which replicas saw which beginning is remembered, for the last beginnings of each model. The alternative, to rank the
replicas of a model by a hash of beginning and replica, needs no memory, but a hash for each replica and request, and it
knows nothing of where a request really went when the first of the ranking was full.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

BLOCKS = (1000, 3000)
"""Bytes of a prompt that are looked at: a shared instruction is in the first block, a conversation in both. Below the
first there is nothing to gain. Of 2,048 bytes at a time hashlib would let go of the interpreter, which costs more than
to hash them."""
SHORTEST = BLOCKS[0]
BONUS = {1: (0.125,), 2: (0.25, 0.125)}
"""By the number of blocks, longest beginning first: how much later, as a share of a full replica, the one that knows a
beginning may finish and is still preferred."""
MOST_BEGINNINGS = 2048
MOST_HOLDERS = 4
_MOST_PROJECTS = 10_000

Holder = TypeVar("Holder", bound=Hashable)


class Prefixes:
    """Names of beginnings. They are hashes with a key that this process made and that differs with the project: nobody
    outside can make one, and equal prompts of two projects have nothing in common. So nobody learns by the time that an
    answer takes what another project has asked."""

    def __init__(self, secret: bytes | None = None) -> None:
        self._secret = secret or secrets.token_bytes(32)
        self._projects: dict[str, hashlib._Hash] = {}

    def of(self, project_id: str, text: bytes | memoryview) -> tuple[bytes, ...]:
        """The names of the beginnings of ``text``, the longest first; none where it is short."""
        size = len(text)
        if size < SHORTEST:
            return ()
        state = (self._projects.get(project_id) or self._project(project_id)).copy()
        view = memoryview(text)
        state.update(view[: BLOCKS[0]])
        first = state.digest()
        if size < BLOCKS[1]:
            return (first,)
        state.update(view[BLOCKS[0] : BLOCKS[1]])
        return state.digest(), first

    def _project(self, project_id: str) -> hashlib._Hash:
        if len(self._projects) >= _MOST_PROJECTS:
            self._projects.clear()
        key = hmac.digest(self._secret, project_id.encode(), "sha256")
        state = self._projects[project_id] = hashlib.sha256(key)
        return state


class Holders(Generic[Holder]):
    """Who saw which beginning, for the last MOST_BEGINNINGS of them."""

    __slots__ = ("_found", "_most")

    def __init__(self, most: int = MOST_BEGINNINGS) -> None:
        self._most = most
        self._found: OrderedDict[bytes, tuple[Holder, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def of(self, prefix: bytes) -> tuple[Holder, ...]:
        """Those that saw it, the last one first."""
        return self._found.get(prefix, ())

    def note(self, prefix: bytes, holder: Holder) -> None:
        """``holder`` gets a request that begins so."""
        found = self._found.get(prefix)
        if found is None:
            self._found[prefix] = (holder,)
            if len(self._found) > self._most:
                self._found.popitem(last=False)
            return
        if found[0] is not holder:
            others = [other for other in found if other is not holder]
            self._found[prefix] = (holder, *others[: MOST_HOLDERS - 1])
        self._found.move_to_end(prefix)

    def forget(self, holder: Holder) -> None:
        """``holder`` is gone, and its cache with it."""
        for prefix, found in list(self._found.items()):
            if holder in found:
                left = tuple(other for other in found if other is not holder)
                if left:
                    self._found[prefix] = left
                else:
                    del self._found[prefix]
