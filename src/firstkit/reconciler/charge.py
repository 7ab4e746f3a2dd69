"""Whom the scheduler of a cluster charges for our jobs."""

from __future__ import annotations

import os
import pwd

from firstkit.config.clusters import Cluster, SshCarrier
from firstkit.store.jobs import Charge


def charge_of(cluster: Cluster) -> Charge:
    """The account of jobs that name none, and the user that submits: the one at the login node, or whoever runs us."""
    carrier = cluster.carrier
    submit_as = carrier.user if isinstance(carrier, SshCarrier) else user_name()
    return Charge(getattr(cluster.scheduler, "account", None), submit_as)


def user_name() -> str:
    """Under whose name this process runs, as the system says, not the environment; a number where it has no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
