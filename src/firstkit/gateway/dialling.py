"""Direct links: the gateway dials the pilots of jobs that run, where the store says, for as long as it says so."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Callable, Collection

from firstkit.errors import StoreUnavailable
from firstkit.links.dial import DIAL_S, HANDSHAKE_S, host_and_port, reason_of
from firstkit.links.entrance import Arrival, Entrance
from firstkit.links.gateway_end import GatewayLink
from firstkit.store.database import Database
from firstkit.store.links import addresses

logger = logging.getLogger("firstkit.gateway")
LOOK_EVERY_S = 1.0
REDIAL_S = (0.1, 1.0)
PATIENCE_S = 5.0
"""The longest wait between two dials, each of which failed; half of it at least."""


class Dialler:
    """Keeps a link to each pilot that waits to be dialled. ``name_of(job_id)``: what its certificate has to be for."""

    def __init__(
        self,
        db: Database,
        entrance: Entrance,
        context: ssl.SSLContext,
        name_of: Callable[[str], str],
        clusters: Collection[str],
    ) -> None:
        self._db = db
        self._entrance = entrance
        self._context = context
        self._name_of = name_of
        self._clusters = clusters
        self._dialled: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._troubles: dict[str, str] = {}

    async def run(self) -> None:
        """Look into the store now and then; returns only when cancelled."""
        try:
            while True:
                await self._look()
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            for task in self._dialled.values():
                task.cancel()
            await asyncio.gather(*self._dialled.values(), return_exceptions=True)

    async def _look(self) -> None:
        try:
            async with self._db.read() as conn:
                found = set((await addresses(conn, self._clusters)).items())
        except StoreUnavailable:
            return  # what was known stands
        for gone in self._dialled.keys() - found:
            self._dialled.pop(gone).cancel()
            self._troubles.pop(gone[0], None)
        for job_id, address in found - self._dialled.keys():
            self._dialled[job_id, address] = asyncio.ensure_future(self._keep(job_id, address))

    async def _keep(self, job_id: str, address: str) -> None:
        failures = 0
        while True:
            link = await self._dial(job_id, address)
            if link is None:
                failures += 1
                most_s = min(PATIENCE_S, REDIAL_S[1] * 2.0**failures)
                await asyncio.sleep(random.uniform(most_s / 2, most_s))  # noqa: S311 - spreads load, guards nothing
                continue
            failures = 0
            self._troubles.pop(job_id, None)
            await link.until_down()
            await asyncio.sleep(random.uniform(*REDIAL_S))  # noqa: S311 - as above

    async def _dial(self, job_id: str, address: str) -> GatewayLink | None:
        """The link to a pilot; None when it did not come to one."""
        arrival = Arrival(self._entrance, job_id)
        try:
            host, port = host_and_port(address, "address")
            async with asyncio.timeout(DIAL_S):
                await asyncio.get_running_loop().create_connection(
                    lambda: arrival,
                    host,
                    port,
                    ssl=self._context,
                    server_hostname=self._name_of(job_id),
                    ssl_handshake_timeout=HANDSHAKE_S,
                )
                return await arrival.link
        except TimeoutError:
            self._note(job_id, address, f"no link within {DIAL_S:g} s")
        except (OSError, ValueError) as exc:
            self._note(job_id, address, reason_of(exc))
        finally:
            arrival.leave()
        return None

    def _note(self, job_id: str, address: str, reason: str) -> None:
        """Log why there is no link, once for each reason: dialling goes on for as long as the job runs."""
        if self._troubles.get(job_id) != reason:
            self._troubles[job_id] = reason
            logger.warning(
                "no link to the pilot at %s: %s", address, reason, extra={"action": "dial", "job_id": job_id}
            )
