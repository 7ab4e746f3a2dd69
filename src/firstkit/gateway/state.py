"""Everything that one gateway process holds, put together once."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from firstkit.auth.authenticator import Authenticator, Identity
from firstkit.config import Config, ResolvedDeployment
from firstkit.engines.http import EngineClient
from firstkit.engines.registry import engine_of, external_target
from firstkit.errors import InvalidRequest, ModelNotFound
from firstkit.gateway.call import APIS, Api
from firstkit.gateway.forecast import Forecasts
from firstkit.gateway.pilots import Pilots
from firstkit.gateway.relay import Relay
from firstkit.gateway.request import RequestHead, identify
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
    _capabilities: dict[str, frozenset[str]] = field(init=False)

    def __post_init__(self) -> None:
        self._capabilities = _capabilities(self.config)

    def canonical(self, name: str) -> str:
        """The canonical name of a model; raises ModelNotFound, also for models that the caller may not see."""
        model = self.table.aliases.get(name)
        if model is None:
            raise ModelNotFound(f"The model '{name[:200]}' does not exist or you do not have access to it.")
        return model

    def capabilities(self, model: str) -> frozenset[str]:
        """What a model can answer on any of its deployments."""
        return self._capabilities[model]

    def check_capability(self, model: str, api: Api) -> None:
        """Raise InvalidRequest, naming what it does serve, unless ``model`` serves ``api``."""
        can = self._capabilities[model]
        if api.capability not in can:
            other = ", ".join(sorted(other.path for other in APIS.values() if other.capability in can)) or "none"
            raise InvalidRequest(
                f"The model '{model}' does not serve {api.path}; it serves: {other}.",
                param="model",
                code="unsupported_endpoint",
            )

    def context_length(self, model: str) -> int | None:
        """Longest context of a ready replica; None where none is known."""
        return max((route.context_length or 0 for route in self.table.pools[model].ready), default=0) or None

    async def identify(self, head: RequestHead) -> Identity:
        return await identify(head, self.authenticator)


def names(config: Config) -> dict[str, str]:
    """Every name that clients may use -> the canonical name of the model."""
    return {name: model for model, entry in config.models.items() for name in (model, *entry.aliases)}


def _capabilities(config: Config) -> dict[str, frozenset[str]]:
    """By model: read once, since taking all deployments apart takes longer than a request may."""
    can: dict[str, frozenset[str]] = {}
    for deployment in config.deployments():
        known = engine_of(deployment.engine.kind).capabilities(deployment.replica_spec(""))
        can[deployment.model] = can.get(deployment.model, frozenset()) | known
    return can


def external_route(deployment: ResolvedDeployment) -> Route:
    """The one, always ready route to a service that somebody else runs."""
    spec = deployment.replica_spec(f"external-{deployment.name}")
    return Route(
        replica_id=spec.replica_id,
        model=deployment.model,
        cluster=deployment.cluster,
        upstream=EngineClient(external_target(deployment.engine)),
        served_name=deployment.engine.model or deployment.model,
        max_in_flight=deployment.scale.max_in_flight,
        state=ReplicaState.READY,
        capabilities=engine_of(deployment.engine.kind).capabilities(spec),
    )
