"""Which clusters, and so which models, somebody may reach; and to which of them one request may go."""

from __future__ import annotations

from firstkit.auth.permissions import Identity, may_use
from firstkit.config import Config
from firstkit.engines.registry import engine_of
from firstkit.errors import ClusterNotFound, InvalidRequest
from firstkit.gateway.apis import APIS, TASK, Api, task
from firstkit.gateway.identity import LOCAL_ADMIN
from firstkit.routing.wish import Within

_MOST_REMEMBERED = 10_000


class Reach:
    """Read from a configuration once: taking deployments apart takes longer than a request may."""

    def __init__(self, config: Config) -> None:
        self._clusters = frozenset(config.clusters)
        self._access = {name: entry.access for name, entry in config.clusters.items() if entry.access is not None}
        self._model_access = {name: entry.access for name, entry in config.models.items() if entry.access is not None}
        self._able = _able(config)
        self.apis = {**APIS, **_tasks(self._able)}
        """All inference paths, those of tasks that a deployment declares among them."""
        self.deployments = {
            model: frozenset(deployment.cluster for deployment in entry.deployments)
            for model, entry in config.models.items()
        }
        self._anywhere = {
            api.path: {model: self._narrowed(model, api, None) for model in self._able} for api in self.apis.values()
        }
        self._allowed: dict[_Who, Within] = {}
        self._hidden: dict[_Who, frozenset[str]] = {}
        self.is_open = not self._access
        """Everybody may use all clusters."""

    # -- clusters and models -----------------------------------------------------------------------------------

    def clusters_for(self, identity: Identity) -> Within:
        """The clusters that ``identity`` may use."""
        if self.is_open or identity.user_id == LOCAL_ADMIN.user_id:
            return None
        who = _who(identity)
        if who not in self._allowed:
            if len(self._allowed) >= _MOST_REMEMBERED:
                self._allowed.clear()
            denied = {name for name, access in self._access.items() if not may_use(access, identity)}
            self._allowed[who] = self._clusters - denied if denied else None
        return self._allowed[who]

    def check_cluster(self, identity: Identity, name: str) -> None:
        """Raise ClusterNotFound unless there is such a cluster and ``identity`` may use it."""
        allowed = self.clusters_for(identity)
        if name not in (self._clusters if allowed is None else allowed):
            error = ClusterNotFound(f"The cluster '{name[:100]}' does not exist or you do not have access to it.")
            error.is_denial = name in self._clusters
            raise error

    def sees(self, identity: Identity, model: str) -> bool:
        """Whether ``identity`` may use the model, by its rule, that of its key, and on some cluster."""
        if identity.models is not None and model not in identity.models:
            return False
        if self._model_access and model in self._hidden_from(identity):
            return False
        if self.is_open:
            return True
        allowed = self.clusters_for(identity)
        return allowed is None or not allowed.isdisjoint(self.deployments[model])

    def _hidden_from(self, identity: Identity) -> frozenset[str]:
        """The models that are not for ``identity``, wherever they are."""
        if identity.user_id == LOCAL_ADMIN.user_id:
            return frozenset()
        who = _who(identity)
        if who not in self._hidden:
            if len(self._hidden) >= _MOST_REMEMBERED:
                self._hidden.clear()
            denied = (name for name, access in self._model_access.items() if not may_use(access, identity))
            self._hidden[who] = frozenset(denied)
        return self._hidden[who]

    def deployed(self, identity: Identity, model: str) -> frozenset[str]:
        """The clusters with a deployment of the model that ``identity`` may use."""
        allowed = self.clusters_for(identity)
        return self.deployments[model] if allowed is None else self.deployments[model] & allowed

    def capabilities(self, model: str) -> frozenset[str]:
        """What a model answers on any of its deployments, in translation or not."""
        return frozenset(api.capability for api in self.apis.values() if api.served_by(self._able[model]))

    def serves(self, model: str, api: Api, cluster: str) -> bool:
        """Whether the deployment of a model on a cluster can answer an API."""
        return cluster in _serving(self._able[model], api)

    # -- requests ----------------------------------------------------------------------------------------------

    def within(self, identity: Identity, model: str, api: Api, pin: str | None) -> Within:
        """The clusters to which a request may go; raises InvalidRequest where none of them serves ``api``,
        ClusterNotFound where the one that it names has no deployment of the model. A model that the caller may not see
        is no matter here."""
        if pin is None and self.is_open and (within := self._anywhere[api.path][model]) is None:
            return None
        allowed = self.clusters_for(identity)
        if pin is not None:
            self.check_cluster(identity, pin)
            deployed = self.deployed(identity, model)
            if pin not in deployed:
                where = ", ".join(sorted(deployed)) or "none that you may use"
                raise ClusterNotFound(
                    f"The model '{model}' is not deployed on the cluster '{pin}'; it is on: {where}.", param="model"
                )
            allowed = frozenset((pin,))
        within = self._anywhere[api.path][model] if allowed is None else self._narrowed(model, api, allowed)
        if within is not None and not within:
            raise self._unsupported(model, api, allowed)
        return within

    def _narrowed(self, model: str, api: Api, allowed: Within) -> Within:
        """The ``allowed`` clusters with a deployment that serves ``api``; None if those are all with a deployment."""
        able = _serving(self._able[model], api)
        within = able if allowed is None else able & allowed
        return None if within == self.deployments[model] else within

    def _unsupported(self, model: str, api: Api, allowed: Within) -> InvalidRequest:
        able = self._able[model]
        others = [
            other.path
            for other in self.apis.values()
            if (clusters := _serving(able, other)) and (allowed is None or clusters & allowed)
        ]
        return InvalidRequest(
            f"The model '{model}' does not serve {api.path}; it serves: {', '.join(sorted(others)) or 'none'}.",
            param="model",
            code="unsupported_endpoint",
        )


_Who = tuple[str, frozenset[str], frozenset[str], frozenset[str]]


def _who(identity: Identity) -> _Who:
    """All that access rules ask for."""
    return identity.user_name, identity.projects, identity.groups, identity.domains


def _able(config: Config) -> dict[str, dict[str, frozenset[str]]]:
    """By model and capability: the clusters whose deployment has it."""
    able: dict[str, dict[str, frozenset[str]]] = {model: {} for model in config.models}
    for deployment in config.deployments():
        of_model = able[deployment.model]
        for capability in engine_of(deployment.engine.kind).capabilities(deployment.replica_spec("")):
            of_model[capability] = of_model.get(capability, frozenset()) | {deployment.cluster}
    return able


def _serving(able: dict[str, frozenset[str]], api: Api) -> frozenset[str]:
    """The clusters that serve ``api``, of those by capability."""
    return frozenset().union(*(clusters for capability, clusters in able.items() if api.served_by((capability,))))


def _tasks(able: dict[str, dict[str, frozenset[str]]]) -> dict[str, Api]:
    found = {capability for of_model in able.values() for capability in of_model if capability.startswith(TASK)}
    return {api.path: api for api in map(task, sorted(found))}
