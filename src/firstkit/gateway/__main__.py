"""``python -m firstkit.gateway --config FILE``: one gateway process."""

from __future__ import annotations

import sys

from firstkit.config import Config
from firstkit.gateway.server import Process
from firstkit.process import main


async def _run(config: Config) -> None:
    await Process(config).run()


if __name__ == "__main__":
    sys.exit(main("firstkit.gateway", _run))
