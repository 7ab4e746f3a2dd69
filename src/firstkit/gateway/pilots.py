"""The pilots' door: admits links, keeps the routing table true to what pilots report, relays the controller's calls."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firstkit import metrics
from firstkit.errors import CallFailed, LinkLost, StoreUnavailable
from firstkit.gateway.dialling import Dialler
from firstkit.gateway.waiting import WaitingRoom
from firstkit.links.entrance import HELLO_S, Entrance
from firstkit.links.gateway_end import GatewayLink
from firstkit.links.messages import Hello, PilotReport, Refusal, ReplicaReport
from firstkit.routing.choose import burden
from firstkit.routing.table import Route
from firstkit.states import ReplicaState
from firstkit.store.database import Database
from firstkit.store.jobs import ReplicaRow, admit_pilot, replicas_of
from firstkit.wire import to_dict

if TYPE_CHECKING:
    from firstkit.links.private_ca import PrivateCa

logger = logging.getLogger("firstkit.gateway")
REFRESH_S = 24 * 3600.0


class Pilots:
    """All links that are up. It is the LinkOwner of each.

    What a pilot may serve is read from the database, never from its report: a report about a replica that is not of its
    job changes nothing.
    """

    def __init__(self, db: Database, room: WaitingRoom, on_change: Callable[[str], None]) -> None:
        """``on_change(job_id)``: the report of that job's pilot came, changed or is gone."""
        self.db = db
        self.room = room
        self.on_change = on_change
        self.entrance = Entrance(self)
        self.reports: dict[str, PilotReport] = {}
        self._links: dict[str, GatewayLink] = {}
        self._rows: dict[str, ReplicaRow] = {}
        self._routes: dict[str, dict[str, Route]] = {}
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._unread: set[str] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, path: Path) -> None:
        """Open the UNIX socket that pilots on this host dial."""
        path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self.entrance.arrive, str(path), backlog=1024)
        os.chmod(path, 0o600)

    async def listen_tls(self, listener: socket.socket, ca: PrivateCa) -> None:
        """Open the port that pilots elsewhere dial, and keep its certificate fresh; returns only when cancelled."""
        context = ca.server_context()
        server = await self.entrance.listen(listener, context, HELLO_S)
        try:
            await _keep_fresh(ca, context)
        finally:
            server.close()

    async def dial(self, clusters: Collection[str], ca: PrivateCa) -> None:
        """Dial the pilots of these clusters as they come; returns only when cancelled."""
        from firstkit.links.private_ca import job_name

        context = ca.client_context()
        async with asyncio.TaskGroup() as both:  # left when both have ended: the database is closed after that
            both.create_task(Dialler(self.db, self.entrance, context, job_name, clusters).run())
            both.create_task(_keep_fresh(ca, context))

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.entrance.close()

    # -- the owner of links ------------------------------------------------------------------------------------

    async def admit(self, hello: Hello) -> Refusal | None:
        """None when the pilot that says ``hello`` is the one of its job."""
        try:
            refused = await admit_pilot(self.db, hello.job_id, hello.secret, hello.token)
            if refused is None:
                await self._read_rows(hello.job_id)
                return None
        except StoreUnavailable:
            return Refusal("refused", "the database is not answering; try again")
        extra = {"action": "refuse_pilot", "job_id": hello.job_id}
        logger.warning("a pilot was refused: %s", refused.reason, extra=extra)
        return Refusal("over" if refused.for_good else "refused", refused.reason)

    def on_up(self, link: GatewayLink) -> None:
        """What a link serves comes with its report; after a while without a connection, it is known."""
        if self._links.get(link.job_id) is not link:
            return
        logger.info("a link is up again", extra={"action": "link_up", "job_id": link.job_id})
        routes = self._routes.get(link.job_id, {}).values()
        for route in routes:
            self.room.table.add(route)
        for model in {route.model for route in routes}:
            self.room.pump(model)

    def on_down(self, link: GatewayLink) -> None:
        """Nothing new goes there; what is under way may come back with the link."""
        if self._links.get(link.job_id) is not link:
            return
        logger.warning("a link is down", extra={"action": "link_down", "job_id": link.job_id})
        for route in self._routes.get(link.job_id, {}).values():
            self.room.table.remove(route)

    def on_report(self, link: GatewayLink, report: PilotReport) -> None:
        job_id = report.job_id
        previous = self._links.get(job_id)
        if previous is not None and previous is not link:
            previous.close()
        self._links[job_id] = link
        self.reports[job_id] = report
        if any(replica.replica_id not in self._rows for replica in report.replicas):
            self._read_soon(job_id)
        self._apply(link, report)

    def on_lost(self, link: GatewayLink) -> None:
        if self._links.get(link.job_id) is not link:
            return
        del self._links[link.job_id]
        self.reports.pop(link.job_id, None)
        for route in self._routes.pop(link.job_id, {}).values():
            self.room.table.remove(route)
        self._rows = {replica_id: row for replica_id, row in self._rows.items() if row.job_id != link.job_id}
        logger.warning("a link is gone", extra={"action": "link_lost", "job_id": link.job_id})
        self.on_change(link.job_id)

    async def call(self, job_id: str, verb: str, args: dict[str, Any]) -> Any:
        """Relay a call of the controller; raises LinkLost, CallFailed. A drain takes effect here at once."""
        link = self._links.get(job_id)
        if link is None:
            raise LinkLost(f"no link to the pilot of {job_id}")
        if verb in ("drain", "stop") and (route := self._routes.get(job_id, {}).get(args.get("replica_id", ""))):
            route.state = ReplicaState.DRAINING
            self.room.table.pools[route.model].changed(route)
        return await link.call(verb, args)

    async def log(self, replica_id: str, lines: int) -> str:
        """The end of an engine's log, from the pilot that has it; raises LinkLost, CallFailed."""
        for job_id, report in self.reports.items():
            if any(replica.replica_id == replica_id for replica in report.replicas):
                return str(await self.call(job_id, "log", {"replica_id": replica_id, "lines": lines}))
        raise CallFailed(f"no pilot that is connected knows {replica_id}")

    def is_up(self, job_id: str) -> bool:
        return job_id in self._links

    def in_flight(self, replica_id: str) -> int:
        """Requests of this gateway at a replica now."""
        return sum(routes[replica_id].in_flight for routes in self._routes.values() if replica_id in routes)

    def count_replicas(self) -> None:
        """Bring the gauge of replicas up to date; for whoever is about to show it."""
        metrics.REPLICAS.clear()
        for report in self.reports.values():
            for replica in report.replicas:
                if (row := self._rows.get(replica.replica_id)) is not None:
                    metrics.REPLICAS.labels(row.model, row.cluster, replica.state.value).inc()

    def snapshot(self, *job_ids: str) -> dict[str, Any]:
        """Reports of these jobs, or of all whose link is up, as the controller gets them; None: the link is gone."""
        return {job_id: to_dict(self.reports.get(job_id)) for job_id in job_ids or self.reports}

    def _apply(self, link: GatewayLink, report: PilotReport) -> None:
        routes = self._routes.setdefault(report.job_id, {})
        reported = {replica.replica_id: replica for replica in report.replicas}
        for replica_id in [known for known in routes if known not in reported]:
            self.room.table.remove(routes.pop(replica_id))
        for replica in report.replicas:
            row = self._rows.get(replica.replica_id)
            if row is not None and row.job_id == report.job_id:
                self._apply_one(link, report, replica, row)
        self.on_change(report.job_id)
        for model in {route.model for route in routes.values()}:
            self.room.pump(model)

    def _apply_one(self, link: GatewayLink, report: PilotReport, replica: ReplicaReport, row: ReplicaRow) -> None:
        routes = self._routes[report.job_id]
        route = routes.get(replica.replica_id)
        if replica.state.is_final:
            if route is not None:
                self.room.table.remove(routes.pop(replica.replica_id))
            return
        if route is None:
            route = Route(row.id, row.model, row.cluster, link, row.model, row.max_in_flight)
            routes[row.id] = route
            self.room.table.add(route)
        if route.state is not ReplicaState.DRAINING:
            route.state = replica.state
        route.upstream = link
        route.capabilities = frozenset(replica.capabilities)
        route.context_length = replica.context_length
        route.ends_at = report.ends_at
        route.burden = burden(route.max_in_flight, replica.others, replica.waiting or 0, replica.cache_use or 0.0)
        route.tell_origin(replica.engine_version, replica.revision)
        self.room.table.pools[route.model].changed(route)

    async def _read_rows(self, job_id: str) -> None:
        async with self.db.read() as conn:
            for row in await replicas_of(conn, job_id):
                self._rows[row.id] = row

    def _read_soon(self, job_id: str) -> None:
        """Look up the replicas of a job: one look at a time, however often its pilot reports what nobody knows."""
        self._unread.add(job_id)
        if job_id not in self._reading:
            self._reading[job_id] = asyncio.ensure_future(self._read_rows_and_apply(job_id))

    async def _read_rows_and_apply(self, job_id: str) -> None:
        try:
            while job_id in self._unread:
                self._unread.discard(job_id)
                await self._read_rows(job_id)
                link, report = self._links.get(job_id), self.reports.get(job_id)
                if link is not None and report is not None:
                    self._apply(link, report)
        except StoreUnavailable:
            logger.warning("replicas of a job cannot be read now", extra={"action": "read_replicas", "job_id": job_id})
        finally:
            del self._reading[job_id]


async def _keep_fresh(ca: PrivateCa, context: ssl.SSLContext) -> None:
    """Renew the gateway's certificate in time; returns only when cancelled."""
    while True:
        await asyncio.sleep(REFRESH_S)
        ca.refresh(context)
