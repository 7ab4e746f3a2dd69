"""How connections come in: a gateway full of streams must not let new ones wait for a turn of the loop each."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
import uvloop

from firstkit.gateway.server import ACCEPTED_PER_TURN, many_times

CLIENTS = 4 * ACCEPTED_PER_TURN


async def turns_until_all_are_accepted(listeners: list[socket.socket]) -> int:
    accepted: list[asyncio.BaseTransport] = []

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.append(transport)

    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Accepted, sock=listener, backlog=CLIENTS) for listener in listeners]
    turns = 0
    with contextlib.ExitStack() as stack:
        for _ in range(CLIENTS):
            stack.enter_context(socket.create_connection(listeners[0].getsockname()))
        while len(accepted) < CLIENTS:
            await asyncio.sleep(0)
            turns += 1
            assert turns < 100 * CLIENTS
    for transport in accepted:
        transport.abort()  # type: ignore[attr-defined]
    for server in servers:
        server.close()
        await server.wait_closed()
    return turns


@pytest.fixture
def listener() -> socket.socket:
    made = socket.create_server(("127.0.0.1", 0))
    made.setblocking(False)
    return made


def test_many_are_accepted_in_one_turn(listener: socket.socket) -> None:
    assert uvloop.run(turns_until_all_are_accepted(many_times(listener))) < CLIENTS / 4


def test_libuv_accepts_one_for_each_descriptor(listener: socket.socket) -> None:
    """What makes the other descriptors necessary; where this fails, they can go."""
    assert uvloop.run(turns_until_all_are_accepted([listener])) >= CLIENTS
