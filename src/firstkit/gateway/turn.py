"""Waiting for one's turn at a model: for how long, and what is said meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from firstkit.clock import monotonic
from firstkit.gateway.call import Call
from firstkit.gateway.client import Client
from firstkit.gateway.forecast import Forecasts
from firstkit.gateway.waiting import Ticket, WaitingRoom
from firstkit.routing.table import Route

COMMENT_EVERY_S = 2.0


class ClientGone(Exception):
    """The client hung up while its request waited; nobody is there to be told."""


class Place(Protocol):
    """Where it is waited."""

    room: WaitingRoom
    forecasts: Forecasts


async def turn(call: Call, client: Client, ticket: Ticket, at: Place, arrived: float) -> Route:
    """The route of a request in line that ``arrived`` then, in monotonic seconds. Raises ClientGone, and ApiError for
    who has waited long enough or would wait for nothing."""
    deadline = arrived + call.patience.max_wait_s
    news: set[asyncio.Future[Any]] = {ticket.route, client.gone}
    while not ticket.route.done():
        left = deadline - monotonic()
        if left <= 0:
            raise at.forecasts.not_ready(call.model, call.wish.within)
        wait_s = min(left, silence_left(call, client, arrived, COMMENT_EVERY_S)) if call.stream else left
        await asyncio.wait(news, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        if client.is_over:
            raise ClientGone
        if call.stream and silence_left(call, client, arrived, 0.0) == 0.0 and not ticket.route.done():
            position = at.room.position(call.model, ticket)
            client.comment(at.forecasts.sentence(call.model, position, call.wish.within))
    return ticket.route.result()


def silence_left(call: Call, client: Client, arrived: float, every_s: float) -> float:
    """Seconds until something must be said to a client that streams: the status itself is held back."""
    if client.has_begun:
        return every_s
    return max(0.0, arrived + call.patience.hold_s - monotonic())
