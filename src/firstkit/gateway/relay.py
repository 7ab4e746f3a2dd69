"""One request from its place in line to its last byte: wait, choose, open, pass on, account, end.

Nothing is replayed after its first byte; before it, one other replica may be tried. Every path out of here ends the
client's answer in exactly one way and, once work was given out, writes exactly one usage line before that end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from firstkit.accounting.spool import Spool
from firstkit.clock import monotonic
from firstkit.errors import ApiError, StoreUnavailable
from firstkit.gateway.answer import error_of, with_usage
from firstkit.gateway.answering import Answering
from firstkit.gateway.call import Call
from firstkit.gateway.client import Client
from firstkit.gateway.forecast import Forecasts
from firstkit.gateway.lull import Lull
from firstkit.gateway.request import Account
from firstkit.gateway.stored import StoredResponses
from firstkit.gateway.turn import ClientGone, silence_left, turn
from firstkit.gateway.waiting import Ticket, WaitingRoom
from firstkit.links.messages import Head, Open, Outcome, Tail
from firstkit.metrics import REQUESTS, SPOOL_FAILURES
from firstkit.routing.table import Route

T = TypeVar("T")
logger = logging.getLogger("firstkit.gateway")
KEEPALIVE_EVERY_S = 15.0
HELD_BYTES = 128 * 1024
"""So much of a plain answer is held until its end is known; a longer one goes on as it comes."""
UNBEGUN_STATUS = (502, 503, 504)
"""With these an engine, or what is before it, says that it did not begin."""


class Relay:
    """Serves calls; shared by all requests of a gateway."""

    def __init__(self, room: WaitingRoom, forecasts: Forecasts, spool: Spool, stored: StoredResponses) -> None:
        self.room = room
        self.forecasts = forecasts
        self.spool = spool
        self.stored = stored
        self.lull = Lull()
        self.waiting: set[asyncio.Task[None]] = set()
        self.in_line: dict[str, Account] = {}
        """Of requests that wait for their turn, by id."""

    def serve(self, call: Call, client: Client) -> None:
        """Answer ``call`` to ``client``, whatever happens on the way; ``call.owner.over`` comes last. Returns at once;
        raises ApiError when no work will be given out and nothing was written."""
        Passage(self, call, client).begin()

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the part of a request that has to wait for something."""
        task = asyncio.get_running_loop().create_task(work)
        self.waiting.add(task)
        task.add_done_callback(self.waiting.discard)


class Passage:
    """One request on its way, and the Sink of each of its attempts: the first, and perhaps one at another replica.

    A good stream goes straight to the client; all else is held until it is known how it ends.
    """

    __slots__ = (
        "_answering", "_arrived", "_call", "_client", "_events", "_fault", "_head", "_held_bytes", "_is_passed_on",
        "_is_second", "_parts", "_queue_s", "_relay", "_relayed", "_request", "_route", "_speaking", "_tail",
    )  # fmt: skip

    def __init__(self, relay: Relay, call: Call, client: Client) -> None:
        self._relay = relay
        self._call = call
        self._client = client
        self._arrived = monotonic()
        self._queue_s = 0.0
        self._route: Route
        self._request: tuple[Open, bytes] | None = None
        self._tail: Tail
        self._is_second = False
        self._answering: Answering | None = None
        self._fault: ApiError | None = None
        """What is wrong with an answer that had begun well."""
        self._speaking: asyncio.TimerHandle | None = None
        self._head: Head | None = None
        self._is_passed_on = False
        self._parts: list[bytes] = []
        self._held_bytes = 0
        self._relayed = 0
        self._events = 0

    def begin(self) -> None:
        """Take a route or stand in line."""
        model, wish, claim = self._call.model, self._call.wish, self._call.claim
        route = self._relay.room.take(model, wish, claim)
        if route is not None:
            self._attempt(route)
            return
        if self._call.patience.fails_when_cold and not self._relay.room.table.pools[model].live(wish.within):
            raise self._relay.forecasts.not_ready(model, wish.within)
        self._relay.do(self._wait(self._relay.room.join(model, wish, claim)))

    # -- waiting -----------------------------------------------------------------------------------------------

    async def _wait(self, ticket: Ticket) -> None:
        account, in_line = self._call.account, self._relay.in_line
        in_line[account.request_id] = account
        ticket.request_id = account.request_id
        try:
            route = await turn(self._call, self._client, ticket, self._relay, self._arrived)
        except (ApiError, ClientGone) as reason:
            self._relay.room.leave(self._call.model, ticket)
            self._give_up(reason)
        except BaseException:
            self._relay.room.leave(self._call.model, ticket)
            self._call.owner.over()
            raise
        else:
            self._begin_late(route)
        finally:
            del in_line[account.request_id]

    def _begin_late(self, route: Route) -> None:
        try:
            self._attempt(route)
        except ApiError as error:
            self._give_up(error)
        except Exception:
            logger.exception("a request failed for a reason of ours", extra={"action": "internal_error"})
            self._give_up(ApiError())

    def _give_up(self, reason: ApiError | ClientGone) -> None:
        if isinstance(reason, ApiError):
            self._client.fail(reason)
        else:
            logger.info("a client hung up while waiting", extra={"action": "gone", "model": self._call.model})
        self._call.owner.over()

    def _speak(self) -> None:
        """Say something to a client that has heard nothing since the last time."""
        if self._client.was_quiet:
            self._client.comment("working")
        self._client.was_quiet = True
        self._speaking = asyncio.get_running_loop().call_later(KEEPALIVE_EVERY_S, self._speak)

    def _quieten(self) -> None:
        if self._speaking is not None:
            self._speaking.cancel()

    # -- at a replica ------------------------------------------------------------------------------------------

    def _attempt(self, route: Route) -> None:
        """Send the request to ``route``, as soon as it is noted. Raises InvalidRequest for what cannot be said to this
        replica; then it is not sent, and nothing has changed."""
        call, account = self._call, self._call.account
        try:
            opening, body, self._answering = call.attempt(route)
            self._route, self._request = route, (opening, body)
            self._client.where = route.where
            self._head = self._fault = None
            self._parts.clear()
            self._held_bytes = self._relayed = 0
            if call.stream:
                silence_s = silence_left(call, self._client, self._arrived, KEEPALIVE_EVERY_S)
                self._speaking = asyncio.get_running_loop().call_later(silence_s, self._speak)
            if account.is_open:
                self._send(None)
            else:
                self._queue_s = monotonic() - self._arrived
                account.open(self._relay.spool, self._noted)
        except Exception:
            self._quieten()
            self._relay.room.give_back(route, wish=call.wish)
            if not self._is_second:
                self._relay.room.used(call.model, call.claim, 0)
            raise

    def _noted(self, refusal: StoreUnavailable | None) -> None:
        self._safely(self._send, refusal)

    def _send(self, refusal: StoreUnavailable | None) -> None:
        """Give the work out, unless nobody can note that."""
        request, self._request = self._request, None
        if refusal is None and request is not None:
            opening, body = request
            REQUESTS.bytes_up += len(body)
            self._client.listen_to(self._route.upstream.open(opening, body, self))
        elif refusal is not None:
            self._quieten()
            self._relay.room.give_back(self._route, wish=self._call.wish)
            self._client.fail(refusal)
            self._over()

    def on_head(self, head: Head) -> None:
        self._head = head

    def on_data(self, data: bytes) -> None:
        self._relayed += len(data)
        if not self._is_passed_on:
            self._look_at(data)
            return
        self._events += data.count(b"\n\n")
        if self._answering is None or (data := self._told(data, self._answering)):
            self._client.write(data)
        self._relay.lull.after()

    def on_tail(self, tail: Tail) -> None:
        self._safely(self._ended, tail)

    def _safely(self, step: Callable[[T], None], what: T) -> None:
        """The one broad ``except`` of the relay: what reaches it is a fault of ours, and who calls here cannot have
        it."""
        try:
            step(what)
        except Exception:
            logger.exception("a request failed for a reason of ours", extra={"action": "internal_error"})
            self._client.fail(ApiError())
            self._over()

    def _look_at(self, data: bytes) -> None:
        """Data of which it is not clear yet that it may go on."""
        is_good = self._head is not None and self._head.status == 200
        if is_good and self._call.stream:
            self._events += data.count(b"\n\n")
            if self._answering is None or (data := self._told(data, self._answering)):
                self._pass_on(None, data)
        elif is_good and self._answering is not None:
            self._parts.append(data)
        elif self._held_bytes <= HELD_BYTES:  # of a refusal that is longer the beginning is enough
            self._parts.append(data)
            self._held_bytes += len(data)
            if is_good and self._held_bytes > HELD_BYTES:
                self._pass_on(self._content_type, self._held())

    def _told(self, data: bytes, answering: Answering) -> bytes:
        """What the client is told of a piece of a stream. One that makes no sense ends the request."""
        if self._fault is not None:
            return b""
        try:
            return answering.events(data)
        except ApiError as fault:
            self._fault = fault
            self._client.stop_source()
            return b""

    def _pass_on(self, content_type: str | None, data: bytes) -> None:
        """The first byte leaves: from now on nothing can be taken back or asked of another replica."""
        self._is_passed_on = True
        self._call.release_body()
        self._relay.room.vouch(self._route)
        self._client.begin(content_type)
        self._client.write(data)

    def _held(self) -> bytes:
        held = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        return held

    @property
    def _content_type(self) -> str:
        return self._head.content_type if self._head is not None else "application/json"

    # -- the end -----------------------------------------------------------------------------------------------

    def _ended(self, tail: Tail) -> None:
        room, route = self._relay.room, self._route
        self._quieten()
        if self._fault is not None and not self._client.is_gone:
            tail.outcome, tail.error = Outcome.FAILED, self._fault.message
        REQUESTS.bytes_down += self._relayed
        if tail.outcome is Outcome.COMPLETE and not self._client.was_slow:
            room.measure(route, tail)
        room.give_back(route, tail.outcome, self._call.wish)
        if tail.outcome is not Outcome.COMPLETE and self._may_go_elsewhere(tail):
            other = room.take_another(self._call.model, route, self._call.wish)
            if other is not None and self._try(other):
                return
        self._tail = tail
        self._settle(tail)

    def _settle(self, tail: Tail) -> None:
        """Write the usage line; then the answer may end."""
        account = self._call.account
        account.close(
            self._relay.spool,
            self._settled,
            with_usage(tail, account.prompt_bytes, self._events),
            route=self._route,
            queue_s=self._queue_s,
            relayed=self._relayed,
        )
        tail.usage = account.usage

    def _settled(self, refusal: StoreUnavailable | None) -> None:
        """A disk that refuses now has the line kept in memory and written as soon as it can."""
        if refusal is not None:
            SPOOL_FAILURES.inc()
            logger.error(
                "the usage spool cannot be written; usage is kept in memory: %s", refusal, extra={"action": "spool"}
            )
        self._safely(self._finish, self._tail)

    def _finish(self, tail: Tail) -> None:
        if self._call.keeps and tail.outcome is Outcome.COMPLETE:
            self._relay.do(self._keep(tail))
            return
        try:
            self._end(tail)
        except ApiError as error:
            self._client.fail(error)
        self._over()

    async def _keep(self, tail: Tail) -> None:
        """The end of an answer that is kept: who has heard it may ask for it at once."""
        try:
            said = self._said(tail)
            await self._relay.stored.keep(self._call, said)
            self._tell(said)
        except ApiError as error:
            self._client.fail(error)
        except Exception:
            logger.exception("a request failed for a reason of ours", extra={"action": "internal_error"})
            self._client.fail(ApiError())
        finally:
            self._over()

    def _over(self) -> None:
        """The last of a request that was given out."""
        usage = self._call.account.usage
        tokens = 0 if usage is None else usage.prompt_tokens + usage.completion_tokens
        self._relay.room.used(self._call.model, self._call.claim, tokens)
        self._call.owner.over(usage)

    def _may_go_elsewhere(self, tail: Tail) -> bool:
        """Only once, only where no token of an answer came, and only for one who is there to hear it."""
        if self._is_second or self._client.is_over or tail.outcome not in (Outcome.FAILED, Outcome.LOST):
            return False
        return self._relayed == 0 or (self._head is not None and self._head.status in UNBEGUN_STATUS)

    def _try(self, other: Route) -> bool:
        """False where it cannot be asked there: it speaks another protocol than the first."""
        self._is_second = True
        try:
            self._attempt(other)
        except ApiError:
            return False
        return True

    def _end(self, tail: Tail) -> None:
        client = self._client
        if tail.outcome is not Outcome.COMPLETE:
            if client.has_begun and not self._call.stream:
                client.abort()
            else:
                client.fail(error_of(tail, self._head, self._held()))
        elif self._is_passed_on and not self._call.stream:
            client.finish()
        else:
            self._tell(self._said(tail))

    def _said(self, tail: Tail) -> bytes:
        """What is still to be told of a good answer: the end of a stream, all of a plain one."""
        if self._call.stream:
            return self._client.end if self._answering is None else self._answering.last(tail)
        return self._held() if self._answering is None else self._answering.whole(self._held(), tail)

    def _tell(self, said: bytes) -> None:
        if self._call.stream:
            self._client.done(said)
        else:
            self._client.plain(self._content_type, said)
