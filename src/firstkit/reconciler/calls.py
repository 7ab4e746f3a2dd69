"""Calls to pilots, passed on by the gateway: the controller has no way of its own to them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from firstkit.errors import CallFailed, LinkLost

ANSWER_S = 15.0
"""Longer than the gateway waits for the pilot, so that it is the one to say that nobody answered."""


class Calls:
    """Calls that wait for their reply. ``send`` hands a message to the gateway, or drops it when that is away."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    async def call(self, job_id: str, verb: str, **args: Any) -> Any:
        """The pilot's result. Raises CallFailed when it said no, LinkLost when nobody knows whether it heard us."""
        number = next(self._numbers)
        reply = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._send({"kind": "call", "id": number, "job_id": job_id, "verb": verb, "args": args})
        try:
            async with asyncio.timeout(ANSWER_S):
                return await reply
        except TimeoutError:
            raise LinkLost(f"the gateway did not answer '{verb}'") from None
        finally:
            del self._waiting[number]

    def hear(self, message: Mapping[str, Any]) -> None:
        """A reply of the gateway; late ones mean nothing."""
        reply = self._waiting.get(message["id"])
        if reply is None or reply.done():
            return
        if message.get("error") is None:
            reply.set_result(message.get("result"))
        else:
            kind = CallFailed if message.get("refused") else LinkLost
            reply.set_exception(kind(str(message["error"])))

    def gateway_went(self) -> None:
        """Nobody will answer what is asked now."""
        for reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(LinkLost("the gateway went away"))
