"""``python -m firstkit.reconciler --config FILE``: one controller process."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import uvloop

from firstkit import logs
from firstkit.clusters.carrier import cluster_client
from firstkit.config import load_config
from firstkit.errors import ConfigError
from firstkit.reconciler.controller import Controller


def main() -> int:
    """Run until told to stop; 2 when the configuration does not let it start."""
    parser = argparse.ArgumentParser(prog="firstkit.reconciler")
    parser.add_argument("--config", type=Path, required=True)
    options = parser.parse_args()
    logs.configure()
    try:
        config = load_config(options.config)
        controller = Controller(config, lambda name: cluster_client(config, name))
        uvloop.run(controller.run())
    except ConfigError as error:
        print(error.message, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
