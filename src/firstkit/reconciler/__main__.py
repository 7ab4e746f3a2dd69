"""``python -m firstkit.reconciler --config FILE``: one controller process."""

from __future__ import annotations

import sys

from firstkit.clusters.carrier import cluster_client
from firstkit.config import Config
from firstkit.process import main
from firstkit.reconciler.controller import Controller


async def _run(config: Config) -> None:
    await Controller(config, lambda name: cluster_client(config, name)).run()


if __name__ == "__main__":
    sys.exit(main("firstkit.reconciler", _run))
