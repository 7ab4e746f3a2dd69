"""One request from its place in line to its last byte: wait, choose, open, pass on, account, end.

Nothing is replayed after its first byte; before it, one other replica may be tried. Every path out of here ends the
client's answer in exactly one way and, once work was given out, writes exactly one usage line before that end.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from math import inf
from typing import Any

from firstkit.accounting.spool import Spool
from firstkit.clock import monotonic
from firstkit.errors import ApiError, StoreUnavailable
from firstkit.gateway.answer import Answer, error_of, with_usage
from firstkit.gateway.call import Call
from firstkit.gateway.client import Client
from firstkit.gateway.forecast import Forecasts
from firstkit.gateway.waiting import Ticket, WaitingRoom
from firstkit.links.messages import Outcome, Tail
from firstkit.metrics import BYTES_UP, SPOOL_FAILURES
from firstkit.routing.table import Route

logger = logging.getLogger("firstkit.gateway")
COMMENT_EVERY_S = 2.0
KEEPALIVE_EVERY_S = 15.0


class ClientGone(Exception):
    """The client hung up while its request waited; nobody is there to be told."""


class Relay:
    """Serves calls; shared by all requests of a gateway."""

    def __init__(self, room: WaitingRoom, forecasts: Forecasts, spool: Spool) -> None:
        self.room = room
        self.forecasts = forecasts
        self.spool = spool

    async def serve(self, call: Call, client: Client) -> None:
        """Answer ``call`` to ``client``, whatever happens on the way."""
        try:
            await _Passage(self, call, client).run()
        except ApiError as error:
            await client.fail(error)
        except ClientGone:
            logger.info("a client hung up while waiting", extra={"action": "gone", "model": call.model})


@dataclass(slots=True)
class _Attempt:
    """The request at one replica: what came of it. Without a tail of its own it was lost."""

    route: Route
    answer: Answer = field(default_factory=Answer)
    body: bytes = b""

    @property
    def tail(self) -> Tail:
        return self.answer.tail or Tail(Outcome.LOST)

    @property
    def may_go_elsewhere(self) -> bool:
        return self.answer.is_untouched and self.tail.outcome in (Outcome.FAILED, Outcome.LOST)


class _Passage:
    """The state of one request on its way."""

    def __init__(self, relay: Relay, call: Call, client: Client) -> None:
        self.room = relay.room
        self.forecasts = relay.forecasts
        self.spool = relay.spool
        self.call = call
        self.client = client
        self.arrived = monotonic()
        self.hold_until = self.arrived + call.patience.hold_s
        self.queue_s = 0.0

    async def run(self) -> None:
        model = self.call.model
        attempt = await self._attempt(self.room.take(model) or await self._wait_for_route())
        if attempt.may_go_elsewhere and (other := self.room.take(model, avoid=attempt.route)) is not None:
            attempt = await self._attempt(other)
        self._settle(attempt)
        await self._end(attempt)

    async def _wait_for_route(self) -> Route:
        model = self.call.model
        if self.call.patience.fails_when_cold and not self.room.table.pools[model].ready:
            raise self.forecasts.not_ready(model)
        ticket = self.room.join(model)
        try:
            return await self._turn(ticket)
        except BaseException:
            self.room.leave(model, ticket)
            raise

    async def _turn(self, ticket: Ticket) -> Route:
        deadline = self.arrived + self.call.patience.max_wait_s
        news: set[asyncio.Future[Any]] = {ticket.route, self.client.gone}
        while not ticket.route.done():
            left = deadline - monotonic()
            if left <= 0:
                raise self.forecasts.not_ready(self.call.model)
            await asyncio.wait(
                news,
                timeout=min(left, self._silence_left(COMMENT_EVERY_S)),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if self.client.is_gone:
                raise ClientGone
            if self._must_speak and not ticket.route.done():
                position = self.room.position(self.call.model, ticket)
                await self.client.comment(self.forecasts.sentence(self.call.model, position))
        return ticket.route.result()

    def _silence_left(self, every_s: float) -> float:
        """Seconds until something must be said to the client: the status is held back, plain requests hear nothing."""
        if not self.call.stream:
            return inf
        return every_s if self.client.is_streaming else max(0.0, self.hold_until - monotonic())

    @property
    def _must_speak(self) -> bool:
        return self.call.stream and monotonic() >= self.hold_until

    async def _attempt(self, route: Route) -> _Attempt:
        """Send the request to ``route`` and pass the answer on until its tail."""
        attempt = _Attempt(route)
        try:
            self._open(attempt)
            attempt.body = await self._pass_on(attempt.answer)
        except BaseException:
            attempt.answer.cancel()
            if self.call.account.is_open:
                self._settle(attempt)
            raise
        finally:
            self.room.give_back(route)
        return attempt

    def _open(self, attempt: _Attempt) -> None:
        if not self.call.account.is_open:
            self.queue_s = monotonic() - self.arrived
            self.call.account.open(self.spool)
        opening, body = self.call.for_route(attempt.route)
        BYTES_UP.inc(len(body))
        attempt.answer.exchange = attempt.route.upstream.open(opening, body, attempt.answer)

    async def _pass_on(self, answer: Answer) -> bytes:
        """Pass a stream on until its tail; returns the body of what is not a stream (plain answers, refusals)."""
        parts: list[bytes] = []
        self.client.gone.add_done_callback(lambda _: answer.cancel())
        while True:
            silence = self._silence_left(KEEPALIVE_EVERY_S)
            came = await answer.wait(None if silence == inf else silence)
            has_ended = answer.tail is not None
            data = answer.take()
            if data and self.call.stream and not answer.is_refusal:
                await self.client.write(data)
            elif data:
                parts.append(data)
            elif not came and not self.client.is_gone:
                await self.client.comment("working")
            if has_ended:
                return b"".join(parts)

    def _settle(self, attempt: _Attempt) -> None:
        """Write the usage line. A disk that refuses now has the line kept in memory and written as soon as it can."""
        account, answer = self.call.account, attempt.answer
        try:
            account.close(
                self.spool,
                with_usage(attempt.tail, account.prompt_bytes, answer.events),
                cluster=attempt.route.cluster,
                replica_id=attempt.route.replica_id,
                queue_s=self.queue_s,
                relayed=answer.relayed,
            )
        except StoreUnavailable:
            SPOOL_FAILURES.inc()
            logger.exception("the usage spool cannot be written; usage is kept in memory", extra={"action": "spool"})

    async def _end(self, attempt: _Attempt) -> None:
        if self.client.is_gone:
            return
        head = attempt.answer.head
        if attempt.tail.outcome is not Outcome.COMPLETE:
            raise error_of(attempt.tail, head, attempt.body)
        if self.call.stream:
            await self.client.done()
        else:
            await self.client.plain(head.content_type if head else "application/json", attempt.body)
