"""Any OpenAI-compatible program as an engine: the operator says how it is started."""

from __future__ import annotations

from collections.abc import Mapping

from firstkit.engines.engine import EngineSpec, Facts, Habits, Launch, Place, ReplicaSpec
from firstkit.engines.launching import ALL_CAPABILITIES, NO_METRICS, launch_of, weights_of
from firstkit.errors import ConfigError

KEY_VARIABLE = "FIRST_ENGINE_KEY"


class Command:
    """``argv`` with placeholders: {socket} or {port}, one of which is needed, {weights}, {model}, {replica_folder}.

    On several nodes it is started once on each, as {rank} of {ranks}, where {head_address} and {head_port} are for rank
    0 to listen and for the others to connect to. {rank} is needed then: rank 0 alone answers requests. On one node
    they are 0, 1, 127.0.0.1 and 0.

    With {port} the program listens on 127.0.0.1, where others of the node can reach it. The key that requests carry is
    in the environment variable FIRST_ENGINE_KEY then: the one secret that goes by environment, for only the operator
    knows how else this program could be told. {socket} is relative to the folder of the replica, where it is started.
    """

    kind = "command"
    habits = Habits()
    metric_names = NO_METRICS
    facts_paths: tuple[str, ...] = ()

    def __init__(self, spec: EngineSpec) -> None:
        self.takes_socket = _has("{socket}", spec)

    def check(self, replica: ReplicaSpec) -> None:
        engine = replica.engine
        if not engine.argv:
            raise ConfigError(f"{replica.deployment}: engine.argv: the program and its arguments are needed")
        if _has("{socket}", engine) == _has("{port}", engine):
            raise ConfigError(f"{replica.deployment}: engine.argv: one of {{socket}} and {{port}} is needed, not both")
        if replica.needs.nodes > 1 and not _has("{rank}", engine):
            raise ConfigError(f"{replica.deployment}: engine.argv: {{rank}} is needed on several nodes")
        if _has("{weights}", engine):
            weights_of(replica)
        if replica.args:
            raise ConfigError(
                f"{replica.deployment}: args: an engine of kind 'command' takes none; write them into its argv"
            )
        if not engine.health.startswith("/"):
            raise ConfigError(f"{replica.deployment}: engine.health: {engine.health!r} is no path such as /health")

    def launch(self, replica: ReplicaSpec, place: Place) -> Launch:
        values = {
            "{socket}": place.address.socket or "",
            "{port}": str(place.address.port or ""),
            "{weights}": replica.weights or "",
            "{model}": replica.model,
            "{replica_folder}": place.folder,
            "{rank}": str(place.rank),
            "{ranks}": str(place.ranks),
            "{head_address}": place.head.address,
            "{head_port}": str(place.head.port),
        }
        argv = [_filled(argument, values) for argument in replica.engine.argv]
        env = {} if place.key is None else {KEY_VARIABLE: place.key}
        return launch_of(replica, argv, env)

    def capabilities(self, replica: ReplicaSpec) -> frozenset[str]:
        return frozenset(replica.engine.capabilities) or ALL_CAPABILITIES

    def health_path(self, replica: ReplicaSpec) -> str:
        return replica.engine.health

    def read_facts(self, answers: Mapping[str, bytes]) -> Facts:  # noqa: ARG002 - nobody knows what it says
        return Facts()


def _has(placeholder: str, spec: EngineSpec) -> bool:
    return any(placeholder in argument for argument in spec.argv)


def _filled(argument: str, values: dict[str, str]) -> str:
    """``argument`` with its placeholders replaced, in one pass: what a value holds is never looked at."""
    parts, rest = [], argument
    while rest:
        found = [(rest.find(name), name) for name in values if name in rest]
        if not found:
            break
        at, name = min(found)
        parts += [rest[:at], values[name]]
        rest = rest[at + len(name) :]
    return "".join([*parts, rest])
