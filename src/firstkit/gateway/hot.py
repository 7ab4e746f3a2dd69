"""Hot routes: requests to models, from the end of their head to the end of their answer, on the raw connection.

Every step before the relay is a function of another module; this is the order of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, cast

from firstkit.accounting.limits import Limits
from firstkit.auth.authenticator import Identity
from firstkit.auth.permissions import Scope, require_project
from firstkit.errors import ApiError
from firstkit.gateway.acceptance import Acceptance
from firstkit.gateway.apis import RESPONSES_API, Api
from firstkit.gateway.call import Call, Patience
from firstkit.gateway.callers import Caller
from firstkit.gateway.client import Client
from firstkit.gateway.dialects import Older
from firstkit.gateway.doors import holder_of
from firstkit.gateway.holding import Holding
from firstkit.gateway.paths import check_open, place_of
from firstkit.gateway.request import BodyMemory, RequestHead, permit
from firstkit.ids import new_request_id
from firstkit.links.messages import Usage
from firstkit.translation.counting import estimated_tokens

if TYPE_CHECKING:
    from firstkit.gateway.state import Gateway

logger = logging.getLogger("firstkit.gateway")
STRANGERS_BYTES = 64 * 1024
"""So much of a body is read before it is known who sends it."""


class Connection(Protocol):
    """What a hot request needs of the connection that it came by."""

    transport: asyncio.Transport
    tasks: set[asyncio.Task[None]]

    def common_headers(self) -> bytes:
        """As of ``client.Wire``."""

    def answered(self, request: HotRequest) -> None:
        """The last byte of the answer to ``request`` is written; the connection may be closed or go on."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class HotRoutes:
    """The hot routes of one gateway."""

    def __init__(self, gateway: Gateway, limits: Limits) -> None:
        self.gateway = gateway
        self.limits = limits
        self.acceptance = Acceptance(gateway)
        self.memory = BodyMemory()
        server = gateway.config.server
        self.patience = Patience(server.hold, server.max_wait)
        self.public_url = server.public_url

    def api(self, method: str, path: str) -> Api | None:
        """The inference path that a request is for; None: it is not hot."""
        return self.gateway.reach.apis.get(place_of(path).api_path) if method == "POST" else None


class HotRequest:
    """One request to a model: the Wire of its Client and the Owner of its Call. To uvicorn's protocol it looks like one
    of its own cycles: ``response_complete``, ``keep_alive``.

    The connection calls ``start`` when it is its turn, ``receive`` and ``received`` as the body comes, ``break_off`` or
    ``hang_up`` when it will not come or nobody listens any more.
    """

    __slots__ = (
        "_body_bytes", "_body_news", "_connection", "_head", "_holding", "_identity", "_is_known", "_may_go_on",
        "_parts", "_refusal", "_routes", "caller", "client", "common_headers", "is_received", "is_started",
        "knows_chunks", "response_complete", "transport",
    )  # fmt: skip

    def __init__(
        self, routes: HotRoutes, connection: Connection, caller: Caller, head: RequestHead | None = None
    ) -> None:
        """``head``: None where the caller was recognised, and so is known."""
        self.caller = caller
        self.transport = connection.transport
        self.common_headers: Callable[[], bytes] = connection.common_headers
        self.knows_chunks = caller.knows_chunks
        self.is_started = False
        self.is_received = False
        self.response_complete = False
        self._routes = routes
        self._connection = connection
        self._head = head
        self._may_go_on = caller.keeps_alive
        self._identity: Identity | None = None
        self._is_known = False
        self._holding: Holding | None = None
        self._parts: list[bytes] = []
        self._body_bytes = 0
        self._refusal: ApiError | None = None
        self._body_news: asyncio.Future[None] | None = None
        self.client = Client(self, new_request_id(), caller.dialect)

    # -- a Wire, and an Owner ----------------------------------------------------------------------------------

    @property
    def keeps_alive(self) -> bool:
        """Not with a body that is still coming: its rest is no request."""
        return self._may_go_on and self.is_received

    @keeps_alive.setter
    def keeps_alive(self, value: bool) -> None:
        self._may_go_on = value

    @property
    def keep_alive(self) -> bool:
        return self.keeps_alive

    @keep_alive.setter
    def keep_alive(self, value: bool) -> None:
        self._may_go_on = value

    def answered(self) -> None:
        self._connection.answered(self)

    def release_body(self) -> None:
        self._parts.clear()
        self._routes.memory.give_back(self._body_bytes)
        self._body_bytes = 0

    def over(self, usage: Usage | None = None) -> None:
        self.release_body()
        holding, self._holding = self._holding, None
        if holding is not None:
            holding.over(usage)

    # -- the body comes ----------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """A piece of the body."""
        if self._refusal is not None or self.client.is_over:
            return
        try:
            self._routes.memory.take(self._body_bytes, len(data))
        except ApiError as error:
            self.break_off(error)
            return
        self._body_bytes += len(data)
        self._parts.append(data)
        if not self._is_known and self._body_bytes > STRANGERS_BYTES:
            self._connection.pause_reading()

    def received(self) -> None:
        """The body is whole."""
        self.is_received = True
        self._tell()

    def break_off(self, error: ApiError) -> None:
        """The body will never be whole."""
        self._refusal = error
        self._tell()

    def hang_up(self) -> None:
        """The connection is gone."""
        self.client.hang_up()
        if self.is_started:
            self._tell()
        else:
            self.over()

    def _tell(self) -> None:
        if self._body_news is not None and not self._body_news.done():
            self._body_news.set_result(None)

    # -- the order of things -----------------------------------------------------------------------------------

    def answer_at_once(self, identity: Identity, body: bytes) -> None:
        """For a caller that was recognised, with the whole body."""
        self.is_started = self.is_received = True
        try:
            self._routes.memory.take(0, len(body))
            self._body_bytes = len(body)
            self._parts.append(body)
            self._relay(self._admit(identity))
        except Exception as reason:  # noqa: BLE001 - told and logged by ``_fail``
            self._fail(reason)

    def start(self) -> None:
        """Answer, if that has not begun. With the whole body here and a key that is known there is nothing to wait for,
        and no task."""
        if self.is_started or self.client.is_gone:
            return
        self.is_started = True
        try:
            has_all = self.is_received and self._refusal is None
            identity = self._routes.gateway.authenticator.known(self.caller.key_digest) if has_all else None
            if identity is not None:
                self._relay(self._admit(identity))
                return
        except Exception as reason:  # noqa: BLE001 - told and logged by ``_fail``
            self._fail(reason)
            return
        self._later(self._wait())

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._connection.tasks.add(task)
        task.add_done_callback(self._connection.tasks.discard)

    async def _wait(self) -> None:
        """The same with all that has to be waited for: who it is, and then what they want."""
        try:
            routes = self._routes
            identity = await holder_of(cast(RequestHead, self._head), routes.gateway.authenticator, routes.public_url)
            identity = self._admit(identity)
            self._connection.resume_reading()
            await self._whole_body()
            if self.client.is_gone:
                self.over()
            else:
                self._relay(identity)
        except asyncio.CancelledError:
            self.over()
            raise
        except Exception as reason:  # noqa: BLE001 - told and logged by ``_fail``
            self._fail(reason)

    def _admit(self, identity: Identity) -> Identity:
        """All that can be said before the body is read; returns who it is charged to."""
        self._identity = identity
        permit(identity, Scope.INFERENCE)
        caller = self.caller
        if caller.refusal is not None:
            raise caller.refusal
        if caller.project is not None:
            self._identity = identity = caller.charged(identity)
        if not identity.project_id:
            require_project(identity)
        self._holding = Holding(self._routes.limits, identity)
        if caller.pin is not None:
            self._routes.gateway.reach.check_cluster(identity, caller.pin)
            if isinstance(caller.dialect, Older):
                check_open(self._routes.gateway.table, caller.pin)
        self._is_known = True
        return identity

    async def _whole_body(self) -> None:
        """Returns when the body is whole or the client is gone; raises the ApiError for which it will never be."""
        if not self.is_received and self._refusal is None and not self.client.is_gone:
            if self.caller.awaits_go_on and self.knows_chunks:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._body_news = asyncio.get_running_loop().create_future()
            await self._body_news
        if self._refusal is not None:
            raise self._refusal

    def _relay(self, identity: Identity) -> None:
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        gateway = self._routes.gateway
        call = self._routes.acceptance.accept(self, self.client.request_id, self.caller, identity, body)
        previous = gateway.stored.arrange(call) if call.api is RESPONSES_API else None
        if previous is None:
            self._serve(call)
        else:
            self._later(self._go_on(call, previous))

    def _serve(self, call: Call) -> None:
        """Have it paid for, and answered."""
        acceptance, holding = self._routes.acceptance, cast(Holding, self._holding)
        acceptance.charge(call, holding, self.caller.is_batch)
        self.client.lines = holding.lines()
        if acceptance.sends_on(call):
            self._routes.gateway.relay.serve(call, self.client)
        else:
            self._estimate(call)

    def _estimate(self, call: Call) -> None:
        """Answer how many tokens a prompt has, which uses none."""
        count = estimated_tokens(call.body)
        self.client.lines += b"x-first-estimated: true\r\n"
        self.client.plain("application/json", b'{"input_tokens":%d}' % count)
        self.over()

    async def _go_on(self, call: Call, previous: str) -> None:
        """Serve a call that goes on from the answer ``previous``, which was kept."""
        try:
            await self._routes.gateway.stored.resume(call, previous)
            self._routes.acceptance.choose_again(call)
            if self.client.is_gone:
                self.over()
            else:
                self._serve(call)
        except asyncio.CancelledError:
            self.over()
            raise
        except Exception as reason:  # noqa: BLE001 - told and logged by ``_fail``
            self._fail(reason)

    def _fail(self, reason: Exception) -> None:
        """The one end of what goes wrong before the relay: a fault of ours is a 500, its text only a log line."""
        if not isinstance(reason, ApiError):
            logger.error("a request failed for a reason of ours", exc_info=reason, extra={"action": "internal_error"})
            reason = ApiError()
        if self._holding is not None and not (self.client.lines or reason.headers):
            self.client.lines = self._holding.lines()
        if reason.is_denial:
            peer, what = self.transport.get_extra_info("peername"), f"POST {self.caller.path}"
            self._routes.gateway.denied(reason, self._identity, what, peer, self.caller.forwarded)
        self.client.fail(reason)
        self.over()
