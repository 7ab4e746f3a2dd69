"""The gateway process: puts the parts together, opens the doors, closes them in order."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from firstkit import metrics
from firstkit.accounting.budgets import Budgets
from firstkit.accounting.ledger import Loader, TurnOver
from firstkit.accounting.limits import Limits
from firstkit.accounting.spool import Spool
from firstkit.auth.authenticator import Authenticator
from firstkit.auth.authorities import authorities
from firstkit.auth.people import People
from firstkit.clock import monotonic, now
from firstkit.config import Config
from firstkit.errors import CallFailed, ConfigError, FirstError, StoreUnavailable
from firstkit.gateway import fair_share
from firstkit.gateway.app import build_app
from firstkit.gateway.descriptors import most_connections, raise_limit
from firstkit.gateway.forecast import Forecasts
from firstkit.gateway.guard import Guard
from firstkit.gateway.hot import HotRoutes
from firstkit.gateway.http import Door, Protocol
from firstkit.gateway.identity import Identify, local_admin
from firstkit.gateway.pilots import Pilots
from firstkit.gateway.relay import Relay
from firstkit.gateway.state import Gateway, external_route, names
from firstkit.gateway.stored import StoredResponses
from firstkit.gateway.waiting import WaitingRoom
from firstkit.heap import bound_heap
from firstkit.locks import hold
from firstkit.process import private_ca
from firstkit.routing.table import RoutingTable
from firstkit.store.database import Database
from firstkit.store.wake import WakeServer

logger = logging.getLogger("firstkit.gateway")
GRACE_S = 30
LAG_EVERY_S = 0.1
DEMAND_EVERY_S = 1.0
ACCEPTED_PER_TURN = 16
"""Connections that are accepted in one turn of the loop: libuv takes one from each descriptor that listens, and with a
thousand streams a turn may last 50 ms."""
COLLECT_EVERY = 20_000
"""Objects made and not freed until the collector looks for circles among them."""


class Server(uvicorn.Server):
    """uvicorn with a slower pulse, in which overdue connections end, and without signal handlers: the process has two
    of it and one handler."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Finish what is open within the grace, then end."""
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        """uvicorn's own wakes ten times a second; what is to do then, as renewing the Date header, is due once."""
        while not await self.on_tick(0):
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                cast(Protocol, connection).look(now)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Within the grace as uvicorn does it; what is open then is told why it ends."""
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            cast(Protocol, connection).end_now()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Process:
    """One gateway process from start to end."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._demand_changed = asyncio.Event()
        self._calls: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then finish what is open within a grace."""
        state_dir = self.config.server.state_dir
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        hold(self.config.server.path("gateway.lock"), "a gateway")
        server = self.config.server
        listener = _listen("server.listen", server.listen)
        tunnel = None if server.pilot_listen is None else _listen("server.pilot_listen", server.pilot_listen)
        db = await Database.open(self.config.server.database_url)
        spool = await asyncio.to_thread(Spool, server.path("spool"))
        if lost := spool.close_lost():
            logger.warning("closed %d requests as lost", lost, extra={"action": "recover"})
        turn_over = TurnOver(spool)
        gateway = self._assemble(db, turn_over)
        with contextlib.suppress(StoreUnavailable):  # then nothing is known to be drained, and no key is known either
            await gateway.people.prepare()
            await gateway.closures.refresh(db)
        await gateway.budgets.prepare()
        await gateway.wake.start()
        await gateway.pilots.listen(self.config.server.path("pilots.sock"))
        chores = (
            turn_over.run(),
            gateway.budgets.run(),
            gateway.audit.run(),
            _measure_lag(),
            self._tell_demand(),
            gateway.closures.run(db),
            gateway.stored.sweep(),
            fair_share.learn(gateway.room, db, self.config, gateway.started_at),
        )
        background = [asyncio.ensure_future(chore) for chore in chores]
        if tunnel is not None:
            background.append(asyncio.ensure_future(gateway.pilots.listen_tls(tunnel, private_ca(server.state_dir))))
        direct = [name for name, cluster in self.config.clusters.items() if cluster.link.kind == "direct"]
        if direct:
            background.append(asyncio.ensure_future(gateway.pilots.dial(direct, private_ca(server.state_dir))))
        try:
            await self._serve(gateway, listener)
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await gateway.pilots.close()
            await gateway.wake.close()
            for authority in gateway.authenticator.authorities.values():
                await authority.close()
            await gateway.audit.write()
            await _load_all(spool, db)
            await db.close()

    def _assemble(self, db: Database, turn_over: TurnOver) -> Gateway:
        """Raises ConfigError for what an identity provider needs and is not there."""
        people = People(db, self.config)
        table = RoutingTable(names(self.config))
        forecasts = Forecasts(table)
        server, half_life_s = self.config.server, self.config.accounting.half_life
        room = WaitingRoom(table, server.max_waiting, self._on_demand, server.max_waiting_per_user, half_life_s)
        pilots = Pilots(db, room, self._tell_pilot)
        for deployment in self.config.deployments():
            if deployment.is_external:
                table.add(external_route(deployment))
        self.gateway = Gateway(
            config=self.config,
            db=db,
            authenticator=Authenticator(db, people, authorities(self.config)),
            table=table,
            room=room,
            forecasts=forecasts,
            pilots=pilots,
            relay=Relay(room, forecasts, turn_over.spool, StoredResponses(db, self.config.server.keep_responses)),
            wake=WakeServer(self.config.server.path("controller.sock"), self._on_message, self._on_controller),
            started_at=now(),
            people=people,
            budgets=Budgets(self.config, db, turn_over),
        )
        return self.gateway

    async def _serve(self, gateway: Gateway, listener: socket.socket) -> None:
        app = build_app(gateway)
        limits = Limits(self.config.limits, {name: model.limits for name, model in self.config.models.items()})
        has_external = any(deployment.is_external for deployment in self.config.deployments())
        most = most_connections(raise_limit(), has_external)
        identified = Identify(app, gateway.identify, limits, gateway.denied)
        public = _uvicorn(Guard(identified), Door(HotRoutes(gateway, limits), most))
        admin = _uvicorn(Guard(Identify(app, local_admin)), Door())
        loop = asyncio.get_running_loop()

        def stop() -> None:
            public.stop()
            admin.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        _settle_memory()
        logger.info("listening on %s", self.config.server.listen, extra={"action": "listen"})
        admin_listener = _listen_unix(str(self.config.server.path("admin.sock")))
        try:
            await asyncio.gather(public.serve(many_times(listener)), admin.serve([admin_listener]))
        finally:
            await app.state.logins.close()

    # -- the controller's end ----------------------------------------------------------------------------------

    def _on_controller(self) -> None:
        self.gateway.wake.send({"kind": "pilots", "all": True, "pilots": self.gateway.pilots.snapshot()})
        self._send_demand()

    def _tell_pilot(self, job_id: str) -> None:
        self.gateway.wake.send({"kind": "pilots", "pilots": self.gateway.pilots.snapshot(job_id)})

    def _on_demand(self, urgent: bool) -> None:
        if urgent:
            self._send_demand()
        else:
            self._demand_changed.set()

    def _send_demand(self) -> None:
        self.gateway.wake.send({"kind": "demand", "models": self.gateway.room.demand()})

    async def _tell_demand(self) -> None:
        while True:
            await self._demand_changed.wait()
            self._demand_changed.clear()
            self._send_demand()
            await asyncio.sleep(DEMAND_EVERY_S)

    def _on_message(self, message: dict[str, Any]) -> None:
        if message.get("kind") == "forecast":
            self.gateway.forecasts.hear(message["models"], message.get("clusters", {}))
            for model, data in message["models"].items():
                if data.get("forecast_error_s") is not None:
                    metrics.FORECAST_ERROR.labels(model).set(data["forecast_error_s"])
        elif message.get("kind") == "call":
            task = asyncio.ensure_future(self._call(message))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    async def _call(self, message: dict[str, Any]) -> None:
        reply: dict[str, Any] = {"kind": "reply", "id": message["id"]}
        try:
            result = await self.gateway.pilots.call(message["job_id"], message["verb"], message.get("args", {}))
        except FirstError as exc:
            reply |= {"error": exc.message, "refused": isinstance(exc, CallFailed)}
        else:
            reply["result"] = result
        self.gateway.wake.send(reply)


def _uvicorn(app: ASGIApp, door: Door) -> Server:
    return Server(
        uvicorn.Config(
            app,
            http=functools.partial(Protocol, door=door),  # type: ignore[arg-type]  # uvicorn calls it, as it would a class
            loop="none",
            lifespan="off",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            log_config=None,
            ws="none",
            timeout_graceful_shutdown=GRACE_S,
            backlog=4096,
        )
    )


def _listen(key: str, address: str) -> socket.socket:
    """A public socket, bound before anything else so that a taken port is the first thing that is said."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, int(port)))
    except OSError as exc:
        listener.close()
        raise ConfigError(f"{key}: '{address}' cannot be bound: {exc.strerror}") from exc
    listener.listen(4096)
    listener.setblocking(False)
    return listener


def many_times(listener: socket.socket) -> list[socket.socket]:
    """The same listening socket by ACCEPTED_PER_TURN descriptors."""
    return [listener, *(listener.dup() for _ in range(ACCEPTED_PER_TURN - 1))]


def _listen_unix(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.setblocking(False)
    return listener


def _settle_memory() -> None:
    """What is there now stays: the collector need not look through it again and again, at milliseconds a time, and it
    looks less often at what comes, which is nearly all freed by counting."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY, 20, 50)
    bound_heap()


async def _measure_lag() -> None:
    """Observe how late timers run: what a blocked loop costs everybody."""
    while True:
        due = monotonic() + LAG_EVERY_S
        await asyncio.sleep(LAG_EVERY_S)
        metrics.LOOP_LAG.observe(max(0.0, monotonic() - due))


async def _load_all(spool: Spool, db: Database) -> None:
    """Leave nothing in the spool, whatever the controller does; where that cannot be, the next start does it."""
    loader = Loader(spool.folder, db)
    await loader.last()
    with contextlib.suppress(StoreUnavailable):
        spool.turn_over()
    await loader.last()
