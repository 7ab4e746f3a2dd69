"""The address that a request came from: that of its peer, or what proxies say of it that the operator trusts. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

Address = IPv4Address | IPv6Address


class Sources:
    """Tells addresses by ``server.trusted_proxies``: addresses and networks whose word counts."""

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        self._trusted = [ip_network(each) for each in trusted]

    def of(self, peer: Any, forwarded: Iterable[bytes] = ()) -> str:
        """``peer``: as a socket names it, a tuple that begins with an address; empty for one of this machine that has
        none. ``forwarded``: the values of X-Forwarded-For, of which the right-most counts that no trusted proxy is."""
        found = _address(peer[0]) if isinstance(peer, tuple) and peer else None
        if found is None:
            return ""
        told = [part.strip() for part in b",".join(forwarded).decode("latin-1").split(",")]
        while told and self._trusts(found) and (before := _address(told.pop())) is not None:
            found = before
        return str(found)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def _address(text: str) -> Address | None:
    """An address, perhaps with a port or a zone; None where it is none."""
    host = text[1:].partition("]")[0] if text.startswith("[") else text.partition("%")[0]
    host = host.partition(":")[0] if host.count(":") == 1 else host
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
