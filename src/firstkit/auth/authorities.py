"""The identity providers of a configuration."""

from __future__ import annotations

from firstkit.auth.authority import Authority
from firstkit.config import Config


def authorities(config: Config) -> list[Authority]:
    """Those that vouch for people who log in; what they need is imported only where they are. Raises ConfigError for
    secrets that cannot be used and libraries that are not installed."""
    found: list[Authority] = []
    if config.auth.oidc is not None:
        from firstkit.auth.oidc import OpenIdProvider

        found.append(OpenIdProvider(config.auth.oidc))
    if config.auth.globus is not None:
        from firstkit.auth.globus import Globus

        found.append(Globus(config.auth.globus, wants_groups=names_groups(config)))
    return found


def names_groups(config: Config) -> bool:
    """Whether a rule of the service is about groups."""
    roles = config.auth.roles
    clusters = [cluster.access for cluster in config.clusters.values()]
    models = [model.access for model in config.models.values()]
    named = [rule.groups for rule in (*clusters, *models) if rule is not None]
    named += [project.groups for project in config.projects.values()]
    return any((*named, roles.operators.groups, roles.auditors.groups))
