"""One YAML file, cast once: every error names the path, the value and what is allowed. No secret has a default."""

from firstkit.config.accounting import Accounting, Budget, Limits, ModelLimits, Project
from firstkit.config.auth import Access, Auth, Globus, Oidc, People, PersonalKeys
from firstkit.config.clusters import Cluster
from firstkit.config.kinds import ModelName
from firstkit.config.models import Scale
from firstkit.config.reading import load_config, parse_config
from firstkit.config.server import Server
from firstkit.config.whole import Config, ResolvedDeployment

__all__ = [
    "Access",
    "Accounting",
    "Auth",
    "Budget",
    "Cluster",
    "Config",
    "Globus",
    "Limits",
    "ModelLimits",
    "ModelName",
    "Oidc",
    "People",
    "PersonalKeys",
    "Project",
    "ResolvedDeployment",
    "Scale",
    "Server",
    "load_config",
    "parse_config",
]
