"""The controller process without its clusters' carriers: puts the loops together, listens to the gateway, tells it, and
loads the usage that the gateway noted into the ledger."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Mapping
from typing import Any

from firstkit.accounting.ledger import Loader
from firstkit.config import Config, ResolvedDeployment
from firstkit.links.messages import LinkSpec
from firstkit.locks import hold
from firstkit.process import private_ca
from firstkit.reconciler.autoscale import Policy, wanted
from firstkit.reconciler.books import Books
from firstkit.reconciler.calls import Calls
from firstkit.reconciler.forecast import Outlook, best
from firstkit.reconciler.loop import Cluster, ClusterLoop
from firstkit.reconciler.world import World
from firstkit.states import ModelStatus
from firstkit.store.database import Database
from firstkit.store.wake import WakeClient

logger = logging.getLogger("firstkit.controller")


class Controller:
    """One controller process from start to end. ``cluster_of(name)`` gives the scheduler of a cluster."""

    def __init__(self, config: Config, cluster_of: Callable[[str], Cluster]) -> None:
        self.config = config
        self._cluster_of = cluster_of
        self._deployments = config.deployments()
        self._by_model: dict[str, list[ResolvedDeployment]] = {model: [] for model in config.models}
        for deployment in self._deployments:
            self._by_model[deployment.model].append(deployment)
        longest = max((deployment.scale.idle_timeout for deployment in self._deployments), default=0.0)
        self.world = World(config.models, longest)
        self.loops: dict[str, ClusterLoop] = {}
        self._wake = WakeClient(
            config.server.path("controller.sock"), self._on_message, self._on_gateway, self._on_gateway_lost
        )
        self._calls = Calls(self._wake.send)

    async def run(self) -> None:
        """Reconcile until SIGTERM or SIGINT. Jobs, pilots and engines are left as they are."""
        state_dir = self.config.server.state_dir
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        hold(self.config.server.path("controller.lock"), "a controller")
        db = await Database.open(self.config.server.database_url)
        ending = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ending.set)
        self._make_loops(db)
        await self._wake.start()
        loader = Loader(self.config.server.path("spool"), db)
        running = [asyncio.ensure_future(loop.run()) for loop in self.loops.values()]
        running.append(asyncio.ensure_future(loader.run()))
        logger.info("reconciling %d clusters", len(self.loops), extra={"action": "start"})
        await ending.wait()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for loop in self.loops.values():
            await loop.close()
        await self._wake.close()
        await loader.last()
        await db.close()

    def _make_loops(self, db: Database) -> None:
        for name, cluster in self.config.clusters.items():
            if cluster.kind == "external":
                continue
            self.loops[name] = ClusterLoop(
                name,
                [deployment for deployment in self._deployments if deployment.cluster == name],
                self._cluster_of(name),
                Books(db, name),
                self.world,
                self._calls,
                link=self._link(cluster.link.kind),
                orphan_timeout_s=self.config.server.orphan_timeout,
                wanted=self._wanted,
                on_pass=self._tell_forecast,
            )

    def _link(self, kind: str) -> LinkSpec:
        server = self.config.server
        if kind == "socket":
            return LinkSpec("socket", str(server.path("pilots.sock")))
        ca = private_ca(server.state_dir)
        return LinkSpec("tunnel", addresses=server.pilot_addresses, ca_pem=ca.certificate_pem)

    # -- demand and policy -------------------------------------------------------------------------------------

    def _wanted(self, cluster: str) -> dict[str, int]:
        """Replicas by deployment of one cluster, each model looked at as a whole."""
        counts: dict[str, int] = {}
        for model, ours in self._by_model.items():
            if not any(deployment.cluster == cluster for deployment in ours):
                continue
            elsewhere = sum(deployment.scale.max_in_flight for deployment in ours if deployment.is_external)
            managed = [deployment for deployment in ours if not deployment.is_external]
            policies = [self._policy(deployment) for deployment in managed]
            found = wanted(policies, self.world.history(model), self.world.clock(), elsewhere)
            pairs = zip(managed, found, strict=True)
            counts |= {deployment.name: count for deployment, count in pairs if deployment.cluster == cluster}
        return counts

    def _policy(self, deployment: ResolvedDeployment) -> Policy:
        scale, loop = deployment.scale, self.loops[deployment.cluster]
        most = scale.max
        if deployment.name in loop.blocked:  # what it has may stay, what it lacks is for other clusters to start
            most = max(scale.hot, loop.alive[deployment.name])
        return Policy(scale.hot, most, scale.max_in_flight, scale.idle_timeout)

    # -- the gateway -------------------------------------------------------------------------------------------

    def _on_gateway(self) -> None:
        self.world.gateway_came()
        self._tell_forecast()
        self._wake_all()

    def _on_gateway_lost(self) -> None:
        self.world.gateway_went()
        self._calls.gateway_went()

    def _on_message(self, message: Mapping[str, Any]) -> None:
        kind = message.get("kind")
        if kind == "demand":
            self.world.hear_demand(message["models"])
            self._wake_all()
        elif kind == "pilots":
            if self.world.hear_pilots(message):
                self._wake_all()
        elif kind == "reply":
            self._calls.hear(message)

    def _wake_all(self) -> None:
        for loop in self.loops.values():
            loop.wake()

    def _tell_forecast(self) -> None:
        """Tell the gateway what is to be expected of each model, on each cluster and in all."""
        models = {model: self._forecast(model) for model in self._by_model}
        self._wake.send({"kind": "forecast", "models": models})

    def _forecast(self, model: str) -> dict[str, Any]:
        outlooks, errors = {}, []
        for deployment in self._by_model[model]:
            if deployment.is_external:
                outlooks[deployment.cluster] = Outlook(ModelStatus.LIVE, 0.0)
                continue
            loop = self.loops[deployment.cluster]
            outlooks[deployment.cluster] = loop.outlooks.get(deployment.name, Outlook())
            error_s = loop.forecast_error_s(deployment.name)
            errors += [] if error_s is None else [error_s]
        return {
            **_said(best(outlooks.values())),
            "clusters": {cluster: _said(outlook) for cluster, outlook in outlooks.items()},
            "forecast_error_s": max(errors, default=None),
        }


def _said(outlook: Outlook) -> dict[str, Any]:
    return {"status": outlook.status.value, "eta_s": outlook.eta_s, "reason": outlook.reason}
