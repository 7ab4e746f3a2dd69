"""A service that somebody else runs: nothing is started, requests go to its URL."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Optional
from urllib.parse import urlsplit

from firstkit.engines.engine import EngineSpec, Facts, Habits, Launch, Place, ReplicaSpec
from firstkit.engines.launching import ALL_CAPABILITIES, NO_METRICS
from firstkit.errors import ConfigError

if TYPE_CHECKING:
    from firstkit.engines.target import Target

HABITS = Habits(keep_s=30.0)


class External:
    """``url``: the base URL that an OpenAI client would be given, mostly ending in /v1."""

    kind = "external"
    habits = HABITS
    takes_socket = False
    metric_names = NO_METRICS
    facts_paths: tuple[str, ...] = ()

    def check(self, replica: ReplicaSpec) -> None:
        check_url(replica.engine, replica.deployment)

    def launch(self, replica: ReplicaSpec, place: Place) -> Launch:  # noqa: ARG002 - there is none
        raise ConfigError(f"{replica.deployment}: engine: a service of kind 'external' is not started by a pilot")

    def capabilities(self, replica: ReplicaSpec) -> frozenset[str]:
        return frozenset(replica.engine.capabilities) or ALL_CAPABILITIES

    def health_path(self, replica: ReplicaSpec) -> str:
        return replica.engine.health

    def read_facts(self, answers: Mapping[str, bytes]) -> Facts:  # noqa: ARG002 - it is not asked
        return Facts()


def external_target(spec: EngineSpec, environ: Optional[Mapping[str, str]] = None) -> Target:
    """Where the service is, with its key from the environment (of this process, if ``environ`` is not given).

    Raises ConfigError for a URL that leads nowhere and for a key that is not there.
    """
    check_url(spec, f"engine {spec.name or spec.kind}")
    key = None
    if spec.api_key_env:
        key = (os.environ if environ is None else environ).get(spec.api_key_env)
        if not key:
            raise ConfigError(f"api_key_env: the environment variable {spec.api_key_env} is not set")
        if not key.isascii() or not key.isprintable():
            raise ConfigError(f"api_key_env: the value of {spec.api_key_env} cannot go into a header")
    from firstkit.engines.target import Target  # and with it asyncio: 0.1 s that those who only check need not wait

    return Target(url=spec.url, key=key, habits=HABITS)


def check_url(spec: EngineSpec, where: str) -> None:
    """Raise ConfigError unless the URL is one; the error does not repeat it, it may hold a secret."""
    try:
        parts = urlsplit(spec.url or "")
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good:
        raise ConfigError(f"{where}: url: an http:// or https:// address is needed")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(f"{where}: url: no user, password, '?' or '#' is allowed; name the key by api_key_env")
