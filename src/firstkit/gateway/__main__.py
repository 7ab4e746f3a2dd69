"""``python -m firstkit.gateway --config FILE``: one gateway process."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import uvloop

from firstkit import logs
from firstkit.config import Config, load_config
from firstkit.errors import ConfigError
from firstkit.gateway.server import Process


def main() -> int:
    """Run until told to stop; 2 when the configuration does not let it start."""
    parser = argparse.ArgumentParser(prog="firstkit.gateway")
    parser.add_argument("--config", type=Path, required=True)
    options = parser.parse_args()
    logs.configure()
    try:
        config = load_config(options.config)
        uvloop.run(_run(config))
    except ConfigError as error:
        print(error.message, file=sys.stderr)
        return 2
    return 0


async def _run(config: Config) -> None:
    await Process(config).run()


if __name__ == "__main__":
    sys.exit(main())
