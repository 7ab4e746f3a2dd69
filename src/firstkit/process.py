"""How gateway and controller begin: one option, logs, a loop, and a fault of the configuration as a sentence."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from firstkit import logs
from firstkit.config import Config, load_config
from firstkit.errors import ConfigError
from firstkit.links.messages import LinkSpec
from firstkit.locks import alone

if TYPE_CHECKING:
    from firstkit.links.private_ca import PrivateCa


def main(prog: str, run: Callable[[Config], Coroutine[Any, Any, None]]) -> int:
    """Run until told to stop; the exit status, 2 when the configuration does not let it start."""
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--config", type=Path, required=True)
    options = parser.parse_args()
    logs.configure()
    try:
        uvloop.run(run(load_config(options.config)))
    except ConfigError as error:
        print(error.message, file=sys.stderr)
        return 2
    return 0


def private_ca(state_dir: Path) -> PrivateCa:
    """The CA that pilots with a tunnel trust; whichever of the two processes comes first makes it."""
    from firstkit.links.private_ca import PrivateCa  # and with it 10 MB that only tunnels need

    with alone(state_dir / "pilots-ca.lock"):
        return PrivateCa(state_dir)


def links_of(config: Config, cluster: str) -> Callable[[str], LinkSpec]:
    """What says how gateway and pilot of a job on ``cluster`` reach each other: job id -> LinkSpec. To be called once
    for each job that is submitted: with ``direct`` links, it makes a key and a certificate."""
    server, link = config.server, config.clusters[cluster].link
    if link.kind == "socket":
        spec = LinkSpec("socket", str(server.path("pilots.sock")))
        return lambda _: spec
    ca = private_ca(server.state_dir)
    if link.kind == "tunnel":
        tunnel = LinkSpec(
            "tunnel",
            addresses=server.pilot_addresses,
            ca_pem=ca.certificate_pem,
            proxy=link.proxy,
            resume_s=link.resume,
        )
        return lambda _: tunnel
    direct = LinkSpec("direct", ca_pem=ca.certificate_pem, resume_s=link.resume)
    return lambda job_id: replace(direct, identity_pem=ca.identity_pem(job_id))
