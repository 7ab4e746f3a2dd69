"""Who acts, and from where: by their key and the connection, never by what they say."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from firstkit.gateway.acts import by
from firstkit.gateway.app import build_app
from firstkit.gateway.source import Sources
from firstkit.gateway.state import Gateway
from unit.gateway.support import IDENTITY


def asked(gateway: Gateway, client: Any, *headers: tuple[bytes, bytes]) -> Request:
    app = build_app(gateway)
    state = {"identity": IDENTITY}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/admin/keys",
        "headers": headers,
        "client": client,
        "state": state,
    }
    return Request({**scope, "app": app})


async def test_who_acts_and_from_where(gateway: Gateway) -> None:
    claims = ((b"x-first-actor", b"root"), (b"x-forwarded-for", b"10.1.2.3"))
    assert by(asked(gateway, ("192.0.2.7", 4711), *claims)) == {"actor": "user", "source": "192.0.2.7"}
    assert by(asked(gateway, None, *claims)) == {"actor": "user", "source": ""}, "the admin socket is of this machine"


async def test_a_proxy_that_the_operator_trusts_says_who_was_before_it(gateway: Gateway) -> None:
    gateway.sources = Sources(["192.0.2.0/24"])
    told = (b"x-forwarded-for", b"127.0.0.1, 198.51.100.9")
    assert by(asked(gateway, ("192.0.2.7", 4711), told))["source"] == "198.51.100.9"
    assert by(asked(gateway, ("203.0.113.1", 4711), told))["source"] == "203.0.113.1"
