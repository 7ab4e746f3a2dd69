"""How gateway and controller begin: one option, logs, a loop, and a fault of the configuration as a sentence."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from firstkit import logs
from firstkit.config import Config, load_config
from firstkit.errors import ConfigError
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
