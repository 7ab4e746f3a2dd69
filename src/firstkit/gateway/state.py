"""Everything that one gateway process holds, put together once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from starlette.requests import Request

from firstkit.accounting.budgets import Budgets
from firstkit.auth.authenticator import Authenticator, Identity
from firstkit.auth.people import People
from firstkit.config import Config, ResolvedDeployment
from firstkit.engines.http import EngineClient
from firstkit.engines.registry import engine_of, external_target
from firstkit.errors import ApiError, ModelNotFound
from firstkit.gateway.audit import Audit
from firstkit.gateway.closures import Closures
from firstkit.gateway.doors import identify
from firstkit.gateway.forecast import Forecasts
from firstkit.gateway.pilots import Pilots
from firstkit.gateway.reach import Reach
from firstkit.gateway.relay import Relay
from firstkit.gateway.request import RequestHead
from firstkit.gateway.source import Sources
from firstkit.gateway.stored import StoredResponses
from firstkit.gateway.waiting import WaitingRoom
from firstkit.routing.table import Route, RoutingTable
from firstkit.states import ReplicaState
from firstkit.store.database import Database
from firstkit.store.wake import WakeServer


@dataclass(slots=True)
class Gateway:
    """The parts of a gateway. Routes reach them as ``app.state.gateway``."""

    config: Config
    db: Database
    authenticator: Authenticator
    table: RoutingTable
    room: WaitingRoom
    forecasts: Forecasts
    pilots: Pilots
    relay: Relay
    wake: WakeServer
    started_at: datetime
    people: People
    budgets: Budgets
    reach: Reach = field(init=False)
    closures: Closures = field(init=False)
    audit: Audit = field(init=False)
    sources: Sources = field(init=False)

    def __post_init__(self) -> None:
        self.audit = Audit(self.db)
        self.sources = Sources(self.config.server.trusted_proxies)
        self.reach = Reach(self.config)
        self.closures = Closures(self.config, self.room)
        self.forecasts.deployed = self.reach.deployments

    @property
    def stored(self) -> StoredResponses:
        """Answers that are kept."""
        return self.relay.stored

    def canonical(self, name: str, identity: Identity | None = None) -> str:
        """The canonical name of a model; raises ModelNotFound, also for models that ``identity`` may not see."""
        model = self.table.aliases.get(name)
        if model is None or not (identity is None or self.reach.sees(identity, model)):
            error = ModelNotFound(f"The model '{name[:200]}' does not exist or you do not have access to it.")
            error.is_denial = model is not None
            raise error
        return model

    def clusters_for(self, identity: Identity) -> frozenset[str] | None:
        """The clusters that ``identity`` may use; None: all."""
        return self.reach.clusters_for(identity)

    def visible_models(self, identity: Identity) -> list[str]:
        """The canonical names of the models that ``identity`` may see, in the order of the configuration."""
        return [model for model in self.config.models if self.reach.sees(identity, model)]

    def capabilities(self, model: str) -> frozenset[str]:
        """What a model can answer on any of its deployments."""
        return self.reach.capabilities(model)

    def context_length(self, model: str) -> int | None:
        """Longest context of a ready replica; None where none is known."""
        return max((route.context_length or 0 for route in self.table.pools[model].ready), default=0) or None

    async def identify(self, head: RequestHead) -> Identity:
        return await identify(head, self.authenticator, self.config.server.public_url)

    def denied(
        self, error: ApiError, identity: Identity | None, what: str, peer: Any, forwarded: Iterable[bytes]
    ) -> None:
        """Have a denial written to the audit log; other errors are none. ``what``: method and path; ``peer`` and
        ``forwarded`` as of ``Sources.of``."""
        if error.is_denial:
            self.audit.denied(error, identity, what, self.sources.of(peer, forwarded))


def gateway_of(request: Request) -> Gateway:
    """The gateway that a request came to."""
    gateway: Gateway = request.app.state.gateway
    return gateway


def names(config: Config) -> dict[str, str]:
    """Every name that clients may use -> the canonical name of the model."""
    return {name: model for model, entry in config.models.items() for name in (model, *entry.aliases)}


def external_route(deployment: ResolvedDeployment) -> Route:
    """The one, always ready route to a service that somebody else runs."""
    spec = deployment.replica_spec(f"external-{deployment.name}")
    route = Route(
        replica_id=spec.replica_id,
        model=deployment.model,
        cluster=deployment.cluster,
        upstream=EngineClient(external_target(deployment.engine)),
        served_name=deployment.engine.model or deployment.model,
        max_in_flight=deployment.scale.max_in_flight,
        state=ReplicaState.READY,
        capabilities=engine_of(deployment.engine.kind).capabilities(spec),
    )
    route.tell_origin(None, deployment.revision)
    return route
