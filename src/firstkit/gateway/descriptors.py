"""File descriptors: how many this process may open, and how many of them may be connections."""

from __future__ import annotations

import resource

RESERVED = 96
"""For the database, the spool, pilots, sockets that listen, and connections that are told that there is no room."""


def raise_limit() -> int:
    """Take as many descriptors as the system lets us have; returns the number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def most_connections(descriptors: int, has_external: bool) -> int:
    """So many clients may be connected. A request to an external service takes a descriptor of its own."""
    left = max(1, descriptors - RESERVED)
    return max(1, left // 2) if has_external else left
