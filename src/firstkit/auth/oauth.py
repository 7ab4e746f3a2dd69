"""What the two who log people in have in common: the gateway for browsers, the command line for itself."""

from __future__ import annotations

import base64
import hashlib
from ipaddress import ip_address
from urllib.parse import urlsplit


def is_private(url: str) -> bool:
    """Whether nobody on the way can read or change what is said to ``url``: TLS, or this very machine."""
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return True
    return parts.scheme == "http" and _is_here(parts.hostname or "")


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def challenge_of(verifier: str) -> str:
    """What is shown of a verifier before it is: S256 of RFC 7636."""
    return base64url(hashlib.sha256(verifier.encode()).digest())


def base64url(data: bytes) -> str:
    """Without padding, as all of OAuth has it."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
