"""The controller process without its clusters' carriers: puts the loops together, listens to the gateway, tells it, and
loads the usage that the gateway noted into the ledger."""

from __future__ import annotations

import asyncio
import functools
import logging
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from firstkit.accounting.ledger import Loader
from firstkit.clock import monotonic, now
from firstkit.config import Config, ResolvedDeployment
from firstkit.locks import hold
from firstkit.process import links_of
from firstkit.reconciler.autoscale import Need
from firstkit.reconciler.books import Books
from firstkit.reconciler.calls import Calls
from firstkit.reconciler.loop import Cluster, ClusterLoop
from firstkit.reconciler.placement import Place, Share, allocate, warm_elsewhere
from firstkit.reconciler.standing import policy_of
from firstkit.reconciler.telling import Teller
from firstkit.reconciler.world import World
from firstkit.store.database import Database
from firstkit.store.wake import WakeClient

logger = logging.getLogger("firstkit.controller")


class Controller:
    """One controller process from start to end. ``cluster_of(name)`` gives the scheduler of a cluster."""

    def __init__(
        self,
        config: Config,
        cluster_of: Callable[[str], Cluster],
        *,
        clock: Callable[[], float] = monotonic,
        now: Callable[[], datetime] = now,
    ) -> None:
        self.config = config
        self._now = now
        self._cluster_of = cluster_of
        self._deployments = config.deployments()
        self._by_model: dict[str, list[ResolvedDeployment]] = {model: [] for model in config.models}
        for deployment in self._deployments:
            self._by_model[deployment.model].append(deployment)
        policies = {model: [policy_of(one) for one in ours] for model, ours in self._by_model.items()}
        self.world = World(policies, clock)
        self.loops: dict[str, ClusterLoop] = {}
        self._known: dict[str, tuple[tuple[list[Place], list[Need]], dict[str, Share]]] = {}
        self._wake = WakeClient(
            config.server.path("controller.sock"), self._on_message, self._on_gateway, self._on_gateway_lost
        )
        self._calls = Calls(self._wake.send)
        self.teller = Teller(self._by_model, self.loops, self._wake.send, self.world.clock)

    async def run(self) -> None:
        """Reconcile until SIGTERM or SIGINT. Jobs, pilots and engines are left as they are."""
        state_dir = self.config.server.state_dir
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        hold(self.config.server.path("controller.lock"), "a controller")
        db = await Database.open(self.config.server.database_url)
        ending = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ending.set)
        self._make_loops(lambda name: Books(db, name, self._now))
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
        self.teller.close()
        await self._wake.close()
        await loader.last()
        await db.close()

    def _make_loops(self, books_of: Callable[[str], Books]) -> None:
        for name, cluster in self.config.clusters.items():
            if cluster.kind == "external":
                continue
            self.loops[name] = ClusterLoop(
                name,
                [deployment for deployment in self._deployments if deployment.cluster == name],
                self._cluster_of(name),
                books_of(name),
                self.world,
                self._calls,
                link=links_of(self.config, name),
                orphan_timeout_s=self.config.server.orphan_timeout,
                shares=self.shares,
                elsewhere=self._elsewhere,
                section=cluster,
                on_pass=functools.partial(self._on_pass, name),
                now=self._now,
            )

    # -- demand and policy -------------------------------------------------------------------------------------

    def shares(self, cluster: str) -> dict[str, Share]:
        """What each deployment of one cluster should have, each model looked at as a whole."""
        found: dict[str, Share] = {}
        for ours in self._by_model.values():
            if any(deployment.cluster == cluster for deployment in ours):
                found |= self._shares_of(ours)
        return found

    def _shares_of(self, ours: list[ResolvedDeployment]) -> dict[str, Share]:
        places = [self._place(deployment) for deployment in ours]
        if None not in places:
            return self._allocated(ours[0].model, [place for place in places if place is not None])
        # A cluster has not been looked at: what is asked for may run there. What is seen stays, and no more.
        seen = [replace(place, kept=place.alive) for place in places if place is not None]
        shares = allocate(seen, ())
        return {place.name: replace(shares[place.name], stand_in=place.leaving) for place in seen}

    def _allocated(self, model: str, places: list[Place]) -> dict[str, Share]:
        """The shares of a model. The loops of all its clusters ask in turn, mostly while nothing has changed."""
        asked = (places, self.world.needs(model))
        known = self._known.get(model)
        if known is None or known[0] != asked:
            known = self._known[model] = (asked, allocate(*asked))
        return known[1]

    def _elsewhere(self, cluster: str) -> dict[str, float]:
        """By deployment of a cluster, how long a start of the same model takes where it would take least."""
        found: dict[str, float] = {}
        for deployment in self.loops[cluster].deployments.values():
            warm_s = warm_elsewhere(cluster, map(self._place, self._by_model[deployment.model]))
            if warm_s is not None:
                found[deployment.name] = warm_s
        return found

    def _place(self, deployment: ResolvedDeployment) -> Place | None:
        """How a deployment stands; None before anybody looked."""
        if not deployment.is_external:
            return self.loops[deployment.cluster].places.get(deployment.name)
        scale = deployment.scale
        policy = replace(policy_of(deployment), hot=0, most=0)
        return Place(deployment.name, deployment.cluster, policy, served=scale.max_in_flight, obstacle="not ours")

    def _on_pass(self, cluster: str, is_news: bool) -> None:
        """Tell what came of a pass, and let clusters that have the same models look at it."""
        self.teller.soon()
        if is_news:
            ours = {one.model for one in self.loops[cluster].deployments.values()}
            self._wake_for(ours, but=cluster)

    # -- the gateway -------------------------------------------------------------------------------------------

    def _on_gateway(self) -> None:
        self.world.gateway_came()
        self.teller.everything()
        self._wake_all()

    def _on_gateway_lost(self) -> None:
        self.world.gateway_went()
        self._calls.gateway_went()

    def _on_message(self, message: Mapping[str, Any]) -> None:
        kind = message.get("kind")
        if kind == "demand":
            self.world.hear_demand(message["models"])
            self._wake_for(set(message["models"]))
        elif kind == "pilots":
            if self.world.hear_pilots(message):
                self._wake_of(set(message["pilots"]))
        elif kind == "clusters":
            for loop in self.loops.values():
                loop.books.forget()
            self._wake_all()
        elif kind == "reply":
            self._calls.hear(message)

    def _wake_all(self) -> None:
        for loop in self.loops.values():
            loop.wake()

    def _wake_for(self, models: set[str], but: str = "") -> None:
        """Wake the clusters on which any of these models may run."""
        for name in {one.cluster for model in models for one in self._by_model.get(model, ())} - {but}:
            if name in self.loops:
                self.loops[name].wake()

    def _wake_of(self, jobs: set[str]) -> None:
        """Wake the clusters of these jobs; all, when one is of nobody."""
        living = self.world.living
        strange = jobs.difference(*living.values())
        for name, loop in self.loops.items():
            if strange or not jobs.isdisjoint(living.get(name, ())):
                loop.wake()
