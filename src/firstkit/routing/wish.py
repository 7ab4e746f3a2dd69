"""Where one request may go and where it would like to: what choosing knows of a request."""

from __future__ import annotations

from typing import NamedTuple, Optional

Within = Optional[frozenset[str]]
"""Names of clusters; None: all."""
Kind = tuple[Within, Optional[int]]


class Wish(NamedTuple):
    """``within``: the clusters that it may go to; None: all. ``most_tokens``: it asks for no more; None: unknown.

    ``prefixes``: names of what its prompt begins with, the longest first, as of ``affinity.Prefixes``.
    """

    within: Within = None
    most_tokens: int | None = None
    prefixes: tuple[bytes, ...] = ()

    @property
    def kind(self) -> Kind:
        """Requests of one kind may go to the same replicas; among them nobody overtakes."""
        return self.within, self.most_tokens


ANYWHERE = Wish()


def rounded(tokens: int) -> int:
    """``tokens``, up to the next power of two, so that there are few kinds."""
    return 1 << (tokens - 1).bit_length()
